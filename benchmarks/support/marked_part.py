"""A part of a page that a script writes, between two markers of one name."""

from pathlib import Path


def markers(name: str) -> tuple[str, str]:
    """The lines that stand before and after the part."""
    return f"<!-- {name} begin -->", f"<!-- {name} end -->"


def rewrite(page: Path, name: str, text: str) -> None:
    """Put `text` between the markers of `page`; nothing else of it changes.

    Raises:
        SystemExit: the page has not each marker once.
    """
    before, _, after = _parts(page, name)
    begin, end = markers(name)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def table_rows(page: Path, name: str) -> list[list[str]]:
    """The cells of the rows of the table that stands between the markers of `page`; none where there is no table.

    Raises:
        SystemExit: the page has not each marker once.
    """
    lines = [line for line in _parts(page, name)[1].splitlines() if line.startswith("| ")]
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines[1:]]


def _parts(page: Path, name: str) -> tuple[str, str, str]:
    """What stands before, between and after the markers."""
    begin, end = markers(name)
    content = page.read_text(encoding="utf-8")
    before, found_begin, rest = content.partition(begin)
    between, found_end, after = rest.partition(end)
    if not found_begin or not found_end or begin in rest or end in after:
        raise SystemExit(f"error: {page}: wanted {begin} and {end} once each; put the two lines where the table goes")
    return before, between, after


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in [columns, *rows])
    return "\n".join([head, "|" + "---|" * len(columns), *lines])
