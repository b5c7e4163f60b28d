"""Runs that are done, a JSON line each: an interrupted benchmark takes them from there and does the rest."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.support.record import commit


class DoneRuns:
    """Rows by key, in a file.

    Args:
        file: of JSON lines; a last line that was cut off is passed over.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._rows: list[dict[str, Any]] = []
        if file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    self._rows.append(json.loads(line))
                except json.JSONDecodeError:
                    print(f"{file}: a line that was cut off is passed over", file=sys.stderr)

    def find(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The last row of this key, or None."""
        wanted = json.loads(json.dumps(dict(key)))
        return next((row for row in reversed(self._rows) if row["key"] == wanted), None)

    def add(self, key: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
        """The row, written."""
        row: dict[str, Any] = json.loads(json.dumps({"key": dict(key), "commit": commit(), **figures}))
        self._file.parent.mkdir(parents=True, exist_ok=True)
        is_cut = self._file.is_file() and self._file.read_bytes()[-1:] not in (b"", b"\n")
        with self._file.open("a", encoding="utf-8") as out:
            out.write("\n" * is_cut + json.dumps(row) + "\n")
        self._rows.append(row)
        return row

    def all_of(
        self, keys: Iterable[Mapping[str, Any]], run: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """The rows of all keys; those that are missing are run, in this order, and the time left is told."""
        wanted = list(keys)
        missing = [key for key in wanted if self.find(key) is None]
        if len(missing) < len(wanted):
            print(f"{len(wanted) - len(missing)} of {len(wanted)} runs are taken from {self._file}", file=sys.stderr)
        began = time.perf_counter()
        for number, key in enumerate(missing, 1):
            self.add(key, run(key))
            left = (time.perf_counter() - began) / number * (len(missing) - number)
            print(f"{number} of {len(missing)} runs, {left:.0f} s left", file=sys.stderr, flush=True)
        return [row for row in map(self.find, wanted) if row is not None]
