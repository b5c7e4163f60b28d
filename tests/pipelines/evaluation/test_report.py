import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.errors import DataError, InputError
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.models import registry
from recsys.models.bundle import load_bundle, save_bundle
from recsys.pipelines.evaluation.bootstrap import seeds_interval
from recsys.pipelines.evaluation.evaluate import Seen, Split
from recsys.pipelines.evaluation.report import (
    evaluate_bundle,
    evaluate_bundle_sampled,
    evaluate_runs,
    item_categories,
)
from recsys.pipelines.run_folder import RunFolder

SHAPE = {"d_model": 8, "num_heads": 1, "num_layers": 1, "max_len": 8}


def write_run(folder: Path, dataset: PreparedDataset, seed: int, **config: int) -> Path:
    torch.manual_seed(seed)
    config = registry.full_config("sasrec", {**SHAPE, **config})
    save_bundle(
        folder / "bundle",
        model=registry.build("sasrec", config, dataset.num_items),
        name="sasrec",
        config=config,
        items=dataset.items,
        popularity=dataset.train_counts(),
        metrics={},
        data={"data_hash": dataset.data_hash},
        golden_histories=[["i1", "i2"]],
    )
    (folder / "run.json").write_text(json.dumps({"config": {"data": str(dataset.path)}}))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, circle: PreparedDataset) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    made = [write_run(folder / f"seed{seed}", circle, seed) for seed in range(3)]
    return [*made, write_run(folder / "wide", circle, 0, d_ff=512)]


def test_a_run_gets_its_file_with_lists_and_slices(runs: list[Path]) -> None:
    report = evaluate_bundle(runs[0])
    stored = json.loads(report.file.read_text())
    assert report.file == runs[0] / "evaluation.json"
    assert stored["lists"]["sasrec"]["coverage"] == report.evaluation.lists["sasrec"]["coverage"]
    assert stored["slices"]["user"]["known"]["n"] == stored["n"]
    assert stored["slices_absent"] == {}
    assert "values" not in stored
    assert report.evaluation.values["sasrec"]["ndcg@10"].shape == (stored["n"],)
    assert load_bundle(runs[0] / "bundle").metrics["test"]["model"] == "sasrec"


def test_every_split_and_seen_rule_has_a_file_and_keeps_the_others(circle: PreparedDataset, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", circle, 0)
    files = ["evaluation.json", "evaluation.valid.json", "evaluation.test.keep.json", "evaluation.valid.keep.json"]
    asked: list[tuple[Split, Seen]] = [
        ("test", "exclude"),
        ("valid", "exclude"),
        ("test", "keep"),
        ("valid", "keep"),
    ]
    for file, (split, seen) in zip(files, asked, strict=True):
        assert evaluate_bundle(run, split=split, seen=seen).file == run / file
    for file, (split, seen) in zip(files, asked, strict=True):
        stored = json.loads((run / file).read_text())
        assert (stored["split"], stored["seen"]) == (split, seen)
    metrics = load_bundle(run / "bundle").metrics
    assert {label: metrics[label]["protocol"] for label in ("test", "valid", "test.keep", "valid.keep")} == {
        label: json.loads((run / file).read_text())["protocol"]
        for label, file in zip(("test", "valid", "test.keep", "valid.keep"), files, strict=True)
    }
    assert RunFolder(run).evaluation == json.loads((run / "evaluation.json").read_text())
    evaluate_bundle_sampled(run, num_negatives=3)
    evaluate_bundle_sampled(run, split="valid", num_negatives=3)
    assert json.loads((run / "evaluation.sampled.json").read_text())["split"] == "test"
    assert json.loads((run / "evaluation.valid.sampled.json").read_text())["split"] == "valid"


def test_figures_of_an_older_version_count_as_what_they_tell(circle: PreparedDataset, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", circle, 0)
    (run / "evaluation.json").write_text(json.dumps({"split": "valid", "seen": "keep"}))
    assert RunFolder(run).evaluation is None
    assert list(RunFolder(run).evaluations) == ["valid.keep"]


def test_sampled_figures_lie_apart(runs: list[Path]) -> None:
    report = evaluate_bundle_sampled(runs[1], num_negatives=3)
    assert report.file == runs[1] / "evaluation.sampled.json"
    assert not (runs[1] / "evaluation.json").exists()
    assert load_bundle(runs[1] / "bundle").metrics == {}
    assert "sampled-3-uniform" in json.loads(report.file.read_text())["protocol"]


def test_runs_of_one_configuration_are_one_model(runs: list[Path]) -> None:
    report = evaluate_runs(runs)
    seeds = ["sasrec run 1", "sasrec run 2", "sasrec run 3"]
    assert report.groups == {"sasrec": seeds, "sasrec (2)": ["sasrec (2)"]}
    values = np.stack([report.evaluation.values[name]["ndcg@10"] for name in seeds])
    assert report.metrics["sasrec"]["ndcg@10"] == seeds_interval(values)
    difference = report.differences["sasrec (2) - sasrec"]["ndcg@10"]
    wide = report.evaluation.metrics["sasrec (2)"]["ndcg@10"].mean
    assert difference.mean == pytest.approx(wide - values.mean())
    assert [row["model"] for row in report.table()] == ["sasrec", "sasrec (2)", "sasrec (2) - sasrec"]
    json.dumps(report.to_dict())


def test_one_run_twice_and_runs_of_other_data_are_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="given twice"):
        evaluate_runs([runs[0], runs[0]])
    with pytest.raises(InputError, match="wants at least two"):
        evaluate_runs(runs[:1])
    (tmp_path / "log.txt").write_text("1 1 2 3 4\n2 2 3 4 1\n")
    config = PrepareConfig(split=SplitConfig(protocol="loo"))
    other = write_run(tmp_path / "run", prepare(tmp_path / "log.txt", tmp_path / "data", config), 0)
    with pytest.raises(DataError, match="was trained on"):
        evaluate_runs([runs[0], other])


def test_categories_of_the_items_table_tell_items_apart(tmp_path: Path, circle: PreparedDataset) -> None:
    assert item_categories(circle) is None
    (tmp_path / "log.txt").write_text("1 1 2 3 4\n2 2 3 4 1\n")
    (tmp_path / "items.csv").write_text("item_id,category\n1,a\n2,b\n4,a\n")
    config = PrepareConfig(split=SplitConfig(protocol="loo"), items=tmp_path / "items.csv")
    dataset = prepare(tmp_path / "log.txt", tmp_path / "data", config)
    found = item_categories(dataset)
    assert found is not None
    assert found.labels is not None
    one, two, three, four = found.labels[dataset.items.encode([1, 2, 3, 4])]
    assert one == four != two
    assert three == -1
