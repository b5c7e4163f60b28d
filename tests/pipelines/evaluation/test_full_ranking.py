import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.errors import TrainingDiverged
from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.models.floors import Popularity
from recsys.models.sasrec import SASRec, SASRecConfig
from recsys.pipelines.evaluation.full_ranking import Seen, rank_targets
from recsys.pipelines.evaluation.metrics import metrics_per_query
from recsys.pipelines.evaluation.states import QueryStates


class Table:
    """A Scorer with a row of scores for each user index."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = torch.from_numpy(np.asarray(rows, dtype=np.float64))

    def scores(self, batch: JaggedBatch, candidates: Tensor | None = None) -> Tensor:
        assert batch.users is not None
        rows = self.rows[batch.users].clone()
        rows[:, 0] = -torch.inf
        return rows if candidates is None else rows.gather(1, candidates)


def write_log(folder: Path, sequences: list[list[int]], protocol: str = "loo") -> PreparedDataset:
    """Users and items are numbered by first appearance; row n of the log is user index n + 1."""
    folder.mkdir(exist_ok=True)
    lines = [f"{user} {' '.join(map(str, items))}" for user, items in enumerate(sequences, start=1)]
    (folder / "log.txt").write_text("\n".join(lines) + "\n")
    several = SplitConfig(protocol="ratio", target="all", test_share=0.4)
    split = {"loo": SplitConfig(protocol="loo"), "loo-novalid": SplitConfig(protocol="loo-novalid"), "ratio": several}
    return prepare(folder / "log.txt", folder / "data", PrepareConfig(split=split[protocol]))


def rank_by_hand(row: np.ndarray, target: int, history: list[int], is_known: np.ndarray, seen: Seen) -> float:
    candidates = [j for j in range(1, len(row)) if is_known[j] and (seen == "keep" or j not in history)]
    if target not in candidates or row[target] == -math.inf:
        return math.inf
    greater = sum(row[j] > row[target] for j in candidates)
    equal = sum(row[j] == row[target] for j in candidates)
    return 1 + greater + (equal - 1) / 2


@pytest.fixture(scope="module")
def model_and_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[SASRec, PreparedDataset]:
    rng = np.random.default_rng(0)
    sequences = [list(range(1, 41)), *(rng.integers(1, 41, n).tolist() for n in rng.integers(3, 30, 63))]
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(d_model=16, num_heads=2, num_layers=1, max_len=12), num_items=40)
    return model, write_log(tmp_path_factory.mktemp("model"), sequences)


@settings(max_examples=60, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(1, 7), min_size=3, max_size=12), min_size=1, max_size=6),
    protocol=st.sampled_from(["loo", "ratio"]),
    split=st.sampled_from(["valid", "test"]),
    seen=st.sampled_from(["exclude", "keep"]),
    seed=st.integers(0, 99),
)
def test_ranks_equal_counting_by_hand(
    tmp_path_factory: pytest.TempPathFactory,
    sequences: list[list[int]],
    protocol: str,
    split: Any,
    seen: Seen,
    seed: int,
) -> None:
    dataset = write_log(tmp_path_factory.mktemp("logs"), sequences, protocol)
    rng = np.random.default_rng(seed)
    rows = rng.choice([-np.inf, 0.0, 0.5, 1.0, 2.0], (dataset.num_users + 1, dataset.num_items + 1))  # many ties
    queries, is_known = dataset.queries(split), dataset.train_counts() > 0
    wanted = [
        rank_by_hand(rows[queries.user[n]], int(target), queries.gather(n)[0].tolist(), is_known, seen)
        for n in range(len(queries))
        for target in queries.targets(n)
    ]
    one_row_at_a_time = rank_targets(Table(rows), dataset, queries, seen, score_bytes=1)
    assert rank_targets(Table(rows), dataset, queries, seen).tolist() == wanted
    assert one_row_at_a_time.tolist() == wanted


def test_constant_scores_do_not_pass_for_hits(tmp_path: Path) -> None:
    dataset = write_log(tmp_path, [list(range(1, 51)), [1, 2, 48], [3, 4, 7], [5, 6, 9]])
    queries = dataset.queries("test")
    ranks = rank_targets(Table(np.zeros((5, 51))), dataset, queries, "keep")
    assert ranks.tolist() == [math.inf, 24.5, 24.5, 24.5]  # 48 items are known, 49 and 50 are not
    assert metrics_per_query(ranks, queries.target_offsets)["hr@20"].sum() == 0.0


def test_the_number_of_rows_at_a_time_changes_no_rank(model_and_data: tuple[SASRec, PreparedDataset]) -> None:
    model, dataset = model_and_data
    queries = dataset.queries("test")
    whole = rank_targets(model, dataset, queries)
    for score_bytes in (1, 32 * 41 * 3, 32 * 41 * 17):
        assert rank_targets(model, dataset, queries, score_bytes=score_bytes).tolist() == whole.tolist()


def test_a_model_reads_its_last_events_but_its_whole_history_is_left_out(tmp_path: Path) -> None:
    model = SASRec(SASRecConfig(d_model=8, num_heads=1, num_layers=1, max_len=2), num_items=9)
    dataset = write_log(tmp_path, [[1, 2, 3, 4, 5, 6, 7, 1], [8, 9, 1, 2, 8, 5]])
    ranks = rank_targets(model, dataset, dataset.queries("test"))
    assert ranks[0] == math.inf  # item 1 was seen long before the last two events


def test_a_training_model_is_ranked_without_dropout_and_goes_on_training(
    model_and_data: tuple[SASRec, PreparedDataset],
) -> None:
    model, dataset = model_and_data
    queries = dataset.queries("valid")
    wanted = rank_targets(model.eval(), dataset, queries)
    assert rank_targets(model.train(), dataset, queries).tolist() == wanted.tolist()
    assert model.training


@pytest.mark.parametrize("make", [float, lambda _: math.nan], ids=["clean", "nan"])
def test_one_nan_among_the_scores_is_a_failure(tmp_path: Path, make: Callable[[float], float]) -> None:
    dataset = write_log(tmp_path, [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    rows = np.ones((3, 6))
    rows[2, 4] = make(1.0)
    if np.isnan(rows).any():
        with pytest.raises(TrainingDiverged, match="broken: scores are NaN for 50% of 2 histories"):
            rank_targets(Table(rows), dataset, dataset.queries("test"), name="broken")
    else:
        assert len(rank_targets(Table(rows), dataset, dataset.queries("test"))) == 2


def test_scores_of_the_wrong_width_are_refused(tmp_path: Path) -> None:
    dataset = write_log(tmp_path, [[1, 2, 3, 4, 5]])
    with pytest.raises(ValueError, match=r"shape \(1, 4\), wanted \(1, 6\)"):
        rank_targets(Table(np.ones((2, 4))), dataset, dataset.queries("test"))


def test_an_unknown_seen_rule_is_refused(tmp_path: Path) -> None:
    dataset = write_log(tmp_path, [[1, 2, 3, 4, 5]])
    with pytest.raises(ValueError, match="seen='drop': wanted exclude or keep"):
        rank_targets(Popularity.fit(dataset), dataset, dataset.queries("test"), "drop")  # type: ignore[arg-type]  # wrong on purpose


@settings(max_examples=40, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=14), min_size=1, max_size=8),
    protocol=st.sampled_from(["loo", "ratio"]),
    seen=st.sampled_from(["exclude", "keep"]),
    scale=st.sampled_from([1.0, 1e-20, 1e12, 1e25]),
    seed=st.integers(0, 99),
)
def test_screened_ranks_are_the_plain_ones(
    tmp_path_factory: pytest.TempPathFactory,
    sequences: list[list[int]],
    protocol: str,
    seen: Seen,
    scale: float,
    seed: int,
) -> None:
    dataset = write_log(tmp_path_factory.mktemp("logs"), sequences, protocol)
    torch.manual_seed(seed)
    model = SASRec(SASRecConfig(d_model=8, num_heads=2, num_layers=1, max_len=6), num_items=dataset.num_items)
    with torch.no_grad():
        model.encoder.norm.weight.mul_(scale)  # past 2^60 nothing is screened
        if seed % 3 == 0:
            model.get_parameter("item.weight")[2:] = model.get_parameter("item.weight")[1].clone()  # ties
    for split in ("valid", "test"):
        queries = dataset.queries(split)
        plain = rank_targets(model, dataset, queries, seen, precision="plain")
        assert rank_targets(model, dataset, queries, seen).tolist() == plain.tolist()


def test_threads_change_no_rank(model_and_data: tuple[SASRec, PreparedDataset]) -> None:
    model, dataset = model_and_data
    queries = dataset.queries("test")
    one = rank_targets(model, dataset, queries)
    torch.set_num_threads(2)
    try:
        assert rank_targets(model, dataset, queries).tolist() == one.tolist()
    finally:
        torch.set_num_threads(1)


def test_states_are_kept_and_ranked_again(model_and_data: tuple[SASRec, PreparedDataset]) -> None:
    model, dataset = model_and_data
    queries = dataset.queries("test")
    states = QueryStates(model, dataset, queries)
    first = rank_targets(model, dataset, queries, states=states)
    model.get_parameter("item.weight").data += 0.0  # the same weights
    assert [rows.tolist() for rows, _ in states] == [rows.tolist() for rows, _ in QueryStates(model, dataset, queries)]
    assert rank_targets(model, dataset, queries, states=states).tolist() == first.tolist()


@pytest.mark.parametrize("precision", ["screen", "plain"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_a_failure(tmp_path: Path, precision: Any, wrong: float) -> None:
    dataset = write_log(tmp_path, [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    model = SASRec(SASRecConfig(d_model=8, num_heads=1, num_layers=1, max_len=4), num_items=5)
    with torch.no_grad():
        model.get_parameter("item.weight")[5, :2] = torch.tensor([wrong, -wrong])
    with pytest.raises(TrainingDiverged, match="sasrec: scores are NaN for"):
        rank_targets(model, dataset, dataset.queries("test"), name="sasrec", precision=precision)


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    dataset = write_log(tmp_path, [[1, 2, 3, 4, 5]])
    with pytest.raises(ValueError, match="precision='half': wanted screen or plain"):
        rank_targets(Popularity.fit(dataset), dataset, dataset.queries("test"), precision="half")  # type: ignore[arg-type]  # wrong on purpose
