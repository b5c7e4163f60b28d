"""The Triton kernels of `jagged_attention` on a GPU: errors against float64, widths, sizes, and repeats bit for bit."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.kernels.attention import TimeBias, jagged_attention
from recsys.kernels.attention.library import MAX_WIDTH_FLOAT32
from recsys.kernels.jagged import JaggedMeta
from tests.kernels.attention.cases import CASES, Case, draw, values_and_gradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: make test-gpu"),
]
NARROW = (torch.bfloat16, torch.float16)
LONG = [300, 0, 1, 513, 77]


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def _assert_near(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than twice (gradients: three times) the error that the same numbers cost in plain torch."""
    drawn = draw(case, dtype, "cuda")
    monkeypatch.setenv("RECSYS_KERNELS", "triton")
    found = values_and_gradients(drawn, drawn.inputs)
    monkeypatch.setenv("RECSYS_KERNELS", "reference")
    plain = values_and_gradients(drawn, drawn.inputs)
    exact = values_and_gradients(drawn, tuple(x.double() for x in drawn.inputs))
    for name, x in exact.items():
        assert torch.equal(torch.isfinite(found[name]), torch.isfinite(x)), name
        is_finite, share = torch.isfinite(x), 2 if name in ("out", "lse") else 3
        error, allowed = (torch.where(is_finite, y[name].double() - x, 0.0).abs().max() for y in (found, plain))
        steps = 4 if dtype == torch.float32 else 1  # three products of TF32 leave out the smallest of four
        least = steps * torch.finfo(dtype).eps * float(x[is_finite].abs().max().clamp(min=1.0))
        assert float(error) <= max(share * float(allowed), least), f"{name}: {float(error)}, plain {float(allowed)}"


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_kind_is_near_the_reference(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    _assert_near(case, dtype, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW], ids=str)
@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.parametrize("width", [8, 16, 24, 32, 64, 96, 128, 200, 256])
@pytest.mark.parametrize("has_bias", [False, True])
def test_every_width_is_near_the_reference(
    width: int, is_long: bool, has_bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 above all: Triton before 3.7.1 compiles transposed products wrongly there."""
    if dtype == torch.float32 and width > MAX_WIDTH_FLOAT32:
        pytest.skip("float32 heads of this width take the torch path")
    case = Case(
        name="width",
        lengths=LONG if is_long else [60, 0, 1, 33],
        width=width,
        time={"num_buckets": 40, "buckets": "log2x2"} if has_bias else None,
        arguments={"causal": True},
    )
    _assert_near(case, dtype, monkeypatch)


@pytest.mark.parametrize("longest", [64, 65, 128, 129, 256, 257, 1025])
def test_every_path_by_length_is_near_the_reference(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(name="length", lengths=[longest, 3, 0, longest // 2], width=64, pos={"num_buckets": 101})
    _assert_near(case, torch.bfloat16, monkeypatch)


def test_few_targets_against_a_long_history(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"causal": True, "num_targets": [2, 5]}
    case = Case(name="split", lengths=[2, 5], lengths_k=[9000, 4000], width=64, arguments=arguments)
    _assert_near(case, torch.bfloat16, monkeypatch)


@pytest.mark.parametrize("lengths", [[200] * 64, [2048, 900, 17, 3000]])
def test_fifty_runs_give_the_same_bits(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", "triton")
    case = Case(
        name="repeat",
        lengths=lengths,
        width=64,
        time={"num_buckets": 40, "buckets": "log2x2"},
        pos={"num_buckets": 101, "shared": True},
        arguments={"causal": True, "dropout_p": 0.1, "seed": 5},
    )
    drawn = draw(case, torch.bfloat16, "cuda")
    first = values_and_gradients(drawn, drawn.inputs)
    other = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types for it
    noise = torch.randn(4096, 4096, device="cuda")
    for _ in range(50):
        with torch.cuda.stream(other):
            noise @ noise
        for name, x in values_and_gradients(drawn, drawn.inputs).items():
            assert torch.equal(x, first[name]), name


def test_rows_beyond_two_billion_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """T * H * D exceeds 2**31: the last sequence alone must come out as if it stood alone."""
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GB of free memory")
    monkeypatch.setenv("RECSYS_KERNELS", "triton")
    meta = JaggedMeta.from_lengths([128] * 65_600, "cuda")
    q = torch.randn(meta.total, 4, 64, device="cuda", dtype=torch.bfloat16)
    assert q.numel() > 2**31
    out = jagged_attention(q, q, q, meta, causal=True)
    alone = jagged_attention(q[-128:], q[-128:], q[-128:], JaggedMeta.from_lengths([128], "cuda"), causal=True)
    assert torch.equal(out[-128:], alone)


def test_thirty_shapes_compile_to_two_graphs_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", "triton")
    graphs = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def attend(q: Tensor, meta: JaggedMeta, table: Tensor, seconds: Tensor) -> Tensor:
        bias = TimeBias(table=table, ts_q=seconds, ts_k=seconds)
        return jagged_attention(q, q, q, meta, causal=True, time_bias=bias)

    compiled = torch.compile(attend, fullgraph=True, backend=count)
    table = torch.randn(4, 40, device="cuda", requires_grad=True)
    for n in range(2, 32):
        meta = JaggedMeta.from_lengths([n, 2 * n, 5], "cuda")
        q = torch.randn(meta.total, 4, 32, device="cuda", requires_grad=True)
        seconds = torch.arange(meta.total, device="cuda", dtype=torch.int32)
        torch.testing.assert_close(compiled(q, meta, table, seconds), attend(q, meta, table, seconds))
    assert len(graphs) <= 2
