"""Break every Triton kernel on purpose and see whether its tests notice.

    python -m benchmarks.mutate_kernels [--only attention] [--no-page]

Each mutation of `benchmarks/support/mutations.py` is made in a copy of the package; its tests, of the interpreter's
tier, then run on the copy and must fail, after they passed on a copy without a change. Writes a table between the
markers `kernels-mutations` of docs/kernels.md; with `--only` it replaces or adds the rows of the mutations it made. The
exit code is 1 if a mutation was not caught.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.support.marked_part import markdown, rewrite, table_rows
from benchmarks.support.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
MARK = "kernels-mutations"
COLUMNS = ["file", "change", "caught by"]
COPIED = ("recsys", "tests", "pyproject.toml")
NOT_COPIED = shutil.ignore_patterns("__pycache__", ".*")
INTERPRETED = Path("tests/kernels/interp")
TIMEOUT_S = 600
# A broken kernel may as well loop without end or read what is not there: both count as noticed.
FAILED_TESTS, HUNG, DIED = 1, "no end within the time limit", "the process died"
MISSED, WRONG = 1, 2


@dataclass(frozen=True)
class Outcome:
    """Which test noticed a mutation; None if none did."""

    mutation: Mutation
    caught_by: str | None


def mutated(text: str, mutation: Mutation) -> str:
    """The file's text with the change made.

    Raises:
        SystemExit: the old text does not stand in it exactly once, or the change changes nothing.
    """
    count = text.count(mutation.old)
    if count != 1 or mutation.old == mutation.new:
        raise SystemExit(
            f"error: {mutation.file}: {mutation.old!r} of the mutation {mutation.what!r} stands in it {count} times; "
            "wanted once; mend benchmarks/support/mutations.py"
        )
    return text.replace(mutation.old, mutation.new)


class Copy:
    """The package and its tests in a folder of their own, where files are changed for a while."""

    def __init__(self, folder: Path, root: Path = ROOT) -> None:
        self.folder = folder
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, folder / name, ignore=NOT_COPIED)
            else:
                shutil.copy(root / name, folder / name)

    def file(self, mutation: Mutation) -> Path:
        """The file that the mutation changes."""
        return self.folder / "recsys" / "kernels" / mutation.file

    def check(self, mutation: Mutation) -> None:
        """Refuse a mutation whose text or tests are not there."""
        mutated(self.file(mutation).read_text(encoding="utf-8"), mutation)
        for test in self._tests(mutation):
            if not (self.folder / test).exists():
                raise SystemExit(f"error: {test} of the mutation {mutation.what!r} is not there")

    def outcome(self, mutation: Mutation) -> Outcome:
        """Make the change, run the tests, undo it."""
        file = self.file(mutation)
        text = file.read_text(encoding="utf-8")
        file.write_text(mutated(text, mutation), encoding="utf-8")
        try:
            return Outcome(mutation, self.failing_test(mutation))
        finally:
            file.write_text(text, encoding="utf-8")

    def failing_test(self, mutation: Mutation) -> str | None:
        """The first test of the mutation that fails; None if all pass.

        Raises:
            SystemExit: pytest could not run them, or ran none.
        """
        chosen = ["-k", mutation.chosen] if mutation.chosen else []
        options = ["-x", "-q", "--durations=0", "--hypothesis-profile", "unshrunk"]
        command = [sys.executable, "-m", "pytest", *options, *chosen, *self._tests(mutation)]
        environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": "."}
        try:
            run = subprocess.run(
                command,
                cwd=self.folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return HUNG
        if run.returncode < 0:
            return DIED
        if run.returncode == 0 and re.search(r"\d+ passed", run.stdout):
            return None
        found = re.search(r"^(?:FAILED|ERROR) (?:[^:\n]*::)?(\w+)", run.stdout, re.MULTILINE)
        if run.returncode == FAILED_TESTS and found:
            return found[1]
        raise SystemExit(
            f"error: the tests of {mutation.what!r} did not run:\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
        )

    def _tests(self, mutation: Mutation) -> list[str]:
        return [str(INTERPRETED / name) for name in mutation.tests.split()]


def outcomes(mutations: Sequence[Mutation], copy: Copy) -> Iterator[Outcome]:
    """What becomes of each mutation; their tests pass first without any.

    Raises:
        SystemExit: a mutation's text is not there once, or its tests fail without it.
    """
    for mutation in mutations:
        copy.check(mutation)
    for mutation in {(mutation.tests, mutation.chosen): mutation for mutation in mutations}.values():
        failing = copy.failing_test(mutation)
        if failing is not None:
            raise SystemExit(f"error: {mutation.tests}: {failing} fails without a mutation; mend it first")
    for mutation in mutations:
        yield copy.outcome(mutation)


def rows_of(found: Sequence[Outcome]) -> list[list[str]]:
    """For the page: file, change, caught by."""
    return [[f"`{o.mutation.file}`", o.mutation.what, o.caught_by or "**not caught**"] for o in found]


def merged(old: Sequence[list[str]], new: Sequence[list[str]]) -> list[list[str]]:
    """`old` with its rows of the same file and change replaced by those of `new`, and the others of `new` behind."""
    rows = {tuple(row[:2]): row for row in old}
    return list({**rows, **{tuple(row[:2]): row for row in new}}.values())


def main(arguments: Sequence[str] | None = None, mutations: Sequence[Mutation] = MUTATIONS, root: Path = ROOT) -> int:
    """Every mutation; the exit code: 0, 1 if one was not caught, 2 if there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="", help="mutations of which this is a part of `file: change`; others keep their row"
    )
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "kernels.md", help="page with the two markers")
    parser.add_argument("--no-page", action="store_true", help="leave the page alone")
    options = parser.parse_args(arguments)
    chosen = [mutation for mutation in mutations if options.only in f"{mutation.file}: {mutation.what}"]
    if not chosen:
        print(f"there is no mutation whose file and change hold {options.only!r}", file=sys.stderr)
        return WRONG
    kept = table_rows(options.page, MARK) if options.only and not options.no_page else []
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for outcome in outcomes(chosen, Copy(Path(folder), root)):
            found.append(outcome)
            told = outcome.caught_by or "NOT CAUGHT"
            print(f"[{len(found)}/{len(chosen)}] {outcome.mutation.file}: {outcome.mutation.what}: {told}", flush=True)
    if not options.no_page:
        rewrite(options.page, MARK, markdown(COLUMNS, merged(kept, rows_of(found))))
    return MISSED if any(outcome.caught_by is None for outcome in found) else 0


if __name__ == "__main__":
    sys.exit(main())
