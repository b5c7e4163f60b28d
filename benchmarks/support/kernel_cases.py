"""Calls of the public ops that reach every row of their launch tables, small to compile and large to tune.

Each case runs forward and backward. Shapes, dtypes and options are those that choose a kernel or a row of its table.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from recsys.kernels.attention.bias import PosBias, TimeBias
from recsys.kernels.attention.op import jagged_attention
from recsys.kernels.jagged import JaggedMeta

WIDTHS = (16, 32, 64, 128, 256)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class KernelCase:
    """A call of an op.

    Attributes:
        op: its launch table's name.
        name: unique within the op.
        run: forward and backward on a device, `is_large` for times worth comparing.
        is_quick: whether `make test` compiles it.
    """

    op: str
    name: str
    run: Callable[[torch.device, bool], None]
    is_quick: bool = False


def all_cases() -> tuple[KernelCase, ...]:
    """The cases of every op."""
    return tuple(attention_cases())


def cases_of(op: str) -> tuple[KernelCase, ...]:
    """The cases of one op."""
    return tuple(case for case in all_cases() if case.op == op)


def attention_cases() -> Iterator[KernelCase]:
    """Every width, dtype, length and presence of a bias; then every option at one width."""
    for width in WIDTHS:
        for dtype in DTYPES:
            for bias in ("", "time+pos"):
                for max_len in (200, 2048):
                    name = f"{dtype} {width} {bias or 'no bias'} {max_len}"
                    quick = dtype == "bf16" and width in (64, 128) and max_len == 2048
                    yield _attention(name, width, dtype, max_len, quick, bias=bias)
    options: dict[str, dict[str, Any]] = {
        "causal": {"causal": True},
        "window": {"window": (64, 64)},
        "window, causal": {"window": (64, 0), "causal": True},
        "global": {"window": (64, 64), "num_global": 1},
        "targets": {"num_targets": 4, "target_group": 2, "causal": True},
        "silu": {"kind": "silu", "silu_norm": 200.0, "causal": True},
        "silu, time+pos": {"kind": "silu", "silu_norm": 200.0, "causal": True, "bias": "time+pos"},
        "dropout": {"dropout_p": 0.1, "seed": 3},
        "time": {"bias": "time"},
        "time by hstu's buckets": {"bias": "hstu"},
        "pos": {"bias": "pos"},
        "pos by t5's buckets": {"bias": "t5"},
        "few targets": {"num_queries": 1},
    }
    for name, option in options.items():
        for max_len in (200, 2048):
            yield _attention(
                f"bf16 64 {name} {max_len}", 64, "bf16", max_len, name == "targets" and max_len == 200, **option
            )


def _attention(name: str, width: int, dtype: str, max_len: int, is_quick: bool, **options: Any) -> KernelCase:
    run = partial(_attend, width=width, dtype=DTYPES[dtype], max_len=max_len, **options)
    return KernelCase("attention", name, run, is_quick)


def _attend(
    device: torch.device,
    is_large: bool,
    *,
    width: int,
    dtype: torch.dtype,
    max_len: int,
    bias: str = "",
    num_queries: int | None = None,
    num_targets: int | None = None,
    **options: Any,
) -> None:
    num_heads, size = (8, max(1, 65_536 // max_len)) if is_large else (2, 2)
    meta_k = JaggedMeta.from_lengths([max_len] * size, device)
    meta_q = meta_k if num_queries is None else JaggedMeta.from_lengths([num_queries] * size, device)
    q, k, v = (_random((meta.total, num_heads, width), dtype, device) for meta in (meta_q, meta_k, meta_k))
    if num_targets is not None:
        options["num_targets"] = [num_targets] * size
    if bias in ("time", "time+pos", "hstu"):
        seconds = [torch.arange(meta.total, dtype=torch.int32, device=device) * 600 for meta in (meta_q, meta_k)]
        buckets = "hstu" if bias == "hstu" else "log2x2"
        table = _random((num_heads, 64), torch.float32, device)
        options["time_bias"] = TimeBias(table=table, ts_q=seconds[0], ts_k=seconds[1], buckets=buckets)
    if bias in ("pos", "t5", "time+pos"):
        kind, columns = ("t5", 32) if bias == "t5" else ("toeplitz", 2 * 128 - 1)
        options["pos_bias"] = PosBias(table=_random((num_heads, columns), torch.float32, device), kind=kind)
    out = jagged_attention(q, k, v, meta_q, meta_k if num_queries is not None else None, **options)
    torch.autograd.backward(out, torch.ones_like(out))


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device, dtype=dtype).requires_grad_()
