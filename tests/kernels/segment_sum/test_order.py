import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.kernels.segment_sum import SegmentOrder


@settings(max_examples=50, deadline=None)
@given(ids=st.lists(st.integers(-2, 7), max_size=50), num_segments=st.integers(0, 6))
def test_each_segment_has_its_pairs_as_they_came(ids: list[int], num_segments: int) -> None:
    order = SegmentOrder.of(torch.tensor(ids, dtype=torch.int64), num_segments)
    assert len(order.starts) == num_segments + 1
    for segment in range(num_segments):
        found = order.pairs[order.starts[segment] : order.starts[segment + 1]].tolist()
        assert found == [pair for pair, number in enumerate(ids) if number == segment]
