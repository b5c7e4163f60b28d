"""`jagged_attention` as an operator of torch's library: what torch.compile sees, and what picks the path at run time.

An operator takes tensors and plain numbers alone: lengths travel as a CPU tensor, by which `JaggedMeta.of` finds the
batch's meta again. Shapes of outputs depend on shapes of inputs only, so one graph holds for every batch.
"""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from recsys.kernels.attention.arguments import Arguments
from recsys.kernels.attention.bias import PosBias, TimeBias
from recsys.kernels.attention.checks import check_thresholds, host_targets
from recsys.kernels.attention.reference import jagged_attention_reference
from recsys.kernels.attention.torch_path.passes import torch_backward, torch_forward
from recsys.kernels.attention.visibility import Visibility
from recsys.kernels.backend import Backend, choose_backend, is_interpreting, named_backend
from recsys.kernels.jagged import JaggedMeta

OP = "jagged_attention"
NUM_TENSORS = 10  # operands after q, k and v that are tensors or None
TIME_TABLE, POS_TABLE = 8, 12  # places of the tables among the operands
MAX_WIDTH_FLOAT32 = 128  # of a head on a GPU: the tiles of wider ones do not fit into registers
Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

_log = logging.getLogger("recsys.kernels")


def path_of(q: Tensor, v: Tensor) -> Backend:
    """The path for these: float32 that is too wide for the kernels takes the torch path, and a log line says so.

    Raises:
        RuntimeError: triton is forced for float32 that is too wide for it, or where it cannot run.
    """
    chosen, width = choose_backend(OP, q), max(q.shape[2], v.shape[2])
    if chosen != "triton" or q.dtype != torch.float32 or width <= MAX_WIDTH_FLOAT32 or is_interpreting():
        return chosen
    if named_backend() == "triton":
        raise RuntimeError(
            f"RECSYS_KERNELS=triton: {OP} has kernels for float32 up to {MAX_WIDTH_FLOAT32} wide, these heads have "
            f"{width}; use bfloat16, more heads, or unset RECSYS_KERNELS"
        )
    _say_too_wide(width)
    return "torch"


def attend_through_library(
    q: Tensor, k: Tensor, v: Tensor, arguments: Arguments, num_targets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Out (Tq, H, Dv) and lse (Tq, H), with a graph; `num_targets` (B,) stands for those of `arguments`."""
    time, pos, visibility = arguments.time_bias, arguments.pos_bias, arguments.visibility
    is_tensor = time is not None and isinstance(time.buckets, Tensor)
    out, lse = attention_op(
        q,
        k,
        v,
        arguments.meta_q.offsets,
        arguments.meta_k.offsets,
        arguments.meta_q.host_lengths,
        arguments.meta_k.host_lengths,
        num_targets,
        None if time is None else time.table,
        None if time is None else time.ts_q,
        None if time is None else time.ts_k,
        time.buckets if time is not None and is_tensor else None,
        None if pos is None else pos.table,
        arguments.scale,
        arguments.silu_norm,
        visibility.causal,
        visibility.window,
        visibility.num_global,
        visibility.target_group,
        "" if time is None or is_tensor else time.buckets,
        "" if pos is None else pos.kind,
        0 if pos is None else pos.max_distance,
        arguments.dropout_p,
        arguments.seed,
    )
    return out, lse.t()


@torch.library.custom_op("recsys::jagged_attention", mutates_args=())
def attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets_q: Tensor,
    offsets_k: Tensor,
    lengths_q: Tensor,
    lengths_k: Tensor,
    num_targets: Tensor | None,
    time_table: Tensor | None,
    ts_q: Tensor | None,
    ts_k: Tensor | None,
    thresholds: Tensor | None,
    pos_table: Tensor | None,
    scale: float,
    silu_norm: float | None,
    causal: bool,
    window: Sequence[int],
    num_global: int,
    target_group: int,
    time_buckets: str,
    pos_kind: str,
    max_distance: int,
    dropout_p: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Out (Tq, H, Dv) and lse (H, Tq)."""
    operands = (offsets_q, offsets_k, lengths_q, lengths_k, num_targets, time_table, ts_q, ts_k, thresholds, pos_table)
    arguments = _arguments(
        operands,
        (
            scale,
            silu_norm,
            causal,
            window,
            num_global,
            target_group,
            time_buckets,
            pos_kind,
            max_distance,
            dropout_p,
            seed,
        ),
    )
    backend = path_of(q, v)
    with torch.autocast(q.device.type, enabled=False):
        if backend == "triton":
            from recsys.kernels.attention.triton_path.passes import triton_forward

            out, lse = triton_forward(q, k, v, arguments)
        elif backend == "torch":
            out, lse = torch_forward(q, k, v, arguments)
        else:
            out, lse = jagged_attention_reference(q, k, v, **vars(arguments))
    return out, lse.to(_wide(q)).t().contiguous()


@torch.library.custom_op("recsys::jagged_attention_backward", mutates_args=())
def attention_backward_op(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    needs_time: bool,
    needs_pos: bool,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets_q: Tensor,
    offsets_k: Tensor,
    lengths_q: Tensor,
    lengths_k: Tensor,
    num_targets: Tensor | None,
    time_table: Tensor | None,
    ts_q: Tensor | None,
    ts_k: Tensor | None,
    thresholds: Tensor | None,
    pos_table: Tensor | None,
    scale: float,
    silu_norm: float | None,
    causal: bool,
    window: Sequence[int],
    num_global: int,
    target_group: int,
    time_buckets: str,
    pos_kind: str,
    max_distance: int,
    dropout_p: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and of the tables; an empty tensor for a table that is absent or needs none."""
    operands = (offsets_q, offsets_k, lengths_q, lengths_k, num_targets, time_table, ts_q, ts_k, thresholds, pos_table)
    arguments = _arguments(
        operands,
        (
            scale,
            silu_norm,
            causal,
            window,
            num_global,
            target_group,
            time_buckets,
            pos_kind,
            max_distance,
            dropout_p,
            seed,
        ),
    )
    backend = path_of(q, v)
    grad_lse = None if grad_lse is None else grad_lse.t()
    with torch.autocast(q.device.type, enabled=False):
        if backend == "triton":
            from recsys.kernels.attention.triton_path.passes import triton_backward

            grads = triton_backward(grad_out, grad_lse, q, k, v, out, lse.t(), arguments, (needs_time, needs_pos))
        elif backend == "torch":
            grads = torch_backward(grad_out, grad_lse, q, k, v, arguments)
        else:
            raise RuntimeError(
                "RECSYS_KERNELS=reference has no gradient within torch.compile; unset it, or do not compile"
            )
    of_tables = (
        x if needed and x is not None else q.new_empty(0)
        for needed, x in ((needs_time, grads[3]), (needs_pos, grads[4]))
    )
    return cast(Grads, (*(x.contiguous() for x in grads[:3]), *of_tables))


@attention_op.register_fake
def _(q: Tensor, _k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    out = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
    return out, q.new_empty(q.shape[1], q.shape[0], dtype=_wide(q))


@attention_backward_op.register_fake
def _(_out: Tensor, _lse: Tensor | None, *rest: Any) -> Grads:
    _, _, needs_time, needs_pos, q, k, v, *operands = rest
    tables = (needs_time, operands[TIME_TABLE - 3]), (needs_pos, operands[POS_TABLE - 3])
    of_tables = (x.new_empty(x.shape) if needed and x is not None else q.new_empty(0) for needed, x in tables)
    return cast(Grads, (*(x.new_empty(x.shape) for x in (q, k, v)), *of_tables))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[: 3 + NUM_TENSORS], *output)
    ctx.numbers = inputs[3 + NUM_TENSORS :]


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, out, lse = ctx.saved_tensors
    needs = [ctx.needs_input_grad[place] for place in (TIME_TABLE, POS_TABLE)]
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    *of_inputs, of_time, of_pos = attention_backward_op(grad_out, grad_lse, out, lse, *needs, *inputs, *ctx.numbers)
    grads: list[Tensor | None] = [*of_inputs, *[None] * (len(inputs) - 3 + len(ctx.numbers))]
    for place, needed, grad in zip((TIME_TABLE, POS_TABLE), needs, (of_time, of_pos), strict=True):
        grads[place] = grad if needed else None
    return tuple(grads)


attention_op.register_autograd(_backward, setup_context=_save)


def _arguments(operands: tuple[Tensor | None, ...], numbers: tuple[Any, ...]) -> Arguments:
    """The arguments again, of the operands after q, k and v."""
    offsets_q, offsets_k, lengths_q, lengths_k, num_targets, time_table, ts_q, ts_k, thresholds, pos_table = operands
    (
        scale,
        silu_norm,
        causal,
        window,
        num_global,
        target_group,
        time_buckets,
        pos_kind,
        max_distance,
        dropout_p,
        seed,
    ) = numbers
    assert lengths_q is not None
    assert lengths_k is not None
    assert offsets_q is not None
    assert offsets_k is not None
    meta_k = JaggedMeta.of(lengths_k, offsets_k)
    time = None
    if time_table is not None and ts_q is not None and ts_k is not None:
        time = TimeBias(
            table=time_table, ts_q=ts_q, ts_k=ts_k, buckets=time_buckets if thresholds is None else thresholds
        )
        check_thresholds(time)
    return Arguments(
        meta_q=JaggedMeta.of(lengths_q, offsets_q),
        meta_k=meta_k,
        scale=scale,
        visibility=Visibility(causal, (window[0], window[1]), num_global, target_group),
        num_targets=host_targets(num_targets, meta_k),
        silu_norm=silu_norm,
        time_bias=time,
        pos_bias=None if pos_table is None else PosBias(table=pos_table, kind=pos_kind, max_distance=max_distance),
        dropout_p=dropout_p,
        seed=seed,
    )


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@cache
def _say_too_wide(width: int) -> None:
    _log.warning(
        "%s: float32 heads of %d are wider than the Triton kernels' %d, so they run in plain torch on the GPU",
        OP,
        width,
        MAX_WIDTH_FLOAT32,
    )
