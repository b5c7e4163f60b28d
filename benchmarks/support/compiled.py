"""Kernels compiled for a GPU that is not there: what a public op would launch, and what becomes of each launch.

    with recorded_launches("sm_90") as recording:
        jagged_attention(q, k, v, meta)              # CPU tensors, small; nothing is computed
    for launch in recording.launches:
        print(compile_launch(launch, "sm_90"))

The very specialisation is compiled that Triton's launcher would compile for these arguments: types of pointers and
numbers, alignment by 16, integers that are 1. RECSYS_KERNELS=triton is set within. No cache is read, so a figure is
never that of another source.
"""

import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
from torch.overrides import TorchFunctionMode

from benchmarks.support.machine_code import MachineCode, read_machine_code
from benchmarks.support.narrow_offsets import narrow_offsets
from recsys.kernels.backend import has_triton, is_interpreting
from recsys.kernels.launch import Lookup, compiling_for

SHARED_LIMIT_BYTES = {"sm_80": 166_912, "sm_90": 232_448}
TARGETS = tuple(SHARED_LIMIT_BYTES)
_DOT = re.compile(r"tt\.dot .*: tensor<(\d+)x(\d+)x(\w+)> \* tensor<\d+x(\d+)x\w+>")
_CORE_TYPES = ("bf16", "f16")


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, as the wrapper asked for it."""

    kernel: Any
    grid: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    num_lookups: int = 0  # of rows, up to this launch

    @property
    def name(self) -> str:
        """Of the kernel, without its underscore."""
        return str(self.kernel.__name__).strip("_")

    @property
    def config(self) -> dict[str, int]:
        """Block sizes, warps and stages, in the order given."""
        return {
            key: int(value)
            for key, value in self.kwargs.items()
            if key.isupper() or key.startswith("num_")
            if isinstance(value, int) and not isinstance(value, bool)
        }

    def uses(self, lookup: Lookup) -> bool:
        """Whether it was launched with this row of the table."""
        known = {*self.kernel.arg_names, "num_warps", "num_stages"}
        asked = {key: value for key, value in lookup.row.items() if key in known}
        return bool(asked) and all(self.kwargs.get(key) == value for key, value in asked.items())


@dataclass
class Recording:
    """The launches of a part of a program, and the rows of the launch tables that it looked up."""

    launches: list[Launch] = field(default_factory=list)
    lookups: list[Lookup] = field(default_factory=list)

    def row_of(self, launch: Launch) -> Lookup | None:
        """The row that the launch was made with: of those that fit, the one looked up last before it."""
        before = self.lookups[: launch.num_lookups]
        return next((lookup for lookup in reversed(before) if launch.uses(lookup)), None)


@dataclass(frozen=True, kw_only=True)
class Report:
    """A compiled launch.

    Attributes:
        dots: M, N, K and type of the operands of every matrix product.
        seconds: of the compilation.
    """

    kernel: str
    target: str
    config: Mapping[str, int]
    code: MachineCode
    shared_bytes: int
    dots: tuple[tuple[int, int, int, str], ...]
    ttir: str
    ptx: str
    seconds: float

    def faults(self) -> list[str]:
        """What is wrong with it, a line each: spills, too much shared memory, atomics, no tensor cores, offsets."""
        code, limit = self.code, SHARED_LIMIT_BYTES[self.target]
        found = {
            f"spills: {code.spills} accesses, {code.stack_bytes} bytes of local memory": code.spills + code.stack_bytes,
            f"shared memory: {self.shared_bytes} bytes, the limit is {limit}": self.shared_bytes > limit,
            f"{code.atomics} atomic instructions": code.atomics,
            f"matrix products {self.dots} without tensor cores: {code.tensor_core}": not self._uses_tensor_cores(),
        }
        narrow = [f"32-bit offset, {line}" for line in narrow_offsets(self.ttir)]
        return [
            f"{self.kernel} on {self.target} with {dict(self.config)}: {fault}"
            for fault in [*(text for text, is_true in found.items() if is_true), *narrow]
        ]

    def _uses_tensor_cores(self) -> bool:
        dots = [dot for dot in self.dots if dot[3] in _CORE_TYPES]
        if not dots:
            return True
        if self.target == "sm_80":
            return "HMMA" in self.code.tensor_core
        is_wide = [m >= 64 and self.config.get("num_warps", 4) % 4 == 0 for m, *_ in dots]
        has_narrow = not any(is_wide) or "HGMMA" in self.code.tensor_core
        return has_narrow and ("HMMA" not in self.code.tensor_core if all(is_wide) else bool(self.code.tensor_core))


@contextmanager
def recorded_launches(target: str) -> Iterator[Recording]:
    """Within: launches are noted for `target`, and not made, whatever device the tensors are on.

    Raises:
        RuntimeError: triton is missing, or kernels belong to its interpreter.
    """
    _check()
    recording = Recording()

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:  # noqa: ARG001  # triton gives it
        recording.launches.append(Launch(kernel, grid, args, kwargs, len(recording.lookups)))

    with _kernels_by_triton(), compiling_for(target) as recording.lookups, _running_by(note), _ZerosForEmpty():
        yield recording


class _ZerosForEmpty(TorchFunctionMode):
    """What a launch that is not made would have written is zeros, or 0, 1, 2, … where it may be ids, never what happens
    to be in memory: a wrapper that reads it goes the same way each time."""

    ZEROS: ClassVar[dict[Any, Any]] = {
        torch.empty: torch.zeros,
        torch.empty_like: torch.zeros_like,
        torch.Tensor.new_empty: torch.Tensor.new_zeros,
    }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = self.ZEROS.get(func, func)(*args, **(kwargs or {}))
        if func in self.ZEROS and made.dtype == torch.int64 and made.dim() == 1:
            made.copy_(torch.arange(len(made)))  # ids: of equal ones a table refuses many
        return made


@contextmanager
def observed_launches() -> Iterator[list[Launch]]:
    """Within: launches are made, and noted."""
    _check()
    from triton.runtime.jit import JITFunction

    launches: list[Launch] = []
    made = JITFunction.run

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> Any:
        if not warmup:
            launches.append(Launch(kernel, grid, args, kwargs))
        return made(kernel, *args, grid=grid, warmup=warmup, **kwargs)

    with _running_by(note):
        yield launches


def compile_launch(launch: Launch, target: str, use_cache: bool = False) -> Report:
    """The launch, compiled for `target`; an equal one is compiled once a process.

    Args:
        use_cache: of Triton, on disk, where its launcher finds the kernel again.

    Raises:
        Exception: whatever Triton or ptxas raises for it.
    """
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    backend = make_backend(_gpu(target))
    bind = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    # Triton's own words for "no debugging", which its launcher adds to every launch.
    kwargs = {"debug": False, **launch.kwargs}
    bound, specialization, options = bind(*launch.args, **kwargs)
    options, signature, constants, attributes = launch.kernel._pack_args(
        backend, kwargs, bound, specialization, options
    )
    parts = _Specialization(launch.kernel, signature, constants, attributes, options)
    key = repr((launch.kernel.cache_key, signature, constants, attributes, options, target))
    return _compiled(_Keyed(key, parts), target, tuple(launch.config.items()), use_cache)


@dataclass(frozen=True)
class _Specialization:
    kernel: Any
    signature: Any
    constants: Any
    attributes: Any
    options: Any


@dataclass(frozen=True)
class _Keyed:
    key: str
    parts: _Specialization = field(compare=False)


@cache
def _compiled(keyed: _Keyed, target: str, config: tuple[tuple[str, int], ...], use_cache: bool) -> Report:
    import triton
    from triton.compiler import ASTSource

    parts = keyed.parts
    source = ASTSource(parts.kernel, parts.signature, parts.constants, parts.attributes)
    began = time.perf_counter()
    with nullcontext() if use_cache else _without_cache():
        kernel = triton.compile(source, target=_gpu(target), options=parts.options.__dict__)
        seconds = time.perf_counter() - began
        ttir = str(kernel.asm["ttir"])
        return Report(
            kernel=str(parts.kernel.__name__).strip("_"),
            target=target,
            config=dict(config),
            code=read_machine_code(kernel.asm["cubin"]),
            shared_bytes=int(kernel.metadata.shared),
            dots=tuple((int(m), int(n), int(k), kind) for m, k, kind, n in _DOT.findall(ttir)),
            ttir=ttir,
            ptx=str(kernel.asm["ptx"]),
            seconds=seconds,
        )


def _gpu(target: str) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget("cuda", int(target.removeprefix("sm_")), 32)


def _check() -> None:
    if not has_triton():
        raise RuntimeError("kernels are compiled by triton, which is not installed; pip install -e '.[triton]'")
    if is_interpreting():
        raise RuntimeError("TRITON_INTERPRET=1: the interpreter's kernels cannot be compiled; unset it")


def _kernels_by_triton() -> Any:
    return _environment(RECSYS_KERNELS="triton")


@contextmanager
def _without_cache() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, _environment(TRITON_CACHE_DIR=folder, TRITON_ALWAYS_COMPILE="1"):
        yield


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _running_by(run: Any) -> Iterator[None]:
    """Within: `run` takes the place of Triton's launcher."""
    from triton.runtime.jit import JITFunction

    made = JITFunction.run
    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = made
