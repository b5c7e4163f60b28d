"""What the kernels' tests share: memory that is not yet written holds NaN, and one way to run each path."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.kernels.attention.op import jagged_attention
from recsys.kernels.jagged import JaggedMeta

Attend = Callable[..., list[Tensor]]


@pytest.fixture(autouse=True, scope="module")
def _poison_empty_memory() -> Iterator[None]:
    """`torch.empty`, `empty_like` and `new_empty` give NaN to our package, so a slot that is read unwritten shows."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
            patch.setattr(owner, name, _poisoned(getattr(owner, name)))
        yield


def _poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, **kwargs: Any) -> Tensor:
        tensor = make(*args, **kwargs)
        is_ours = sys._getframe(1).f_globals.get("__name__", "").startswith("recsys.kernels")
        return tensor.fill_(float("nan")) if is_ours and tensor.is_floating_point() else tensor

    return made


@pytest.fixture(scope="session")
def attend() -> Attend:
    """`attend(backend, q, k, v, meta_q, meta_k, **arguments)`: out, lse, and the gradients of q, k, v and the tables.

    The gradients are those of a fixed random combination of out and of lse where it is finite. SiLU has no lse.
    """

    def run(
        backend: str, q: Tensor, k: Tensor, v: Tensor, meta_q: JaggedMeta, meta_k: JaggedMeta | None, **arguments: Any
    ) -> list[Tensor]:
        q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
        tables = []
        for name in ("time_bias", "pos_bias"):
            if arguments.get(name) is not None:
                tables.append(arguments[name].table.detach().clone().requires_grad_())
                arguments[name] = replace(arguments[name], table=tables[-1])
        has_lse = arguments.get("kind") != "silu"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RECSYS_KERNELS", backend)
            found: Any = jagged_attention(q, k, v, meta_q, meta_k, return_lse=has_lse, **arguments)  # type: ignore[arg-type]  # one of the overloads
        out, *lse = found if has_lse else (found,)
        generator = torch.Generator().manual_seed(99)
        loss = torch.zeros((), dtype=out.dtype)
        for x in (out, *lse):
            finite = x.masked_fill(~torch.isfinite(x), 0.0)
            loss = loss + (finite * torch.randn(x.shape, generator=generator).to(x.dtype)).sum()
        grads = torch.autograd.grad(loss, (q, k, v, *tables), materialize_grads=True)
        return [out.detach(), *(x.detach() for x in lse), *grads]

    return run
