"""What a compiled kernel's machine code tells: registers, spills, tensor-core instructions, atomics.

Read with the `cuobjdump` that comes with Triton; no GPU is needed.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE)
TENSOR_CORE = ("HGMMA", "QGMMA", "IGMMA", "HMMA", "IMMA", "DMMA")
ATOMIC = ("ATOM", "ATOMG", "ATOMS", "RED", "REDG")
SPILL = ("LDL", "STL")


@dataclass(frozen=True, kw_only=True)
class MachineCode:
    """Figures of one kernel's machine code.

    Attributes:
        registers: of a thread.
        stack_bytes: of a thread, in local memory.
        spills: instructions that load from local memory or store to it.
        tensor_core: how many instructions of each kind; a kind that is missing is not there.
        atomics: instructions.
    """

    registers: int
    stack_bytes: int
    spills: int
    tensor_core: dict[str, int]
    atomics: int


def read_machine_code(cubin: bytes) -> MachineCode:
    """The figures of a binary that holds one kernel.

    Raises:
        RuntimeError: its resources are not told.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        resources = _RESOURCES.search(_tool("-res-usage", file.name))
        counts = count_instructions(_tool("-sass", file.name))
    if resources is None:
        raise RuntimeError("cuobjdump -res-usage names no registers; wanted a binary of one kernel")
    registers, stack, local = map(int, resources.groups())
    return MachineCode(
        registers=registers,
        stack_bytes=stack + local,
        spills=sum(counts[name] for name in SPILL),
        tensor_core={name: counts[name] for name in TENSOR_CORE if counts[name]},
        atomics=sum(counts[name] for name in ATOMIC),
    )


def count_instructions(text: str) -> Counter[str]:
    """How often each instruction stands in a disassembly, without its suffixes."""
    return Counter(_INSTRUCTION.findall(text))


def _tool(option: str, file: str) -> str:
    return subprocess.run([_cuobjdump(), option, file], capture_output=True, text=True, check=True).stdout


@cache
def _cuobjdump() -> str:
    import triton

    return str(Path(triton.__path__[0]) / "backends" / "nvidia" / "bin" / "cuobjdump")
