"""Cases of the example op `gram`, and its launch table."""

import json
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.support.kernel_cases import KernelCase

ROW = {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}
ROWS = {"width=32": ROW, "width=64": ROW | {"BLOCK_M": 128, "num_warps": 8}}


def write_table(folder: Path, rows: dict[str, dict[str, int]] | None = None) -> Path:
    """launches/gram.json for both architectures, in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "gram.json"
    file.write_text(json.dumps({arch: {"forward": rows or ROWS} for arch in ("sm_80", "sm_90")}))
    return file


def gram_case(width: int, dtype: torch.dtype = torch.bfloat16) -> KernelCase:
    """The op at one width."""

    def run(device: torch.device, is_large: bool) -> list[Tensor]:
        from tests.benchmarks.triton_examples import gram

        return [gram(torch.zeros(1000 if is_large else 40, width, dtype=dtype, device=device))]

    return KernelCase("gram", f"{width} {dtype}", run)
