"""The code of the pages on tables runs as it stands, block after block."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("page", "least"), [("embedding-table.md", 4), ("cold-rows.md", 3), ("delta.md", 1), ("inputs.md", 2)]
)
def test_the_blocks_of_the_page_run(page: str, least: int) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= least
    known: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), known)
