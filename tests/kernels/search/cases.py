"""What the tests of search share: jagged inputs, and one way to run both stages on a path."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.kernels.jagged import JaggedMeta
from recsys.kernels.search import search_topk, topk_attend


@dataclass(frozen=True)
class SearchCase:
    """The arguments of both stages."""

    q: Tensor
    k: Tensor
    v: Tensor
    meta_c: JaggedMeta
    meta_k: JaggedMeta
    top_k: int
    optional: dict[str, Any]

    def search(self, backend: str) -> tuple[Tensor, Tensor]:
        """idx and score."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RECSYS_KERNELS", backend)
            return search_topk(self.q, self.k, self.meta_c, self.meta_k, self.top_k, **self.optional)

    def attend(self, backend: str, idx: Tensor) -> list[Tensor]:
        """out, and the gradients of q, k, v and what is optional, for a fixed random combination of out."""
        q, k, v = (x.detach().clone().requires_grad_() for x in (self.q, self.k, self.v))
        tensors = {name: x.detach().clone().requires_grad_() for name, x in self.optional.items() if torch.is_tensor(x)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RECSYS_KERNELS", backend)
            out = topk_attend(q, k, v, idx, self.meta_c, self.meta_k, **{**self.optional, **tensors})
            share = torch.randn(out.shape, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
            grads = torch.autograd.grad(out, (q, k, v, *tensors.values()), share.to(out))
        return [out.detach(), *grads]


def search_case(
    len_c: list[int],
    len_k: list[int],
    *,
    D: int = 8,
    D2: int | None = None,
    Dv: int | None = None,
    H: int | None = None,
    top_k: int = 5,
    has_bias: bool = False,
    is_integer: bool = True,
    size: float = 1.0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    device: str = "cpu",
) -> SearchCase:
    """Integer inputs score alike to the last bit on every path, and tie often."""
    generator = torch.Generator().manual_seed(seed)
    meta_c, meta_k = JaggedMeta.from_lengths(len_c, device), JaggedMeta.from_lengths(len_k, device)
    heads = () if H is None else (H,)

    def draw(*shape: int) -> Tensor:
        if is_integer:
            x = torch.randint(-2, 3, shape, generator=generator).to(torch.float64)
        else:
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (x * size).to(device, dtype)

    q, k = draw(meta_c.total, *heads, D), draw(meta_k.total, *heads, D)
    optional: dict[str, Any] = {"scale": 0.5}
    if D2 is not None:
        optional |= {"q2": draw(meta_c.total, *heads, D2), "k2": draw(meta_k.total, *heads, D2), "scale2": 0.25}
    if has_bias:
        optional["k_bias"] = draw(meta_k.total, *heads)
    return SearchCase(q, k, draw(meta_k.total, *heads, Dv or D), meta_c, meta_k, top_k, optional)
