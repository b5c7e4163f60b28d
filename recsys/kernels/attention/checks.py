"""What `jagged_attention` refuses, each by one line with the value got and the value wanted."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.attention.bias import PosBias, TimeBias, time_thresholds
from recsys.kernels.attention.visibility import Visibility
from recsys.kernels.factors import as_factor
from recsys.kernels.jagged import JaggedMeta

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
MAX_WIDTH = 256
MAX_SEED = 1 << 63
MAX_REACH = 1 << 61  # of a window, a prefix or a group: beyond any batch, and a sum of two is an int64


def check_tensors(q: Tensor, k: Tensor, v: Tensor, meta_q: JaggedMeta, meta_k: JaggedMeta) -> None:
    """Raise ValueError unless shapes, dtypes and devices agree with each other and with the lengths."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is {type(x).__name__}; wanted a tensor")
        if x.dim() != 3:
            raise ValueError(f"{name} has the shape {tuple(x.shape)}; wanted (T, H, D)")
        if x.dtype not in DTYPES:
            raise ValueError(f"{name} is {x.dtype}; wanted bfloat16, float16, float32 or float64")
        if x.dtype != q.dtype:
            raise ValueError(f"q is {q.dtype}, {name} is {x.dtype}; they must be equal")
        if x.device != q.device:
            raise ValueError(f"q is on {q.device}, {name} is on {x.device}; they must be equal")
        if x.shape[1] != q.shape[1] or x.shape[1] < 1:
            raise ValueError(f"q has H={q.shape[1]} heads, {name} has {x.shape[1]}; they must be equal and >= 1")
        if not 1 <= x.shape[2] <= MAX_WIDTH:
            raise ValueError(f"{name} has D={x.shape[2]}; wanted 1 to {MAX_WIDTH}")
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"q has D={q.shape[2]}, k has D={k.shape[2]}; they must be equal")
    if q.shape[0] != meta_q.total:
        raise ValueError(f"q has {q.shape[0]} rows, meta_q counts {meta_q.total} tokens; they must be equal")
    for name, x in (("k", k), ("v", v)):
        if x.shape[0] != meta_k.total:
            raise ValueError(f"{name} has {x.shape[0]} rows, meta_k counts {meta_k.total} tokens; they must be equal")
    for name, meta in (("meta_q", meta_q), ("meta_k", meta_k)):
        if meta.offsets.device != q.device:
            raise ValueError(f"q is on {q.device}, {name} is on {meta.offsets.device}; build it with device={q.device}")
    if meta_q.num_sequences != meta_k.num_sequences:
        raise ValueError(
            f"meta_q has {meta_q.num_sequences} sequences, meta_k has {meta_k.num_sequences}; they must be equal"
        )


def check_kind(kind: str, silu_norm: float | None, dropout_p: float, seed: int | None, return_lse: bool) -> None:
    """Raise unless `kind` and what belongs to it, or to softmax alone, agree."""
    if kind not in ("softmax", "silu"):
        raise ValueError(f"kind={kind!r}; wanted 'softmax' or 'silu'")
    if seed is not None and (not isinstance(seed, int) or not 0 <= seed < MAX_SEED):
        raise ValueError(f"seed={seed!r}; wanted an int from 0 to 2**63 - 1")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p={dropout_p}; wanted 0 <= dropout_p < 1")
    if dropout_p > 0 and seed is None:
        raise ValueError(f"dropout_p={dropout_p} without seed; pass seed=<an integer drawn for this step and layer>")
    if kind == "softmax" and silu_norm is not None:
        raise ValueError(f"silu_norm={silu_norm} with kind='softmax'; it belongs to kind='silu'")
    if kind == "silu":
        if silu_norm is not None:
            silu_norm = as_factor("silu_norm", silu_norm)
        if silu_norm is None or not silu_norm > 0:
            raise ValueError(
                f"silu_norm={silu_norm} with kind='silu'; wanted a number > 0, such as the model's max_len"
            )
        if return_lse:
            raise ValueError("return_lse=True with kind='silu'; only softmax has a denominator")
        if dropout_p > 0:
            raise NotImplementedError(f"dropout_p={dropout_p} with kind='silu' is not built; set dropout_p=0")


def checked_visibility(
    causal: bool, window: tuple[int, int], num_global: int, has_targets: bool, target_group: int
) -> Visibility:
    """The mask arguments in one; ValueError if one is out of range or two contradict each other."""
    if not (isinstance(window, tuple | list) and len(window) == 2 and all(_is_integer(x) for x in window)):
        raise ValueError(f"window={window!r}; wanted two integers >= 0, or -1 for no limit")
    for name, number in (("num_global", num_global), ("target_group", target_group)):
        if not _is_integer(number):
            raise ValueError(f"{name}={number!r}; wanted an integer")
    left, right = (min(int(x), MAX_REACH) for x in window)
    num_global, target_group = min(int(num_global), MAX_REACH), min(int(target_group), MAX_REACH)
    if left < -1 or right < -1:
        raise ValueError(f"window={window}; wanted two numbers >= 0, or -1 for no limit")
    if num_global < 0:
        raise ValueError(f"num_global={num_global}; wanted >= 0")
    if target_group < 1:
        raise ValueError(f"target_group={target_group}; wanted >= 1")
    if target_group > 1 and not has_targets:
        raise ValueError(f"target_group={target_group} without num_targets; pass num_targets too")
    if has_targets and not causal and (left, right) != (-1, -1):
        raise ValueError(f"window={window} with num_targets and causal=False; set causal=True, or drop the window")
    return Visibility(causal=causal, window=(left, right), num_global=num_global, target_group=target_group)


def _is_integer(number: object) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def host_targets(num_targets: Sequence[int] | np.ndarray | Tensor | None, meta_k: JaggedMeta) -> np.ndarray | None:
    """(B,) int64 on the host; ValueError or TypeError unless they are counts within the sequences."""
    if num_targets is None:
        return None
    counts = num_targets.detach().cpu().numpy() if isinstance(num_targets, Tensor) else np.asarray(num_targets)
    if counts.size and not np.issubdtype(counts.dtype, np.integer):
        raise TypeError(f"num_targets is {counts.dtype}; wanted integers")
    if counts.shape != (meta_k.num_sequences,):
        raise ValueError(f"num_targets has the shape {counts.shape}; wanted ({meta_k.num_sequences},), one a sequence")
    wrong = (counts < 0) | (counts > meta_k.lengths)
    if wrong.any():
        b = int(np.argmax(wrong))
        raise ValueError(f"num_targets[{b}]={counts[b]}; wanted 0 to the length of that sequence, {meta_k.lengths[b]}")
    return counts.astype(np.int64)


def check_biases(q: Tensor, k: Tensor, time_bias: TimeBias | None, pos_bias: PosBias | None, causal: bool) -> None:
    """Raise ValueError or TypeError unless tables, times and thresholds fit q and k."""
    for name, given, kind in (("time_bias", time_bias, TimeBias), ("pos_bias", pos_bias, PosBias)):
        if given is not None and not isinstance(given, kind):
            raise TypeError(f"{name} is {type(given).__name__}; wanted {kind.__name__}")
    if time_bias is not None:
        _check_table("time_bias.table", time_bias.table, q)
        _check_times("time_bias.ts_q", time_bias.ts_q, "q", q)
        _check_times("time_bias.ts_k", time_bias.ts_k, "k", k)
    if pos_bias is not None:
        _check_table("pos_bias.table", pos_bias.table, q)
        _check_pos_kind(pos_bias, causal)


def _check_table(name: str, table: Tensor, q: Tensor) -> None:
    if not isinstance(table, Tensor):
        raise TypeError(f"{name} is {type(table).__name__}; wanted a tensor")
    if table.dim() != 2 or table.shape[0] not in (1, q.shape[1]) or table.shape[1] < 1:
        raise ValueError(f"{name} has the shape {tuple(table.shape)}; wanted (1, NB) or ({q.shape[1]}, NB)")
    if not table.is_floating_point():
        raise ValueError(f"{name} is {table.dtype}; wanted float32")
    if table.device != q.device:
        raise ValueError(f"q is on {q.device}, {name} is on {table.device}; they must be equal")


def _check_times(name: str, times: Tensor, other: str, rows: Tensor) -> None:
    if times.dtype != torch.int32:
        raise TypeError(f"{name} is {times.dtype}; wanted int32 seconds since the start of the sequence")
    if times.shape != rows.shape[:1]:
        raise ValueError(
            f"{name} has the shape {tuple(times.shape)}, {other} has {rows.shape[0]} rows; wanted one a row"
        )
    if times.device != rows.device:
        raise ValueError(f"{other} is on {rows.device}, {name} is on {times.device}; they must be equal")


def check_thresholds(time_bias: TimeBias) -> None:
    """Raise ValueError or TypeError unless the buckets fit the table; reads thresholds, which waits for a GPU."""
    num_buckets = time_bias.table.shape[1]
    if not isinstance(time_bias.buckets, str | Tensor):
        raise TypeError(
            f"time_bias.buckets is {type(time_bias.buckets).__name__}; wanted a name or a tensor of thresholds"
        )
    if not isinstance(time_bias.buckets, Tensor):
        time_thresholds(time_bias.buckets, num_buckets)
        return
    thresholds = time_bias.buckets
    if thresholds.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"time_bias.buckets is {thresholds.dtype}; wanted int32 thresholds")
    if thresholds.shape != (num_buckets - 1,):
        raise ValueError(
            f"time_bias.buckets has the shape {tuple(thresholds.shape)}; wanted ({num_buckets - 1},) thresholds, "
            f"one less than the {num_buckets} columns of the table"
        )
    if bool((thresholds[1:] < thresholds[:-1]).any()):
        raise ValueError("time_bias.buckets descends; wanted ascending thresholds")


def _check_pos_kind(pos_bias: PosBias, causal: bool) -> None:
    num_buckets = pos_bias.table.shape[1]
    if pos_bias.kind not in ("toeplitz", "t5"):
        raise ValueError(f"pos_bias.kind={pos_bias.kind!r}; wanted 'toeplitz' or 't5'")
    if pos_bias.kind == "toeplitz" and num_buckets % 2 == 0:
        raise ValueError(f"pos_bias.table has NB={num_buckets} columns; toeplitz wants an odd number, 2 * reach + 1")
    if pos_bias.kind == "t5" and not causal and num_buckets % 2:
        raise ValueError(f"pos_bias has NB={num_buckets}; t5 wants an even number unless causal, half for each side")
    if pos_bias.kind == "t5" and (num_buckets < 4 or pos_bias.max_distance <= num_buckets):
        raise ValueError(
            f"pos_bias has NB={num_buckets} and max_distance={pos_bias.max_distance}; "
            "t5 wants NB >= 4 and a max_distance above NB"
        )
