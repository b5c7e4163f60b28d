"""The ops beside attention, each against what plain torch offers: made ready for `rival_figures.measure`.

Dims: N rows, V items, D width, K negatives or kept behaviours.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.support.rival_figures import Contest
from recsys.kernels.jagged import JaggedMeta

Run = Callable[[], Tensor]
BYTES = 2  # of bfloat16, the dtype of every contest on a GPU
REFERENCE_CELLS = 1 << 28  # logits of a piece of the float64 reference: 2 GB


@dataclass(frozen=True)
class Match:
    """A contest with its rivals and how far each is from float64."""

    contest: Contest
    builds: dict[str, Callable[[], Run]]
    errors: Callable[[Run], dict[str, float]]


@contextmanager
def path(name: str) -> Iterator[None]:
    """Within: every op takes this path."""
    before = os.environ.get("RECSYS_KERNELS")
    os.environ["RECSYS_KERNELS"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["RECSYS_KERNELS"]
        else:
            os.environ["RECSYS_KERNELS"] = before


def linear_cross_entropy_match(device: torch.device, num_rows: int, num_items: int, width: int) -> Match:
    """Forward: 2 N V D FLOP; backward: twice that, and the logits again."""
    op, draw = _op("linear_cross_entropy", "linear_cross_entropy"), _Draw(device)
    x, w = draw.leaf(num_rows, width), draw.leaf(num_items, width)
    target = draw.integers(num_items, num_rows)
    builds = _both_paths(lambda: op(x, w, target)) | {
        "full logits": lambda: lambda: F.cross_entropy((x @ w.t()).float(), target),
        "F.linear_cross_entropy": lambda: _torch_own(x, w, target),
    }
    products = 2.0 * num_rows * num_items * width
    contest = Contest([x, w], None, products, 0.0, 3 * products)
    return Match(contest, builds, lambda run: _errors(run, (x, w), lambda a, b: _cross_entropy64(a, b, target)))


def sampled_loss_match(
    device: torch.device, num_rows: int, num_items: int, num_negatives: int, width: int, is_shared: bool
) -> Match:
    """Softmax over sampled negatives; the bytes are those of the gathered rows, which a shared list does not have."""
    op, draw = _op("sampled_loss", "sampled_loss"), _Draw(device)
    x, w = draw.leaf(num_rows, width), draw.leaf(num_items, width)
    target = draw.integers(num_items, num_rows)
    size = (num_negatives,) if is_shared else (num_rows, num_negatives)
    negatives = draw.integers(num_items, *size)

    def gathered(x: Tensor, w: Tensor) -> Tensor:
        found = torch.einsum("nd,nkd->nk", x, w[negatives]) if negatives.dim() == 2 else x @ w[negatives].t()
        found = found.masked_fill(negatives == target[:, None], -torch.inf)
        logits = torch.cat([(x * w[target]).sum(1, keepdim=True), found], 1)
        return F.cross_entropy(logits.to(torch.promote_types(x.dtype, torch.float32)), torch.zeros_like(target))

    builds = _both_paths(lambda: op(x, w, target, negatives)) | {"gather": lambda: lambda: gathered(x, w)}
    moved = 0.0 if is_shared else float(num_rows * num_negatives * width * BYTES)
    flop = 2.0 * num_rows * num_negatives * width
    contest = Contest([x, w], None, flop, moved, 2 * flop, 2 * moved)
    return Match(contest, builds, lambda run: _errors(run, (x, w), gathered))


def search_topk_match(
    device: torch.device, num_users: int, history: int, num_candidates: int, width: int, top_k: int
) -> Match:
    """One read of the keys is what it takes at least."""
    op, draw = _op("search", "search_topk"), _Draw(device)
    q, k = draw.leaf(num_users * num_candidates, width).detach(), draw.leaf(num_users * history, width).detach()
    meta_c, meta_k = (JaggedMeta.from_lengths([n] * num_users, device) for n in (num_candidates, history))

    def scores(dtype: torch.dtype) -> Tensor:
        of = q.to(dtype).view(num_users, num_candidates, width), k.to(dtype).view(num_users, history, width)
        return torch.einsum("bcd,bkd->bck", *of).flatten(0, 1) * width**-0.5

    builds = _both_paths(lambda: op(q, k, meta_c, meta_k, top_k)[1])
    builds["all scores, torch.topk"] = lambda: lambda: scores(q.dtype).float().topk(top_k, dim=1).values

    def errors(run: Run) -> dict[str, float]:
        return {"score": float((run().double() - scores(torch.float64).topk(top_k, dim=1).values).abs().max())}

    return Match(Contest([], None, 2.0 * q.shape[0] * history * width, float(k.numel() * BYTES)), builds, errors)


def topk_attend_match(
    device: torch.device, num_users: int, history: int, num_candidates: int, width: int, top_k: int
) -> Match:
    """Gathers K rows of keys and values for each candidate."""
    op, draw = _op("search", "topk_attend"), _Draw(device)
    total = num_users * num_candidates
    q, k, v = draw.leaf(total, width), draw.leaf(num_users * history, width), draw.leaf(num_users * history, width)
    meta_c, meta_k = (JaggedMeta.from_lengths([n] * num_users, device) for n in (num_candidates, history))
    idx = torch.rand(total, history, generator=draw.generator, device=device).topk(top_k).indices.to(torch.int32)
    rows = idx.long() + (torch.arange(total, device=device) // num_candidates * history)[:, None]

    def gathered(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (torch.einsum("cd,ckd->ck", q, k[rows]) * width**-0.5).softmax(1)
        return torch.einsum("ck,ckd->cd", weights, v[rows])

    builds = _both_paths(lambda: op(q, k, v, idx, meta_c, meta_k)) | {"gather": lambda: lambda: gathered(q, k, v)}
    moved = 2.0 * total * top_k * width * BYTES
    share = draw.leaf(total, width).detach()
    contest = Contest([q, k, v], share, 0.0, moved, 0.0, 2 * moved)
    return Match(contest, builds, lambda run: _errors(run, (q, k, v), gathered, share))


def jagged_embedding_match(device: torch.device, num_items: int, num_tokens: int, width: int) -> Match:
    """Rows of a table by id, ids as unevenly liked as items are; the backward pass sums them by id."""
    op, draw = _op("jagged_embedding", "jagged_embedding"), _Draw(device)
    w = draw.leaf(num_items, width)
    liked = torch.rand(num_tokens, generator=draw.generator, device=device, dtype=torch.float64)
    ids = (num_items**liked).long().clamp(max=num_items - 1)
    share = draw.leaf(num_tokens, width).detach()
    builds = _both_paths(lambda: op(w, ids)) | {"F.embedding": lambda: lambda: F.embedding(ids, w)}
    moved = 2.0 * num_tokens * width * BYTES
    contest = Contest([w], share, 0.0, moved, 0.0, moved / 2 + w.numel() * BYTES)
    return Match(contest, builds, lambda run: _errors(run, (w,), lambda table: F.embedding(ids, table), share))


class _Draw:
    """Random tensors, the same in every run; bfloat16 on a GPU, float32 on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.generator = device, torch.Generator(device).manual_seed(0)
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def leaf(self, *size: int) -> Tensor:
        drawn = torch.randn(size, generator=self.generator, device=self.device)
        return (drawn * size[-1] ** -0.25).to(self.dtype).requires_grad_()

    def integers(self, end: int, *size: int) -> Tensor:
        return torch.randint(0, end, size, generator=self.generator, device=self.device)


def _op(module: str, name: str) -> Callable[..., Any]:
    return cast(Callable[..., Any], getattr(importlib.import_module(f"recsys.kernels.{module}"), name))


def _both_paths(run: Callable[[], Tensor]) -> dict[str, Callable[[], Run]]:
    """Ours by the path that is chosen for the device, and by plain torch."""

    def on(name: str) -> Tensor:
        with path(name):
            return run()

    return {"ours": lambda: run, "ours, torch path": lambda: partial(on, "torch")}


def _torch_own(x: Tensor, w: Tensor, target: Tensor) -> Run:
    own: Any = getattr(F, "linear_cross_entropy", None)
    if own is None:
        raise NotImplementedError(f"torch {torch.__version__} has no F.linear_cross_entropy")
    return lambda: cast(Tensor, own(x, w, target))


def _errors(
    run: Run, leaves: tuple[Tensor, ...], reference: Callable[..., Tensor], share: Tensor | None = None
) -> dict[str, float]:
    """Largest error of the output and each gradient, against the reference on the same numbers in float64."""
    names = ["out", *(f"grad_{n}" for n in range(len(leaves)))]
    out = run()
    found = [out, *torch.autograd.grad(out, leaves, share)]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    right = reference(*wide)
    wanted = [right, *torch.autograd.grad(right, wide, None if share is None else share.double())]
    pairs = zip(names, found, wanted, strict=True)
    return {name: float((one.detach().double() - other.detach()).abs().max()) for name, one, other in pairs}


def _cross_entropy64(x: Tensor, w: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy in pieces whose logits are formed again in the backward pass."""
    rows = max(1, REFERENCE_CELLS // len(w))

    def piece(x: Tensor, w: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(x @ w.t(), target, reduction="sum")

    parts = [
        torch.utils.checkpoint.checkpoint(piece, x[at : at + rows], w, target[at : at + rows], use_reentrant=False)
        for at in range(0, len(x), rows)
    ]
    return torch.stack(parts).sum() / len(x)
