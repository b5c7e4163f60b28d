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
    }


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
