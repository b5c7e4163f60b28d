"""What a checker is told to pass over has its reason on the line."""

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUPPRESSION = re.compile(r"#\s*(noqa|type:\s*ignore)\b", re.IGNORECASE)
WITH_REASON = re.compile(r"# (noqa: [A-Z]+\d+(, [A-Z]+\d+)*|type: ignore\[[a-z-]+(, [a-z-]+)*\])  # \S.*\w.*")


def comments(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        yield from ((at.start[0], at.string) for at in tokenize.tokenize(file.readline) if at.type == tokenize.COMMENT)


def without_reason(path: Path) -> list[str]:
    return [
        f"{path.name}:{line}: {comment}"
        for line, comment in comments(path)
        if SUPPRESSION.search(comment) and not WITH_REASON.fullmatch(comment)
    ]


@pytest.mark.parametrize("folder", ["recsys", "benchmarks", "tests"])
def test_every_suppression_names_its_rule_and_its_reason(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert len(files) > 50
    assert [fault for file in files for fault in without_reason(file)] == []


@pytest.mark.parametrize(
    ("comment", "is_whole"),
    [
        ("noqa: ARG001  # torch gives it", True),
        ("type: ignore[arg-type, misc]  # one of the two", True),
        ("noqa", False),
        ("noqa: ARG001", False),
        ("noqa: ARG001  #", False),
        ("noqa: ARG001 - torch gives it", False),
        ("type: ignore  # torch gives it", False),
        ("type: ignore[misc]", False),
        ("NOQA:ARG001", False),
        ("what noqa means", True),
    ],
)
def test_one_without_its_reason_is_found(comment: str, is_whole: bool, tmp_path: Path) -> None:
    file = tmp_path / "part.py"
    file.write_text(f'x = "# noqa"  # {comment}\n', encoding="utf-8")
    assert (without_reason(file) == []) is is_whole
