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
    begin, end = markers(name)
    content = page.read_text(encoding="utf-8")
    before, found_begin, rest = content.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end or begin in rest or end in after:
        raise SystemExit(f"error: {page}: wanted {begin} and {end} once each; put the two lines where the table goes")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in [columns, *rows])
    return "\n".join([head, "|" + "---|" * len(columns), *lines])
