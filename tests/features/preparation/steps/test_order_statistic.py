import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.preparation.steps import order_statistic as module
from recsys.features.preparation.steps.order_statistic import order_statistic

WIDE = st.integers(0, 2**62)
ARRAYS = st.sampled_from([st.integers(0, 9), WIDE]).flatmap(
    lambda value: st.lists(st.lists(value, max_size=30), min_size=1, max_size=4)
)


@settings(max_examples=100, deadline=None)
@given(arrays=ARRAYS, few=st.sampled_from([1, 5, 1000]), bits=st.sampled_from([1, 3, 16]), data=st.data())
def test_it_is_the_value_at_that_place_of_the_sorted_whole(
    arrays: list[list[int]], few: int, bits: int, data: st.DataObject
) -> None:
    flat = sorted(value for array in arrays for value in array)
    if not flat:
        return
    rank = data.draw(st.integers(0, len(flat) - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FEW", few)
        patch.setattr(module, "NUM_BINS_BITS", bits)
        assert order_statistic([np.array(array, np.int64) for array in arrays], rank) == flat[rank]


@pytest.mark.parametrize("rank", [-1, 3])
def test_a_rank_beyond_the_values_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"rank={rank}: wanted 0 to 2"):
        order_statistic([np.array([1, 2]), np.array([3])], rank)
