"""The torch path against the reference, and the laws that hold for it bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.kernels.attention.bias import PosBias, TimeBias
from recsys.kernels.attention.op import jagged_attention
from recsys.kernels.attention.torch_path import passes
from recsys.kernels.attention.torch_path.plan import Cut, make_plan
from recsys.kernels.attention.visibility import Visibility
from recsys.kernels.jagged import JaggedMeta

Attend = Callable[..., list[Tensor]]
LENGTH = st.sampled_from([0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200, 257])
WINDOWS = [(-1, -1), (0, 0), (2, 3), (-1, 2), (3, -1), (40, 0), (64, 64), (300, 300)]


def _qkv(
    total_q: int, total_k: int, num_heads: int, width: int, width_v: int, seed: int = 0, dtype: Any = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((total_q, width), (total_k, width), (total_k, width_v))
    q, k, v = (torch.randn(rows, num_heads, d, generator=generator, dtype=torch.float64) for rows, d in sizes)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def _split(x: Tensor, lengths: list[int]) -> tuple[Tensor, ...]:
    return torch.split(x, lengths)


def _assert_same(found: list[Tensor], expected: list[Tensor], rtol: float = 1e-9, atol: float = 1e-10) -> None:
    for name, x, y in zip(("out", "lse", "dq", "dk", "dv"), found, expected, strict=True):
        try:
            torch.testing.assert_close(x, y, rtol=rtol, atol=atol)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(LENGTH, LENGTH), max_size=5),
    is_cross=st.booleans(),
    num_heads=st.integers(1, 3),
    width=st.sampled_from([1, 8, 16, 24, 32, 40, 64, 100]),
    width_v=st.sampled_from([0, 8, 33]),
    causal=st.booleans(),
    window=st.sampled_from(WINDOWS),
    dropout_p=st.sampled_from([0.0, 0.0, 0.3]),
)
def test_the_torch_path_equals_the_reference_in_value_and_gradient(
    attend: Attend,
    lengths: list[tuple[int, int]],
    is_cross: bool,
    num_heads: int,
    width: int,
    width_v: int,
    causal: bool,
    window: tuple[int, int],
    dropout_p: float,
) -> None:
    meta_q = JaggedMeta.from_lengths([q for q, _ in lengths])
    meta_k = JaggedMeta.from_lengths([k for _, k in lengths]) if is_cross else None
    inputs = _qkv(meta_q.total, (meta_k or meta_q).total, num_heads, width, width_v or width)
    arguments = {"causal": causal, "window": window, "dropout_p": dropout_p, "seed": 11}
    found = attend("torch", *inputs, meta_q, meta_k, **arguments)
    _assert_same(found, attend("reference", *inputs, meta_q, meta_k, **arguments))


@pytest.mark.parametrize("is_dense", [False, True])
@pytest.mark.parametrize(("causal", "window"), [(False, (-1, -1)), (True, (-1, -1)), (True, (5, 0)), (False, (9, 4))])
def test_pieces_of_any_size_give_the_same(
    attend: Attend, monkeypatch: pytest.MonkeyPatch, causal: bool, window: tuple[int, int], is_dense: bool
) -> None:
    lengths_q, lengths_k = [70, 40, 200, 3, 0], [70, 55, 180, 9, 4]
    meta_q, meta_k = JaggedMeta.from_lengths(lengths_q), JaggedMeta.from_lengths(lengths_k)
    inputs = _qkv(sum(lengths_q), sum(lengths_k), 2, 8, 8)
    arguments = {"causal": causal, "window": window, "dropout_p": 0.2 if is_dense else 0.0, "seed": 4}
    expected = attend("reference", *inputs, meta_q, meta_k, **arguments)
    for cells in (1, 700, 20_000):
        monkeypatch.setattr(passes, "MASK_CELLS", cells)
        monkeypatch.setattr(passes, "SCORE_CELLS", cells)
        _assert_same(attend("torch", *inputs, meta_q, meta_k, **arguments), expected)


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_those_of_finite_differences(causal: bool, dropout_p: float) -> None:
    meta_q, meta_k = JaggedMeta.from_lengths([4, 2, 3]), JaggedMeta.from_lengths([2, 0, 5])
    inputs = [x.requires_grad_() for x in _qkv(9, 7, 2, 3, 2)]

    def run(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = jagged_attention(
            q, k, v, meta_q, meta_k, causal=causal, dropout_p=dropout_p, seed=2, return_lse=True
        )
        return out, lse[torch.isfinite(lse)]

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_narrower_numbers_cost_only_their_rounding(
    attend: Attend, dtype: torch.dtype, limit: float, dropout_p: float
) -> None:
    meta = JaggedMeta.from_lengths([33, 7, 129, 0])
    inputs = _qkv(169, 169, 2, 32, 32, dtype=dtype)
    found = attend("torch", *inputs, meta, None, causal=True, dropout_p=dropout_p, seed=1)
    wide = attend("reference", *(x.double() for x in inputs), meta, None, causal=True, dropout_p=dropout_p, seed=1)
    assert found[0].dtype == dtype
    assert found[1].dtype == torch.float32
    for x, y in zip(found[:2], wide[:2], strict=True):
        assert (x.double() - y).abs().max() < limit * max(1.0, y.abs().max().item())


@pytest.mark.parametrize("causal", [False, True])
def test_the_fused_kernel_called_below_autograd_is_the_public_one(causal: bool) -> None:
    meta = JaggedMeta.from_lengths([37, 37])
    q, k, v = (x.requires_grad_() for x in _qkv(74, 74, 2, 16, 16, dtype=torch.float32))
    out = jagged_attention(q, k, v, meta, causal=causal)
    dense_q, dense_k, dense_v = (x.view(2, 37, 2, 16).transpose(1, 2) for x in (q, k, v))
    dense = F.scaled_dot_product_attention(dense_q, dense_k, dense_v, is_causal=causal)
    public = dense.transpose(1, 2).reshape(74, 2, 16)
    assert torch.equal(out, public)
    share = torch.randn_like(out)
    found, expected = (torch.autograd.grad(x, (q, k, v), share) for x in (out, public))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("causal", "window"), [(False, (-1, -1)), (True, (-1, -1)), (False, (4, 2))])
def test_permuting_the_sequences_permutes_the_rows_and_nothing_else(causal: bool, window: tuple[int, int]) -> None:
    lengths, order = [5, 33, 1, 70, 0, 33], [3, 5, 0, 4, 1, 2]
    q, k, v = _qkv(142, 142, 2, 8, 8, dtype=torch.float32)
    out = jagged_attention(q, k, v, JaggedMeta.from_lengths(lengths), causal=causal, window=window)
    q, k, v = (torch.cat([_split(x, lengths)[b] for b in order]) for x in (q, k, v))
    meta = JaggedMeta.from_lengths([lengths[b] for b in order])
    found = jagged_attention(q, k, v, meta, causal=causal, window=window)
    assert torch.equal(found, torch.cat([_split(out, lengths)[b] for b in order]))


@pytest.mark.parametrize("causal", [False, True])
def test_a_sequence_does_not_notice_the_others_of_its_batch(causal: bool) -> None:
    lengths = [5, 33, 70, 31, 30]
    inputs = _qkv(169, 169, 2, 8, 8)
    whole = _split(jagged_attention(*inputs, JaggedMeta.from_lengths(lengths), causal=causal), lengths)
    for b, length in enumerate(lengths):
        q, k, v = (_split(x, lengths)[b] for x in inputs)
        alone = jagged_attention(q, k, v, JaggedMeta.from_lengths([length]), causal=causal)
        torch.testing.assert_close(whole[b], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
@pytest.mark.parametrize("arguments", [{}, {"causal": True}, {"window": (7, 7)}])
def test_nan_in_one_sequence_stays_there(attend: Attend, arguments: dict[str, Any], dropout_p: float) -> None:
    lengths = [30, 29, 31, 150, 28]
    inputs = _qkv(268, 268, 2, 8, 8, dtype=torch.float32)
    meta = JaggedMeta.from_lengths(lengths)
    clean = attend("torch", *inputs, meta, None, dropout_p=dropout_p, seed=1, **arguments)
    for x in inputs:
        x[30:59] = float("nan")
    found = attend("torch", *inputs, meta, None, dropout_p=dropout_p, seed=1, **arguments)
    for x, y in zip(found, clean, strict=True):
        assert torch.equal(torch.cat([x[:30], x[59:]]), torch.cat([y[:30], y[59:]]))
        assert x[30:59].isnan().all()


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
@pytest.mark.parametrize("window", [(-1, -1), (6, -1)])
def test_a_future_token_leaves_the_past_bitwise_unchanged(window: tuple[int, int], dropout_p: float) -> None:
    meta = JaggedMeta.from_lengths([90, 200])
    inputs = _qkv(290, 290, 2, 32, 32, dtype=torch.float32)
    before = jagged_attention(*inputs, meta, causal=True, window=window, dropout_p=dropout_p, seed=9)
    for x in inputs:
        x[90 + 121] += 3.0
    after = jagged_attention(*inputs, meta, causal=True, window=window, dropout_p=dropout_p, seed=9)
    assert torch.equal(before[: 90 + 121], after[: 90 + 121])
    assert not torch.equal(before[90 + 121], after[90 + 121])


@pytest.mark.parametrize("causal", [False, True])
def test_a_window_as_wide_as_the_sequence_is_none(attend: Attend, causal: bool) -> None:
    meta, inputs = JaggedMeta.from_lengths([257, 40, 1]), _qkv(298, 298, 1, 8, 8)
    full = attend("torch", *inputs, meta, None, causal=causal)
    _assert_same(attend("torch", *inputs, meta, None, causal=causal, window=(257, 257)), full, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_large_scores_neither_overflow_nor_vanish(attend: Attend, dropout_p: float) -> None:
    meta = JaggedMeta.from_lengths([64, 9])
    inputs = [x * 30 for x in _qkv(73, 73, 2, 8, 8, dtype=torch.float32)]
    found = attend("torch", *inputs, meta, None, causal=True, dropout_p=dropout_p, seed=1)
    wide = attend("reference", *(x.double() for x in inputs), meta, None, causal=True, dropout_p=dropout_p, seed=1)
    for x, y in zip(found, wide, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=2e-3, atol=2e-3 * y.abs().max().item())


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_views_of_one_projection_give_what_copies_give(dropout_p: float) -> None:
    lengths = [20, 3, 41]
    meta = JaggedMeta.from_lengths(lengths)
    joined = torch.randn(64, 2, 24, generator=torch.Generator().manual_seed(0))
    for views in (joined.split(8, dim=2), joined.view(64, 3, 2, 8).unbind(1), [joined[..., i::3] for i in range(3)]):  # type: ignore[no-untyped-call]  # torch has no types for split
        out, same = (
            jagged_attention(q, k, v, meta, causal=True, dropout_p=dropout_p, seed=1)
            for q, k, v in (views, [x.clone(memory_format=torch.contiguous_format) for x in views])
        )
        assert torch.equal(out, same)


def test_a_broadcast_gradient_is_taken_as_it_is() -> None:
    meta = JaggedMeta.from_lengths([7, 7])
    q, k, v = (x.requires_grad_() for x in _qkv(14, 14, 2, 8, 8))
    found = torch.autograd.grad(jagged_attention(q, k, v, meta).sum(), v)[0]  # the gradient has strides of 0
    torch.testing.assert_close(found.sum(), torch.tensor(14.0 * 2 * 8, dtype=torch.float64))


@pytest.mark.parametrize(("lengths_q", "lengths_k"), [([], []), ([0, 0], [0, 0]), ([0, 0], [3, 1]), ([3, 1], [0, 0])])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_a_query_without_keys_gets_zero_and_passes_no_gradient(
    attend: Attend, lengths_q: list[int], lengths_k: list[int], dropout_p: float
) -> None:
    meta_q, meta_k = JaggedMeta.from_lengths(lengths_q), JaggedMeta.from_lengths(lengths_k)
    inputs = _qkv(sum(lengths_q), sum(lengths_k), 2, 8, 5)
    out, lse, *grads = attend("torch", *inputs, meta_q, meta_k, dropout_p=dropout_p, seed=0)
    assert torch.equal(out, torch.zeros(sum(lengths_q), 2, 5, dtype=torch.float64))
    assert torch.equal(lse, torch.full((sum(lengths_q), 2), -torch.inf, dtype=torch.float64))
    assert all(torch.equal(grad, torch.zeros_like(x)) for grad, x in zip(grads, inputs, strict=True))


def test_the_gradient_asked_of_lse_alone_is_the_softmax() -> None:
    meta = JaggedMeta.from_lengths([6])
    q, k, v = (x.requires_grad_() for x in _qkv(6, 6, 1, 8, 8))
    _, lse = jagged_attention(q, k, v, meta, return_lse=True)
    (grad,) = torch.autograd.grad(lse.sum(), q)
    weights = torch.softmax(torch.einsum("qd,kd->qk", q[:, 0], k[:, 0]) / 8**0.5, dim=1)
    torch.testing.assert_close(grad[:, 0], weights @ k[:, 0] / 8**0.5)


def test_autocast_does_not_narrow_the_scores() -> None:
    meta, (q, k, v) = JaggedMeta.from_lengths([50]), _qkv(50, 50, 2, 8, 8, dtype=torch.float32)
    plain = jagged_attention(q, k, v, meta, dropout_p=0.1, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain, jagged_attention(q, k, v, meta, dropout_p=0.1, seed=1))


@pytest.mark.parametrize("is_dense", [False, True])
def test_the_work_under_a_window_is_linear_in_the_length(is_dense: bool) -> None:
    cells = []
    for length in (2_000, 20_000):
        meta = JaggedMeta.from_lengths([length])
        plan = make_plan(meta, meta, Visibility(causal=True, window=(64, 0)), None, Cut(is_dense, 1 << 20))
        cells.append(plan.num_cells)
        assert plan.keys.num_slots < 3 * length
    assert cells[1] < 11 * cells[0]


def test_no_piece_with_a_mask_is_larger_than_asked() -> None:
    meta_q, meta_k = JaggedMeta.from_lengths([900, 5, 5, 5]), JaggedMeta.from_lengths([3_000, 6, 9, 8])
    for cut in (Cut(False, 10_000), Cut(True, 10_000), Cut(True, 10_000, rows=60, keys=70)):
        plan = make_plan(meta_q, meta_k, Visibility(causal=True), None, cut)
        for tile in plan.tiles:
            for piece in tile.pieces:
                sizes = [part.stop - part.start for part in (piece.items, piece.queries, piece.keys)]
                assert sizes[0] * sizes[1] * sizes[2] <= 10_000


def test_a_sorted_batch_of_one_length_is_not_copied() -> None:
    meta = JaggedMeta.from_lengths([8, 8, 8])
    plan = make_plan(meta, meta, Visibility(causal=True), None, Cut(False, 1 << 20))
    assert plan.queries.index is None
    assert len(plan.tiles) == 1


def test_one_meta_serves_every_mask_and_partner(attend: Attend) -> None:
    meta = JaggedMeta.from_lengths([9, 4])
    partners = JaggedMeta.from_lengths([2, 4]), JaggedMeta.from_lengths([3, 3])
    inputs, cross = _qkv(13, 13, 2, 8, 8), _qkv(13, 6, 2, 8, 8)
    for window in ((-1, -1), (1, 0), (2, 2)):
        for causal in (False, True):
            arguments = {"causal": causal, "window": window}
            expected = attend("reference", *inputs, meta, None, **arguments)
            _assert_same(attend("torch", *inputs, meta, None, **arguments), expected)
    for partner in partners:
        _assert_same(attend("torch", *cross, meta, partner), attend("reference", *cross, meta, partner))


def test_a_narrow_table_is_read_as_it_is() -> None:
    meta, generator = JaggedMeta.from_lengths([30, 200]), torch.Generator().manual_seed(0)
    q = torch.randn(230, 2, 8, generator=generator)
    time = torch.arange(230, dtype=torch.int32) * 7
    for dtype in (torch.bfloat16, torch.float16):
        pos = PosBias(table=torch.randn(2, 9, generator=generator).to(dtype))
        bias = TimeBias(table=torch.randn(2, 32, generator=generator).to(dtype), ts_q=time, ts_k=time)
        found = jagged_attention(q, q, q, meta, pos_bias=pos, time_bias=bias)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RECSYS_KERNELS", "reference")
            expected = jagged_attention(q, q, q, meta, pos_bias=pos, time_bias=bias)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
