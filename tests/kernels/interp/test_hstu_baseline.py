"""The rival that states HSTU's formula, against the definition of `jagged_attention` with SiLU."""

import pytest
import torch

from recsys.kernels.attention.reference import jagged_attention_reference
from recsys.kernels.attention.visibility import Visibility
from recsys.kernels.jagged import JaggedMeta

pytest.importorskip("triton")
CONFIG = {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2}


@pytest.mark.parametrize("is_parallel", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_out_and_gradients_are_those_of_the_definition(is_parallel: bool, dtype: torch.dtype, tolerance: float) -> None:
    from benchmarks.support.triton_hstu_baseline import hstu_attention

    generator = torch.Generator().manual_seed(0)
    meta = JaggedMeta.from_lengths([17, 0, 40, 1])
    q, k, v, share = (torch.randn(meta.total, 2, 16, generator=generator).to(dtype) for _ in range(4))
    q, k, v = (x.mul(2).requires_grad_() for x in (q, k, v))
    out = hstu_attention(
        q, k, v, meta.offsets, meta.max_len, 0.5, is_parallel=is_parallel, forward=CONFIG, backward=CONFIG
    )
    wanted, _ = jagged_attention_reference(
        q.double(),
        k.double(),
        v.double(),
        meta,
        meta,
        scale=0.5,
        visibility=Visibility(causal=True, window=(-1, -1), num_global=0, target_group=1),
        silu_norm=meta.max_len,
    )
    found = [out, *torch.autograd.grad(out, (q, k, v), share)]
    right = [wanted, *torch.autograd.grad(wanted, (q, k, v), share.double())]
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=0.0, atol=tolerance)
