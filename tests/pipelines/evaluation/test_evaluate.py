import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.models.floors import Popularity, TransitionKNN
from recsys.models.protocols import Scorer
from recsys.models.sasrec import SASRec, SASRecConfig
from recsys.pipelines.evaluation.evaluate import evaluate


def write_log(folder: Path, sequences: list[list[int]], protocol: str = "loo") -> PreparedDataset:
    """Users and items are numbered by first appearance; row n of the log is user index n + 1."""
    folder.mkdir(exist_ok=True)
    lines = [f"{user} {' '.join(map(str, items))}" for user, items in enumerate(sequences, start=1)]
    (folder / "log.txt").write_text("\n".join(lines) + "\n")
    several = SplitConfig(protocol="ratio", target="all", test_share=0.4)
    split = {"loo": SplitConfig(protocol="loo"), "loo-novalid": SplitConfig(protocol="loo-novalid"), "ratio": several}
    return prepare(folder / "log.txt", folder / "data", PrepareConfig(split=split[protocol]))


@pytest.fixture(scope="module")
def model_and_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[SASRec, PreparedDataset]:
    rng = np.random.default_rng(0)
    sequences = [list(range(1, 41)), *(rng.integers(1, 41, n).tolist() for n in rng.integers(3, 30, 63))]
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(d_model=16, num_heads=2, num_layers=1, max_len=12), num_items=40)
    return model, write_log(tmp_path_factory.mktemp("model"), sequences)


def test_a_split_without_questions_and_no_scorer_are_refused(tmp_path: Path) -> None:
    dataset = write_log(tmp_path, [[1, 2], [2, 1]], "loo-novalid")
    with pytest.raises(DataError, match="its valid part asks no question"):
        evaluate({"popularity": Popularity.fit(dataset)}, dataset, "valid")
    with pytest.raises(ValueError, match="scorers is empty"):
        evaluate({}, dataset)


def test_reachable_cold_and_repeated_targets_are_counted(tmp_path: Path) -> None:
    # Test targets: 5 is never trained on, 1 repeats the history, 3 can be reached.
    dataset = write_log(tmp_path, [[1, 2, 3, 4, 5], [1, 2, 3, 1], [2, 1, 2, 3]])
    scorers = {"popularity": Popularity.fit(dataset)}
    excluded, kept = evaluate(scorers, dataset), evaluate(scorers, dataset, seen="keep")
    assert (excluded.num_targets, excluded.cold_targets, excluded.repeated_targets) == (3, 1, 1)
    assert (excluded.reachable, kept.reachable) == pytest.approx((1 / 3, 2 / 3))
    assert excluded.metrics["popularity"]["hr@20"].mean == pytest.approx(1 / 3)
    assert kept.metrics["popularity"]["hr@20"].mean == pytest.approx(2 / 3)


def test_differences_are_paired_against_the_best_floor(model_and_data: tuple[SASRec, PreparedDataset]) -> None:
    model, dataset = model_and_data
    floors: dict[str, Scorer] = {"popularity": Popularity.fit(dataset), "transition-knn": TransitionKNN.fit(dataset)}
    evaluation = evaluate({**floors, "sasrec": model}, dataset)
    means = {name: figures["ndcg@10"].mean for name, figures in evaluation.metrics.items()}
    best = max(floors, key=lambda name: means[name])
    assert evaluation.floors == list(floors)
    assert evaluation.best_floor == best
    assert best not in evaluation.differences
    difference = evaluation.differences["sasrec"]["ndcg@10"]
    assert difference.mean == pytest.approx(means["sasrec"] - means[best])
    assert difference.low <= difference.mean <= difference.high


def test_new_users_are_told_apart_from_known_ones(tmp_path: Path) -> None:
    lines = ["user_id,item_id,timestamp", *(f"old{n % 4},i{n % 5},{1_600_000_000 + 60 * n}" for n in range(80))]
    lines += [f"new,i{n % 5},{1_600_000_000 + 60 * (73 + n) + 7}" for n in range(7)]
    lines.append(f"late,i1,{1_600_000_000 + 60 * 79 + 30}")
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    split = SplitConfig(protocol="time", target="next")
    dataset = prepare(tmp_path / "log.csv", tmp_path / "data", PrepareConfig(split=split))
    evaluation = evaluate({"popularity": Popularity.fit(dataset)}, dataset, seen="keep")
    known, new = evaluation.by_user["known"], evaluation.by_user["new"]
    assert (known["n"], new["n"], evaluation.cold_users) == (4, 1, 1)
    total = (4 * known["popularity"]["ndcg@5"] + new["popularity"]["ndcg@5"]) / 5
    assert evaluation.metrics["popularity"]["ndcg@5"].mean == pytest.approx(total)


def test_the_report_is_plain_json_and_a_table(model_and_data: tuple[SASRec, PreparedDataset]) -> None:
    model, dataset = model_and_data
    evaluation = evaluate({"popularity": Popularity.fit(dataset), "sasrec": model}, dataset, split="valid")
    plain = json.loads(json.dumps(evaluation.to_dict()))
    assert plain["metrics"]["sasrec"]["ndcg@10"]["mean"] == evaluation.metrics["sasrec"]["ndcg@10"].mean
    assert plain["protocol"] == dataset.protocol_string("valid", "exclude")
    floor, row = evaluation.table()
    assert (floor["kind"], row["kind"]) == ("floor", "model")
    assert row["ndcg@10"] == str(evaluation.metrics["sasrec"]["ndcg@10"])
    assert "ndcg@10 - popularity" in row
    assert "ndcg@10 - popularity" not in floor


def test_progress_counts_every_question(model_and_data: tuple[SASRec, PreparedDataset]) -> None:
    model, dataset = model_and_data
    told: list[dict[str, Any]] = []
    evaluate({"sasrec": model}, dataset, observe=told.append)
    assert told[-1]["scorer"] == "sasrec"
    assert told[-1]["done"] == told[-1]["total"] == len(dataset.queries("test"))
    assert all(event["queries_per_s"] > 0 for event in told)


def test_the_same_evaluation_gives_the_same_figures(model_and_data: tuple[SASRec, PreparedDataset]) -> None:
    model, dataset = model_and_data
    first, second = (evaluate({"sasrec": model}, dataset).to_dict() for _ in range(2))
    first.pop("seconds")
    second.pop("seconds")
    assert first == second
