"""Attention over jagged sequences: each query sees keys of its own sequence, and no padding exists anywhere.

    out[i] = sum_j softmax_j(scale * <q_i, k_j> + bias_ij) v_j      over the keys j that query i sees

The masks are told in `visibility.py`, the biases in `bias.py`, the dropout in `dropout.py`; `reference.py` defines the
whole. `checks.py` refuses wrong arguments, `backend.py` picks the path (environment: RECSYS_KERNELS), and `library.py`
is what torch.compile sees.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.attention.arguments import Arguments
from recsys.kernels.attention.bias import PosBias, TimeBias
from recsys.kernels.attention.checks import (
    check_biases,
    check_kind,
    check_tensors,
    check_thresholds,
    checked_visibility,
    host_targets,
)
from recsys.kernels.attention.library import attend_through_library, path_of
from recsys.kernels.attention.reference import jagged_attention_reference
from recsys.kernels.attention.torch_path.passes import jagged_attention_torch
from recsys.kernels.factors import as_factor
from recsys.kernels.jagged import JaggedMeta, check_is_meta

Kind = Literal["softmax", "silu"]


@overload
def jagged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    meta_q: JaggedMeta,
    meta_k: JaggedMeta | None = None,
    *,
    scale: float | None = None,
    kind: Kind = "softmax",
    silu_norm: float | None = None,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    num_global: int = 0,
    num_targets: Sequence[int] | np.ndarray | Tensor | None = None,
    target_group: int = 1,
    time_bias: TimeBias | None = None,
    pos_bias: PosBias | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    deterministic: bool = True,
    return_lse: Literal[False] = False,
) -> Tensor: ...


@overload
def jagged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    meta_q: JaggedMeta,
    meta_k: JaggedMeta | None = None,
    *,
    scale: float | None = None,
    kind: Kind = "softmax",
    silu_norm: float | None = None,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    num_global: int = 0,
    num_targets: Sequence[int] | np.ndarray | Tensor | None = None,
    target_group: int = 1,
    time_bias: TimeBias | None = None,
    pos_bias: PosBias | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    deterministic: bool = True,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def jagged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    meta_q: JaggedMeta,
    meta_k: JaggedMeta | None = None,
    *,
    scale: float | None = None,
    kind: Kind = "softmax",
    silu_norm: float | None = None,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    num_global: int = 0,
    num_targets: Sequence[int] | np.ndarray | Tensor | None = None,
    target_group: int = 1,
    time_bias: TimeBias | None = None,
    pos_bias: PosBias | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    deterministic: bool = True,  # noqa: ARG001  # every path is deterministic; the argument is a promise
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend from every query to the keys of its own sequence.

    Args:
        q: (Tq, H, D) float, any strides, D in [1, 256].
        k: (Tk, H, D), dtype and device of q.
        v: (Tk, H, Dv).
        meta_q: lengths of the B query sequences, Tq in all.
        meta_k: lengths of the B key sequences; `meta_q` by default (self attention). Where the lengths differ, the
            queries align to the end of the keys.
        scale: of the scores; 1/sqrt(D) by default.
        kind: `softmax`, or `silu`: weights silu(score) / silu_norm, not normalised over the keys.
        silu_norm: > 0, wanted by silu alone; one number for training and serving, never a batch's longest length.
        causal: a query sees no key behind its own place.
        window: (left, right) neighbours seen, self not counted; -1 is no limit.
        num_global: the first tokens of each sequence are seen by all and see all (under causal: what precedes them).
        num_targets: (B,) integers on the host: the last tokens of each sequence are candidates, which see the history
            and their own group, and which nobody else sees.
        target_group: consecutive targets in groups of this size see each other.
        time_bias, pos_bias: learned tables added to the scores.
        dropout_p: share of the weights dropped, in [0, 1), as `dropout.py` tells; needs `seed`.
        seed: an integer; the same seed drops the same weights.
        deterministic: forbids paths whose gradients depend on the order of execution; there is none.
        return_lse: also return the log of the softmax denominator.

    Returns:
        (Tq, H, Dv) in the dtype of v, and with `return_lse` (Tq, H) in float32, or float64 for float64 inputs.
        A query that sees no key gets 0, an lse of -inf, and passes no gradient.

    Raises:
        ValueError: shapes, dtypes, devices or ranges do not agree; names both values.
        TypeError: times or numbers of targets are not integers.
        NotImplementedError: dropout with silu, or an argument that the chosen path has not built.
    """
    meta_k = meta_q if meta_k is None else meta_k
    check_is_meta("meta_q", meta_q)
    check_is_meta("meta_k", meta_k)
    check_tensors(q, k, v, meta_q, meta_k)
    check_kind(kind, silu_norm, dropout_p, seed, return_lse)
    check_biases(q, k, time_bias, pos_bias, causal)
    scale = 1.0 / math.sqrt(q.shape[2]) if scale is None else as_factor("scale", scale)
    arguments = Arguments(
        meta_q=meta_q,
        meta_k=meta_k,
        scale=scale,
        visibility=checked_visibility(causal, window, num_global, num_targets is not None, target_group),
        silu_norm=silu_norm,
        time_bias=time_bias,
        pos_bias=pos_bias,
        dropout_p=dropout_p,
        seed=0 if seed is None else seed,
    )
    if torch.compiler.is_compiling():
        if isinstance(num_targets, list | tuple):
            raise TypeError(
                "num_targets is a list; within torch.compile pass a CPU tensor: a list makes a graph a batch"
            )
        targets = None if num_targets is None else torch.as_tensor(num_targets)
        out, lse = attend_through_library(q, k, v, arguments, targets)
    else:
        out, lse = _attend(q, k, v, arguments, host_targets(num_targets, meta_k))
    return (out, lse) if return_lse else out


def _attend(
    q: Tensor, k: Tensor, v: Tensor, arguments: Arguments, num_targets: np.ndarray | None
) -> tuple[Tensor, Tensor]:
    """Out and lse by the chosen path. The torch path and the reference make a graph of their own, which keeps more."""
    if arguments.time_bias is not None:
        check_thresholds(arguments.time_bias)
    backend = path_of(q, v)
    if backend == "triton":
        targets = None if num_targets is None else torch.from_numpy(num_targets)
        return attend_through_library(q, k, v, arguments, targets)
    arguments = replace(arguments, num_targets=num_targets)
    with torch.autocast(q.device.type, enabled=False):
        if backend == "torch":
            out, lse = jagged_attention_torch(q, k, v, arguments)
        else:
            out, lse = jagged_attention_reference(q, k, v, **vars(arguments))
    return out, lse.to(torch.promote_types(lse.dtype, torch.float32))
