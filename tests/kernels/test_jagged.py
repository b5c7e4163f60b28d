import gc
import itertools
import weakref

import numpy as np
import pytest
import torch

from recsys.kernels.attention.op import jagged_attention
from recsys.kernels.jagged import JaggedMeta


@pytest.mark.parametrize("lengths", [(3, 0, 2), np.array([3, 0, 2], dtype=np.int32), torch.tensor([3, 0, 2])])
def test_offsets_are_the_running_sum_of_any_kind_of_lengths(lengths: object) -> None:
    meta = JaggedMeta.from_lengths(lengths)  # type: ignore[arg-type]  # parametrized over the three kinds
    assert meta.offsets.tolist() == [0, 3, 3, 5]
    assert meta.offsets.dtype == torch.int64
    assert (meta.max_len, meta.total, meta.num_sequences) == (3, 5, 3)
    assert meta.starts.tolist() == [0, 3, 3]
    assert meta.lengths.tolist() == [3, 0, 2]


def test_an_empty_batch_has_one_offset() -> None:
    meta = JaggedMeta.from_lengths([])
    assert (meta.offsets.tolist(), meta.max_len, meta.total) == ([0], 0, 0)


def test_lengths_are_not_the_callers_array() -> None:
    lengths = np.array([1, 2])
    meta = JaggedMeta.from_lengths(lengths)
    lengths[0] = 7
    assert meta.lengths.tolist() == [1, 2]


def test_bad_lengths_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"lengths\[1\]=-4; wanted a length >= 0"):
        JaggedMeta.from_lengths([1, -4])
    with pytest.raises(TypeError, match="lengths are float64; wanted integers"):
        JaggedMeta.from_lengths(np.array([1.0]))
    with pytest.raises(ValueError, match=r"shape \(1, 2\); wanted \(B,\)"):
        JaggedMeta.from_lengths(np.array([[1, 2]]))


def test_a_plan_is_built_once_a_key() -> None:
    meta, numbers = JaggedMeta.from_lengths([2]), itertools.count()
    assert [meta.cached(key, lambda: next(numbers)) for key in ("a", "a", "b")] == [0, 0, 1]


def test_a_meta_that_was_attended_with_is_freed_without_the_garbage_collector() -> None:
    meta = JaggedMeta.from_lengths([2, 3])
    q = torch.zeros(5, 1, 8)
    jagged_attention(q, q, q, meta, causal=True)
    gc.disable()
    try:
        watched = weakref.ref(meta)
        del meta
        assert watched() is None
    finally:
        gc.enable()


def test_lengths_that_no_sum_holds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lengths sum up to 1.38e\+19; wanted below 2\*\*62 tokens"):
        JaggedMeta.from_lengths([2**62] * 3)
