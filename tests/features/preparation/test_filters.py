import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.features.preparation.filters import FilterConfig, keep_frequent

PAIRS = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=80)


def _frame(pairs: list[tuple[int, int]]) -> pl.DataFrame:
    schema = {"user_id": pl.Int64, "item_id": pl.Int64}
    return pl.DataFrame(pairs, schema=schema, orient="row").with_row_index("row")


def _core_by_definition(pairs: list[tuple[int, int]], k: int) -> list[tuple[int, int]]:
    while True:
        users, items = [u for u, _ in pairs], [i for _, i in pairs]
        kept = [(u, i) for u, i in pairs if users.count(u) >= k and items.count(i) >= k]
        if len(kept) == len(pairs):
            return kept
        pairs = kept


@settings(max_examples=80, deadline=None)
@given(pairs=PAIRS, k=st.integers(1, 5))
def test_a_core_is_the_largest_part_where_all_have_k_events(pairs: list[tuple[int, int]], k: int) -> None:
    wanted = _core_by_definition(pairs, k)
    if not wanted:
        with pytest.raises(DataError, match=rf"filters\.k_core={k}; lower them"):
            keep_frequent(_frame(pairs), FilterConfig(k_core=k))
        return
    kept = keep_frequent(_frame(pairs), FilterConfig(k_core=k))
    assert kept.select("user_id", "item_id").rows() == wanted


def test_items_are_filtered_once_before_users() -> None:
    pairs = [(1, 1), (1, 2), (2, 1), (2, 3), (3, 1), (3, 2)]
    kept = keep_frequent(_frame(pairs), FilterConfig(min_item_events=2, min_user_events=2))
    assert kept.select("user_id", "item_id").rows() == [(1, 1), (1, 2), (3, 1), (3, 2)]
    pairs = [(1, 1), (2, 1), (2, 2), (3, 2)]
    kept = keep_frequent(_frame(pairs), FilterConfig(min_item_events=2, min_user_events=2))
    assert kept.select("user_id", "item_id").rows() == [(2, 1), (2, 2)]


@pytest.mark.parametrize("name", ["min_item_events", "min_user_events", "k_core"])
def test_a_threshold_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0: wanted at least 1"):
        FilterConfig(**{name: 0})
