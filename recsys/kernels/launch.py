"""How each Triton kernel is launched: a static table an op, for each architecture, in launches/<op>.json.

    {"sm_90": {"forward": {"width=64,has_bias=0": {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 3}}}}

`python -m benchmarks.tune_kernels` writes it; nothing is tuned at run time, and nothing that differs from batch to
batch is a key. The part `interpret` is for Triton's interpreter, where a row `*` stands for all.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

LAUNCHES = Path(__file__).parent / "launches"
INTERPRET = "interpret"

_target: ContextVar[str | None] = ContextVar("compile_target", default=None)
_lookups: ContextVar["list[Lookup] | None"] = ContextVar("lookups", default=None)


@dataclass(frozen=True)
class Lookup:
    """One row that a wrapper asked for."""

    op: str
    kernel: str
    architecture: str
    name: str
    row: Mapping[str, int]


def launch_of(op: str, kernel: str, device: torch.device, **key: int) -> Mapping[str, int]:
    """Block sizes, num_warps and num_stages of a kernel: keyword arguments of its launch.

    Args:
        op: name of the table, such as `attention`.
        kernel: part of the op, such as `forward`.
        device: where it will run.
        key: what the choice depends on; the same names for every row of the kernel.

    Raises:
        RuntimeError: the table has no row for it.
    """
    chosen = find_launch(op, kernel, device, **key)
    if chosen is None:
        raise RuntimeError(
            f"launches/{op}.json has no row {row_name(key)!r} for {kernel} on {architecture(device)}; add it by "
            "python -m benchmarks.tune_kernels, or set RECSYS_KERNELS=torch"
        )
    return chosen


def find_launch(op: str, kernel: str, device: torch.device, **key: int) -> Mapping[str, int] | None:
    """As `launch_of`; None where the table has no row, for kernels that do not suit every key."""
    arch, name = architecture(device), row_name(key)
    row, lookups = _row(op, kernel, arch, name), _lookups.get()
    if row is not None and lookups is not None:
        lookups.append(Lookup(op, kernel, arch, name, row))
    return row


def row_name(key: Mapping[str, int]) -> str:
    """`width=64,has_bias=0`: a row's name, in the order given."""
    return ",".join(f"{name}={int(value)}" for name, value in key.items())


def architecture(device: torch.device) -> str:
    """`sm_90` and the like, `interpret` on a CPU, or what `compiling_for` names."""
    target = _target.get()
    if target is not None:
        return target
    if device.type != "cuda":
        return INTERPRET
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def compile_target() -> str | None:
    """The architecture that kernels are compiled for without being run; None as a rule."""
    return _target.get()


@contextmanager
def compiling_for(target: str) -> Iterator[list[Lookup]]:
    """Within: wrappers choose launches for `target`, on any device; gives the rows that they ask for."""
    lookups: list[Lookup] = []
    tokens = _target.set(target), _lookups.set(lookups)
    try:
        yield lookups
    finally:
        _target.reset(tokens[0])
        _lookups.reset(tokens[1])


@contextmanager
def tables_in(folder: Path) -> Iterator[None]:
    """Within: the tables are read from another folder, in every thread; a tuner tries rows there."""
    global LAUNCHES
    before, LAUNCHES = LAUNCHES, folder
    _row.cache_clear()
    try:
        yield
    finally:
        LAUNCHES = before
        _row.cache_clear()


def table(op: str) -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    """The whole table of an op: architecture, kernel, row."""
    return json.loads((LAUNCHES / f"{op}.json").read_text(encoding="utf-8"))


@cache
def _row(op: str, kernel: str, arch: str, name: str) -> Mapping[str, int] | None:
    parts = table(op)
    rows = parts.get(nearest(arch, tuple(parts)), {}).get(kernel, {})
    return rows.get(name) or rows.get("*")


def nearest(arch: str, known: tuple[str, ...]) -> str:
    """The newest known architecture that is not newer than `arch`."""
    if arch in known or not arch.startswith("sm_"):
        return arch
    older = [name for name in known if name.startswith("sm_") and int(name[3:]) <= int(arch[3:])]
    return max(older, key=lambda name: int(name[3:]), default=arch)


def as_text(content: Mapping[str, Mapping[str, Mapping[str, Mapping[str, int]]]]) -> str:
    """A table as its file holds it: a line a row."""
    parts = []
    for arch, kernels in content.items():
        lines = []
        for kernel, rows in kernels.items():
            body = ",\n".join(f"      {json.dumps(name)}: {json.dumps(dict(row))}" for name, row in rows.items())
            lines.append(f"    {json.dumps(kernel)}: {{\n{body}\n    }}")
        joined = ",\n".join(lines)
        parts.append(f"  {json.dumps(arch)}: {{\n{joined}\n  }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
