"""Numbers that are not finite: a query that is NaN or infinite has no answer, on any path and of any length."""

import pytest
import torch

from recsys.kernels.attention import jagged_attention
from recsys.kernels.jagged import JaggedMeta


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [5, 40])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("tensor", [0, 1])
def test_what_is_not_finite_reaches_the_rows_that_it_reaches_by_definition(
    value: float, length: int, causal: bool, tensor: int
) -> None:
    qkv = list(torch.randn(3, length, 2, 8, generator=torch.Generator().manual_seed(0)).unbind(0))
    qkv[tensor] = qkv[tensor].clone()
    qkv[tensor][3] = value
    q, k, v = qkv
    out, lse = jagged_attention(q, k, v, JaggedMeta.from_lengths([length]), causal=causal, return_lse=True)
    scores = torch.einsum("qhd,khd->hqk", q, k) / 8**0.5
    if causal:
        scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -torch.inf)
    expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
    assert not expected.isfinite().all()
    assert torch.equal(out.isfinite(), expected.isfinite())
    assert torch.equal(lse.isfinite(), scores.logsumexp(-1).T.isfinite())
