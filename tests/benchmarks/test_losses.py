import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import losses
from recsys.features.dataset import PreparedDataset
from recsys.models.losses import LossConfig


def row(loss: str, ndcg: float) -> dict[str, Any]:
    def figures(mean: float) -> dict[str, dict[str, float]]:
        return {metric: {"mean": mean, "low": mean - 0.01, "high": mean + 0.01} for metric in losses.METRICS}

    return {
        **dict(zip(losses.KEY, ("ml-1m", "sasrec", loss, 60.0, 0, "c", "d", 2, "a CPU"), strict=True)),
        "epochs": 7,
        "best_epoch": 4,
        "test": figures(ndcg),
        "difference": figures(ndcg - 0.13),
        "to_ce": figures(ndcg - 0.17),
        "set": ["model.d_model=64"],
        "floor": "ease",
        "floor_test": figures(0.13),
        "floors": "floors: tuned, 60 trials",
        "protocol": "loo/full-rank",
    }


def test_the_table_has_the_best_loss_first_and_the_floor_last() -> None:
    lines = losses.table([row("bce-256", 0.1), row("ce", 0.17)]).splitlines()
    assert lines[0].startswith(
        "**ml-1m, sasrec, model.d_model=64** (60 s of training each, seed 0, 2 threads; floors: tuned"
    )
    assert lines[4].startswith("| ce | 0.1700 [0.1600, 0.1800] | ")
    assert lines[4].endswith("|  | +0.0400 [+0.0300, +0.0500] | 7 | 5 |")
    assert lines[5].startswith("| bce-256 | 0.1000")
    assert "| -0.0700 [-0.0800, -0.0600] | -0.0300 [-0.0400, -0.0200] |" in lines[5]
    assert lines[6].startswith("| floor: ease | 0.1300 [0.1200, 0.1400] |")


def test_a_row_that_is_written_is_found_and_only_that_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "RESULTS", tmp_path)
    wanted = row("ce", 0.17)
    key = {part: wanted[part] for part in losses.KEY}
    assert losses.row_done(key) is None
    (tmp_path / "losses.jsonl").write_text("\n".join(map(json.dumps, [row("bce-256", 0.1), wanted])), encoding="utf-8")
    assert losses.row_done(key) == wanted
    for part, other in (
        ("data", "amazon-beauty"),
        ("model", "bert4rec"),
        ("max_seconds", 61.0),
        ("seed", 1),
        ("config_hash", "e"),
        ("threads", 1),
        ("cpu", "another"),
    ):
        assert losses.row_done({**key, part: other}) is None


@pytest.mark.parametrize(("set_", "threads"), [([], 1), (["train.threads=3"], 3)])
def test_a_key_names_the_threads_that_train(circle: PreparedDataset, set_: list[str], threads: int) -> None:
    options = argparse.Namespace(model="sasrec", seconds=9.0, seed=0, set=set_)
    key = losses.key_of("ml-1m", "ce", circle, options)
    assert tuple(key) == losses.KEY
    assert (key["threads"], key["data_hash"]) == (threads, circle.data_hash)
    assert key["cpu"]


def test_every_loss_of_the_table_is_one_of_the_config() -> None:
    assert {LossConfig(**settings).kind for settings in losses.LOSSES.values()} == {
        "ce",
        "sampled_softmax",
        "bce",
        "gbce",
        "mixed_logq",
    }
    assert all(LossConfig(**settings).num_negatives < 3_416 for settings in losses.LOSSES.values())
