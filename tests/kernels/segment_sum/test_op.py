from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.kernels.segment_sum import SegmentOrder, op, segment_sum, segment_sum_reference


def _inputs(R: int, K: int, S: int, D: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(R, D, generator=generator, dtype=torch.float64)
    ids = torch.randint(-1, S + 1, (R, K), generator=generator)
    return x, ids, torch.randn(R, K, generator=generator, dtype=torch.float64)


@settings(max_examples=80, deadline=None)
@given(
    R=st.sampled_from([0, 1, 17, 63]),
    K=st.sampled_from([0, 1, 3]),
    S=st.sampled_from([0, 1, 5, 100]),
    D=st.sampled_from([0, 1, 8, 50]),
    has_weights=st.booleans(),
    has_add=st.booleans(),
    chunk_bytes=st.sampled_from([1, 16 << 20]),
    seed=st.integers(0, 99),
)
def test_it_equals_its_definition(
    R: int, K: int, S: int, D: int, has_weights: bool, has_add: bool, chunk_bytes: int, seed: int
) -> None:
    x, ids, weights = _inputs(R, K, S, D, seed)
    add_to = torch.full((S, D), 2.0, dtype=x.dtype) if has_add else None
    chosen = weights if has_weights else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op, "CHUNK_BYTES", chunk_bytes)
        found = segment_sum(x, ids, S, weights=chosen, scale=0.7, add_to=add_to)
    expected = 0.7 * segment_sum_reference(x, ids, S, weights=chosen) + (2.0 if has_add else 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_it_is_the_gradient_of_a_gather() -> None:
    x, ids, _ = _inputs(40, 1, 9, 6)
    ids = ids.clamp(0, 8).flatten()
    table = torch.zeros(9, 6, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(table[ids], table, x)
    torch.testing.assert_close(segment_sum(x, ids, 9), wanted)


def test_what_it_adds_to_stays_as_it_is() -> None:
    x, ids, _ = _inputs(10, 2, 4, 3)
    add_to = torch.ones(4, 3, dtype=torch.float64)
    segment_sum(x, ids, 4, add_to=add_to)
    assert torch.equal(add_to, torch.ones_like(add_to))


def test_narrow_rows_are_summed_wide() -> None:
    x = torch.full((4_096, 1), 1.0, dtype=torch.bfloat16)
    assert segment_sum(x, torch.zeros(4_096, dtype=torch.int64), 1).item() == 4_096.0
    assert segment_sum(x, torch.zeros(4_096, dtype=torch.int64), 1, out_dtype=torch.float32).dtype == torch.float32


def test_the_number_of_threads_changes_no_bit() -> None:
    x, ids, _ = _inputs(5_000, 1, 300, 64)
    x, ids = x.float(), ids.flatten().clamp(0, 299)
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(segment_sum(x, ids, 300))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


GOOD: dict[str, Any] = {"x": torch.zeros(3, 2), "ids": torch.zeros(3, 4, dtype=torch.int64), "num_segments": 5}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"x": torch.zeros(3)}, r"x has the shape \(3,\) and torch.float32; wanted \(R, D\)"),
    ({"ids": torch.zeros(2, dtype=torch.int64)}, r"ids has the shape \(2,\) and torch.int64, x has R=3 rows"),
    ({"ids": torch.zeros(3)}, r"ids has the shape \(3,\) and torch.float32"),
    ({"num_segments": -1}, "num_segments=-1; wanted at least 0"),
    ({"weights": torch.zeros(3, 1)}, r"weights has the shape \(3, 1\) and torch.float32; wanted \(3, 4\)"),
    ({"add_to": torch.zeros(5, 3)}, r"add_to has the shape \(5, 3\); wanted \(num_segments, D\) = \(5, 2\)"),
    ({"out_dtype": torch.int32}, "out_dtype is torch.int32; wanted a floating dtype"),
    (
        {"order": SegmentOrder.of(torch.zeros(6, dtype=torch.int64), 5)},
        r"order is of 6 numbers and 5 segments; wanted SegmentOrder.of\(ids, num_segments\), of 12 and 5",
    ),
    ({"weights": torch.zeros(3, 4, device="meta")}, "x is on cpu, weights is on meta; they must be equal"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_a_wrong_argument_is_refused_with_its_value(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segment_sum(**{**GOOD, **arguments})


def test_the_good_arguments_of_that_test_are_good() -> None:
    assert segment_sum(**GOOD).shape == (5, 2)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_a_row_that_belongs_to_no_segment_touches_none(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", backend)
    x = torch.tensor([[float("nan")], [1.0], [2.0]], requires_grad=True)
    for out in (-1, 3, 2**40):
        found = segment_sum(x, torch.tensor([out, 1, 0]), 3, weights=torch.tensor([1.0, 1.0, 0.5]))
        assert found.flatten().tolist() == [1.0, 1.0, 0.0]
        assert not found.requires_grad
    found = segment_sum(x, torch.tensor([2, 1, 0]), 3)
    assert found[:2].flatten().tolist() == [2.0, 1.0]
    assert found[2].isnan()
