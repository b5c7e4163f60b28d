from pathlib import Path

import pytest

from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, prepare
from recsys.features.splits import SplitConfig
from recsys.pipelines.compare.config import CompareConfig
from recsys.pipelines.compare.model_settings import suited_settings, training_config


def dataset_of(folder: Path, lengths: list[int], num_items: int) -> PreparedDataset:
    """Users with these many training events, over items in turn."""
    lines = ["user_id,item_id,position"]
    for user, length in enumerate(lengths):
        lines += [f"u{user},i{(user + n) % num_items},{n}" for n in range(length + 2)]
    file = folder / "log.csv"
    file.write_text("\n".join(lines) + "\n")
    return prepare(file, folder / "data", PrepareConfig(split=SplitConfig(protocol="loo")))


def test_the_rule_follows_lengths_density_and_size(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [*range(20, 120)], 40)
    suited = suited_settings(dataset)
    assert suited["model"]["max_len"] == 115  # the 95 % quantile of 20..119
    assert suited["model"]["dropout"] == 0.2
    assert suited["train"]["tokens_per_batch"] == 1024


def test_short_and_sparse_data_get_a_short_reach_and_more_dropout(tmp_path: Path) -> None:
    suited = suited_settings(dataset_of(tmp_path, [4] * 60, 30))
    assert suited["model"] == {"max_len": 10, "dropout": 0.5, "d_model": 64}


def test_long_histories_are_cut_at_two_hundred(tmp_path: Path) -> None:
    assert suited_settings(dataset_of(tmp_path, [300] * 5, 30))["model"]["max_len"] == 200


def test_every_model_gets_the_same_and_what_is_given_goes_before(circle: PreparedDataset) -> None:
    settings = {"sasrec": {"dropout": 0.1, "train": {"lr": 0.002}}, "train": {"lr": 0.003, "warmup_steps": 7}}
    config = CompareConfig(minutes=0.5, settings=settings)
    sasrec, bert4rec = (training_config(name, 3, circle, config) for name in ("sasrec", "bert4rec"))
    assert (sasrec.model["dropout"], bert4rec.model["dropout"]) == (0.1, 0.2)
    assert (sasrec.train.lr, bert4rec.train.lr) == (0.002, 0.003)
    assert sasrec.train.warmup_steps == bert4rec.train.warmup_steps == 7
    assert sasrec.train.max_seconds == bert4rec.train.max_seconds == 30
    assert sasrec.model["max_len"] == bert4rec.model["max_len"]
    assert sasrec.seed == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"minutes": 0.0}, "--minutes 0: wanted a time above 0"),
        ({"minutes": -1.0}, "--minutes -1: wanted"),
        ({"seeds": 0}, "--seeds 0: wanted"),
        ({"trials": 0}, "--trials 0: wanted"),
        ({"models": ()}, "--models: names none"),
        ({"models": ("sasrek",)}, "did you mean 'sasrec'"),
        ({"models": ("sasrec", "sasrec")}, "names one model twice"),
        ({"settings": {"bert4rc": {"dropout": 0.1}}}, "did you mean 'bert4rec'"),
        ({"models": ("sasrec",), "settings": {"bert4rec": {"dropout": 0.1}}}, "neither a compared model"),
        ({"settings": {"sasrec": 5}}, "wanted a setting of it"),
        ({"settings": {"sasrec": {"train": 5}}}, "wanted a setting of it"),
        ({"settings": {"sasrec": {"droput": 0.1}}}, "did you mean 'dropout'"),
        ({"settings": {"sasrec": {"dropout": 1.5}}}, "dropout=1.5"),
        ({"settings": {"train": {"lrr": 0.1}}}, "did you mean 'lr'"),
        ({"settings": {"sasrec": {"train": {"max_seconds": 9}}}}, "the budget is the same for all models"),
    ],
)
def test_a_comparison_of_nothing_is_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompareConfig(**keys)  # type: ignore[arg-type]  # wrong on purpose
