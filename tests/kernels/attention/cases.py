"""Every kind of attention once, on inputs that are hard: shared by the tests of the interpreter and of the GPU."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.kernels.attention import PosBias, TimeBias, jagged_attention, library
from recsys.kernels.jagged import JaggedMeta

LENGTHS = [37, 0, 17, 1, 40]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Arguments of `jagged_attention`; `time` and `pos` say what the biases are made of."""

    name: str
    lengths: list[int] = field(default_factory=lambda: LENGTHS)
    lengths_k: list[int] | None = None
    width: int = 16
    width_v: int | None = None
    time: dict[str, Any] | None = None
    pos: dict[str, Any] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


TARGETS = [9, 0, 17, 0, 4]
CROSS: dict[str, Any] = {"lengths": [5, 3, 0, 40, 33], "lengths_k": [37, 0, 17, 20, 33]}
CASES = [
    Case(name="bidirectional"),
    Case(name="causal", arguments={"causal": True}),
    Case(name="window", arguments={"window": (5, 3)}),
    Case(name="causal window", arguments={"causal": True, "window": (7, -1)}),
    Case(name="global", arguments={"window": (5, 3), "num_global": 4}),
    Case(name="causal global", arguments={"causal": True, "window": (5, 0), "num_global": 4}),
    Case(name="cross", **CROSS),
    Case(name="causal cross window", **CROSS, arguments={"causal": True, "window": (9, -1)}),
    Case(name="targets", arguments={"num_targets": TARGETS}),
    Case(name="causal targets in groups", arguments={"causal": True, "num_targets": TARGETS, "target_group": 3}),
    Case(
        name="targets, window and global",
        arguments={"causal": True, "window": (6, -1), "num_global": 3, "num_targets": TARGETS, "target_group": 2},
    ),
    Case(
        name="targets alone as queries",
        lengths=[3, 0, 17, 1, 2],
        lengths_k=LENGTHS,
        arguments={"causal": True, "num_targets": [3, 0, 17, 1, 2]},
    ),
    Case(name="silu", arguments={"kind": "silu", "silu_norm": 40.0, "causal": True}),
    Case(name="silu targets", arguments={"kind": "silu", "silu_norm": 9.0, "num_targets": TARGETS}),
    Case(name="time log2x1", time={"num_buckets": 12, "buckets": "log2x1"}, arguments={"causal": True}),
    Case(name="time log2x2", time={"num_buckets": 18, "buckets": "log2x2"}, arguments={"causal": True}),
    Case(name="time log2x4", time={"num_buckets": 33, "buckets": "log2x4", "shared": True}),
    Case(name="time hstu", time={"num_buckets": 20, "buckets": "hstu"}, arguments={"causal": True}),
    Case(name="time thresholds", time={"num_buckets": 5, "buckets": torch.tensor([1, 10, 100, 5000])}),
    Case(
        name="time silu",
        time={"num_buckets": 20, "buckets": "hstu", "shared": True},
        arguments={"kind": "silu", "silu_norm": 9.0, "causal": True},
    ),
    Case(name="positions", pos={"num_buckets": 21}),
    Case(name="far positions", **CROSS, pos={"num_buckets": 99, "shared": True}, arguments={"causal": True}),
    Case(name="t5", pos={"num_buckets": 8, "kind": "t5", "max_distance": 20}),
    Case(
        name="t5 and time",
        pos={"num_buckets": 8, "kind": "t5", "max_distance": 20, "shared": True},
        time={"num_buckets": 9, "buckets": "log2x2"},
        arguments={"causal": True, "window": (15, -1)},
    ),
    Case(name="dropout", arguments={"dropout_p": 0.3, "seed": 2**40 + 7}),
    Case(
        name="dropout and biases",
        pos={"num_buckets": 21},
        time={"num_buckets": 9, "buckets": "log2x2"},
        arguments={"causal": True, "dropout_p": 0.3, "seed": 3},
    ),
    Case(
        name="targets and biases",
        lengths=[40, 0, 17, 1, 37],
        time={"num_buckets": 9, "buckets": "log2x2"},
        pos={"num_buckets": 75},
        arguments={"causal": True, "num_targets": [36, 0, 5, 1, 9], "target_group": 36},
    ),
    Case(
        name="targets, t5 and dropout",
        pos={"num_buckets": 8, "kind": "t5", "max_distance": 20},
        arguments={"num_targets": TARGETS, "target_group": 2, "dropout_p": 0.2, "seed": 1},
    ),
    Case(
        name="silu, targets and a bias",
        pos={"num_buckets": 21, "shared": True},
        arguments={"kind": "silu", "silu_norm": 9.0, "causal": True, "num_targets": TARGETS, "target_group": 9},
    ),
    Case(name="limits that no place reaches", arguments={"window": (2**31 - 1, 2**31 - 1), "num_global": 2**40}),
    Case(name="no scale", arguments={"causal": True, "scale": 0.0}),
    Case(name="negative scale", arguments={"causal": True, "scale": -0.5}),
    Case(name="positions in a window", pos={"num_buckets": 21}, arguments={"window": (5, 3)}),
    Case(name="values narrower than keys", width_v=5),
    Case(name="odd widths", width=24, width_v=40, arguments={"causal": True}),
    Case(name="width 8", width=8, arguments={"causal": True, "num_targets": TARGETS}),
]


@dataclass(frozen=True)
class Drawn:
    """Inputs of a case and a function of those that have a gradient."""

    names: tuple[str, ...]  # of the inputs
    inputs: tuple[Tensor, ...]
    run: Callable[..., list[Tensor]]  # of the inputs: out, and for softmax lse


def draw(case: Case, dtype: torch.dtype, device: str = "cpu", num_heads: int = 2, seed: int = 0) -> Drawn:
    """Scores reach beyond 10, where exp and silu are steep."""
    generator = torch.Generator().manual_seed(seed)
    meta_q = JaggedMeta.from_lengths(case.lengths, device)
    meta_k = meta_q if case.lengths_k is None else JaggedMeta.from_lengths(case.lengths_k, device)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(device, dtype)

    inputs = {
        "q": normal(meta_q.total, num_heads, case.width, scale=3.0),
        "k": normal(meta_k.total, num_heads, case.width),
        "v": normal(meta_k.total, num_heads, case.width_v or case.width),
    }
    table_dtype = torch.promote_types(dtype, torch.float32)
    rest = {}
    if case.time is not None:
        rows = 1 if case.time.get("shared") else num_heads
        inputs["time_table"] = normal(rows, case.time["num_buckets"]).to(table_dtype)
        rest["ts_q"] = _seconds(meta_q, generator).to(device)
        rest["ts_k"] = rest["ts_q"] if meta_k is meta_q else _seconds(meta_k, generator).to(device)
    if case.pos is not None:
        rows = 1 if case.pos.get("shared") else num_heads
        inputs["pos_table"] = normal(rows, case.pos["num_buckets"]).to(table_dtype)
    is_silu = case.arguments.get("kind") == "silu"

    def run(q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> list[Tensor]:
        left = list(tables)
        biases: dict[str, Any] = {}
        if case.time is not None:
            buckets = case.time["buckets"]
            buckets = buckets.to(device) if isinstance(buckets, Tensor) else buckets
            biases["time_bias"] = TimeBias(table=left.pop(0), buckets=buckets, **rest)
        if case.pos is not None:
            kind = {name: case.pos[name] for name in ("kind", "max_distance") if name in case.pos}
            biases["pos_bias"] = PosBias(table=left.pop(0), **kind)
        if is_silu:
            return [jagged_attention(q, k, v, meta_q, meta_k, **case.arguments, **biases)]
        out, lse = jagged_attention(q, k, v, meta_q, meta_k, return_lse=True, **case.arguments, **biases)
        return [out, lse]

    return Drawn(tuple(inputs), tuple(inputs.values()), run)


def values_and_gradients(drawn: Drawn, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Out, lse, and the gradients of a fixed random combination of both for each input."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = drawn.run(*leaves)
    generator = torch.Generator().manual_seed(99)
    total = outputs[0].new_zeros(())
    for output in outputs:
        share = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
        total = total + (output.masked_fill(~torch.isfinite(output), 0.0) * share).sum()
    grads = torch.autograd.grad(total, leaves)
    named = dict(zip(("out", "lse"), (x.detach() for x in outputs), strict=False))
    return named | {f"grad of {name}": grad for name, grad in zip(drawn.names, grads, strict=True)}


def _seconds(meta: JaggedMeta, generator: torch.Generator) -> Tensor:
    """(T,) int32: sessions of a few events within minutes, hours or days apart."""
    steps = torch.randint(0, 20, (meta.total,), generator=generator)
    steps = torch.where(torch.rand(meta.total, generator=generator) < 0.2, steps * 700, steps)
    times = torch.cumsum(steps, 0)
    starts = torch.repeat_interleave(torch.from_numpy(meta.starts), meta.host_lengths)
    return (times - times[starts]).int() if meta.total else times.int()


def check_layouts(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both operators' results are contiguous, as their fakes promise to torch.compile."""
    seen: list[bool] = []

    def watched(op: Any) -> Any:
        def call(*given: Any) -> Any:
            results = op(*given)
            seen.extend(result.is_contiguous() for result in results)
            return results

        return call

    for name in ("attention_op", "attention_backward_op"):
        monkeypatch.setattr(library, name, watched(getattr(library, name)))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    if "num_targets" in case.arguments:
        case = replace(case, arguments={**case.arguments, "num_targets": torch.tensor(case.arguments["num_targets"])})
    drawn = draw(case, torch.float64)
    values_and_gradients(drawn, drawn.inputs)
    assert seen == [True] * 7
