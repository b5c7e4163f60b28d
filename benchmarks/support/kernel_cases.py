"""Calls of the public ops that reach every row of their launch tables, small to compile and large to tune.

Each case runs forward and backward. Shapes, dtypes and options are those that choose a kernel or a row of its table.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from recsys.kernels.attention.bias import PosBias, TimeBias
from recsys.kernels.attention.library import MAX_WIDTH_FLOAT32
from recsys.kernels.attention.op import jagged_attention
from recsys.kernels.jagged import JaggedMeta
from recsys.kernels.jagged_embedding import jagged_embedding
from recsys.kernels.linear_cross_entropy import linear_cross_entropy
from recsys.kernels.row_pages import RowOptimizer, RowPages
from recsys.kernels.row_pages.optimizers import NAMES, Name
from recsys.kernels.sampled_loss import sampled_loss
from recsys.kernels.search import search_topk, topk_attend

WIDTHS = (16, 32, 64, 128, 256)
LENGTHS = (50, 100, 200, 2048)  # for each size of the one-kernel backward pass, and beyond it
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class KernelCase:
    """A call of an op.

    Attributes:
        op: its launch table's name.
        name: unique within the op.
        run: forward and backward on a device, `is_large` for times worth comparing; returns results and gradients.
        is_quick: whether `make test` compiles it.
    """

    op: str
    name: str
    run: Callable[[torch.device, bool], list[Tensor]]
    is_quick: bool = False


def all_cases() -> tuple[KernelCase, ...]:
    """The cases of every op."""
    return (
        *attention_cases(),
        *linear_cross_entropy_cases(),
        *sampled_loss_cases(),
        *jagged_embedding_cases(),
        *search_topk_cases(),
        *topk_attend_cases(),
        *hash_table_cases(),
        *row_pages_cases(),
    )


def cases_of(op: str) -> tuple[KernelCase, ...]:
    """The cases of one op."""
    return tuple(case for case in all_cases() if case.op == op)


def attention_cases() -> Iterator[KernelCase]:
    """Every width, dtype, length and presence of a bias; then every option at one width."""
    for width in WIDTHS:
        for dtype in (name for name in DTYPES if width <= MAX_WIDTH_FLOAT32 or name != "fp32"):
            for bias in ("", "time+pos"):
                for max_len in LENGTHS:
                    name = f"{dtype} {width} {bias or 'no bias'} {max_len}"
                    quick = (dtype, width, bias, max_len) == ("bf16", 64, "", 2048)
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
            yield _attention(f"bf16 64 {name} {max_len}", 64, "bf16", max_len, False, **option)


def linear_cross_entropy_cases() -> Iterator[KernelCase]:
    """Every width and dtype; then every option."""
    op = "linear_cross_entropy"
    for width in WIDTHS:
        for name, dtype in DTYPES.items():
            run = partial(_linear_cross_entropy, width=width, dtype=dtype)
            yield KernelCase(op, f"{name} {width}", run, is_quick=(name, width) == ("bf16", 64))
    options: dict[str, dict[str, Any]] = {
        "bias": {"has_bias": True},
        "label smoothing": {"label_smoothing": 0.1},
        "no reduction": {"reduction": "none"},
        "bias, label smoothing": {"has_bias": True, "label_smoothing": 0.1},
    }
    for name, option in options.items():
        yield KernelCase(
            op, f"bf16 64 {name}", partial(_linear_cross_entropy, width=64, dtype=torch.bfloat16, **option)
        )
    yield KernelCase(op, "fp16 64", partial(_linear_cross_entropy, width=64, dtype=torch.float16))


def sampled_loss_cases() -> Iterator[KernelCase]:
    """Every width and dtype, with one list for all rows and a list a row; then every option."""
    for width in WIDTHS:
        for name, dtype in DTYPES.items():
            for is_shared in (True, False):
                run = partial(_sampled_loss, width=width, dtype=dtype, is_shared=is_shared)
                called = f"{name} {width} {'one list' if is_shared else 'own lists'}"
                yield KernelCase("sampled_loss", called, run, is_quick=called == "bf16 64 one list")
    options: dict[str, dict[str, Any]] = {
        "log q": {"has_log_q": True},
        "logq": {"kind": "logq", "has_log_q": True},
        "bce": {"kind": "bce"},
        "gbce": {"kind": "gbce", "beta": 0.3},
        "bias": {"has_bias": True},
        "no reduction": {"reduction": "none"},
    }
    for name, option in options.items():
        for is_shared in (True, False):
            run = partial(_sampled_loss, width=64, dtype=torch.bfloat16, is_shared=is_shared, **option)
            yield KernelCase("sampled_loss", f"bf16 64 {name}, {'one list' if is_shared else 'own lists'}", run)


def jagged_embedding_cases() -> Iterator[KernelCase]:
    """Every width and dtype, and dropout with positions; the gradient of a table is a segment_sum."""
    for width in WIDTHS:
        for name, dtype in DTYPES.items():
            run = partial(_jagged_embedding, width=width, dtype=dtype)
            quick = (name, width) == ("bf16", 64)
            yield KernelCase("segment_sum", f"{name} {width} of an embedding", run, quick)
            dropped = partial(_jagged_embedding, width=width, dtype=dtype, dropout_p=0.1, seed=3)
            yield KernelCase("jagged_embedding", f"{name} {width} dropout", dropped, quick)
            yield KernelCase("jagged_embedding", f"{name} {width}", run)


def search_topk_cases() -> Iterator[KernelCase]:
    """Every K, one candidate and several, narrow and wide; then every option."""
    for top_k in (20, 64, 128, 256):
        for candidates in (1, 16):
            for width in (64, 128):
                for name, dtype in DTYPES.items():
                    run = partial(_search, width=width, dtype=dtype, top_k=top_k, candidates=candidates)
                    quick = (top_k, width, name) == (128, 64, "bf16")
                    yield KernelCase("search_topk", f"{name} {width} K {top_k}, {candidates} candidates", run, quick)
    for candidates in (1, 16):
        run = partial(
            _search, width=64, dtype=torch.bfloat16, top_k=128, candidates=candidates, width2=32, has_bias=True
        )
        yield KernelCase("search_topk", f"bf16 64 with a second pair and a bias, {candidates} candidates", run)


def topk_attend_cases() -> Iterator[KernelCase]:
    """Every width and dtype; then every option."""
    for width in WIDTHS:
        for name, dtype in DTYPES.items():
            run = partial(_topk_attend, width=width, dtype=dtype)
            yield KernelCase("topk_attend", f"{name} {width}", run, is_quick=(name, width) == ("bf16", 64))
    more = partial(_topk_attend, width=64, dtype=torch.bfloat16, width2=32, has_bias=True)
    yield KernelCase("topk_attend", "bf16 64 with a second pair and a bias", more)


def hash_table_cases() -> Iterator[KernelCase]:
    """One kernel each, whatever the ids are."""
    yield KernelCase("hash_table", "int64", _hash_table, is_quick=True)


def row_pages_cases() -> Iterator[KernelCase]:
    """Every block of numbers, then every optimizer."""
    for log_width in range(3, 11):
        run = partial(_row_pages, width=1 << log_width, name="adam")
        yield KernelCase("row_pages", f"adam {1 << log_width}", run, is_quick=log_width == 6)
    for name in (name for name in NAMES if name != "adam"):
        for width in (64, 50):
            yield KernelCase("row_pages", f"{name} {width}", partial(_row_pages, width=width, name=name), width == 64)


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
) -> list[Tensor]:
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
    return _with_gradients(out, [q, k, v, *(bias.table for name, bias in options.items() if name.endswith("_bias"))])


def _linear_cross_entropy(
    device: torch.device, is_large: bool, *, width: int, dtype: torch.dtype, has_bias: bool = False, **options: Any
) -> list[Tensor]:
    num_rows, num_items = (16_384, 100_000) if is_large else (256, 1_600)
    x, w = _random((num_rows, width), dtype, device), _random((num_items, width), dtype, device)
    bias = _random((num_items,), dtype, device) if has_bias else None
    target = torch.randint(num_items, (num_rows,), device=device)
    loss = linear_cross_entropy(x, w, target, bias=bias, **options)
    return _with_gradients(loss, [x, w, bias])


def _sampled_loss(
    device: torch.device,
    is_large: bool,
    *,
    width: int,
    dtype: torch.dtype,
    is_shared: bool,
    has_bias: bool = False,
    has_log_q: bool = False,
    **options: Any,
) -> list[Tensor]:
    num_rows, num_items, K = (65_536, 1_000_000, 256) if is_large else (128, 160, 64)
    x, w = _random((num_rows, width), dtype, device), _random((num_items, width), dtype, device)
    options["bias"] = _random((num_items,), dtype, device) if has_bias else None
    options["log_q"] = torch.rand(num_items, device=device).neg() - 1.0 if has_log_q else None
    target = torch.randint(num_items, (num_rows,), device=device)
    negatives = torch.randint(num_items, (K,) if is_shared else (num_rows, K), device=device)
    loss = sampled_loss(x, w, target, negatives, **options)
    return _with_gradients(loss, [x, w, options["bias"]])


def _jagged_embedding(
    device: torch.device, is_large: bool, *, width: int, dtype: torch.dtype, **options: Any
) -> list[Tensor]:
    num_items, num_tokens = (1_000_000, 262_144) if is_large else (160, 320)
    w, pos = _random((num_items, width), dtype, device), _random((160, width), dtype, device)
    ids, positions = (torch.randint(n, (num_tokens,), device=device) for n in (num_items, 160))
    out = jagged_embedding(w, ids, pos=pos, positions=positions, **options)
    return _with_gradients(out, [w, pos])


def _search(
    device: torch.device,
    is_large: bool,
    *,
    width: int,
    dtype: torch.dtype,
    top_k: int,
    candidates: int,
    width2: int = 0,
    has_bias: bool = False,
) -> list[Tensor]:
    size, history = (64, 50_000) if is_large else (16, 400)
    meta_c, meta_k = (JaggedMeta.from_lengths([n] * size, device) for n in (candidates, history))
    q, k = (_random((meta.total, width), dtype, device) for meta in (meta_c, meta_k))
    more = _second(meta_c, meta_k, width2, has_bias, dtype, device)
    return [found.detach() for found in search_topk(q, k, meta_c, meta_k, top_k, **more)]


def _topk_attend(
    device: torch.device, is_large: bool, *, width: int, dtype: torch.dtype, width2: int = 0, has_bias: bool = False
) -> list[Tensor]:
    size, history, candidates, top_k = (64, 50_000, 16, 128) if is_large else (16, 400, 2, 32)
    meta_c, meta_k = (JaggedMeta.from_lengths([n] * size, device) for n in (candidates, history))
    q, k, v = (_random((meta.total, width), dtype, device) for meta in (meta_c, meta_k, meta_k))
    idx = torch.randint(history, (meta_c.total, top_k), device=device, dtype=torch.int32)
    more = _second(meta_c, meta_k, width2, has_bias, dtype, device)
    out = topk_attend(q, k, v, idx, meta_c, meta_k, **more)
    return _with_gradients(out, [q, k, v, *more.values()])


def _hash_table(device: torch.device, is_large: bool) -> list[Tensor]:
    """Ids that come, in two calls so that full regions are moved, are looked up, and go in part."""
    from recsys.kernels.hash_table.triton_index import TritonIndex

    size = 1 << (20 if is_large else 13)
    index, rows = TritonIndex(0, device), torch.arange(size, device=device)
    ids = rows * 0x9E3779B97F4A7C1  # no id twice
    for part in (rows[: size // 2], rows[size // 2 :]):
        places = torch.arange(len(part), device=device)
        index.settle(ids[part], -2 - places, places, part)
    return [index.find(ids), index.erase(ids[::3]), *index.export()]


def _row_pages(device: torch.device, is_large: bool, *, width: int, name: Name) -> list[Tensor]:
    """Rows that are written, updated by an optimizer, some of them often, and gathered."""
    num_rows, size = (1 << 20, 1 << 20) if is_large else (1 << 10, 1 << 11)
    pages = RowPages(width, RowOptimizer(name), device=device)
    pages.grow(num_rows)
    every = torch.arange(num_rows, device=device)
    pages.write(every, torch.randn(num_rows, width, device=device), None, 0)
    liked = torch.rand(size, device=device, dtype=torch.float64)
    rows = (num_rows**liked).long().clamp(max=num_rows - 1)
    pages.update(rows, torch.randn(size, width, device=device), lr=0.1, tick=1)
    return [pages.gather(rows), *pages.read(every)]


def _with_gradients(out: Tensor, leaves: Sequence[Tensor | None]) -> list[Tensor]:
    """The result, and the gradients of those leaves that it depends on, where all its cells weigh the same."""
    torch.autograd.backward(out, torch.ones_like(out))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf is not None and leaf.grad is not None)]


def _second(
    meta_c: JaggedMeta, meta_k: JaggedMeta, width: int, has_bias: bool, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    pair = {f"{name}2": _random((meta.total, width), dtype, device) for name, meta in (("q", meta_c), ("k", meta_k))}
    return (pair if width else {}) | ({"k_bias": _random((meta_k.total,), dtype, device)} if has_bias else {})


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device, dtype=dtype).requires_grad_()
