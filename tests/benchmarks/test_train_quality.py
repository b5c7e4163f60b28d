"""The resumable target on a tiny configuration: trained, measured, written down, and skipped the next time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.support.config_hash import hash_of
from benchmarks.support.marked_part import markers
from benchmarks.support.quality_table import MARK, table
from benchmarks.train_quality import Quality, main
from recsys import config as configs
from recsys.features.dataset import PreparedDataset
from recsys.pipelines.evaluation.report import evaluate_bundle
from recsys.pipelines.run_config import TrainConfig

BEGIN, END = markers(MARK)
MODEL = {"name": "sasrec", "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32, "max_len": 12}


class Target:
    """The target on a folder of its own."""

    def __init__(self, folder: Path, circle: PreparedDataset) -> None:
        self.folder, self.page, self.circle = folder, folder / "results.md", circle
        self.page.write_text(f"# Results\n\nbefore\n{BEGIN}\nold\n{END}\nafter\n")
        self.configure()

    def configure(self, epochs: int = 2, threads: int = 1) -> None:
        train = {"epochs": epochs, "tokens_per_batch": 256, "lr": 1e-2, "threads": threads, "patience": None}
        file = self.folder / "configs" / "circle" / "sasrec.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump({"data": str(self.circle.path), "model": MODEL, "train": train}))

    def words(self) -> list[str]:
        """Of the command line, without seeds."""
        places = {"configs": "configs", "out": "runs", "results": "results", "page": "results.md"}
        options = [word for name, place in places.items() for word in (f"--{name}", str(self.folder / place))]
        return ["--only", "circle/sasrec", "circle/bert4rec", "--trials", "2", *options]

    def run(self, *words: str) -> int:
        return main([*self.words(), *words])

    def rows(self) -> list[dict[str, Any]]:
        file = self.folder / "results" / "train_quality.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


@pytest.fixture
def target(tmp_path: Path, circle: PreparedDataset) -> Target:
    copy = shutil.copytree(circle.path, tmp_path / "circle")  # tuned floors are written into it
    return Target(tmp_path, PreparedDataset.open(Path(copy)))


def test_a_run_is_trained_once_measured_and_written_down(
    target: Target, circle: PreparedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert target.run("--seeds", "4") == 0
    assert "missing: configs/circle/bert4rec.yaml; left out" in capsys.readouterr().err
    (row,) = target.rows()
    assert (row["name"], row["seed"], row["data_hash"]) == ("circle/sasrec", 4, circle.data_hash)
    assert [epoch for epoch, _ in row["curve"]] == [0, 1]
    assert row["best_epoch"] == max(row["curve"], key=lambda point: point[1])[0]
    assert row["protocol"].startswith("loo/next/full-rank/exclude-seen")
    figures = evaluate_bundle(target.folder / "runs" / row["run"], circle.path).evaluation
    assert row["test"]["ndcg@10"]["mean"] == figures.metrics["sasrec"]["ndcg@10"].mean
    assert row["difference"]["ndcg@10"]["low"] == figures.differences["sasrec"]["ndcg@10"].low
    assert row["floor"] == figures.best_floor

    page = target.page.read_text()
    assert page.startswith("# Results\n\nbefore\n")
    assert page.endswith("\nafter\n")
    assert f"{row['test']['ndcg@10']['mean']:.4f} [" in page
    assert "old" not in page

    assert target.run("--seeds", "4") == 0
    assert "finished before: skipped" in capsys.readouterr().err
    assert target.rows() == [row]

    target.configure(epochs=1)
    assert target.run("--seeds", "4") == 0
    assert len(target.rows()) == 2, "another configuration is another run"
    assert f"{target.rows()[1]['test']['ndcg@10']['mean']:.4f} [" in target.page.read_text()


def test_a_row_says_with_how_many_threads_its_run_was_trained(target: Target) -> None:
    target.configure(threads=2)
    assert target.run("--seeds", "0") == 0
    (row,) = target.rows()
    (target.folder / "results" / "train_quality.jsonl").unlink()
    target.configure(threads=1)
    assert target.run("--seeds", "0") == 0, "trained before: only ranked, with one thread"
    (again,) = target.rows()
    assert (again["run"], again["weights_sha256"]) == (row["run"], row["weights_sha256"])
    assert again["threads"] == row["threads"] == 2


def test_a_budget_that_is_spent_between_stages_leaves_the_rest(
    target: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    assert target.run("--seeds", "0", "1", "--budget-s", "0.0") == 0
    assert "the budget is spent, 2 runs are left; the same command goes on" in capsys.readouterr().err
    assert target.run("--seeds", "0", "--budget-s", "0.2") == 0
    assert "the budget is spent between two stages" in capsys.readouterr().err, "once the floors are tuned"
    assert target.rows() == []


def test_a_budget_that_is_spent_inside_a_run_saves_it_and_the_same_command_goes_on(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = target.folder / "runs"
    with monkeypatch.context() as patch:
        patch.setattr(Quality, "is_spent", property(lambda _: any(runs.glob("*/log.jsonl"))))
        assert target.run("--seeds", "0") == 0
    assert target.rows() == []
    (checkpoint,) = runs.glob("*/checkpoints/step-*")
    assert checkpoint.name < "step-00000011", "before the end of the run"
    assert target.run("--seeds", "0") == 0
    (row,) = target.rows()
    shutil.rmtree(runs)
    (target.folder / "results" / "train_quality.jsonl").unlink()
    assert target.run("--seeds", "0") == 0
    assert target.rows()[0]["weights_sha256"] == row["weights_sha256"]


def test_an_interrupt_while_floors_are_tuned_ends_in_one_line(target: Target) -> None:
    """A signal to the whole group, as Ctrl-C sends it; nothing is trained and the same command goes on."""
    command = [sys.executable, "-m", "benchmarks.train_quality", *target.words(), "--seeds", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        while "[1/1] circle/sasrec" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        told = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in told
    assert told.strip().splitlines()[-1].endswith("the same command goes on")
    assert target.rows() == []
    assert target.run("--seeds", "0") == 0
    assert len(target.rows()) == 1


def test_a_table_holds_the_newest_settings_and_every_seed() -> None:
    def row(config: str, seed: int, ndcg: float) -> dict[str, Any]:
        figure = {"mean": ndcg, "low": ndcg - 0.01, "high": ndcg + 0.01}
        return {
            **{"name": "set/sasrec", "config_hash": config, "data_hash": "d", "seed": seed, "floor": "blend"},
            **{"test": {"ndcg@10": figure, "hr@10": figure}, "floor_test": {"ndcg@10": figure}},
            **{"difference": {"ndcg@10": figure}, "reachable": 0.9, "parameters": 1234, "best_epoch": 3},
            **{"epochs": 9, "train_s": 10.0, "threads": 2, "machine": {"gpu": None}},
        }

    lines = table([row("old", 0, 0.5), row("new", 1, 0.2), row("new", 0, 0.1)]).splitlines()
    assert len(lines) == 3
    assert "| 0.1000 [0.0900, 0.1100] |" in lines[2]
    assert "| 0.1000, 0.2000 |" in lines[2]
    assert "| +0.1000 [+0.0900, +0.1100] |" in lines[2]
    assert "| 4 of 9 | 10 (2 threads) |" in lines[2]
    assert len({line.count("|") for line in lines}) == 1


def hash_with(model: dict[str, Any], train: dict[str, Any]) -> str:
    settings = {"data": "d", "model": {"name": "sasrec", **model}, "train": train}
    return hash_of(configs.load(TrainConfig, settings))


def test_a_run_is_known_by_what_differs_from_the_defaults() -> None:
    plain = hash_with({}, {})
    assert hash_with({"d_model": 64, "loss": {"kind": "ce"}}, {"lr": 0.001, "threads": 1}) == plain
    others: list[tuple[dict[str, Any], dict[str, Any]]]
    others = [({"d_model": 32}, {}), ({"loss": {"kind": "gbce"}}, {}), ({}, {"lr": 0.002}), ({"name": "bert4rec"}, {})]
    assert len({plain, *(hash_with(*other) for other in others)}) == 5


def test_a_part_that_is_absent_by_default_counts_by_its_own_defaults() -> None:
    table, named = hash_with({"inputs": {"embedding": "table"}}, {}), {"embedding": "table", "table": {}}
    assert hash_with({"inputs": named}, {}) == table
    other = hash_with({"inputs": named | {"table": {"optimizer": "adagrad"}}}, {})
    assert len({hash_with({}, {}), table, other}) == 3
