import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.pipelines.evaluation.metrics import metrics_per_query

ranks_of_queries = st.lists(
    st.lists(st.one_of(st.integers(2, 60).map(lambda n: n / 2), st.just(math.inf)), min_size=1, max_size=6),
    min_size=1,
    max_size=8,
)


def flat(queries: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(sum(queries, [])), np.cumsum([0] + [len(ranks) for ranks in queries])


def by_hand(ranks: list[float], k: int) -> dict[str, float]:
    """The definitions, one query at a time."""
    hits = [rank for rank in ranks if rank <= k]
    ideal = sum(1 / math.log2(1 + place) for place in range(1, min(k, len(ranks)) + 1))
    return {
        f"hr@{k}": float(bool(hits)),
        f"ndcg@{k}": sum(1 / math.log2(1 + rank) for rank in hits) / ideal,
        f"mrr@{k}": 1 / min(hits) if hits else 0.0,
        f"recall@{k}": len(hits) / len(ranks),
        f"map@{k}": sum(place(rank, ranks) / rank for rank in hits) / min(k, len(ranks)),
    }


def place(rank: float, ranks: list[float]) -> float:
    """Expected place among the targets."""
    return 1 + sum(other < rank for other in ranks) + (sum(other == rank for other in ranks) - 1) / 2


@settings(max_examples=100, deadline=None)
@given(ranks_of_queries)
def test_metrics_equal_their_definitions(queries: list[list[float]]) -> None:
    ks = (1, 5, 10, 20)
    found = metrics_per_query(*flat(queries), ks)
    for number, ranks in enumerate(queries):
        wanted = {name: value for k in ks for name, value in by_hand(ranks, k).items()}
        assert list(found) == list(wanted)
        assert {name: values[number] for name, values in found.items()} == pytest.approx(wanted)


@pytest.mark.parametrize("rank", [10.0, 10.5, 11.0])
def test_a_target_counts_up_to_rank_k_and_no_further(rank: float) -> None:
    found = metrics_per_query(np.array([rank]), np.array([0, 1]), (10,))
    assert found["hr@10"][0] == (rank <= 10)
    assert (found["ndcg@10"][0] > 0) == (rank <= 10)


def test_all_targets_on_top_give_one_and_out_of_reach_gives_nothing() -> None:
    found = metrics_per_query(np.array([2.0, 1.0, 3.0, math.inf]), np.array([0, 3, 4]), (3, 10))
    for values in found.values():
        assert values == pytest.approx([1.0, 0.0])


def test_map_and_recall_of_three_targets_are_those_worked_by_hand() -> None:
    # Targets at ranks 1, 3 and 12: within ten, precision 1/1 and 2/3; two of three found.
    found = metrics_per_query(np.array([12.0, 1.0, 3.0]), np.array([0, 3]), (2, 10))
    assert found["map@10"][0] == pytest.approx((1 + 2 / 3) / 3)
    assert found["map@2"][0] == pytest.approx(1 / 2)  # at most two fit into a list of two
    assert found["recall@10"][0] == pytest.approx(2 / 3)
    assert found["recall@2"][0] == pytest.approx(1 / 3)


def test_two_equal_targets_on_top_have_a_precision_of_one() -> None:
    assert metrics_per_query(np.array([1.5, 1.5]), np.array([0, 2]), (10,))["map@10"][0] == pytest.approx(1.0)


@pytest.mark.parametrize("k", [1, 3, 10, 20])
def test_the_figures_are_those_of_ir_measures(k: int) -> None:
    """nDCG, RR, AP, R and Success of trec_eval's definitions, on random rankings without ties.

    Two differ: its AP divides by all targets, ours by min(k, targets); its Success is our HR.
    """
    ir_measures = pytest.importorskip("ir_measures", reason="ir-measures is not installed: pip install -e '.[dev]'")
    rng = np.random.default_rng(k)
    run, qrels, queries = {}, {}, []
    for number in range(40):
        order, targets = rng.permutation(60), rng.choice(60, int(rng.integers(1, 8)), replace=False)
        run[str(number)] = {str(item): float(60 - rank) for rank, item in enumerate(order)}
        qrels[str(number)] = {str(target): 1 for target in targets}
        queries.append([1.0 + int(np.flatnonzero(order == target)[0]) for target in targets])
    found = metrics_per_query(*flat(queries), (k,))
    counts = np.array([len(ranks) for ranks in queries])
    theirs = {"ndcg": "nDCG", "mrr": "RR", "map": "AP", "recall": "R", "hr": "Success"}
    for name, peer in theirs.items():
        measure = ir_measures.parse_measure(f"{peer}@{k}")
        values = {m.query_id: m.value for m in ir_measures.iter_calc([measure], qrels, run)}
        wanted = np.array([values[str(number)] for number in range(40)])
        ours = found[f"{name}@{k}"] * (np.minimum(counts, k) / counts if name == "map" else 1.0)
        np.testing.assert_allclose(ours, wanted, atol=1e-9, err_msg=name)


def test_no_query_gives_no_figure() -> None:
    assert {len(v) for v in metrics_per_query(np.empty(0), np.zeros(1, np.int64)).values()} == {0}


@pytest.mark.parametrize(
    ("ranks", "offsets", "ks", "message"),
    [
        ([1.0, math.nan], [0, 1, 2], (10,), "NaN"),
        ([0.5], [0, 1], (10,), "at least 1"),
        ([1.0], [0, 1, 1], (10,), "query 1 has no target"),
        ([1.0, 2.0], [0, 1], (10,), "offsets must run from 0 to the 2 ranks"),
        ([1.0], [0, 1], (0,), "each k must be at least 1"),
    ],
)
def test_what_is_no_rank_is_refused(ranks: list[float], offsets: list[int], ks: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics_per_query(np.array(ranks), np.array(offsets), ks)
