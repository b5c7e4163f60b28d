"""Training on a bare machine: resolved here, trained where torch, numpy and safetensors are all there is, sent here."""

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from recsys.cli import main
from recsys.features.dataset import PreparedDataset
from recsys.models.tracking_server import connect
from recsys.pipelines.tracking.cursor import TrackingCursor
from tests.pipelines.training.small import SMALL

ROOT = Path(__file__).parents[3]
# torch with what it cannot do without, and what a bare machine was seen to have.
THERE = {
    *("recsys", "torch", "functorch", "torchgen", "triton", "numpy", "safetensors", "sympy", "mpmath", "networkx"),
    *("jinja2", "markupsafe", "filelock", "fsspec", "typing_extensions", "isympy", "nvidia", "setuptools"),
    *("pkg_resources", "_distutils_hack"),
}


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that cannot import any other installed package."""
    absent = sorted({name for name in packages_distributions() if name.isidentifier()} - THERE)
    assert {"polars", "pyarrow", "yaml", "rich", "typer"} <= set(absent)
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({absent!r}))\n")
    return {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}


def test_a_bare_machine_trains_a_resolved_config_to_the_same_bytes_and_its_run_is_sent_afterwards(
    circle: PreparedDataset,
    tmp_path: Path,
    bare: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("mlflow", reason="needs the extra tracking")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train = {"epochs": 2, "tokens_per_batch": 256, "lr": 1e-2, "threads": 1, "ema": 0.9, "accumulate": 2}
    Path("run.yaml").write_text(yaml.safe_dump({"model": {"name": "bert4rec", **SMALL}, "train": train}))
    here = ["train", "run.yaml", "--data", str(circle.path), "--no-tracking", "--out", "here"]
    assert main(here) == 0
    assert main(["train", "run.yaml", "--data", "only/on/the/laptop", "--resolve", "run.json"]) == 0
    machine = tmp_path / "machine"
    shutil.copytree(circle.path, machine / "data")
    Path("run.json").rename(machine / "run.json")

    def trained(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "recsys.pipelines.training", "run.json", "run", *words]
        return subprocess.run(command, cwd=machine, env=bare, capture_output=True, text=True, check=False)

    lost = trained()
    assert lost.returncode == 2
    assert lost.stderr.startswith("error: only/on/the/laptop: ")
    assert lost.stderr.count("\n") == 1
    done = trained("--data", "data")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["weights_sha256"]
    weights = [Path(run, "bundle", "weights.safetensors").read_bytes() for run in ("here", "machine/run")]
    assert weights[0] == weights[1]

    shutil.copytree(machine / "run", "back")
    capsys.readouterr()
    assert main(["evaluate", "back"]) == 2
    assert capsys.readouterr().err.startswith("error: data: the run was trained there, and it is no folder here; name")
    assert main(["evaluate", "back", "--data", str(circle.path)]) == 0
    assert main(["runs", "sync", "back"]) == 0
    cursor = TrackingCursor.read(Path("back"))
    assert cursor is not None
    assert cursor.model["name"] == "bert4rec"
    assert cursor.run_id is not None
    with connect(cursor.uri) as client:
        run = client.get_run(cursor.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params["train.ema"] == "0.9"
        assert len(client.get_metric_history(cursor.run_id, "valid/ndcg_at_10")) == 2


def test_what_is_missing_is_said_in_one_line(bare: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recsys.pipelines.training"]
    (tmp_path / "run.yaml").write_text("model: {name: sasrec}\n")
    (tmp_path / "three.json").write_text('{"config": 3}')
    (tmp_path / "seed.json").write_text('{"data": "d", "model": {"name": "sasrec"}, "seed": -1}')
    for words, message in (
        (["absent.json"], "error: absent.json: no such file; name a .yaml or .json file"),
        (["run.yaml"], "error: pyyaml is not installed"),
        (["three.json"], "error: three.json: config is of type int, wanted an object"),
        (["seed.json"], "error: seed.json: seed=-1 must be at least 0"),
    ):
        done = subprocess.run([*command, *words], cwd=tmp_path, env=bare, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].lower().startswith(message)


def test_a_bare_machine_begins_with_a_bundle_that_lies_elsewhere_there(
    circle: PreparedDataset, tmp_path: Path, bare: dict[str, str]
) -> None:
    run = {"data": str(circle.path), "model": {"name": "sasrec", **SMALL}, "train": {"epochs": 1, "threads": 1}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "warm.json").write_text(json.dumps(run | {"warm_start": "models:/sasrec@champion"}))

    def trained(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "recsys.pipelines.training", *words]
        return subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True, check=False)

    assert trained("run.json", "cold").returncode == 0
    warm = trained("warm.json", "warm", "--warm-start", "cold/bundle")
    assert warm.returncode == 0, warm.stderr
    record = json.loads((tmp_path / "warm" / "run.json").read_text())
    assert record["config"]["warm_start"] == "cold/bundle"
    assert record["warm_start"]["shared_items"] == circle.num_items


def test_a_run_that_is_asked_to_stop_there_says_how_it_goes_on(
    circle: PreparedDataset, tmp_path: Path, bare: dict[str, str]
) -> None:
    train = {"epochs": 100_000, "threads": 1, "validate_every": 100_000}
    (tmp_path / "run.json").write_text(
        json.dumps({"data": str(circle.path), "model": {"name": "sasrec", **SMALL}, "train": train})
    )
    command = [sys.executable, "-m", "recsys.pipelines.training", "run.json", "run"]
    with subprocess.Popen(command, cwd=tmp_path, env=bare, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if '"event": "step"' in line:
                break
        process.send_signal(signal.SIGINT)
        said = process.stderr.read().splitlines()
    assert process.returncode == 130
    assert said[-1].endswith("the same command goes on from there: run")
