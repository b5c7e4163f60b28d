"""Every argument of the torch path together: against the reference in float64, and laws of biases, targets and SiLU."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recsys.kernels.attention import PosBias, TimeBias, jagged_attention
from recsys.kernels.attention.torch_path import passes
from recsys.kernels.jagged import JaggedMeta

Attend = Callable[..., list[Tensor]]
LENGTH = st.sampled_from([0, 1, 2, 15, 16, 17, 63, 64, 65, 129, 200])
KINDS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "silu": {"kind": "silu", "silu_norm": 20.0},
    "dropout": {"dropout_p": 0.3, "seed": 5},
}
WINDOWS = [(-1, -1), (-1, -1), (0, 0), (2, 3), (-1, 2), (3, -1), (40, 0), (300, 300)]


def _attention(*inputs: Any, **arguments: Any) -> Tensor:
    out = jagged_attention(*inputs, **arguments)
    assert isinstance(out, Tensor)
    return out


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _qkv(total_q: int, total_k: int | None = None, num_heads: int = 2, width: int = 8) -> list[Tensor]:
    total_k = total_q if total_k is None else total_k
    return [_randn(total, num_heads, width, seed=i) for i, total in enumerate((total_q, total_k, total_k))]


def _times(lengths: list[int], longest_gap: int = 1_000) -> Tensor:
    """(T,) int32, ascending in each sequence."""
    generator = torch.Generator().manual_seed(sum(lengths))
    gaps = torch.randint(0, longest_gap, (sum(lengths),), generator=generator)
    return torch.cat([torch.zeros(0, dtype=torch.int64), *(x.cumsum(0) for x in torch.split(gaps, lengths))]).int()


def _time_bias(lengths_q: list[int], lengths_k: list[int], rows: int, num_buckets: int, rule: str) -> TimeBias:
    table = _randn(rows, num_buckets, seed=7)
    return TimeBias(table=table, ts_q=_times(lengths_q), ts_k=_times(lengths_k), buckets=rule)


def _assert_same(found: list[Tensor], expected: list[Tensor], limit: float = 1e-9) -> None:
    for i, (x, y) in enumerate(zip(found, expected, strict=True)):
        try:
            torch.testing.assert_close(x, y, rtol=limit, atol=limit)
        except AssertionError as error:
            raise AssertionError(f"result {i} of out, lse unless silu, dq, dk, dv, tables: {error}") from error


@st.composite
def _calls(draw: st.DrawFn) -> tuple[list[Tensor], list[JaggedMeta | None], dict[str, Any]]:
    lengths_k = draw(st.lists(LENGTH, max_size=4))
    is_cross = draw(st.booleans())
    lengths_q = [draw(LENGTH) for _ in lengths_k] if is_cross else lengths_k
    num_heads = draw(st.integers(1, 3))
    causal, window = draw(st.booleans()), draw(st.sampled_from(WINDOWS))
    arguments: dict[str, Any] = {"causal": causal, "num_global": draw(st.sampled_from([0, 0, 1, 3, 70, 300]))}
    if draw(st.booleans()):
        arguments["num_targets"] = [draw(st.integers(0, n)) for n in lengths_k]
        arguments["target_group"] = draw(st.sampled_from([1, 1, 2, 7, 300]))
        window = window if causal else (-1, -1)
    arguments["window"] = window
    arguments |= KINDS[draw(st.sampled_from(sorted(KINDS)))]
    if draw(st.booleans()):
        rows, num_buckets = draw(st.sampled_from([1, num_heads])), draw(st.sampled_from([1, 5, 40]))
        rule = draw(st.sampled_from(["log2x1", "log2x2", "log2x4", "hstu"]))
        arguments["time_bias"] = _time_bias(lengths_q, lengths_k, rows, num_buckets, rule)
    if draw(st.booleans()):
        kind, num_buckets = draw(st.sampled_from([("toeplitz", 1), ("toeplitz", 31), ("toeplitz", 601), ("t5", 16)]))
        table = _randn(draw(st.sampled_from([1, num_heads])), num_buckets, seed=8)
        arguments["pos_bias"] = PosBias(table=table, kind=kind, max_distance=100)
    metas = [JaggedMeta.from_lengths(lengths_q), JaggedMeta.from_lengths(lengths_k) if is_cross else None]
    return _qkv(sum(lengths_q), sum(lengths_k), num_heads), metas, arguments


@settings(max_examples=80, deadline=None)
@given(call=_calls())
def test_any_arguments_give_the_reference_in_value_and_every_gradient(attend: Attend, call: Any) -> None:
    inputs, metas, arguments = call
    found = attend("torch", *inputs, *metas, **arguments)
    _assert_same(found, attend("reference", *inputs, *metas, **arguments))


@settings(max_examples=40, deadline=None)
@given(call=_calls(), cells=st.sampled_from([1, 300, 20_000]))
def test_pieces_of_any_size_give_the_reference(attend: Attend, call: Any, cells: int) -> None:
    inputs, metas, arguments = call
    with pytest.MonkeyPatch.context() as patch:
        small = {"MASK_CELLS": cells, "SCORE_CELLS": cells, "BLOCK_CELLS": cells, "BLOCK_ROWS": 17, "BLOCK_KEYS": 23}
        for name, value in small.items():
            patch.setattr(passes, name, value)
        found = attend("torch", *inputs, *metas, **arguments)
    _assert_same(found, attend("reference", *inputs, *metas, **arguments))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", WINDOWS[1:])
def test_every_window_with_a_bias_gives_the_reference(
    attend: Attend, monkeypatch: pytest.MonkeyPatch, window: tuple[int, int], causal: bool
) -> None:
    monkeypatch.setattr(passes, "BLOCK_ROWS", 17)
    monkeypatch.setattr(passes, "BLOCK_KEYS", 23)
    monkeypatch.setattr(passes, "BLOCK_CELLS", 17 * 23 * 2)
    lengths = [120, 31]
    meta, inputs, bias = JaggedMeta.from_lengths(lengths), _qkv(151), _time_bias(lengths, lengths, 1, 30, "log2x2")
    arguments = {"causal": causal, "window": window, "num_global": 2, "time_bias": bias}
    found = attend("torch", *inputs, meta, None, **arguments)
    _assert_same(found, attend("reference", *inputs, meta, None, **arguments))


LENGTHS_Q, LENGTHS_K = [4, 0, 3], [6, 2, 2]
CASES: dict[str, dict[str, Any]] = {
    "global": {"num_global": 2, "window": (1, 1)},
    "targets": {"num_targets": [3, 1, 2], "target_group": 2, "causal": True, "window": (1, 0)},
    "silu": {"kind": "silu", "silu_norm": 3.0, "causal": True},
    "dropout": {"dropout_p": 0.25, "seed": 3},
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_inputs_and_tables_are_those_of_finite_differences(name: str) -> None:
    metas = JaggedMeta.from_lengths(LENGTHS_Q), JaggedMeta.from_lengths(LENGTHS_K)
    time, pos = _time_bias(LENGTHS_Q, LENGTHS_K, 2, 9, "log2x1"), PosBias(table=_randn(1, 5, seed=9))
    inputs = [*_qkv(sum(LENGTHS_Q), sum(LENGTHS_K), width=3), time.table, pos.table]

    def run(q: Tensor, k: Tensor, v: Tensor, time_table: Tensor, pos_table: Tensor) -> Tensor:
        biases = {"time_bias": replace(time, table=time_table), "pos_bias": replace(pos, table=pos_table)}
        return _attention(q, k, v, *metas, **biases, **CASES[name])

    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in inputs], fast_mode=True)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("name", [*CASES, "time"])
def test_narrower_numbers_cost_only_their_rounding(attend: Attend, dtype: torch.dtype, limit: float, name: str) -> None:
    lengths = [33, 7, 129, 0]
    arguments = dict(CASES.get(name, {"causal": True}))
    if name == "targets":
        arguments["num_targets"] = [3, 7, 60, 0]
    meta, inputs = JaggedMeta.from_lengths(lengths), [x.to(dtype) for x in _qkv(169, width=32)]
    results = []
    for backend, tensors in (("torch", inputs), ("reference", [x.double() for x in inputs])):
        if name not in ("global", "targets"):
            bias = _time_bias(lengths, lengths, 2, 30, "log2x2")
            arguments["time_bias"] = replace(bias, table=bias.table.to(torch.float32))
        results.append(attend(backend, *tensors, meta, None, **arguments))
    assert results[0][0].dtype == dtype
    for x, y in zip(*results, strict=True):
        assert (x.double() - y).abs().max() < 4 * limit * max(1.0, y.abs().max().item())


@pytest.mark.parametrize("causal", [False, True])
def test_global_tokens_for_all_are_full_attention(attend: Attend, causal: bool) -> None:
    lengths = [60, 9, 0, 1]
    meta, inputs = JaggedMeta.from_lengths(lengths), _qkv(sum(lengths))
    full = attend("torch", *inputs, meta, None, causal=causal)
    _assert_same(attend("torch", *inputs, meta, None, causal=causal, window=(3, 2), num_global=60), full, 1e-11)


@pytest.mark.parametrize("kind", ["softmax", "silu"])
def test_a_window_as_wide_as_the_sequence_is_none_with_a_bias(attend: Attend, kind: str) -> None:
    lengths = [257, 40, 1]
    bias = _time_bias(lengths, lengths, 2, 30, "log2x2")
    meta, inputs = JaggedMeta.from_lengths(lengths), _qkv(sum(lengths))
    arguments: dict[str, Any] = {"kind": kind, "silu_norm": 9.0 if kind == "silu" else None, "causal": True}
    full = attend("torch", *inputs, meta, None, time_bias=bias, **arguments)
    found = attend("torch", *inputs, meta, None, time_bias=bias, window=(257, 257), **arguments)
    _assert_same(found, full, 1e-11)


def test_one_bucket_is_no_bias_and_the_gradient_of_a_softmax_table_sums_to_zero(attend: Attend) -> None:
    lengths = [60, 9, 0, 150]
    meta, inputs = JaggedMeta.from_lengths(lengths), _qkv(sum(lengths))
    plain = attend("torch", *inputs, meta, None, causal=True)
    one = _time_bias(lengths, lengths, 2, 1, "log2x2"), PosBias(table=_randn(2, 1))
    found = attend("torch", *inputs, meta, None, causal=True, time_bias=one[0], pos_bias=one[1])
    _assert_same([found[0], *found[2:5]], [plain[0], *plain[2:]], 1e-11)
    q, k, v = inputs
    tables = [_randn(2, n, seed=n).requires_grad_() for n in (30, 21)]
    time = replace(_time_bias(lengths, lengths, 2, 30, "log2x2"), table=tables[0])
    out = _attention(q, k, v, meta, causal=True, time_bias=time, pos_bias=PosBias(table=tables[1]))
    for grad in torch.autograd.grad((out * _randn(*out.shape, seed=3)).sum(), tables):
        assert grad.abs().max() > 1e-3
        torch.testing.assert_close(grad.sum(1), torch.zeros(2, dtype=torch.float64), atol=1e-11, rtol=0)


@pytest.mark.parametrize("kind", ["softmax", "silu", "dropout"])
def test_a_future_token_leaves_the_past_bitwise_unchanged_under_biases(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(passes, "BLOCK_KEYS", 50)
    monkeypatch.setattr(passes, "BLOCK_CELLS", 20_000)
    lengths, changed = [90, 400], 90 + 121
    meta, inputs = JaggedMeta.from_lengths(lengths), [x.float() for x in _qkv(490, width=32)]
    arguments: dict[str, Any] = {"silu": {"kind": "silu", "silu_norm": 9.0}, "dropout": {"dropout_p": 0.2, "seed": 9}}
    arguments = {**arguments.get(kind, {}), "time_bias": _time_bias(lengths, lengths, 2, 30, "log2x2")}
    before = _attention(*inputs, meta, causal=True, **arguments)
    for x in inputs:
        x[changed] += 3.0
    after = _attention(*inputs, meta, causal=True, **arguments)
    assert torch.equal(before[:changed], after[:changed])
    assert not torch.equal(before[changed], after[changed])


@pytest.mark.parametrize("bias", [False, True])
def test_adding_a_candidate_leaves_all_others_unchanged(bias: bool) -> None:
    q, k, v = _qkv(60)
    outs = []
    for num_targets in (20, 19, 1):
        length = 40 + num_targets
        time = _time_bias([60], [60], 2, 30, "log2x2")
        time = replace(time, ts_q=time.ts_q[:length], ts_k=time.ts_k[:length])
        meta, rows = JaggedMeta.from_lengths([length]), (x[:length] for x in (q, k, v))
        arguments = {"causal": True, "time_bias": time if bias else None}
        outs.append(_attention(*rows, meta, num_targets=[num_targets], **arguments))
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0][: len(out)], atol=1e-14, rtol=1e-13)
    assert not torch.allclose(outs[0][-1], outs[0][-2])


ALL: dict[str, Any] = {
    "causal": True,
    "window": (9, 0),
    "num_global": 2,
    "num_targets": [5, 0, 1, 30],
    "target_group": 3,
}
LENGTHS = [33, 1, 5, 70]


@pytest.mark.parametrize("kind", ["softmax", "silu", "bias"])
def test_permuting_the_sequences_permutes_the_rows_and_nothing_else(kind: str) -> None:
    order = [3, 1, 0, 2]
    inputs = _qkv(sum(LENGTHS))
    outs = []
    for chosen in (range(4), order):
        lengths = [LENGTHS[b] for b in chosen]
        rows = [torch.cat([torch.split(x, LENGTHS)[b] for b in chosen]) for x in (*inputs, _times(LENGTHS))]
        arguments = {**ALL, "num_targets": [ALL["num_targets"][b] for b in chosen]}
        if kind == "silu":
            arguments |= {"kind": "silu", "silu_norm": 9.0}
        elif kind == "bias":
            arguments["time_bias"] = TimeBias(table=_randn(2, 20), ts_q=rows[3], ts_k=rows[3])
        outs.append(_attention(*rows[:3], JaggedMeta.from_lengths(lengths), **arguments))
    expected = torch.cat([torch.split(outs[0], LENGTHS)[b] for b in order])
    torch.testing.assert_close(outs[1], expected, rtol=1e-13, atol=1e-14)


def test_a_sequence_does_not_notice_the_others_of_its_batch() -> None:
    inputs, times, table = _qkv(sum(LENGTHS)), _times(LENGTHS), _randn(2, 20)
    bias = TimeBias(table=table, ts_q=times, ts_k=times)
    whole = _attention(*inputs, JaggedMeta.from_lengths(LENGTHS), time_bias=bias, **ALL)
    for b, length in enumerate(LENGTHS):
        q, k, v, ts = (torch.split(x, LENGTHS)[b] for x in (*inputs, times))
        bias = TimeBias(table=table, ts_q=ts, ts_k=ts)
        arguments = {**ALL, "num_targets": [ALL["num_targets"][b]]}
        alone = _attention(q, k, v, JaggedMeta.from_lengths([length]), time_bias=bias, **arguments)
        torch.testing.assert_close(torch.split(whole, LENGTHS)[b], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["softmax", "silu", "bias"])
def test_nan_in_one_sequence_stays_there(attend: Attend, kind: str) -> None:
    inputs, meta = [x.float() for x in _qkv(sum(LENGTHS))], JaggedMeta.from_lengths(LENGTHS)
    arguments: dict[str, Any] = dict(ALL)
    if kind == "silu":
        arguments |= {"kind": "silu", "silu_norm": 9.0}
    elif kind == "bias":
        arguments["time_bias"] = _time_bias(LENGTHS, LENGTHS, 2, 20, "log2x2")
    clean = attend("torch", *inputs, meta, None, **arguments)
    for x in inputs:
        x[34:39] = float("nan")
    found = attend("torch", *inputs, meta, None, **arguments)
    num_by_row = 4 if kind == "silu" else 5
    for x, y in zip(found[:num_by_row], clean[:num_by_row], strict=True):
        assert torch.equal(torch.cat([x[:34], x[39:]]), torch.cat([y[:34], y[39:]]))
    assert found[0][34:39].isnan().all()


def test_the_result_is_linear_in_the_values() -> None:
    (q, k, v), other, meta = _qkv(sum(LENGTHS)), _randn(sum(LENGTHS), 2, 8, seed=5), JaggedMeta.from_lengths(LENGTHS)
    bias = _time_bias(LENGTHS, LENGTHS, 1, 20, "log2x2")
    for kind, norm in (("softmax", None), ("silu", 9.0)):
        of_v, of_other, of_sum = (
            _attention(q, k, x, meta, kind=kind, silu_norm=norm, time_bias=bias, **ALL)
            for x in (v, other, 2 * v + other)
        )
        torch.testing.assert_close(of_sum, 2 * of_v + of_other, rtol=1e-11, atol=1e-11)


def test_large_scores_neither_overflow_nor_vanish(attend: Attend) -> None:
    meta, inputs = JaggedMeta.from_lengths(LENGTHS), [x.float() * 30 for x in _qkv(sum(LENGTHS))]
    bias = _time_bias(LENGTHS, LENGTHS, 2, 20, "log2x2")
    wide = [x.double() for x in inputs]
    for arguments in ({}, {"time_bias": bias}, {"time_bias": bias, "kind": "silu", "silu_norm": 100.0}):
        found = attend("torch", *inputs, meta, None, **ALL, **arguments)
        expected = attend("reference", *wide, meta, None, **ALL, **arguments)
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x.double(), y, rtol=2e-3, atol=2e-3 * y.abs().max().item())


def test_one_and_two_threads_each_repeat_every_gradient_bit_for_bit(attend: Attend) -> None:
    lengths = [300, 20, 0, 500]
    meta, inputs = JaggedMeta.from_lengths(lengths), [x.float() for x in _qkv(sum(lengths), width=16)]
    biases = _time_bias(lengths, lengths, 2, 30, "log2x2"), PosBias(table=_randn(1, 41).float())
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 1, 2, 2):
            torch.set_num_threads(count)
            arguments = {"time_bias": biases[0], "pos_bias": biases[1], "causal": True}
            results.append(attend("torch", *inputs, meta, None, **arguments))
    finally:
        torch.set_num_threads(threads)
    for first, again in (results[:2], results[2:]):
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_a_table_changed_before_the_backward_pass_is_noticed() -> None:
    bias = _time_bias([5], [5], 2, 9, "log2x1")
    bias.table.requires_grad_()
    out = _attention(*_qkv(5), JaggedMeta.from_lengths([5]), time_bias=bias)
    with torch.no_grad():
        bias.table.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(out.sum(), bias.table)


class _LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """The most elements of a tensor that an operation gave."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.untyped_storage().nbytes() // max(x.element_size(), 1))
        return result


@pytest.mark.parametrize("name", ["time", "silu", "global", "targets"])
def test_a_long_sequence_never_forms_a_square(attend: Attend, name: str) -> None:
    length = 8_192
    arguments: dict[str, Any] = {
        "time": {"causal": True, "time_bias": _time_bias([length], [length], 1, 30, "log2x2")},
        "silu": {"causal": True, "window": (500, 0), "kind": "silu", "silu_norm": 100.0},
        "global": {"window": (200, 200), "num_global": 5},
        "targets": {"causal": True, "window": (200, 0), "num_targets": [1_000], "target_group": 10},
    }[name]
    inputs = [x.float() for x in _qkv(length, num_heads=1, width=4)]
    with _LargestTensor() as largest:
        found = attend("torch", *inputs, JaggedMeta.from_lengths([length]), None, **arguments)
    assert found[0].isfinite().all()
    assert largest.numel <= max(16 * length, 2 * passes.SCORE_CELLS)  # length**2 is 32 times as much
