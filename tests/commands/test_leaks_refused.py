"""Commands that open a prepared dataset, or a bundle, refuse what leaks: one line that names it, exit code 2."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.cli import main
from recsys.features.dataset import PreparedDataset
from recsys.features.leakage.popularity import part_counts
from recsys.features.manifest import hash_arrays
from recsys.features.splits import split_hash
from recsys.files import sha256_of, write_json
from recsys.models import registry
from recsys.models.bundle import save_bundle

SHAPE = {"d_model": 8, "num_heads": 1, "num_layers": 1, "max_len": 8}


@pytest.fixture
def leaky(circle: PreparedDataset, tmp_path: Path) -> PreparedDataset:
    """The circle, whose first user trains on the validation event; sizes and hashes agree."""
    folder = Path(shutil.copytree(circle.path, tmp_path / "leaky"))
    cuts = np.load(folder / "shards" / "00000" / "train_end.npy")
    cuts[0] += 1
    np.save(folder / "shards" / "00000" / "train_end.npy", cuts)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["data_hash"] = hash_arrays(folder, list(manifest["files"]))
    write_json(folder / "manifest.json", manifest)
    manifest["split_hash"] = split_hash(PreparedDataset.open(folder))
    write_json(folder / "manifest.json", manifest)
    dataset = PreparedDataset.open(folder)
    dataset.verify()
    return dataset


def write_run(folder: Path, dataset: PreparedDataset, counts: np.ndarray, seed: int = 0) -> Path:
    """A run folder whose bundle holds these counts; every hash agrees."""
    torch.manual_seed(seed)
    config = registry.full_config("sasrec", SHAPE)
    save_bundle(
        folder / "bundle",
        model=registry.build("sasrec", config, dataset.num_items),
        name="sasrec",
        config=config,
        items=dataset.items,
        popularity=counts,
        metrics={},
        data={"data_hash": dataset.data_hash},
        golden_histories=[["i1", "i2"]],
    )
    write_json(folder / "run.json", {"config": {"data": str(dataset.path)}})
    return folder


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command says, which must be one error and exit code 2."""
    capsys.readouterr()
    assert main(list(words)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def test_no_command_takes_a_dataset_with_a_leak(
    leaky: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(leaky.path)
    config = tmp_path / "train.json"
    write_json(config, {"data": data, "seed": 0, "model": {"name": "sasrec", **SHAPE}, "train": {"epochs": 1}})
    run = write_run(tmp_path / "run", leaky, leaky.train_counts())
    for words in (
        ["train", str(config), "--out", str(tmp_path / "trained"), "--no-tracking"],
        ["floors", data, "--trials", "1"],
        ["compare", "--data", data, "--out", str(tmp_path / "compared"), "--minutes", "0.01"],
        ["evaluate", str(run)],
        ["evaluate", str(run), "--sampled", "3"],
        ["evaluate", str(run), str(write_run(tmp_path / "other", leaky, leaky.train_counts(), seed=1))],
    ):
        assert f"{data}: leakage: misplaced cut" in refused(capsys, *words), words
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert not (leaky.path / "floors.json").exists()


def test_a_comparison_looks_at_the_dataset_that_it_prepared_before(
    circle_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compared"
    assert main(["prepare", "--source", str(circle_csv), "--out", str(out / "data")]) == 0
    manifest = json.loads((out / "data" / "manifest.json").read_text())
    manifest["splits"]["test"]["targets"] += 1
    write_json(out / "data" / "manifest.json", manifest)
    words = ["compare", "--source", str(circle_csv), "--out", str(out), "--minutes", "0.01", "--trials", "1"]
    assert "leakage: changed manifest" in refused(capsys, *words)


def test_a_bundle_that_counts_the_test_part_is_refused(
    circle: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = part_counts(circle)
    run = write_run(tmp_path / "run", circle, counts.sum(0))
    clean = write_run(tmp_path / "clean", circle, counts[0], seed=1)
    for words in (["evaluate", str(run)], ["evaluate", str(run), "--sampled", "3"], ["evaluate", str(clean), str(run)]):
        found = refused(capsys, *words)
        assert f"{run / 'bundle'}: leakage: popularity from test: popularity.npy counts all events" in found
    assert main(["evaluate", str(clean)]) == 0
    stored = json.loads((run / "bundle" / "manifest.json").read_text())
    assert stored["sha256"]["popularity.npy"] == sha256_of(run / "bundle" / "popularity.npy")
