"""The code of docs/embedding-table.md runs as it stands, block after block."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "embedding-table.md"


def test_the_blocks_of_the_page_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    known: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), known)
