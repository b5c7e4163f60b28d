"""`jagged_attention` as an operator of torch's library: what torch.compile sees, and what picks the path at run time.

An operator takes tensors and plain numbers alone: lengths travel as a CPU tensor, by which `JaggedMeta.of` finds the
batch's meta again. Shapes of outputs depend on shapes of inputs only, so one graph holds for every batch.
"""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, cast

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
from recsys.kernels.operands import schema_of, taken_apart

OP = "jagged_attention"
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


class Operands(NamedTuple):
    """What the operator takes: the arguments of `jagged_attention`, taken apart."""

    q: Tensor
    k: Tensor
    v: Tensor
    offsets_q: Tensor
    offsets_k: Tensor
    lengths_q: Tensor  # on the CPU, as those of the keys
    lengths_k: Tensor
    num_targets: Tensor | None
    time_table: Tensor | None
    ts_q: Tensor | None
    ts_k: Tensor | None
    thresholds: Tensor | None
    pos_table: Tensor | None
    scale: float
    silu_norm: float | None
    causal: bool
    window: Sequence[int]
    num_global: int
    target_group: int
    time_buckets: str  # empty: none, or thresholds
    pos_kind: str  # empty: none
    max_distance: int
    dropout_p: float
    seed: int

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, arguments: Arguments, num_targets: Tensor | None) -> "Operands":
        """Of a call; `num_targets` (B,) stands for those of `arguments`."""
        time, pos, visibility = arguments.time_bias, arguments.pos_bias, arguments.visibility
        return cls(
            q=q,
            k=k,
            v=v,
            offsets_q=arguments.meta_q.offsets,
            offsets_k=arguments.meta_k.offsets,
            lengths_q=arguments.meta_q.host_lengths,
            lengths_k=arguments.meta_k.host_lengths,
            num_targets=num_targets,
            time_table=None if time is None else time.table,
            ts_q=None if time is None else time.ts_q,
            ts_k=None if time is None else time.ts_k,
            thresholds=time.buckets if time is not None and isinstance(time.buckets, Tensor) else None,
            pos_table=None if pos is None else pos.table,
            scale=arguments.scale,
            silu_norm=arguments.silu_norm,
            causal=visibility.causal,
            window=visibility.window,
            num_global=visibility.num_global,
            target_group=visibility.target_group,
            time_buckets="" if time is None or isinstance(time.buckets, Tensor) else time.buckets,
            pos_kind="" if pos is None else pos.kind,
            max_distance=0 if pos is None else pos.max_distance,
            dropout_p=arguments.dropout_p,
            seed=arguments.seed,
        )

    def arguments(self) -> Arguments:
        """The arguments again.

        Raises:
            ValueError: thresholds do not ascend, or a sequence has more targets than tokens.
        """
        meta_k = JaggedMeta.of(self.lengths_k, self.offsets_k)
        time, pos = None, None
        if self.time_table is not None and self.ts_q is not None and self.ts_k is not None:
            buckets = self.time_buckets if self.thresholds is None else self.thresholds
            time = TimeBias(table=self.time_table, ts_q=self.ts_q, ts_k=self.ts_k, buckets=buckets)
            check_thresholds(time)
        if self.pos_table is not None:
            pos = PosBias(table=self.pos_table, kind=self.pos_kind, max_distance=self.max_distance)
        left, right = self.window
        return Arguments(
            meta_q=JaggedMeta.of(self.lengths_q, self.offsets_q),
            meta_k=meta_k,
            scale=self.scale,
            visibility=Visibility(self.causal, (left, right), self.num_global, self.target_group),
            num_targets=host_targets(self.num_targets, meta_k),
            silu_norm=self.silu_norm,
            time_bias=time,
            pos_bias=pos,
            dropout_p=self.dropout_p,
            seed=self.seed,
        )


class Upstream(NamedTuple):
    """What the backward operator takes before the operands."""

    grad_out: Tensor
    grad_lse: Tensor | None
    out: Tensor
    lse: Tensor
    needs_time: bool
    needs_pos: bool


TENSORS = Operands._fields.index("scale")  # so many operands are tensors or None


def attend_through_library(
    q: Tensor, k: Tensor, v: Tensor, arguments: Arguments, num_targets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Out (Tq, H, Dv) and lse (Tq, H), with a graph; `num_targets` (B,) stands for those of `arguments`."""
    out, lse = attention_op(*Operands.of(q, k, v, arguments, num_targets))
    return out, lse.t()


@torch.library.custom_op("recsys::jagged_attention", mutates_args=(), schema=schema_of(Operands, returns=2))
def attention_op(*given: Any) -> tuple[Tensor, Tensor]:
    """Out (Tq, H, Dv) and lse (H, Tq), of `Operands`."""
    operands = Operands(*given)
    q, k, v = operands[:3]
    arguments, backend = operands.arguments(), path_of(q, v)
    with torch.autocast(q.device.type, enabled=False):
        if backend == "triton":
            from recsys.kernels.attention.triton_path.passes import triton_forward

            out, lse = triton_forward(q, k, v, arguments)
        elif backend == "torch":
            out, lse = torch_forward(q, k, v, arguments)
        else:
            out, lse = jagged_attention_reference(q, k, v, **vars(arguments))
    return out.contiguous(), lse.to(_wide(q)).t().contiguous()


@torch.library.custom_op(
    "recsys::jagged_attention_backward", mutates_args=(), schema=schema_of(Upstream, Operands, returns=5)
)
def attention_backward_op(*given: Any) -> Grads:
    """Gradients of q, k, v and of the tables; an empty tensor for a table that is absent or needs none."""
    up, operands = taken_apart(given, Upstream, Operands)
    q, k, v = operands[:3]
    arguments, backend = operands.arguments(), path_of(q, v)
    grad_lse = None if up.grad_lse is None else up.grad_lse.t()
    with torch.autocast(q.device.type, enabled=False):
        if backend == "triton":
            from recsys.kernels.attention.triton_path.passes import triton_backward

            needs = up.needs_time, up.needs_pos
            grads = triton_backward(up.grad_out, grad_lse, q, k, v, up.out, up.lse.t(), arguments, needs)
        elif backend == "torch":
            grads = torch_backward(up.grad_out, grad_lse, q, k, v, arguments)
        else:
            raise RuntimeError(
                "RECSYS_KERNELS=reference has no gradient within torch.compile; unset it, or do not compile"
            )
    of_tables = (
        x if needed and x is not None else q.new_empty(0)
        for needed, x in ((up.needs_time, grads[3]), (up.needs_pos, grads[4]))
    )
    return cast(Grads, tuple(x.contiguous() for x in (*grads[:3], *of_tables)))


@attention_op.register_fake
def _(*given: Any) -> tuple[Tensor, Tensor]:
    q, v = Operands(*given).q, Operands(*given).v
    out = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
    return out, q.new_empty(q.shape[1], q.shape[0], dtype=_wide(q))


@attention_backward_op.register_fake
def _(*given: Any) -> Grads:
    up, operands = taken_apart(given, Upstream, Operands)
    tables = (up.needs_time, operands.time_table), (up.needs_pos, operands.pos_table)
    of_tables = (x.new_empty(x.shape) if needed and x is not None else operands.q.new_empty(0) for needed, x in tables)
    return cast(Grads, (*(x.new_empty(x.shape) for x in operands[:3]), *of_tables))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:TENSORS], *output)
    ctx.numbers = inputs[TENSORS:]


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, out, lse = ctx.saved_tensors
    places = [Operands._fields.index(name) for name in ("q", "k", "v", "time_table", "pos_table")]
    needs = [ctx.needs_input_grad[place] for place in places]
    up = Upstream(torch.zeros_like(out) if grad_out is None else grad_out, grad_lse, out, lse, *needs[3:])
    found = attention_backward_op(*up, *tensors, *ctx.numbers)
    grads: list[Tensor | None] = [None] * len(Operands._fields)
    for place, needed, grad in zip(places, needs, found, strict=True):
        grads[place] = grad if needed else None
    return tuple(grads)


attention_op.register_autograd(_backward, setup_context=_save)


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
