"""The demo on a small shop and on a log of one's own; `make demo` runs it at full size."""

import json
from pathlib import Path
from typing import Any

import pytest

from recsys.cli import main

SMALL_SHOP = ["world.users=400", "world.items=300", "world.events_per_user=20"]
SHORT_TRAINING = ["train.epochs=2", "train.validate_every=1", "model.max_len=20"]


def run(capfd: pytest.CaptureFixture[str], out: Path, *options: str) -> tuple[dict[str, Any], str]:
    code = main(["--json", "demo", "--out", str(out), *options])
    stdout, stderr = capfd.readouterr()
    assert code == 0, stderr
    found: dict[str, Any] = json.loads(stdout)
    return found, stderr


def settings(*assignments: str) -> list[str]:
    return [word for assignment in assignments for word in ("--set", assignment)]


def test_the_whole_path_ends_with_a_click_that_changes_the_answer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "demo"
    found, shown = run(capfd, out, *settings(*SMALL_SHOP, *SHORT_TRAINING))
    assert list(found["metrics"]) == ["popularity", "transition-knn", "sasrec", "oracle"]
    assert found["metrics"]["oracle"] > found["metrics"]["popularity"] > 0
    assert found["protocol"].startswith("time/next/full-rank/exclude-seen")
    assert found["change"]["clicked_is_gone"]
    assert found["change"]["moved"] > 0
    for place in ("world", "data", "train/bundle", "train/curves.png", "train/evaluation.json", "journal", "mlflow.db"):
        assert (out / place).exists(), place
    for words in ("models:/sasrec@challenger", "POST /v1/feedback", "why: the click", "next:"):
        assert words in shown, words

    again, shown = run(capfd, out, *settings(*SMALL_SHOP, *SHORT_TRAINING))
    assert again["metrics"] == found["metrics"]
    assert again["change"]["clicked"] == found["change"]["clicked"]
    assert "up to date" in shown


def test_a_log_of_ones_own_takes_the_place_of_the_shop(
    tmp_path: Path, circle_csv: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    options = settings("prepare.split.protocol=loo", *SHORT_TRAINING)
    found, _ = run(capfd, tmp_path / "mine", "--source", str(circle_csv), *options)
    assert list(found["metrics"]) == ["popularity", "transition-knn", "sasrec"]
    assert found["protocol"].startswith("loo/next/")
    assert found["change"]["clicked_is_gone"]
    assert not (tmp_path / "mine" / "world").exists()
