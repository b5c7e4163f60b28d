"""Mutations of a package of three lines: made in a copy, undone, caught or not, and refused where their text is not."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import mutate_kernels
from benchmarks.mutate_kernels import Copy, Outcome, main, mutated, outcomes
from benchmarks.support.marked_part import markers
from benchmarks.support.mutations import MUTATIONS, Mutation

BEGIN, END = markers(mutate_kernels.MARK)
SOURCE = "def least(a, b):\n    return a if a < b else b  # ties: b\n"
TEST = "from recsys.kernels.least import least\n\n\ndef test_the_smaller_is_found():\n    assert least(1, 2) == 1\n"
FLIP = Mutation("least.py", "flip `<`", "a < b", "a > b", "test_least.py")
TIE = Mutation("least.py", "take the first of two equals", "a < b", "a <= b", "test_least.py")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for file, text in {
        "recsys/__init__.py": "",
        "recsys/kernels/__init__.py": "",
        "recsys/kernels/least.py": SOURCE,
        "tests/conftest.py": "from hypothesis import settings\nsettings.register_profile('unshrunk')\n",
        "tests/kernels/interp/test_least.py": TEST,
        "pyproject.toml": "[tool.pytest.ini_options]\n",
    }.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_each_mutation_gets_a_line_and_one_that_is_missed_fails(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    assert main(["--page", str(page)], [FLIP, TIE], root) == mutate_kernels.MISSED
    lines = page.read_text().splitlines()
    assert lines[3] == "| `least.py` | flip `<` | test_the_smaller_is_found |"
    assert lines[4] == "| `least.py` | take the first of two equals | **not caught** |"
    assert "[2/2] least.py: take the first of two equals: NOT CAUGHT" in capsys.readouterr().out
    assert (root / "recsys/kernels/least.py").read_text() == SOURCE


def test_a_part_replaces_its_own_rows_adds_new_ones_and_keeps_the_others(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught = {FLIP: "test_new", TIE: None}
    monkeypatch.setattr(mutate_kernels, "outcomes", lambda chosen, _: (Outcome(one, caught[one]) for one in chosen))
    page = tmp_path / "page.md"
    other, older, flipped, tie = (
        "| `other.py` | flip `<` | test_other |",
        "| `least.py` | an older change | **not caught** |",
        "| `least.py` | flip `<` | test_new |",
        "| `least.py` | take the first of two equals | **not caught** |",
    )

    def written(*rows: str) -> str:
        return "\n".join(["a", BEGIN, "| file | change | caught by |", "|---|---|---|", *rows, END, "b", ""])

    page.write_text(written(other, flipped.replace("test_new", "test_old"), older))
    assert main(["--page", str(page), "--only", "flip", "--no-page"], [FLIP, TIE], root) == 0
    assert "test_old" in page.read_text()
    assert main(["--page", str(page), "--only", "flip"], [FLIP, TIE], root) == 0
    assert page.read_text() == written(other, flipped, older)
    assert main(["--page", str(page), "--only", "least.py: take"], [FLIP, TIE], root) == mutate_kernels.MISSED
    assert page.read_text() == written(other, flipped, older, tie)
    assert main(["--page", str(page)], [FLIP, TIE], root) == mutate_kernels.MISSED
    assert page.read_text() == written(flipped, tie)
    page.write_text(f"a\n{BEGIN}\n{END}\nb\n")
    assert main(["--page", str(page), "--only", "flip"], [FLIP, TIE], root) == 0
    assert page.read_text() == written(flipped)


def test_a_file_is_as_before_after_its_mutation(root: Path, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "copy", root)
    assert copy.outcome(FLIP).caught_by == "test_the_smaller_is_found"
    assert copy.file(FLIP).read_text() == SOURCE


@pytest.mark.parametrize(("old", "new", "count"), [("a = b", "b", 0), ("a", "b", 4), ("a < b", "a < b", 1)])
def test_a_text_that_does_not_stand_there_once_is_refused(old: str, new: str, count: int) -> None:
    with pytest.raises(SystemExit, match=f"least.py: {old!r} of the mutation 'flip `<`' stands in it {count} times"):
        mutated(SOURCE, replace(FLIP, old=old, new=new))


def test_tests_that_are_missing_or_fail_without_a_mutation_are_told(root: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="test_none.py of the mutation 'flip `<`' is not there"):
        list(outcomes([replace(FLIP, tests="test_none.py")], Copy(tmp_path / "a", root)))
    with pytest.raises(SystemExit, match="did not run"):
        list(outcomes([replace(FLIP, chosen="nothing")], Copy(tmp_path / "b", root)))
    (root / "recsys/kernels/least.py").write_text(SOURCE.replace("else b", "else a").replace("a < b", "b < 0 < a < b"))
    (root / "tests/kernels/interp/test_least.py").write_text(TEST.replace("== 1", "== 3"))
    with pytest.raises(SystemExit, match="test_the_smaller_is_found fails without a mutation"):
        list(outcomes([replace(FLIP, old="0 < a", new="a")], Copy(tmp_path / "c", root)))


def test_no_mutation_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "no such file"]) == mutate_kernels.WRONG
    assert "no mutation whose file and change hold 'no such file'" in capsys.readouterr().err


def test_every_mutation_of_the_kernels_stands_in_its_file() -> None:
    for mutation in MUTATIONS:
        text = (mutate_kernels.ROOT / "recsys" / "kernels" / mutation.file).read_text(encoding="utf-8")
        assert mutated(text, mutation) != text
        assert all(
            (mutate_kernels.ROOT / mutate_kernels.INTERPRETED / test).exists() for test in mutation.tests.split()
        )
