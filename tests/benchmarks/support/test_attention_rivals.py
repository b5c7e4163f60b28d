"""Inputs of the attention benchmark, and the rivals that run on a CPU, against the definition."""

from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.support.attention_problem import FILL, Problem, Shape, draw_lengths
from benchmarks.support.attention_rivals import RIVALS, _bucket, padded_sdpa, padded_sdpa_is_causal
from benchmarks.support.rival_figures import Contest, measure
from recsys.kernels.attention.bias import TimeBias

CPU = torch.device("cpu")
SMALL = partial(Shape, name="small", max_len=24, width=16, tokens=150, num_heads=2, dtype=torch.float32)


@pytest.mark.parametrize("max_len", [200, 2048, 8192])
def test_ragged_lengths_fill_two_fifths_and_the_first_is_the_longest(max_len: int) -> None:
    lengths = draw_lengths(Shape(name="", max_len=max_len, width=64, is_ragged=True))
    assert lengths[0] == lengths.max() == max_len
    assert lengths.min() >= 1
    assert abs(lengths.sum() / (max_len * len(lengths)) - FILL) < 0.05
    assert abs(lengths.sum() / 65_536 - 1) < 0.15


@pytest.mark.parametrize(
    "shape",
    [
        SMALL(is_ragged=True, causal=False),
        SMALL(is_ragged=True),
        SMALL(is_ragged=True, bias=True),
        SMALL(causal=False, window=(3, 3), num_global=1),
        SMALL(window=(5, 0)),
    ],
)
def test_padded_attention_is_the_definition(shape: Shape) -> None:
    problem = Problem(shape, CPU)
    found = problem.found(padded_sdpa(problem))
    assert len(found) == (5 if shape.bias else 4)
    for one, other in zip(found, problem.checked(torch.float64), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("is_ragged", [True, False])
def test_causal_attention_needs_no_mask_for_padding_at_the_end(is_ragged: bool) -> None:
    problem = Problem(SMALL(is_ragged=is_ragged), CPU)
    found = problem.found(padded_sdpa_is_causal(problem))
    for one, other in zip(found, problem.checked(torch.float64), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("shape", [SMALL(causal=False), SMALL(bias=True), SMALL(window=(5, 0)), SMALL(kind="silu")])
def test_what_is_causal_alone_cannot_say_is_refused(shape: Shape) -> None:
    with pytest.raises(NotImplementedError):
        padded_sdpa_is_causal(Problem(shape, CPU))


def test_buckets_of_the_rival_are_ours() -> None:
    seconds = torch.cat([torch.arange(0, 5000), 2 ** torch.arange(0, 24), 2 ** torch.arange(1, 18) - 1]).int()
    table = torch.zeros(1, 64)
    thresholds = TimeBias(table=table, ts_q=seconds, ts_k=seconds).thresholds()
    wanted = torch.bucketize(seconds.long(), thresholds, right=True)
    assert torch.equal(_bucket(seconds).long(), wanted)


def test_flop_and_bytes_follow_the_convention() -> None:
    problem = Problem(SMALL(is_ragged=True), CPU)
    assert problem.forward_flop == 2 * 2 * 16 * float((problem.lengths**2).sum())
    assert Problem(SMALL(), CPU).lengths.tolist() == [24] * 6
    assert problem.tensor_bytes == problem.meta.total * 2 * 16 * 4
    assert np.isclose(problem.fill, problem.meta.total / (24 * len(problem.lengths)))


def test_one_rivals_failure_leaves_the_others() -> None:
    x = torch.ones(3, requires_grad=True)

    def cannot() -> torch.Tensor:
        raise MemoryError("too large\nby far")

    def breaks(x: torch.Tensor) -> torch.Tensor:
        return x.detach().sum()

    found = measure(
        Contest([x], None, 1e9, 2e6),
        {
            "sum": lambda: lambda: (x * 2).sum(),
            "cannot": lambda: cannot,
            "no gradient": lambda: lambda: breaks(x),
        },
        CPU,
        repeats=2,
        errors=lambda run: {"out": float(run().detach()) - 6.0},
    )
    assert found["cannot"] == {"error": "MemoryError: too large"}
    assert "does not require grad" in found["no gradient"]["backward_error"]
    assert "forward" in found["no gradient"]
    assert found["sum"]["max_error"] == {"out": 0.0}
    times = found["sum"]["forward"]
    assert times["gb_s"] == pytest.approx(2e6 / times["p10"] / 1e6, abs=0.01)
    assert found["sum"]["both"]["p10"] > 0


def test_the_rivals_are_those_that_are_named() -> None:
    assert list(RIVALS)[0] == "ours"
    assert {"padded SDPA", "FlexAttention", "varlen_attn", "HSTU port"} < RIVALS.keys()
