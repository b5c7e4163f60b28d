"""`jagged_attention` as an operator: what torch.compile and torch.library ask of one."""

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.kernels.attention import PosBias, TimeBias, jagged_attention
from recsys.kernels.attention.library import attention_op
from recsys.kernels.jagged import JaggedMeta
from tests.kernels.attention.cases import CASES, Case, check_layouts, draw, values_and_gradients


def _operands(meta: JaggedMeta, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (x.requires_grad_() for x in torch.randn(3, meta.total, 2, 8, generator=generator, dtype=dtype).unbind(0))
    table = torch.randn(2, 5, generator=generator, dtype=dtype, requires_grad=True)
    seconds = torch.arange(meta.total, dtype=torch.int32)
    tensors = (
        meta.offsets,
        meta.offsets,
        meta.host_lengths,
        meta.host_lengths,
        None,
        table,
        seconds,
        seconds,
        None,
        table,
    )
    numbers = (0.3, None, True, (-1, -1), 0, 1, "log2x2", "toeplitz", 128, 0.0, 0)
    return q, k, v, *tensors, *numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_operator_keeps_the_rules_of_the_library(dtype: torch.dtype) -> None:
    torch.library.opcheck(attention_op, _operands(JaggedMeta.from_lengths([4, 0, 3]), dtype))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_operator_equals_the_torch_path(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw(case, torch.float64)
    expected = values_and_gradients(drawn, drawn.inputs)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    if "num_targets" in case.arguments:
        case = replace(case, arguments={**case.arguments, "num_targets": torch.tensor(case.arguments["num_targets"])})
        drawn = draw(case, torch.float64)
    for name, x in values_and_gradients(drawn, drawn.inputs).items():
        torch.testing.assert_close(x, expected[name], rtol=1e-10, atol=1e-11)


def test_thirty_shapes_compile_to_two_graphs_at_most() -> None:
    graphs = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def attend(q: Tensor, meta: JaggedMeta, time_table: Tensor, pos_table: Tensor, seconds: Tensor) -> Tensor:
        time = TimeBias(table=time_table, ts_q=seconds, ts_k=seconds)
        return jagged_attention(q, q, q, meta, causal=True, time_bias=time, pos_bias=PosBias(table=pos_table))

    compiled = torch.compile(attend, fullgraph=True, backend=count)
    time_table, pos_table = torch.randn(2, 6), torch.randn(2, 7)
    for n in range(1, 31):
        meta = JaggedMeta.from_lengths([n, 2 * n, 5])
        q, seconds = torch.randn(meta.total, 2, 8), torch.arange(meta.total, dtype=torch.int32)
        operands = q, meta, time_table, pos_table, seconds
        torch.testing.assert_close(compiled(*operands), attend(*operands))
    assert len(graphs) <= 2


def test_gradients_come_through_a_compiled_call() -> None:
    def attend(q: Tensor, table: Tensor, meta: JaggedMeta) -> Tensor:
        return jagged_attention(q, q, q, meta, causal=True, pos_bias=PosBias(table=table))

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    meta = JaggedMeta.from_lengths([6, 0, 11])
    q = torch.randn(17, 2, 8, dtype=torch.float64, requires_grad=True)
    table = torch.randn(1, 7, dtype=torch.float64, requires_grad=True)
    share = torch.randn(17, 2, 8, dtype=torch.float64)
    for found, expected in zip(
        torch.autograd.grad((compiled(q, table, meta) * share).sum(), (q, table)),
        torch.autograd.grad((attend(q, table, meta) * share).sum(), (q, table)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_targets_in_a_list_are_refused_in_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    q = torch.zeros(3, 1, 8)
    with pytest.raises(TypeError, match="num_targets is a list; within torch.compile pass a CPU tensor"):
        jagged_attention(q, q, q, JaggedMeta.from_lengths([3]), num_targets=[1])


def test_the_same_batch_finds_its_meta_again() -> None:
    first = JaggedMeta.from_lengths([2, 5])
    again = JaggedMeta.of(first.host_lengths, first.offsets)
    assert JaggedMeta.of(torch.tensor([2, 5]), first.offsets) is again
    assert JaggedMeta.of(torch.tensor([5, 2]), first.offsets).lengths.tolist() == [5, 2]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_the_operators_give_lies_as_their_fakes_say(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check_layouts(case, monkeypatch)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_a_call_compiles_with_narrow_values_and_a_table_a_head() -> None:
    meta = JaggedMeta.from_lengths([3, 4])
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(7, 2, 8, generator=generator, requires_grad=True) for _ in range(2))
    v = torch.randn(7, 2, 3, generator=generator, requires_grad=True)
    table = torch.randn(2, 5, generator=generator, requires_grad=True)

    def run(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        return jagged_attention(q, k, v, meta, pos_bias=PosBias(table=table)).sum()

    compiled = torch.compile(run, fullgraph=True)  # by inductor, which relies on the strides of the fakes
    found = torch.autograd.grad(compiled(q, k, v, table), (q, k, v, table))
    for one, other in zip(found, torch.autograd.grad(run(q, k, v, table), (q, k, v, table)), strict=True):
        torch.testing.assert_close(one, other)
