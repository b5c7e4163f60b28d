import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.preparation.steps.sorting import codes_of, order_by, stable_order

INT64 = st.integers(-(2**63), 2**63 - 1)
NARROW = st.integers(0, 5)
SECONDS = st.integers(0, 2**40).map(lambda second: second * 1_000_000)
VALUES = st.sampled_from([INT64, NARROW, SECONDS]).flatmap(lambda kind: st.lists(kind, max_size=60))


@settings(max_examples=150, deadline=None)
@given(values=VALUES)
def test_the_order_is_that_of_a_stable_sort(values: list[int]) -> None:
    wanted = sorted(range(len(values)), key=lambda place: values[place])
    assert stable_order(np.array(values, np.int64)).tolist() == wanted


def test_values_that_do_not_pack_are_ordered_all_the_same() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.integers(-(2**62), 2**62, 5000), rng.integers(0, 2**52, 5000) * 1_000_000 // 10**4):
        assert (stable_order(values) == np.argsort(values, kind="stable")).all()
    whole_seconds_but_one = rng.integers(0, 2**41, 9000) * 1_000_000
    whole_seconds_but_one[17] += 1
    assert (stable_order(whole_seconds_but_one) == np.argsort(whole_seconds_but_one, kind="stable")).all()


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(NARROW, NARROW, INT64), max_size=40))
def test_keys_count_in_their_order(rows: list[tuple[int, int, int]]) -> None:
    wanted = sorted(range(len(rows)), key=lambda place: rows[place])
    keys = [np.array([row[number] for row in rows], np.int64) for number in range(3)]
    assert order_by(*keys).tolist() == wanted


@settings(max_examples=80, deadline=None)
@given(ids=st.lists(INT64, max_size=30) | st.lists(NARROW, max_size=30) | st.lists(st.text(max_size=3), max_size=30))
def test_codes_name_each_distinct_id_once(ids: list[int] | list[str]) -> None:
    dtype = pl.String if ids and isinstance(ids[0], str) else pl.Int64
    codes, distinct = codes_of(pl.Series("ids", ids, dtype))
    assert distinct[codes.tolist()].to_list() == ids
    assert distinct.n_unique() == len(distinct) == len(set(ids))
    assert distinct.name == "ids"
