"""Commands that open a prepared dataset, or a bundle, refuse what leaks: one line that names it, exit code 2."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.cli import main
from recsys.features.dataset import PreparedDataset
from recsys.features.leakage import find_leaks
from recsys.features.leakage.popularity import part_counts
from recsys.features.manifest import hash_arrays
from recsys.features.prepare import PrepareConfig, prepare
from recsys.features.schema import ReadConfig
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


@pytest.fixture
def edited(circle_csv: Path, tmp_path: Path) -> PreparedDataset:
    """The circle without times, two training events of one user exchanged after preparation: nothing else tells."""
    config = PrepareConfig(read=ReadConfig(order="rows"))
    folder = prepare(circle_csv, tmp_path / "edited", config).path
    file = folder / "shards" / "00000" / "items.npy"
    items = np.load(file)
    assert items[0] != items[1]
    items[[0, 1]] = items[[1, 0]]
    np.save(file, items)
    return PreparedDataset.open(folder)


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


def commands_that_open(dataset: PreparedDataset, run: Path, tmp_path: Path) -> list[list[str]]:
    """Every command whose figures carry the data hash of this dataset."""
    data = str(dataset.path)
    config = tmp_path / "train.json"
    write_json(config, {"data": data, "seed": 0, "model": {"name": "sasrec", **SHAPE}, "train": {"epochs": 1}})
    return [
        ["train", str(config), "--out", str(tmp_path / "trained"), "--no-tracking"],
        ["floors", data, "--trials", "1"],
        ["compare", "--data", data, "--out", str(tmp_path / "compared"), "--minutes", "0.01"],
        ["evaluate", str(run)],
        ["evaluate", str(run), "--sampled", "3"],
        ["evaluate", str(run), str(write_run(tmp_path / "other", dataset, dataset.train_counts(), seed=1))],
    ]


def test_no_command_takes_a_dataset_with_a_leak(
    leaky: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(leaky.path)
    run = write_run(tmp_path / "run", leaky, leaky.train_counts())
    for words in commands_that_open(leaky, run, tmp_path):
        assert f"{data}: leakage: misplaced cut" in refused(capsys, *words), words
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert not (leaky.path / "floors.json").exists()


def test_no_command_takes_arrays_that_were_edited_after_preparation(
    edited: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_leaks(edited) == []
    data = str(edited.path)
    run = write_run(tmp_path / "run", edited, edited.train_counts())
    for words in commands_that_open(edited, run, tmp_path):
        found = refused(capsys, *words)
        assert f"{data}: leakage: changed bytes: arrays" in found, words
        assert f"wanted {edited.data_hash}" in found, words
        assert "prepare the dataset again" in found, words
    words = ["recommend", "--bundle", str(run), "--data", data, "--out", str(tmp_path / "lists.parquet")]
    assert "a byte differs: prepare it again" in refused(capsys, *words)
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert not (edited.path / "floors.json").exists()


def test_a_table_that_was_edited_is_named(
    circle: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(circle.path, tmp_path / "data"))
    (folder / "items.parquet").write_bytes(b"other titles")
    found = refused(capsys, "floors", str(folder), "--trials", "1")
    assert "changed bytes: tables that are not those that were prepared (1, the first: items.parquet)" in found


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
