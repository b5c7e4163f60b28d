"""What side columns are worth: worlds in which they say what comes next, and ids alone do not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recsys.errors import CheckpointError, ConfigError, DataError
from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, prepare
from recsys.models.bundle import load_bundle
from recsys.models.ranking.ranker import History, Ranker
from recsys.models.ranking.score import scores_of
from recsys.models.registry import BUILT_IN
from recsys.pipelines.evaluation.full_ranking import rank_targets
from recsys.pipelines.optimization import OptimizationConfig
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.training import train
from tests.worlds import LOO, described_world, typed_world, write_log

SMALL: dict[str, Any] = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32, "max_len": 10, "dropout": 0.0}
# Epochs and learning rate that each world needs, and tokens of a batch: BERT4Rec learns more slowly.
TYPED = {"sasrec": (12, 1e-2), "bert4rec": (40, 5e-3)}
DESCRIBED = {"sasrec": (12, 1e-2), "bert4rec": (20, 5e-3)}
TOKENS = {"sasrec": 128, "bert4rec": 64}
MASKING: dict[str, dict[str, Any]] = {"sasrec": {}, "bert4rec": {"mask_share": 0.15, "last_item_share": 0.9}}
NAMES = sorted(BUILT_IN)


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return typed_world(tmp_path_factory.mktemp("worlds"))


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return described_world(tmp_path_factory.mktemp("worlds"))


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """The described world with users enough for every model to learn from, whatever its seed."""
    return described_world(tmp_path_factory.mktemp("worlds"), users=200)


def config_of(dataset: PreparedDataset, name: str, epochs: int, lr: float = 1e-2, **inputs: Any) -> TrainConfig:
    optimization = OptimizationConfig(
        epochs=epochs, tokens_per_batch=TOKENS[name], lr=lr, threads=1, patience=None, validate_every=epochs
    )
    model = {"name": name, **SMALL, **MASKING[name], **({"inputs": inputs} if inputs else {})}
    return TrainConfig(data=dataset.path, model=model, train=optimization, seed=2)


def ndcg(dataset: PreparedDataset, name: str, out: Path, schedule: tuple[int, float], **inputs: Any) -> float:
    return train(config_of(dataset, name, *schedule, **inputs), out).validation["ndcg@10"]


@pytest.mark.parametrize("name", NAMES)
def test_event_types_raise_ndcg_where_they_say_what_comes_next(
    typed: PreparedDataset, tmp_path: Path, name: str
) -> None:
    without = ndcg(typed, name, tmp_path / "a", TYPED[name])
    with_types = ndcg(typed, name, tmp_path / "b", TYPED[name], event_types=True)
    assert with_types > without + 0.15


@pytest.mark.parametrize("name", NAMES)
def test_categories_and_vectors_raise_ndcg_of_rare_items(crowd: PreparedDataset, tmp_path: Path, name: str) -> None:
    without = ndcg(crowd, name, tmp_path / "none", DESCRIBED[name])
    for side in ("categories", "frozen_vectors"):
        assert ndcg(crowd, name, tmp_path / side, DESCRIBED[name], **{side: True}) > without + 0.04, side


@pytest.mark.parametrize("side", ["categories", "frozen_vectors"])
def test_an_item_without_a_training_event_is_scored_by_its_content(
    described: PreparedDataset, tmp_path: Path, side: str
) -> None:
    """Of the 20 items of the next kind those never trained stand among the first, too."""
    bundle = load_bundle(train(config_of(described, "sasrec", 20, **{side: True}), tmp_path / "run").bundle)
    cold = np.flatnonzero(described.train_counts()[1:] == 0) + 1
    assert len(cold) > 3
    kind_of = np.append(
        -1, np.array([int(str(raw)[1:]) // 20 for raw in described.items.decode(range(1, 1 + described.num_items))])
    )
    places = []
    for item in cold.tolist():
        history = [int(np.flatnonzero(kind_of == (kind_of[item] - step) % 10)[0]) for step in (3, 2, 1)]
        scores = scores_of(bundle.model, JaggedBatch.from_sequences([history]))[0]
        places.append(float((scores > scores[item]).float().mean()))
    assert np.mean(places) < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_with_side_columns_ranks_without_its_dataset_as_it_did_in_training(
    described: PreparedDataset, tmp_path: Path, name: str
) -> None:
    inputs = {"event_types": True, "categories": True, "frozen_vectors": True, "id_dropout": 0.05}
    result = train(config_of(described, name, 2, **inputs), tmp_path / "run")
    bundle = load_bundle(result.bundle)
    assert bundle.config["inputs"]["event_type_names"] == ["view"]
    assert bundle.config["inputs"]["num_categories"] == 10
    assert bundle.config["inputs"]["vector_width"] == 10
    assert isinstance(bundle.model, torch.nn.Module)
    assert torch.equal(bundle.model.get_buffer("item.is_trained"), torch.from_numpy(described.train_counts() > 0))
    norms = bundle.model.get_buffer("item.vectors")[1:].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    queries = described.queries("valid")
    ranks = rank_targets(bundle.model, described, queries)
    gains = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0)
    assert float(gains.mean()) == pytest.approx(result.validation["ndcg@10"], abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_every_input_goes_on_with_the_same_bytes(
    described: PreparedDataset, tmp_path: Path, name: str
) -> None:
    inputs = {"event_types": True, "categories": True, "frozen_vectors": True, "id_dropout": 0.1}
    whole = train(config_of(described, name, 2, **inputs), tmp_path / "whole")
    train(config_of(described, name, 2, **inputs), tmp_path / "parts")
    newest = sorted((tmp_path / "parts" / "checkpoints").iterdir())[-1]
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    assert train(config_of(described, name, 2, **inputs), tmp_path / "parts").weights_sha256 == whole.weights_sha256


def test_id_dropout_teaches_what_an_unseen_item_in_the_history_means(circle: PreparedDataset, tmp_path: Path) -> None:
    """On the circle the third item follows the first by two, whatever stands between: a place, not nothing."""
    found = {}
    for share in (0.0, 0.2):
        config = config_of(circle, "sasrec", 12, id_dropout=share)
        ranker = Ranker(load_bundle(train(config, tmp_path / str(share)).bundle))
        histories = [History([f"i{start}", f"i{(start + 1) % 20}", "never seen"]) for start in range(20)]
        best = [answer.item_ids[0] for answer in ranker.recommend(histories, 1)]
        found[share] = sum(item == f"i{(start + 3) % 20}" for start, item in enumerate(best))
        assert all(answer.unknown == ["never seen"] for answer in ranker.recommend(histories, 1))
        alone = ranker.recommend([History(["never seen"])], 1)[0]
        assert alone.source == "popularity"
    assert found[0.2] >= 15
    assert found[0.0] <= 5


def test_id_dropout_leaves_a_row_in_the_weights_and_no_dropout_leaves_none(
    circle: PreparedDataset, tmp_path: Path
) -> None:
    for share in (0.0, 0.1):
        bundle = train(config_of(circle, "sasrec", 1, id_dropout=share), tmp_path / str(share)).bundle
        assert ("item.unknown" in load_file(bundle / "weights.safetensors")) == (share > 0)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"categories": True},
            r"model.inputs.categories=true: .* has no categories of items; prepare it again: --items",
        ),
        ({"frozen_vectors": True}, "model.inputs.frozen_vectors=true: .* has no vectors of items; prepare it again"),
        ({"event_types": True}, "model.inputs.event_types=true: .* has no event types; prepare a log with a column"),
        ({"id_dropout": 1.0}, r"id_dropout=1.0 must be in \[0, 1\)"),
        ({"catgories": True}, "catgories: unknown key; did you mean 'categories'"),
    ],
)
def test_what_the_dataset_lacks_is_refused_in_one_line(
    circle: PreparedDataset, tmp_path: Path, inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        train(config_of(circle, "sasrec", 1, **inputs), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_size_that_contradicts_the_dataset_is_refused(described: PreparedDataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model.inputs.vector_width=3, but .* has 10; leave it out"):
        train(config_of(described, "sasrec", 1, frozen_vectors=True, vector_width=3), tmp_path / "run")
    with pytest.raises(ConfigError, match="model.inputs.event_type_names=buy, but .* has view; leave it out"):
        train(config_of(described, "sasrec", 1, event_types=True, event_type_names=["buy"]), tmp_path / "run")


def test_a_model_of_event_types_refuses_a_dataset_that_numbers_them_otherwise(
    typed: PreparedDataset, tmp_path: Path
) -> None:
    bundle = load_bundle(train(config_of(typed, "sasrec", 1, event_types=True), tmp_path / "run").bundle)
    other = typed_world(tmp_path, types=("buy", "like", "view", "cart"))
    assert sorted(other.event_type_names) == sorted(typed.event_type_names)
    with pytest.raises(DataError, match="its event types are .*, those of the model .*; evaluate on the dataset"):
        rank_targets(bundle.model, other, other.queries("valid"))
    rank_targets(bundle.model, typed, typed.queries("valid"))


def test_a_run_goes_on_with_its_own_side_columns_alone(tmp_path: Path) -> None:
    """The same events with other categories have the same data hash."""
    rows = [
        (f"u{user}", f"i{(user + step) % 7}", 1000 * user + step, "view") for user in range(12) for step in range(6)
    ]
    log = write_log(tmp_path / "log.csv", rows)
    hashes = set()
    for number, kinds in enumerate(("aab", "abb")):
        table = tmp_path / f"items{number}.csv"
        table.write_text("item_id,category\n" + "".join(f"i{item},{kinds[item % 3]}\n" for item in range(7)))
        dataset = prepare(log, tmp_path / "data", PrepareConfig(split=LOO, items=table))
        hashes.add(dataset.data_hash)
        config = config_of(dataset, "sasrec", 1, categories=True)
        if number == 0:
            train(config, tmp_path / "run")
        else:
            with pytest.raises(CheckpointError, match="began with other side columns of the same events"):
                train(config, tmp_path / "run")
            train(config_of(dataset, "sasrec", 1), tmp_path / "plain")
    assert len(hashes) == 1


def test_a_run_of_an_older_version_goes_on(circle: PreparedDataset, tmp_path: Path) -> None:
    """Its run.json knows no inputs, no side hash and no warm start."""
    config = config_of(circle, "sasrec", 1)
    result = train(config, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    del record["config"]["model"]["inputs"], record["side_hash"], record["config"]["warm_start"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert train(config, tmp_path / "run").weights_sha256 == result.weights_sha256
