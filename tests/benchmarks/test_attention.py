"""The alternatives of `benchmarks.attention --padded`, tried with small shapes."""

import json
import resource

import pytest
import torch

from benchmarks.attention import QUICK_SHAPES, padded_case, say_peak
from benchmarks.support.padded_attention import PaddedAttention


@pytest.mark.parametrize("shape", QUICK_SHAPES)
def test_padded_rows_give_what_ours_gives_with_and_without_a_mask(shape: str) -> None:
    (joined, _), share, runs = padded_case(shape, is_quick=True)
    (wanted,) = torch.autograd.grad(runs["ours"](), [joined], share)
    for name in ("padded", "padded, is_causal"):
        torch.testing.assert_close(runs[name](), runs["ours"](), rtol=1e-4, atol=1e-5)
        (found,) = torch.autograd.grad(runs[name](), [joined], share)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_no_mask_is_made_where_none_is_asked_for() -> None:
    assert PaddedAttention.of([3, 1], causal=True, has_mask=False).mask is None
    with pytest.raises(ValueError, match="wanted causal=True"):
        PaddedAttention.of([3, 1], causal=False, has_mask=False)


def test_a_peak_is_in_millions_of_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    say_peak("B=128", "inputs", is_quick=True)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert before / 1e6 <= json.loads(capsys.readouterr().out)["peak_mb"] <= after / 1e6
