"""The reference against what it is not made of: torch's own attention, numpy, and laws of the operation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.kernels.attention.bias import PosBias, TimeBias
from recsys.kernels.attention.op import jagged_attention
from recsys.kernels.jagged import JaggedMeta

LENGTHS = [5, 0, 1, 17]
Attend = Callable[..., list[Tensor]]


@pytest.fixture(autouse=True)
def _reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", "reference")


def _qkv(total: int, num_heads: int = 2, width: int = 8, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(total, num_heads, width, generator=generator, dtype=torch.float64) for _ in range(3)]


def _times(lengths: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
    generator = np.random.default_rng(0)
    return torch.from_numpy(np.concatenate([np.sort(generator.integers(0, 9999, n)) for n in lengths])).to(dtype)


@pytest.mark.parametrize("causal", [False, True])
def test_each_sequence_is_plain_attention(causal: bool) -> None:
    meta, (q, k, v) = JaggedMeta.from_lengths(LENGTHS), _qkv(sum(LENGTHS))
    out, lse = jagged_attention(q, k, v, meta, causal=causal, return_lse=True)
    for start, end in zip(meta.offsets[:-1].tolist(), meta.offsets[1:].tolist(), strict=True):
        if start == end:
            continue
        one_q, one_k, one_v = (x[start:end].transpose(0, 1) for x in (q, k, v))
        expected = F.scaled_dot_product_attention(one_q, one_k, one_v, is_causal=causal).transpose(0, 1)
        torch.testing.assert_close(out[start:end], expected)
        scores = torch.einsum("qhd,khd->qhk", q[start:end], k[start:end]) / 8**0.5
        if causal:
            scores = scores.masked_fill(torch.ones(end - start, end - start).triu(1).bool()[:, None], -torch.inf)
        torch.testing.assert_close(lse[start:end], scores.logsumexp(-1))


def test_silu_weights_are_not_normalised_over_the_keys() -> None:
    meta, (q, k, v) = JaggedMeta.from_lengths([4]), _qkv(4, num_heads=1)
    out = jagged_attention(q, k, v, meta, kind="silu", silu_norm=50.0, causal=True)
    scores = (q[:, 0].numpy() @ k[:, 0].numpy().T) / np.sqrt(8)
    weights = np.tril(scores / (1 + np.exp(-scores))) / 50.0
    np.testing.assert_allclose(out[:, 0].numpy(), weights @ v[:, 0].numpy(), rtol=1e-12)


def test_dropout_sets_weights_to_zero_and_scales_the_others() -> None:
    meta, (q, k, _) = JaggedMeta.from_lengths([40, 30]), _qkv(70, width=40)
    v = torch.cat([torch.eye(40), torch.eye(40)[:30]]).double()[:, None].expand(70, 2, 40)  # out is the weights
    weights = jagged_attention(q, k, v, meta)
    dropped = jagged_attention(q, k, v, meta, dropout_p=0.3, seed=5)
    is_kept = dropped != 0
    torch.testing.assert_close(dropped[is_kept], weights[is_kept] / 0.7)
    assert is_kept[weights > 0].double().mean().item() == pytest.approx(0.7, abs=0.03)
    assert torch.equal(dropped, jagged_attention(q, k, v, meta, dropout_p=0.3, seed=5))
    assert not torch.equal(dropped, jagged_attention(q, k, v, meta, dropout_p=0.3, seed=6))


ARGUMENTS: dict[str, dict[str, Any]] = {
    "window": {"window": (2, 1)},
    "window causal": {"window": (2, -1), "causal": True},
    "global": {"window": (1, 1), "num_global": 2},
    "targets": {"num_targets": [2, 0, 1, 5], "target_group": 2, "causal": True},
    "silu": {"kind": "silu", "silu_norm": 9.0, "causal": True},
    "dropout": {"dropout_p": 0.25, "seed": 3},
    "cross": {"causal": True, "lengths_q": [3, 2, 0, 4]},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_gradients_of_inputs_and_tables_are_those_of_finite_differences(name: str) -> None:
    arguments = dict(ARGUMENTS[name])
    lengths_k = [3, 0, 1, 5]
    lengths_q = arguments.pop("lengths_q", lengths_k)
    meta_q, meta_k = JaggedMeta.from_lengths(lengths_q), JaggedMeta.from_lengths(lengths_k)
    q = _qkv(sum(lengths_q), width=3)[0].requires_grad_()
    k, v = (x.requires_grad_() for x in _qkv(sum(lengths_k), width=3, seed=1)[1:])
    generator = torch.Generator().manual_seed(2)
    time_table = torch.randn(2, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    pos_table = torch.randn(1, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    if name == "targets":
        arguments["num_targets"] = [2, 0, 1, 3]

    def run(q: Tensor, k: Tensor, v: Tensor, time_table: Tensor, pos_table: Tensor) -> Tensor:
        time_bias = TimeBias(table=time_table, ts_q=_times(lengths_q), ts_k=_times(lengths_k))
        return jagged_attention(
            q, k, v, meta_q, meta_k, time_bias=time_bias, pos_bias=PosBias(table=pos_table), **arguments
        )

    assert torch.autograd.gradcheck(run, (q, k, v, time_table, pos_table), fast_mode=True)


def test_one_bucket_is_no_bias_and_its_gradient_is_zero() -> None:
    meta, (q, k, v) = JaggedMeta.from_lengths(LENGTHS), _qkv(sum(LENGTHS))
    tables = [torch.full((2, 1), 3.0, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    times = _times(LENGTHS)
    time_bias = TimeBias(table=tables[0], ts_q=times, ts_k=times)
    out = jagged_attention(q, k, v, meta, causal=True, time_bias=time_bias, pos_bias=PosBias(table=tables[1]))
    torch.testing.assert_close(out, jagged_attention(q, k, v, meta, causal=True))
    for grad in torch.autograd.grad((out * torch.randn_like(out)).sum(), tables):
        torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-12, rtol=0)


def test_the_gradient_of_a_softmax_table_sums_to_zero_over_its_buckets() -> None:
    meta, (q, k, v) = JaggedMeta.from_lengths(LENGTHS), _qkv(sum(LENGTHS))
    table = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    bias = TimeBias(table=table, ts_q=_times(LENGTHS), ts_k=_times(LENGTHS))
    out = jagged_attention(q, k, v, meta, time_bias=bias)
    (grad,) = torch.autograd.grad((out * torch.randn_like(out)).sum(), table)
    assert grad.abs().max() > 1e-3
    torch.testing.assert_close(grad.sum(1), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_bias_is_looked_up_by_the_time_between_query_and_key() -> None:
    meta, (_, _, v) = JaggedMeta.from_lengths([3]), _qkv(3, num_heads=1)
    zeros = torch.zeros(3, 1, 8, dtype=torch.float64)
    times = torch.tensor([0, 1, 100], dtype=torch.int32)
    bias = TimeBias(
        table=torch.tensor([[0.0, 50.0]], dtype=torch.float64),
        ts_q=times,
        ts_k=times,
        buckets=torch.tensor([60], dtype=torch.int32),
    )
    out = jagged_attention(zeros, zeros, v, meta, time_bias=bias)
    torch.testing.assert_close(out[2], v[:2].mean(0))
    torch.testing.assert_close(out[0], v[2])


def test_adding_a_candidate_leaves_all_others_unchanged() -> None:
    q, k, v = _qkv(9)
    four = jagged_attention(q[:8], k[:8], v[:8], JaggedMeta.from_lengths([8]), num_targets=[4], causal=True)
    five = jagged_attention(q, k, v, JaggedMeta.from_lengths([9]), num_targets=[5], causal=True)
    assert not torch.allclose(five[8], four[7])
    torch.testing.assert_close(five[:8], four, atol=1e-15, rtol=0)


def test_nothing_in_gives_nothing_out() -> None:
    for lengths in ([], [0, 0]):
        q, k, v = (x.requires_grad_() for x in _qkv(0))
        out, lse = jagged_attention(q, k, v, JaggedMeta.from_lengths(lengths), return_lse=True)
        assert (out.shape, lse.shape) == ((0, 2, 8), (0, 2))
