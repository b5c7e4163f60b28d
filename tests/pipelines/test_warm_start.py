"""A run that begins with the weights of yesterday's bundle."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from recsys.errors import BundleError, CheckpointError, ConfigError
from recsys.features.dataset import PreparedDataset
from recsys.features.preparation.append import append
from recsys.features.prepare import PrepareConfig, prepare
from recsys.models import registry
from recsys.models.bundle import Bundle, load_bundle
from recsys.models.protocols import ReadsDataset
from recsys.models.sasrec import SASRec
from recsys.models.warm_start import warm_start
from recsys.pipelines.optimization import OptimizationConfig
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.training import Stopped, train
from tests.worlds import LOO, write_log

SMALL: dict[str, Any] = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32, "max_len": 12, "dropout": 0.0}
NAMES = sorted(registry.BUILT_IN)
EPOCHS = {"sasrec": 10, "bert4rec": 40}
Row = tuple[str, str, int, str]


def walks(users: range, circle: int, day: int) -> list[Row]:
    rng = np.random.default_rng(day)
    starts = {user: int(rng.integers(circle)) for user in users}
    return [
        (f"u{user}", f"i{(starts[user] + step) % circle}", 1_000_000 * day + 1000 * user + step, "ab"[step % 2])
        for user in users
        for step in range(9)
    ]


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedDataset, PreparedDataset]:
    """A circle of 20 items; the next day five more stand in it, and a further event type is seen."""
    folder = tmp_path_factory.mktemp("days")
    first = write_log(folder / "first.csv", walks(range(120), 20, 1))
    second = write_log(
        folder / "second.csv", [(u, i, t, k.replace("b", "c")) for u, i, t, k in walks(range(120, 180), 25, 2)]
    )
    before = prepare(first, folder / "before", PrepareConfig(split=LOO))
    prepare(first, folder / "grown", PrepareConfig(split=LOO))
    return before, append(second, folder / "grown")


def config_of(dataset: PreparedDataset, name: str, epochs: int, **model: Any) -> TrainConfig:
    optimization = OptimizationConfig(
        epochs=epochs, tokens_per_batch=256, lr=1e-2, threads=1, patience=None, validate_every=epochs
    )
    return TrainConfig(data=dataset.path, model={"name": name, **SMALL, **model}, train=optimization, seed=2)


@pytest.fixture(scope="module")
def bundles(days: tuple[PreparedDataset, PreparedDataset], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {name: train(config_of(days[0], name, EPOCHS[name]), folder / name).bundle for name in NAMES}


def begun(bundle: Bundle, dataset: PreparedDataset, **model: Any) -> tuple[dict[str, torch.Tensor], int]:
    """Weights that a run of this bundle begins with, and how many items it shares."""
    torch.manual_seed(9)
    config = registry.fitted_config(bundle.name, {**SMALL, **model}, dataset)
    fresh = registry.build(bundle.name, config, dataset.num_items)
    assert isinstance(fresh, nn.Module)
    assert isinstance(fresh, ReadsDataset)
    fresh.read(dataset)
    shared = warm_start(fresh, bundle, bundle.name, config, dataset)
    return fresh.state_dict(), shared


@pytest.mark.parametrize("name", NAMES)
def test_known_rows_are_the_bundles_and_new_ones_lie_near_their_mean(
    days: tuple[PreparedDataset, PreparedDataset], bundles: dict[str, Path], name: str
) -> None:
    before, grown = days
    bundle = load_bundle(bundles[name])
    assert isinstance(bundle.model, nn.Module)
    found, shared = begun(bundle, grown)
    assert (shared, before.num_items, grown.num_items) == (20, 20, 25)
    old = bundle.model.state_dict()
    raw = [str(item) for item in before.items.decode(range(1, 21))]
    there, here = before.items.encode(raw), grown.items.encode(raw)
    rows = {"item.weight", "bias"} & set(old)
    for key in rows:
        assert torch.equal(found[key][here], old[key][there])
        assert torch.equal(found[key][0], old[key][0])
        new = found[key][21:]
        assert not torch.equal(new[0], new[1])
        assert (new - old[key][1:].mean(0)).abs().max() < 0.5 * old[key][1:].std(0).max()
    assert all(torch.equal(found[key], old[key]) for key in set(old) - rows)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("id_dropout", [0.0, 0.1])
def test_rows_of_a_table_go_by_raw_id_and_new_ones_begin_as_those_of_a_matrix(
    days: tuple[PreparedDataset, PreparedDataset], tmp_path: Path, name: str, id_dropout: float
) -> None:
    before, grown = days
    inputs = {"embedding": "table", "id_dropout": id_dropout}
    bundle = load_bundle(train(config_of(before, name, 2, inputs=inputs), tmp_path / "run").bundle)
    torch.manual_seed(9)
    config = registry.fitted_config(name, {**SMALL, "inputs": inputs}, grown)
    fresh: Any = registry.build(name, config, grown.num_items)
    fresh.read(grown)
    assert warm_start(fresh, bundle, name, config, grown) == 20
    old, found = bundle.model.item_vectors(), fresh.eval().item_vectors()
    raw = [str(item) for item in before.items.decode(range(1, 21))]
    assert torch.equal(found[grown.items.encode(raw)], old[before.items.encode(raw)])
    new, start = found[21:], old[1:].mean(0)
    if id_dropout:
        start[:16] = fresh.item.unknown
    assert not torch.equal(new[0], new[1])
    assert (new - start).abs().max() < 0.5 * old[1:].std(0).max()


@pytest.mark.parametrize("name", NAMES)
def test_a_warm_run_is_better_than_a_cold_one_after_as_few_steps_and_trains_new_rows(
    days: tuple[PreparedDataset, PreparedDataset], bundles: dict[str, Path], tmp_path: Path, name: str
) -> None:
    cold = config_of(days[1], name, 2)
    cold = replace(cold, train=replace(cold.train, tokens_per_batch=1024, lr=2e-3))  # a few small steps
    warm = replace(cold, warm_start=str(bundles[name]))
    figures = {kind: train(config, tmp_path / kind) for kind, config in (("cold", cold), ("warm", warm))}
    assert figures["warm"].validation["ndcg@10"] > figures["cold"].validation["ndcg@10"] + 0.1
    assert figures["warm"].steps == figures["cold"].steps
    record = json.loads((tmp_path / "warm" / "run.json").read_text())
    assert record["warm_start"] == {"version": load_bundle(bundles[name]).version, "shared_items": 20}
    assert "warm_start" not in json.loads((tmp_path / "cold" / "run.json").read_text())
    start, _ = begun(load_bundle(bundles[name]), days[1])
    trained = load_bundle(figures["warm"].bundle).model
    assert isinstance(trained, nn.Module)
    moved = (trained.state_dict()["item.weight"] - start["item.weight"]).abs().amax(1)
    assert float(moved[21:].min()) > 1e-3


def test_new_rows_begin_as_the_unknown_item_where_there_is_one(
    days: tuple[PreparedDataset, PreparedDataset], tmp_path: Path
) -> None:
    inputs = {"id_dropout": 0.1}
    bundle = load_bundle(train(config_of(days[0], "sasrec", 2, inputs=inputs), tmp_path / "run").bundle)
    assert isinstance(bundle.model, nn.Module)
    found, _ = begun(bundle, days[1], inputs=inputs)
    old = bundle.model.state_dict()
    spread = old["item.weight"][1:].std(0)
    off = (found["item.weight"][21:] - old["item.unknown"]).abs() / spread
    assert float(off.mean()) < 0.2
    assert torch.equal(found["item.unknown"], old["item.unknown"])


def test_weights_that_the_run_has_no_place_for_are_not_dropped_silently(
    days: tuple[PreparedDataset, PreparedDataset], tmp_path: Path
) -> None:
    bundle = load_bundle(train(config_of(days[0], "bert4rec", 1, token_type=True), tmp_path / "run").bundle)
    with pytest.raises(ConfigError, match="has token_type=True, this run token_type=False"):
        begun(bundle, days[1])
    with pytest.raises(ConfigError, match="has weights 'token_type', which this model lacks"):
        begun(replace(bundle, config={**bundle.config, "token_type": False}), days[1])


def test_the_unknown_item_of_the_bundle_may_stay_behind(
    days: tuple[PreparedDataset, PreparedDataset], tmp_path: Path
) -> None:
    bundle = load_bundle(train(config_of(days[0], "sasrec", 1, inputs={"id_dropout": 0.1}), tmp_path / "run").bundle)
    found, shared = begun(bundle, days[1])
    assert "item.unknown" not in found
    assert shared == 20


def test_an_unknown_item_may_come_with_the_warm_run(
    days: tuple[PreparedDataset, PreparedDataset], bundles: dict[str, Path]
) -> None:
    found, _ = begun(load_bundle(bundles["sasrec"]), days[1], inputs={"id_dropout": 0.1})
    assert float(found["item.unknown"].abs().max()) > 0


def test_rows_of_event_types_go_by_name(days: tuple[PreparedDataset, PreparedDataset], tmp_path: Path) -> None:
    inputs = {"event_types": True}
    bundle = load_bundle(train(config_of(days[0], "sasrec", 1, inputs=inputs), tmp_path / "run").bundle)
    assert isinstance(bundle.model, nn.Module)
    assert (days[0].event_type_names, days[1].event_type_names) == (("a", "b"), ("a", "b", "c"))
    other = {**bundle.config, "inputs": {**inputs, "event_type_names": ["b", "a"]}}
    swapped = replace(bundle, model=registry.build("sasrec", other, 20))
    for source, names in ((bundle, "ab"), (swapped, "ba")):
        assert isinstance(source.model, nn.Module)
        old = source.model.state_dict()["item.event_type.weight"]
        found = begun(source, days[1], inputs=inputs)[0]["item.event_type.weight"]
        for number, kind in enumerate("ab", start=1):
            assert torch.equal(found[number], old[names.index(kind) + 1])
        assert not torch.equal(found[3], found[1])


def test_rows_of_categories_go_by_the_items_they_share(tmp_path: Path) -> None:
    """In the second dataset the first item has a category of its own, which moves the numbers of the others."""
    log = write_log(tmp_path / "log.csv", walks(range(30), 9, 1))
    first = str(prepare(log, tmp_path / "plain", PrepareConfig(split=LOO)).items.decode([1])[0])
    sets = []
    for number in range(2):
        kinds = {f"i{i}": "abc"[i % 3] for i in range(9)} | ({first: "new"} if number else {})
        table = tmp_path / f"items{number}.csv"
        table.write_text("item_id,category\n" + "".join(f"{item},{kind}\n" for item, kind in kinds.items()))
        sets.append(prepare(log, tmp_path / f"data{number}", PrepareConfig(split=LOO, items=table)))
    inputs = {"categories": True}
    bundle = load_bundle(train(config_of(sets[0], "sasrec", 1, inputs=inputs), tmp_path / "run").bundle)
    assert isinstance(bundle.model, nn.Module)
    rows = bundle.model.state_dict()["item.category.weight"]
    found = begun(bundle, sets[1], inputs=inputs)[0]["item.category.weight"]
    before, after = sets[0].item_categories[2:], sets[1].item_categories[2:]
    assert (before != after).any()
    assert torch.equal(found[torch.from_numpy(after.astype(np.int64))], rows[torch.from_numpy(before.astype(np.int64))])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "bert4rec"}, "a bundle of sasrec, but this run trains bert4rec; name a bundle of bert4rec"),
        ({"d_model": 8}, "has d_model=16, this run d_model=8; train with model.d_model=16, or leave warm_start out"),
        ({"norm": "post"}, "has norm=pre, this run norm=post"),
        ({"max_len": 9}, "has max_len=12, this run max_len=9"),
        ({"norm_eps": 1e-12}, "has norm_eps=1e-05, this run norm_eps=1e-12"),
        ({"scale_inputs": True}, "has scale_inputs=False, this run scale_inputs=True"),
        ({"inputs": {"event_types": True}}, "has inputs.event_types=False, this run inputs.event_types=True"),
    ],
)
def test_another_architecture_is_refused_by_name(
    days: tuple[PreparedDataset, PreparedDataset],
    bundles: dict[str, Path],
    tmp_path: Path,
    model: dict[str, Any],
    message: str,
) -> None:
    config = replace(config_of(days[1], model.pop("name", "sasrec"), 1, **model), warm_start=str(bundles["sasrec"]))
    with pytest.raises(ConfigError, match=rf"warm_start=.*{message}") as caught:
        train(config, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_bundle_from_before_a_setting_existed_has_its_default(
    days: tuple[PreparedDataset, PreparedDataset], bundles: dict[str, Path]
) -> None:
    bundle = load_bundle(bundles["sasrec"])
    older = replace(bundle, config={key: value for key, value in bundle.config.items() if key != "scale_inputs"})
    assert begun(older, days[1])[1] == 20
    with pytest.raises(ConfigError, match="has scale_inputs=False, this run scale_inputs=True"):
        begun(older, days[1], scale_inputs=True)


def test_a_bundle_of_other_items_and_no_bundle_are_refused(
    circle: PreparedDataset, bundles: dict[str, Path], tmp_path: Path
) -> None:
    log = write_log(tmp_path / "log.csv", [(u, f"other {i}", t, k) for u, i, t, k in walks(range(20), 9, 1)])
    others = prepare(log, tmp_path / "data", PrepareConfig(split=LOO))
    config = replace(config_of(others, "sasrec", 1), warm_start=str(bundles["sasrec"]))
    with pytest.raises(
        ConfigError, match="none of its 20 items is among the 9 of .*; name a bundle trained on earlier"
    ):
        train(config, tmp_path / "run")
    with pytest.raises(BundleError, match="no bundle there"):
        train(replace(config_of(circle, "sasrec", 1), warm_start=str(tmp_path / "nowhere")), tmp_path / "run")


def test_a_model_that_does_not_name_its_rows_of_items_is_refused(
    days: tuple[PreparedDataset, PreparedDataset], bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(SASRec, "item_rows")
    with pytest.raises(ConfigError, match="model sasrec does not say in `item_rows` which of its tensors"):
        begun(load_bundle(bundles["sasrec"]), days[1])


def test_a_warm_run_goes_on_with_the_same_bundle_alone(
    days: tuple[PreparedDataset, PreparedDataset], bundles: dict[str, Path], tmp_path: Path
) -> None:
    warm = replace(config_of(days[1], "sasrec", 1), warm_start=str(bundles["sasrec"]))
    result = train(warm, tmp_path / "run")
    assert train(warm, tmp_path / "run").weights_sha256 == result.weights_sha256
    other = train(config_of(days[0], "sasrec", 1), tmp_path / "other").bundle
    with pytest.raises(
        CheckpointError, match="began with warm_start=[0-9a-f]{12}, now [0-9a-f]{12}; name another --out"
    ):
        train(replace(warm, warm_start=str(other)), tmp_path / "run")
    with pytest.raises(CheckpointError, match="began with warm_start=[0-9a-f]{12}, now None"):
        train(replace(warm, warm_start=None), tmp_path / "run")


def test_a_warm_run_goes_on_without_its_bundle_from_the_first_checkpoint_on(
    days: tuple[PreparedDataset, PreparedDataset], bundles: dict[str, Path], tmp_path: Path
) -> None:
    bundle = tmp_path / "champion"
    shutil.copytree(bundles["sasrec"], bundle)
    warm = replace(config_of(days[1], "sasrec", 2), warm_start=str(bundle))
    whole = train(warm, tmp_path / "whole")

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint":
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped):
        train(warm, tmp_path / "run", stop)
    shutil.rmtree(bundle)
    assert train(warm, tmp_path / "run").weights_sha256 == whole.weights_sha256
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(BundleError, match="champion"):
        train(warm, tmp_path / "run")


def test_an_adapter_is_not_taken_over_for_other_vectors(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", walks(range(30), 9, 1))
    sets = []
    for number in range(2):
        vectors = np.random.default_rng(number).normal(size=(9, 4))
        table = pl.DataFrame({"item_id": [f"i{i}" for i in range(9)], "emb": vectors.tolist()})
        table.write_parquet(tmp_path / f"items{number}.parquet")
        config = PrepareConfig(split=LOO, items=tmp_path / f"items{number}.parquet")
        sets.append(prepare(log, tmp_path / f"data{number}", config))
    first = config_of(sets[0], "sasrec", 1, inputs={"frozen_vectors": True})
    bundle = train(first, tmp_path / "run").bundle
    train(replace(first, warm_start=str(bundle)), tmp_path / "again")
    with pytest.raises(ConfigError, match="most items had other frozen vectors there"):
        train(replace(first, data=sets[1].path, warm_start=str(bundle)), tmp_path / "other")
