"""Where a command prints: results on stdout, all else on stderr; with --json one object on stdout and nothing more."""

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 160  # of tables that go into a file or a pipe


class Output:
    """The two streams of one command. `is_json` comes from --json, `resume_hint` ends the line after Ctrl-C."""

    def __init__(self, is_json: bool = False) -> None:
        self.is_json = is_json
        self.resume_hint = "run the same command again"

    @functools.cached_property
    def err(self) -> "Console":
        """Stderr, for bars; rich is imported where a command first draws."""
        from rich.console import Console

        return Console(stderr=True, highlight=False, soft_wrap=True)

    @functools.cached_property
    def out(self) -> "Console":
        """Stdout, for tables."""
        from rich.console import Console

        return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)

    def say(self, line: object) -> None:
        """A line of progress, on stderr."""
        sys.stderr.write(f"{line}\n")

    def warn(self, line: object) -> None:
        """A warning, on stderr."""
        self.err.print(f"warning: {line}", markup=False, style="yellow")

    def fail(self, message: str, exit_code: int) -> None:
        """The one line of a failure, on stderr; with --json also as an object on stdout."""
        sys.stderr.write(f"error: {message}\n")
        if self.is_json:
            self._write_json({"error": message, "exit_code": exit_code})

    def interrupted(self) -> None:
        """The one line after Ctrl-C: how to go on; with --json also as an object on stdout."""
        message = f"interrupted; {self.resume_hint}"
        sys.stderr.write(f"{message}\n")
        if self.is_json:
            self._write_json({"error": message, "exit_code": 130})

    def result(self, values: Mapping[str, Any], *lines: object) -> None:
        """What the command found: `values` with --json, else `lines` (text or tables), or the values one a line."""
        if self.is_json:
            self._write_json(values)
            return
        for line in lines or [f"{key}: {value}" for key, value in values.items()]:
            if isinstance(line, str):
                sys.stdout.write(f"{line}\n")
            else:
                self.out.print(line)

    def _write_json(self, values: Mapping[str, Any]) -> None:
        sys.stdout.write(json.dumps(values, default=_plain) + "\n")


def table(rows: Sequence[Mapping[str, object]]) -> "Table":
    """A table with one column for each key of the first row."""
    from rich.table import Table

    drawn = Table()
    for column in rows[0] if rows else ():
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*("" if value is None else str(value) for value in row.values()))
    return drawn


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON value")
