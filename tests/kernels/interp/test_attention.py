"""The Triton kernels of `jagged_attention`, by Triton's interpreter, against the reference in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.kernels.attention import PosBias, TimeBias, jagged_attention
from recsys.kernels.jagged import JaggedMeta
from tests.kernels.attention.cases import CASES, Case, check_layouts, draw, values_and_gradients

LENGTHS = [33, 5, 0, 50]
passes = pytest.importorskip("recsys.kernels.attention.triton_path.passes")
chunks = pytest.importorskip("recsys.kernels.attention.triton_path.chunks")
launching = pytest.importorskip("recsys.kernels.attention.triton_path.launching")


def _errors(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Largest error of each output and gradient, relative to the reference's largest value where that exceeds 1."""
    drawn = draw(case, dtype)
    found = values_and_gradients(drawn, drawn.inputs)
    monkeypatch.setenv("RECSYS_KERNELS", "reference")
    expected = values_and_gradients(drawn, tuple(x.double() for x in drawn.inputs))
    errors = {}
    for name, x in expected.items():
        y = found[name].double()
        assert torch.equal(torch.isfinite(y), torch.isfinite(x)), name
        gap = torch.where(torch.isfinite(x), y - x, 0.0).abs()
        errors[name] = float(gap.max() / x[torch.isfinite(x)].abs().max().clamp(min=1.0))
    return errors


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_general_kernels_equal_the_reference_in_float64(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "SHORT_KEYS", (0,))
    for name, error in _errors(case, torch.float64, monkeypatch).items():
        assert error < 1e-12, name


SHORT = [
    case for case in CASES if not case.name.startswith(("window", "cross", "time log2x1", "time log2x4", "positions"))
]


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_the_kernel_of_short_sequences_equals_the_reference_in_float64(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "_query_pass", None)
    for name, error in _errors(case, torch.float64, monkeypatch).items():
        assert error < 1e-12, name


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-5), (torch.float16, 8e-3)])
@pytest.mark.parametrize("name", ["dropout and biases", "silu targets", "odd widths"])
def test_narrow_numbers_cost_only_their_rounding(
    name: str, dtype: torch.dtype, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in CASES if case.name == name)
    for output, error in _errors(case, dtype, monkeypatch).items():
        assert error < limit, output


@pytest.mark.parametrize("kind", ["softmax", "silu"])
def test_split_keys_give_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "SPLIT_KEYS", 8)
    assert chunks.num_splits(4, 50) == 4
    silu: dict[str, Any] = {"kind": "silu", "silu_norm": 30.0} if kind == "silu" else {}
    targets: dict[str, Any] = {"num_targets": [2, 0, 0, 3], "causal": True}
    case = Case(name="few targets", lengths=[2, 1, 0, 3], lengths_k=LENGTHS, arguments=targets | silu)
    for name, error in _errors(case, torch.float64, monkeypatch).items():
        assert error < 1e-12, name


def test_the_order_of_programs_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(name="order", lengths=LENGTHS, pos={"num_buckets": 9}, arguments={"causal": True, "window": (20, -1)})
    monkeypatch.setattr(launching, "SHORT_KEYS", (0,))
    drawn = draw(case, torch.float32, num_heads=1)
    before = values_and_gradients(drawn, drawn.inputs)
    make = chunks._make_chunks

    def shuffled(*arguments: Any) -> Tensor:
        made = make(*arguments)
        return made[torch.from_numpy(np.random.default_rng(0).permutation(len(made)))]

    monkeypatch.setattr(chunks, "_make_chunks", shuffled)
    drawn = draw(case, torch.float32, num_heads=1)
    for name, x in values_and_gradients(drawn, drawn.inputs).items():
        assert torch.equal(x, before[name]), name


def test_chunks_name_every_block_once_long_ones_first() -> None:
    meta = JaggedMeta.from_lengths([0, 70, 1, 64])
    for causal in (False, True):
        made = chunks.chunks_of(meta, 32, causal).tolist()
        assert sorted(map(tuple, made)) == [(1, 0), (1, 1), (1, 2), (2, 0), (3, 0), (3, 1)]
        assert made[0] == ([1, 2] if causal else [1, 0])


def test_gradients_are_those_of_finite_differences() -> None:
    time = {"num_buckets": 4, "buckets": "log2x1"}
    case = Case(name="small", lengths=[3, 0, 2], width=3, width_v=2, time=time, pos={"num_buckets": 3})
    drawn = draw(case, torch.float64, num_heads=1)
    inputs = tuple(x.requires_grad_() for x in drawn.inputs)
    assert torch.autograd.gradcheck(lambda *inputs: drawn.run(*inputs)[0], inputs, fast_mode=True)


def test_views_of_one_projection_need_no_copy() -> None:
    meta, generator = JaggedMeta.from_lengths([9, 4]), torch.Generator().manual_seed(0)
    together = torch.randn(15, 3, 2, 16, generator=generator, dtype=torch.float64)[2:]  # offset, wide strides
    q, k, v = together.unbind(1)
    v = v[:, :1].expand(-1, 2, -1)
    expected = jagged_attention(q.clone(), k.clone(), v.clone(), meta, causal=True)
    assert torch.equal(jagged_attention(q, k, v, meta, causal=True), expected)
    backwards = q.transpose(1, 2).contiguous().transpose(1, 2)  # the last stride is not 1
    assert torch.equal(jagged_attention(backwards, k, v, meta, causal=True), expected)


def _attend(lengths: list[int], change: Callable[[Tensor], None] | None = None, **arguments: Any) -> Tensor:
    meta, generator = JaggedMeta.from_lengths(lengths), torch.Generator().manual_seed(1)
    q, k, v = torch.randn(3, sum(lengths), 1, 16, generator=generator).unbind(0)
    for x in (q, k, v) if change is not None else ():
        assert change is not None
        change(x)
    return jagged_attention(q, k, v, meta, **arguments)


def test_a_later_event_leaves_the_past_bit_for_bit() -> None:
    def change(x: Tensor) -> None:
        x[40:] += 1.0

    assert torch.equal(_attend([45], causal=True)[:40], _attend([45], change, causal=True)[:40])


def test_a_candidate_leaves_the_others_bit_for_bit() -> None:
    def change(x: Tensor) -> None:
        x[44] = 7.0

    targets: dict[str, Any] = {"causal": True, "num_targets": [6]}
    before, after = _attend([45], **targets), _attend([45], change, **targets)
    assert torch.equal(before[:44], after[:44])
    assert not torch.equal(before[44], after[44])


def test_what_is_seen_by_all_is_a_full_attention() -> None:
    full = _attend([45])
    seen: list[dict[str, Any]] = [{"window": (45, 45)}, {"window": (0, 0), "num_global": 45}]
    for arguments in seen:
        torch.testing.assert_close(_attend([45], **arguments), full)


def test_a_time_table_of_one_bucket_changes_nothing_and_its_gradient_sums_to_0() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, v = torch.randn(3, 20, 1, 16, generator=generator, dtype=torch.float64).unbind(0)
    meta, seconds = JaggedMeta.from_lengths([20]), torch.arange(20, dtype=torch.int32)
    for num_buckets in (1, 6):
        table = torch.ones(1, num_buckets, dtype=torch.float64, requires_grad=True)
        bias = TimeBias(table=table, ts_q=seconds, ts_k=seconds, buckets="log2x1")
        out = jagged_attention(q, k, v, meta, time_bias=bias)
        torch.testing.assert_close(out, jagged_attention(q, k, v, meta))
        (grad,) = torch.autograd.grad((out * q).sum(), table)
        assert abs(float(grad.sum())) < 1e-12


@pytest.mark.parametrize("buckets", ["log2x1", "log2x2", "log2x4", "hstu"])
def test_every_gap_finds_its_bucket(buckets: str) -> None:
    """A key's weight tells its bucket: the table holds the numbers of the buckets."""
    edges = [2**e + d for e in range(31) for d in (-1, 0, 1)] + [round(2 ** (e / 4)) for e in range(124)]
    gaps = sorted({gap for gap in edges if 0 <= gap < 2**31})
    num_buckets = 124
    table = torch.arange(num_buckets, dtype=torch.float64)[None, :] / 100
    ts_k = torch.tensor(gaps, dtype=torch.int32)
    bias = TimeBias(table=table, ts_q=torch.zeros(1, dtype=torch.int32), ts_k=ts_k, buckets=buckets)
    meta_q, meta_k = JaggedMeta.from_lengths([1]), JaggedMeta.from_lengths([len(gaps)])
    zeros = torch.zeros(len(gaps), 1, 16, dtype=torch.float64)
    v = torch.eye(len(gaps), dtype=torch.float64)[:, None, :]
    seen = torch.cat(
        [
            jagged_attention(zeros[:1], zeros, v[..., at : at + 128], meta_q, meta_k, time_bias=bias)
            for at in range(0, len(gaps), 128)
        ],
        dim=2,
    )[0, 0]
    expected = torch.softmax(bias.scores(slice(0, 1), slice(0, len(gaps)))[0, 0], dim=0)
    torch.testing.assert_close(seen, expected, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_a_batch_without_tokens_gives_nothing_and_zero_gradients(lengths: list[int]) -> None:
    meta = JaggedMeta.from_lengths(lengths)
    q = torch.zeros(0, 2, 16, requires_grad=True)
    out = jagged_attention(q, q, q, meta, causal=True)
    assert out.shape == (0, 2, 16)
    assert torch.autograd.grad(out.sum(), q)[0].shape == (0, 2, 16)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_no_number_shows(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN key or value reaches every query that sees it, a NaN query its own row, as in the definition."""
    case = Case(name="nan", lengths=[9, 5], arguments={"causal": True})
    drawn = draw(case, torch.float32, num_heads=1)
    inputs = [x.clone() for x in drawn.inputs]
    inputs[which][3] = torch.nan
    found = values_and_gradients(drawn, tuple(inputs))
    monkeypatch.setenv("RECSYS_KERNELS", "reference")
    expected = values_and_gradients(drawn, tuple(inputs))
    assert torch.equal(found["out"].isnan(), expected["out"].isnan())


def test_bfloat16_is_refused_because_the_interpreter_is_wrong_there() -> None:
    x = torch.zeros(3, 1, 16, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="the interpreter computes bfloat16 wrongly; use float32"):
        jagged_attention(x, x, x, JaggedMeta.from_lengths([3]))


@pytest.mark.parametrize("name", ["positions", "t5 and time", "dropout and biases", "values narrower than keys"])
def test_what_the_operators_give_lies_as_their_fakes_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_layouts(next(case for case in CASES if case.name == name), monkeypatch)


@pytest.mark.parametrize("is_short", [True, False])
def test_a_query_that_sees_no_key_passes_on_no_nan(is_short: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_short:
        monkeypatch.setattr(launching, "SHORT_KEYS", (0,))
    meta_q, meta_k = JaggedMeta.from_lengths([5]), JaggedMeta.from_lengths([3])
    q, k, v = (torch.randn(n, 1, 16, dtype=torch.float64, requires_grad=True) for n in (5, 3, 3))
    table = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    bias = PosBias(table=table)
    out, lse = jagged_attention(q, k, v, meta_q, meta_k, causal=True, pos_bias=bias, return_lse=True)
    assert lse[:2].isneginf().all()
    grad_lse = torch.where(lse.isfinite(), 1.0, float("nan"))
    for grad in torch.autograd.grad([out, lse], (q, k, v, table), [torch.ones_like(out), grad_lse]):
        assert grad.isfinite().all()


def test_far_buckets_of_t5_need_no_table_as_long_as_they_are_far() -> None:
    meta, q = JaggedMeta.from_lengths([20]), torch.randn(20, 1, 16, dtype=torch.float64)
    table = torch.randn(1, 32, dtype=torch.float64)
    bias = PosBias(table=table, kind="t5", max_distance=2**40)
    found = jagged_attention(q, q, q, meta, pos_bias=bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECSYS_KERNELS", "reference")
        torch.testing.assert_close(found, jagged_attention(q, q, q, meta, pos_bias=bias), rtol=1e-12, atol=1e-12)
