"""What else computes a jagged attention: each as a function of nothing that gives (T, H, D), forward alone.

A rival that cannot take a problem raises, and the reason is written down in its place.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.support.attention_problem import TIME_BUCKETS, Problem
from benchmarks.support.device_time import times_in_turn
from recsys.kernels.attention.op import jagged_attention
from recsys.kernels.jagged import JaggedMeta

Run = Callable[[], Tensor]
Build = Callable[[Problem], Run]


def ours(problem: Problem, meta: JaggedMeta | None = None) -> Run:
    """`jagged_attention`, by the path that RECSYS_KERNELS names."""
    shape, used = problem.shape, meta or problem.meta
    options: dict[str, Any] = {"causal": shape.causal, "window": shape.window, "num_global": shape.num_global}
    if shape.kind == "silu":
        options |= {"kind": "silu", "silu_norm": float(shape.max_len)}

    def run() -> Tensor:
        bias = {} if not shape.bias else {"time_bias": problem.time_bias()}
        attend: Any = jagged_attention
        return cast(Tensor, attend(problem.q, problem.k, problem.v, used, **options, **bias))

    return run


def ours_with_meta(problem: Problem) -> Run:
    """The same, and what it knows of the batch is worked out anew."""
    return lambda: ours(problem, JaggedMeta.from_lengths(problem.lengths, problem.device))()


def padded_sdpa(problem: Problem) -> Run:
    """`scaled_dot_product_attention` on a padded rectangle with a mask; a learned bias is added in full."""
    _wants_softmax(problem)
    shape, meta = problem.shape, problem.meta
    rows, cells = _cells(problem)
    mask = _mask(problem)
    size, longest = len(problem.lengths), meta.max_len

    def run() -> Tensor:
        added = mask
        if shape.bias:
            at = problem.seconds[rows].view(size, longest)
            bucket = _bucket((at[:, :, None] - at[:, None, :]).abs())
            # Indexing by a tensor has a gradient that is some hundred times slower.
            bias = problem.table.index_select(1, bucket.flatten()).view(-1, *bucket.shape).transpose(0, 1)
            added = bias.to(shape.dtype).masked_fill(~mask, -torch.inf)  # (B, H, L, L)
        out = F.scaled_dot_product_attention(*_padded(problem, rows), attn_mask=added)
        return out.transpose(1, 2).flatten(0, 1).index_select(0, cells)

    return run


def padded_sdpa_is_causal(problem: Problem) -> Run:
    """The same by `is_causal=True` without a mask: padding stands at the end, where no token sees it."""
    _wants_softmax(problem)
    shape = problem.shape
    if not shape.causal or shape.bias or shape.window != (-1, -1):
        raise NotImplementedError("causal attention without bias or window alone")
    rows, cells = _cells(problem)

    def run() -> Tensor:
        out = F.scaled_dot_product_attention(*_padded(problem, rows), is_causal=True)
        return out.transpose(1, 2).flatten(0, 1).index_select(0, cells)

    return run


def varlen(problem: Problem) -> Run:
    """`torch.nn.attention.varlen`: FlashAttention 2 behind torch's own name, whose arguments have moved."""
    _wants_softmax(problem)
    if problem.shape.bias or problem.shape.num_global:
        raise NotImplementedError("varlen_attn knows no bias and no global tokens")
    if problem.device.type != "cuda":
        raise NotImplementedError("varlen_attn runs on CUDA alone")
    from torch.nn.attention.varlen import varlen_attn

    offsets, longest, shape = problem.meta.offsets.int(), problem.meta.max_len, problem.shape
    known = inspect.signature(varlen_attn).parameters
    if "window_size" in known:
        options: dict[str, Any] = {"window_size": (shape.window[0], 0 if shape.causal else shape.window[1])}
    elif shape.window != (-1, -1):
        raise NotImplementedError("varlen_attn of this torch knows no window")
    else:
        options = {"is_causal": shape.causal}

    def run() -> Tensor:
        out = varlen_attn(problem.q, problem.k, problem.v, offsets, offsets, longest, longest, **options)
        return cast(Tensor, out)

    return run


def flex(problem: Problem) -> Run:
    """FlexAttention, compiled, on the packed tokens with a document mask that is made beforehand."""
    attend, block_mask, score = _flex_parts(problem)
    mask = block_mask()
    return lambda: _flex_run(problem, attend, mask, score)


def flex_with_mask(problem: Problem) -> Run:
    """The same, and the mask is made for every batch."""
    attend, block_mask, score = _flex_parts(problem)
    return lambda: _flex_run(problem, attend, block_mask(), score)


def hstu(is_parallel: bool) -> Build:
    """HSTU's formula in plain Triton, with the fastest of its launches on this problem."""

    def build(problem: Problem) -> Run:
        from benchmarks.support.triton_hstu_baseline import CONFIGS, hstu_attention

        if problem.shape.kind != "silu" or problem.shape.bias or problem.shape.window != (-1, -1):
            raise NotImplementedError("the HSTU port is causal SiLU attention without bias or window")

        def run(forward: dict[str, int], backward: dict[str, int]) -> Tensor:
            return hstu_attention(
                problem.q,
                problem.k,
                problem.v,
                problem.meta.offsets,
                problem.shape.max_len,
                problem.scale,
                is_parallel=is_parallel,
                forward=forward,
                backward=backward,
            )

        def passes(config: dict[str, int]) -> Callable[[], object]:
            return lambda: torch.autograd.grad(run(best, config), problem.inputs, problem.share)

        best = _fastest({n: partial(run, c, c) for n, c in enumerate(CONFIGS)}, CONFIGS, problem.device)
        back = _fastest({n: passes(c) for n, c in enumerate(CONFIGS)}, CONFIGS, problem.device)
        return lambda: run(best, back)

    return build


RIVALS: dict[str, Build] = {
    "ours": ours,
    "ours, meta included": ours_with_meta,
    "padded SDPA": padded_sdpa,
    "padded SDPA, is_causal": padded_sdpa_is_causal,
    "FlexAttention": flex,
    "FlexAttention, mask included": flex_with_mask,
    "varlen_attn": varlen,
    "HSTU port": hstu(is_parallel=True),
    "HSTU port, serial": hstu(is_parallel=False),
}


def _fastest(runs: dict[int, Callable[[], object]], configs: Any, device: torch.device) -> dict[str, int]:
    """The launch that takes the least time; those that do not compile are out."""
    times, reason = {}, None
    for number, run in runs.items():
        try:
            times[number] = times_in_turn({"": run}, device, repeats=5, warm_up=2)[""].median
        except Exception as error:  # a launch that needs too much of a GPU is none for it
            reason = error
    if not times:
        raise RuntimeError(f"no launch of the HSTU port runs here; the last one: {reason}")
    chosen: dict[str, int] = configs[min(times, key=times.__getitem__)]
    return chosen


def _wants_softmax(problem: Problem) -> None:
    if problem.shape.kind != "softmax":
        raise NotImplementedError("softmax alone")


def _cells(problem: Problem) -> tuple[Tensor, Tensor]:
    """(B * L,) row of each padded cell, and (T,) the cells that hold a token."""
    meta = problem.meta
    length = meta.offsets.diff()[:, None]
    place = torch.arange(meta.max_len, device=problem.device)
    rows = (meta.offsets[:-1, None] + torch.minimum(place, length - 1)).flatten()
    return rows, (place < length).flatten().nonzero().squeeze(1)


def _padded(problem: Problem, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, (B, H, L, D)."""
    size = len(problem.lengths)

    def dense(x: Tensor) -> Tensor:
        return x.reshape(len(x), -1).index_select(0, rows).view(size, -1, *x.shape[1:]).transpose(1, 2)

    return dense(problem.q), dense(problem.k), dense(problem.v)


def _mask(problem: Problem) -> Tensor:
    """(B, 1, L, L) or (B, 1, 1, L) bool, True where a key is seen."""
    meta, shape = problem.meta, problem.shape
    place = torch.arange(meta.max_len, device=problem.device)
    mask = (place < meta.offsets.diff()[:, None])[:, None, None, :]
    distance = place[:, None] - place[None, :]
    left, right = shape.window
    if shape.causal:
        mask = mask & (distance >= 0)
    if left >= 0 or right >= 0:
        near = (distance <= left if left >= 0 else distance > -meta.max_len) & (
            distance >= -right if right >= 0 else True
        )
        mask = mask & (near | (place[None, :] < shape.num_global) | (place[:, None] < shape.num_global))
    if shape.bias:
        mask = mask.expand(-1, -1, meta.max_len, -1)
    return mask


def _bucket(seconds: Tensor) -> Tensor:
    """Of `log2x2`, two buckets a doubling, without its table of thresholds."""
    halves = torch.log2(seconds.clamp(min=1).float()) * 2.0
    return halves.int().clamp(max=TIME_BUCKETS - 1)


def _flex_parts(problem: Problem) -> tuple[Any, Callable[[], Any], Any]:
    _wants_softmax(problem)
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    shape, total = problem.shape, problem.meta.total
    lengths = problem.meta.offsets.diff()
    document = torch.repeat_interleave(torch.arange(len(lengths), device=problem.device), lengths, output_size=total)
    place = torch.arange(total, device=problem.device) - problem.meta.offsets[:-1][document]
    left, right, first = *shape.window, shape.num_global
    far_left, far_right = (side if side >= 0 else math.inf for side in (left, right))

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001  # FlexAttention gives all four
        seen = document[q] == document[k]
        if shape.causal:
            seen = seen & (q >= k)
        if shape.window != (-1, -1):
            near = (q - k <= far_left) & (k - q <= far_right)
            seen = seen & (near | (place[k] < first) | (place[q] < first))
        return seen

    score = None
    if shape.bias:
        seconds, table = problem.seconds, problem.table

        def score(value: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001  # FlexAttention gives all four
            return value + table[h, _bucket((seconds[q] - seconds[k]).abs())]

    torch._dynamo.reset()
    attend = torch.compile(flex_attention, dynamic=False)
    make = torch.compile(create_block_mask) if problem.device.type == "cuda" else create_block_mask
    return attend, lambda: make(sees, None, None, total, total, device=str(problem.device)), score


def _flex_run(problem: Problem, attend: Any, mask: Any, score: Any) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (problem.q, problem.k, problem.v))  # (1, H, T, D)
    out: Tensor = attend(q, k, v, score_mod=score, block_mask=mask)
    return out[0].transpose(0, 1)
