from pathlib import Path

import pytest

from benchmarks.support.marked_part import markdown, markers, rewrite

BEGIN, END = markers("figures")


def test_only_what_stands_between_the_markers_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"a\n{BEGIN}\nold\n{END}\nb\n<!-- other begin -->\n")
    rewrite(page, "figures", markdown(["x", "y"], [["1", "2"]]))
    assert page.read_text() == f"a\n{BEGIN}\n| x | y |\n|---|---|\n| 1 | 2 |\n{END}\nb\n<!-- other begin -->\n"


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_page_without_its_markers_is_refused(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(SystemExit, match="once each; put the two lines where the table goes"):
        rewrite(page, "figures", "table")
    assert page.read_text() == text
