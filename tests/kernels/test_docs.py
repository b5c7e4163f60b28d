"""The code of docs/kernels.md runs as it stands."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("import ")[2].split()[0])
def test_a_block_of_code_runs(block: str) -> None:
    exec(compile(block, "docs/kernels.md", "exec"), {})


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 3
