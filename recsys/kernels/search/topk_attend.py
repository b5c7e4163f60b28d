"""Attention of each candidate over the behaviours that were kept for it: the second stage of DARE and its like.

    out[c] = sum_i softmax_i(s_ci) v_i      over the kept behaviours i = idx[c] >= 0        (s_ci: scoring.py)

The softmax is exact over the kept. Gradients of q, k, v, q2, k2 and k_bias flow through the kept rows only; those of
behaviours are summed in a fixed order, so they repeat bit for bit.

Papers: Feng et al. 2024, arXiv:2410.02604; Chang et al. 2023, arXiv:2302.02352. Where DARE masks a history's padding
only in the search, a candidate with fewer than K behaviours attends here to those it has.

Dims: Tc candidates, Tk behaviours, H heads, D, D2 and Dv widths, K kept.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.kernels.backend import choose_backend
from recsys.kernels.jagged import JaggedMeta
from recsys.kernels.search.scoring import Scoring, check_like, check_rows, check_width, checked_scoring
from recsys.kernels.search.torch_attend import attend_backward_torch, attend_torch


def topk_attend_reference(scoring: Scoring, v: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, in PyTorch: out (Tc, H, Dv) and the log of the softmax denominator (Tc, H).

    Args:
        rows: (Tc, H, K) int64, rows of k and v, -1 for none.
    """
    H, dtype = rows.shape[1], scoring.dtype
    is_kept, heads = rows >= 0, torch.arange(H, device=rows.device)[:, None]

    def of(x: Tensor) -> Tensor:
        """(Tc, H, K, width), zero where nothing is kept: row -1 is the last one."""
        return F.pad(x.to(dtype), (0, 0, 0, 0, 0, 1))[rows, heads]

    scores = scoring.scale * torch.einsum("chd,chkd->chk", scoring.q.to(dtype), of(scoring.k))
    if scoring.q2 is not None and scoring.k2 is not None:
        scores = scores + scoring.scale2 * torch.einsum("chd,chkd->chk", scoring.q2.to(dtype), of(scoring.k2))
    if scoring.k_bias is not None:
        scores = scores + of(scoring.k_bias[..., None])[..., 0]
    scores = scores.masked_fill(~is_kept, -torch.inf)
    lse = scores.detach().logsumexp(2)
    is_empty = (lse == -torch.inf)[..., None]
    weights = scores.masked_fill(is_empty, 0.0).softmax(2).masked_fill(is_empty | ~is_kept, 0.0)
    return torch.einsum("chk,chkd->chd", weights, of(v)).to(v.dtype), lse


def topk_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    idx: Tensor,
    meta_c: JaggedMeta,
    meta_k: JaggedMeta,
    *,
    scale: float | None = None,
    q2: Tensor | None = None,
    k2: Tensor | None = None,
    scale2: float | None = None,
    k_bias: Tensor | None = None,
) -> Tensor:
    """Attend to the kept behaviours, which are scored again.

    Args:
        q: (Tc, D) float, or (Tc, H, D).
        k: (Tk, D) or (Tk, H, D), dtype and device of q.
        v: (Tk, Dv) or (Tk, H, Dv), dtype and device of q.
        idx: int32 or int64, from search_topk: (Tc, K), the same for all heads, or (Tc, H, K). Places within the
            candidate's own sequence; -1 is none. A place behind the sequence's end is refused on a CPU, and keeps
            nothing elsewhere.
        meta_c: candidates of each of B sequences, Tc in all; offsets on the device of q.
        meta_k: behaviours of each.
        scale, q2, k2, scale2, k_bias: as in search_topk.

    Returns:
        (Tc, Dv) or (Tc, H, Dv) in the dtype of v; 0, without a gradient, where nothing is kept.

    Raises:
        ValueError: shapes, dtypes, devices or ranges do not agree.
    """
    given = checked_scoring(q, k, meta_c, meta_k, scale, q2, k2, scale2, k_bias)
    check_rows("v", v, "k", k)
    check_width("v", v)
    check_like("v", v, q)
    _check_idx(idx, q)
    s = given.with_heads()
    v = v if v.dim() == 3 else v.unsqueeze(1)
    places = idx if idx.dim() == 3 else idx.unsqueeze(1).expand(-1, s.q.shape[1], -1)
    offsets = meta_c.offsets, meta_k.offsets
    if not torch.compiler.is_compiling() and choose_backend("topk_attend", q) == "reference":
        out, _ = topk_attend_reference(s, v, _kept_rows(places, *offsets))  # differentiated by autograd itself
    else:
        out, _ = _topk_attend(s.q, v, s.k, places, *offsets, s.scale, s.q2, s.k2, s.scale2, s.k_bias)
    return out if q.dim() == 3 else out.squeeze(1)


def _check_idx(idx: Tensor, q: Tensor) -> None:
    if idx.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"idx is {idx.dtype}; wanted int32 or int64")
    check_like("idx", idx, q, is_dtype_free=True)
    is_per_head = idx.dim() == 3 and q.dim() == 3
    wanted = q.shape[:2] if is_per_head else q.shape[:1]
    if (idx.dim() != 2 and not is_per_head) or idx.shape[:-1] != wanted:
        per_head = f" or ({q.shape[0]}, {q.shape[1]}, K)" if q.dim() == 3 else ""
        raise ValueError(f"idx has the shape {tuple(idx.shape)}; wanted ({q.shape[0]}, K){per_head}")


def _kept_rows(idx: Tensor, offsets_c: Tensor, offsets_k: Tensor) -> Tensor:
    """(Tc, H, K) int64 rows of k and v; -1 for none."""
    candidate = torch.arange(idx.shape[0], device=idx.device)
    sequence = torch.searchsorted(offsets_c, candidate, right=True) - 1
    start, length = offsets_k[:-1], offsets_k.diff()
    is_out = idx >= length[sequence][:, None, None]
    if idx.device.type == "cpu" and bool(is_out.any()):
        c, h, j = (int(i) for i in is_out.nonzero()[0])
        raise ValueError(
            f"idx[{c}, {h}, {j}]={int(idx[c, h, j])} (candidate, head, kept), but its sequence has "
            f"{int(length[sequence[c]])} behaviours; wanted places below that, or -1"
        )
    return torch.where((idx < 0) | is_out, -1, idx + start[sequence][:, None, None])


@torch.library.custom_op("recsys::topk_attend", mutates_args=())
def _topk_attend(
    q: Tensor,
    v: Tensor,
    k: Tensor,
    idx: Tensor,
    offsets_c: Tensor,
    offsets_k: Tensor,
    scale: float,
    q2: Tensor | None,
    k2: Tensor | None,
    scale2: float,
    k_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    scoring = Scoring(q=q, k=k, scale=scale, q2=q2, k2=k2, scale2=scale2, k_bias=k_bias)
    rows = _kept_rows(idx, offsets_c, offsets_k)
    backend = choose_backend("topk_attend", q)
    if backend == "reference":
        return topk_attend_reference(scoring, v, rows)
    if backend == "torch":
        return attend_torch(scoring, v, rows)
    from recsys.kernels.search.triton_attend import attend_triton

    return attend_triton(scoring, v, rows)


@_topk_attend.register_fake
def _topk_attend_fake(q: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    shape = q.shape[:2]
    lse = q.new_empty(shape, dtype=torch.promote_types(q.dtype, torch.float32))
    return v.new_empty(*shape, v.shape[2]), lse


@torch.library.custom_op("recsys::topk_attend_backward", mutates_args=())
def _topk_attend_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q2: Tensor | None,
    k2: Tensor | None,
    k_bias: Tensor | None,
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    idx: Tensor,
    offsets_c: Tensor,
    offsets_k: Tensor,
    scale: float,
    scale2: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    scoring = Scoring(q=q, k=k, scale=scale, q2=q2, k2=k2, scale2=scale2, k_bias=k_bias)
    rows = _kept_rows(idx, offsets_c, offsets_k)
    backend = choose_backend("topk_attend", q)
    if backend == "triton":
        from recsys.kernels.search.triton_attend import attend_backward_triton

        return attend_backward_triton(scoring, v, rows, out, lse, grad)
    if backend == "torch":
        return attend_backward_torch(scoring, v, rows, lse, grad)
    raise NotImplementedError(
        "RECSYS_KERNELS=reference has no gradient under torch.compile; run it without, or use torch"
    )


@_topk_attend_backward.register_fake
def _topk_attend_backward_fake(
    q: Tensor, k: Tensor, v: Tensor, q2: Tensor | None, k2: Tensor | None, k_bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    q2, k2, k_bias = (q.new_empty(0) if x is None else x for x in (q2, k2, k_bias))
    dq, dk, dv, dq2, dk2, dbias = (x.new_empty(x.shape) for x in (q, k, v, q2, k2, k_bias))
    return dq, dk, dv, dq2, dk2, dbias


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, v, k, idx, offsets_c, offsets_k, ctx.scale, q2, k2, ctx.scale2, k_bias = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, idx, offsets_c, offsets_k, q2, k2, k_bias)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, idx, offsets_c, offsets_k, q2, k2, k_bias = ctx.saved_tensors
    dq, dk, dv, dq2, dk2, dbias = _topk_attend_backward(
        q, k, v, q2, k2, k_bias, grad, out, lse, idx, offsets_c, offsets_k, ctx.scale, ctx.scale2
    )
    second = (None, None) if q2 is None else (dq2, dk2)
    return dq, dv, dk, None, None, None, None, *second, None, None if k_bias is None else dbias


_topk_attend.register_autograd(_backward, setup_context=_save)
