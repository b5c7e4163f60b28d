from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.kernels.attention import PosBias, TimeBias, jagged_attention, library
from recsys.kernels.jagged import JaggedMeta

META = JaggedMeta.from_lengths([3, 2])
Q = torch.zeros(5, 2, 8)
TIMES = torch.zeros(5, dtype=torch.int32)


def _call(q: Tensor = Q, k: Tensor = Q, v: Tensor = Q, meta_k: JaggedMeta | None = None, **arguments: Any) -> None:
    jagged_attention(q, k, v, META, meta_k, **arguments)


def _time(**changes: Any) -> TimeBias:
    return TimeBias(**{"table": torch.zeros(2, 4), "ts_q": TIMES, "ts_k": TIMES, **changes})


NO_TENSOR: Any = [1.0]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"q": torch.zeros(5, 16)}, r"q has the shape \(5, 16\); wanted \(T, H, D\)"),
    ({"q": Q.long()}, "q is torch.int64; wanted bfloat16, float16, float32 or float64"),
    ({"k": Q.double()}, "q is torch.float32, k is torch.float64; they must be equal"),
    ({"v": Q.to("meta")}, "q is on cpu, v is on meta; they must be equal"),
    ({"v": Q[:, :1]}, "q has H=2 heads, v has 1; they must be equal"),
    ({"q": Q[:, :0]}, "q has H=0 heads"),
    ({"v": torch.zeros(5, 2, 257)}, "v has D=257; wanted 1 to 256"),
    ({"k": Q[..., :4]}, "q has D=8, k has D=4; they must be equal"),
    ({"q": Q[:4]}, "q has 4 rows, meta_q counts 5 tokens; they must be equal"),
    ({"v": Q[:4]}, "v has 4 rows, meta_k counts 5 tokens; they must be equal"),
    ({"meta_k": JaggedMeta.from_lengths([5])}, "meta_q has 2 sequences, meta_k has 1; they must be equal"),
    ({"meta_k": JaggedMeta.from_lengths([3, 2], device="meta")}, "q is on cpu, meta_k is on meta; build it with"),
    ({"kind": "relu"}, "kind='relu'; wanted 'softmax' or 'silu'"),
    ({"silu_norm": 2.0}, "silu_norm=2.0 with kind='softmax'; it belongs to kind='silu'"),
    ({"kind": "silu"}, "silu_norm=None with kind='silu'; wanted a number > 0"),
    ({"kind": "silu", "silu_norm": 0.0}, "silu_norm=0.0 with kind='silu'"),
    ({"kind": "silu", "silu_norm": 1.0, "return_lse": True}, "return_lse=True with kind='silu'"),
    ({"dropout_p": 1.0}, "dropout_p=1.0; wanted 0 <= dropout_p < 1"),
    ({"dropout_p": 0.1}, "dropout_p=0.1 without seed"),
    ({"window": 3}, "window=3; wanted two integers >= 0, or -1"),
    ({"window": (1, 2, 3)}, r"window=\(1, 2, 3\); wanted two integers"),
    ({"window": (1.5, 2)}, r"window=\(1.5, 2\); wanted two integers"),
    ({"window": (True, 2)}, r"window=\(True, 2\); wanted two integers"),
    ({"num_global": True}, "num_global=True; wanted an integer"),
    ({"kind": "silu", "silu_norm": float("inf")}, "silu_norm=inf; wanted a finite number"),
    ({"num_global": 1.5}, "num_global=1.5; wanted an integer"),
    ({"dropout_p": 0.1, "seed": 2**70}, r"seed=1180591620717411303424; wanted an int from 0 to 2\*\*63 - 1"),
    ({"dropout_p": 0.1, "seed": 1.5}, "seed=1.5; wanted an int"),
    ({"scale": float("nan")}, "scale=nan; wanted a finite number"),
    ({"pos_bias": PosBias(table=torch.zeros(1, 5), kind="t5")}, "pos_bias has NB=5; t5 wants an even number"),
    ({"window": (-2, 0)}, r"window=\(-2, 0\); wanted two numbers >= 0, or -1"),
    ({"num_global": -1}, "num_global=-1; wanted >= 0"),
    ({"target_group": 0, "num_targets": [1, 1]}, "target_group=0; wanted >= 1"),
    ({"target_group": 2}, "target_group=2 without num_targets"),
    ({"num_targets": [1, 1], "window": (2, 2)}, r"window=\(2, 2\) with num_targets and causal=False; set causal=True"),
    ({"num_targets": [1, 3]}, r"num_targets\[1\]=3; wanted 0 to the length of that sequence, 2"),
    ({"num_targets": [1, -1]}, r"num_targets\[1\]=-1"),
    ({"num_targets": torch.tensor([1])}, r"num_targets has the shape \(1,\); wanted \(2,\)"),
    ({"time_bias": _time(table=torch.zeros(3, 4))}, r"time_bias.table has the shape \(3, 4\); wanted \(1, NB\) or \(2"),
    ({"time_bias": _time(table=torch.zeros(2, 4).long())}, "time_bias.table is torch.int64; wanted float32"),
    ({"time_bias": _time(table=torch.zeros(2, 4, device="meta"))}, "q is on cpu, time_bias.table is on meta"),
    ({"time_bias": _time(ts_k=TIMES[:4])}, r"time_bias.ts_k has the shape \(4,\), k has 5 rows"),
    ({"time_bias": _time(ts_q=TIMES.to("meta"))}, "q is on cpu, time_bias.ts_q is on meta"),
    ({"time_bias": _time(buckets="log3")}, "time_bias.buckets='log3'; wanted log2x1"),
    ({"time_bias": _time(buckets=TIMES)}, r"time_bias.buckets has the shape \(5,\); wanted \(3,\) thresholds"),
    ({"time_bias": _time(buckets=torch.tensor([3, 1, 2]))}, "time_bias.buckets descends; wanted ascending"),
    ({"pos_bias": PosBias(table=torch.zeros(1, 4))}, "pos_bias.table has NB=4 columns; toeplitz wants an odd number"),
    ({"pos_bias": PosBias(table=torch.zeros(1, 5), kind="x")}, "pos_bias.kind='x'; wanted 'toeplitz' or 't5'"),
    ({"pos_bias": PosBias(table=torch.zeros(1, 2), kind="t5")}, "pos_bias has NB=2 and max_distance=128; t5 wants"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_a_wrong_argument_is_refused_with_both_values(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _call(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_targets": torch.tensor([1.0, 1.0])}, "num_targets is float32; wanted integers"),
        ({"time_bias": _time(ts_q=TIMES.float())}, "time_bias.ts_q is torch.float32; wanted int32 seconds"),
        ({"time_bias": _time(ts_k=TIMES.long())}, "time_bias.ts_k is torch.int64; wanted int32 seconds"),
        ({"time_bias": _time(buckets=[1, 2, 3])}, "time_bias.buckets is list; wanted a name or a tensor"),
        ({"meta_k": [3, 2]}, r"meta_k is list; wanted JaggedMeta.from_lengths\(lengths\)"),
        ({"q": [1.0]}, "q is list; wanted a tensor"),
        ({"time_bias": (TIMES, TIMES)}, "time_bias is tuple; wanted TimeBias"),
        ({"pos_bias": torch.zeros(1, 3)}, "pos_bias is Tensor; wanted PosBias"),
        ({"pos_bias": PosBias(table=NO_TENSOR, kind="toeplitz")}, "pos_bias.table is list; wanted a tensor"),
        ({"kind": "silu", "silu_norm": "a"}, "silu_norm='a'; wanted a number"),
        ({"time_bias": _time(buckets=torch.zeros(3))}, "time_bias.buckets is torch.float32; wanted int32 thresholds"),
    ],
)
def test_numbers_of_the_wrong_kind_are_a_type_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        _call(**arguments)


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "silu", "silu_norm": 1.0},
        {"num_global": 1, "window": (1, 1)},
        {"num_targets": [1, 1]},
        {"time_bias": _time()},
        {"pos_bias": PosBias(table=torch.zeros(1, 5))},
    ],
)
def test_every_path_that_needs_no_gpu_knows_every_argument(
    arguments: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", backend)
    _call(**arguments)


def test_integers_of_numpy_and_far_windows_are_good() -> None:
    q = torch.randn(5, 2, 8)
    none: Any = np.int64(0)
    everywhere = jagged_attention(q, q, q, META, window=(2**70, 2**70), num_global=none)
    assert torch.equal(everywhere, jagged_attention(q, q, q, META))
    near: Any = np.int64(1), np.int64(1)
    assert torch.equal(jagged_attention(q, q, q, META, window=near), jagged_attention(q, q, q, META, window=(1, 1)))


def test_dropout_with_silu_is_not_built() -> None:
    with pytest.raises(NotImplementedError, match="dropout_p=0.1 with kind='silu' is not built"):
        _call(kind="silu", silu_norm=1.0, dropout_p=0.1, seed=0)


@pytest.mark.parametrize("name", ["cuda", "fast"])
def test_an_unknown_backend_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", name)
    with pytest.raises(ValueError, match=f"RECSYS_KERNELS={name}: wanted one of auto, triton, torch, reference"):
        _call()


def test_an_empty_setting_is_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", "")
    _call()


def test_scale_is_one_over_the_root_of_the_width_unless_given() -> None:
    q, k, v = torch.randn(3, 5, 2, 16, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert torch.equal(jagged_attention(q, k, v, META), jagged_attention(q, k, v, META, scale=0.25))
    assert not torch.allclose(jagged_attention(q, k, v, META), jagged_attention(q, k, v, META, scale=1.0))


def test_lse_comes_only_when_asked() -> None:
    assert isinstance(jagged_attention(Q, Q, Q, META), Tensor)
    out, lse = jagged_attention(Q, Q, Q, META, return_lse=True)
    assert (out.shape, lse.shape, lse.dtype) == ((5, 2, 8), (5, 2), torch.float32)


def test_float32_heads_too_wide_for_the_kernels_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    q = torch.zeros(5, 1, 160)
    monkeypatch.setattr(library, "choose_backend", lambda *_: "triton")
    with caplog.at_level("WARNING", logger="recsys.kernels"):
        assert library.path_of(q, q) == "torch"
    assert "float32 heads of 160 are wider than the Triton kernels' 128" in caplog.text
    assert library.path_of(q.half(), q.half()) == "triton"
    monkeypatch.setenv("RECSYS_KERNELS", "triton")
    with pytest.raises(RuntimeError, match="kernels for float32 up to 128 wide, these heads have 160; use bfloat16"):
        library.path_of(q, q)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_autocast_changes_no_bit_and_no_dtype(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", backend)
    q = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(0))
    expected = jagged_attention(q, q, q, META, causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = jagged_attention(q, q, q, META, causal=True)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
