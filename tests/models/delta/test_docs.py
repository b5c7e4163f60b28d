"""The code of docs/delta.md runs as it stands."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[3] / "docs" / "delta.md").read_text(encoding="utf-8")


def test_the_code_of_the_page_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(block, "docs/delta.md", "exec"), {})
