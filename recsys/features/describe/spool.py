"""Chunks of a log, parted by user: in memory where they are few, else in files, so that each user is together."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl

ROWS_IN_MEMORY = 4_000_000
ROWS_PER_PART = 2_000_000


class Spool:
    """Rows by user. As a context manager it removes its files at the end, whatever happens."""

    def __init__(self, num_rows: int) -> None:
        """Make room.

        Args:
            num_rows: an estimate; above ROWS_IN_MEMORY rows go into files.
        """
        self.num_parts = 1 if num_rows <= ROWS_IN_MEMORY else -(-num_rows // ROWS_PER_PART)
        self._folder: Path | None = None
        self._pieces: list[list[pl.DataFrame]] = [[] for _ in range(self.num_parts)]
        self._num_chunks = 0

    def __enter__(self) -> "Spool":
        if self.num_parts > 1:
            self._folder = Path(tempfile.mkdtemp(prefix="recsys-describe-"))
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, rows: pl.DataFrame) -> None:
        """Keep some rows; `user_id` parts them."""
        if self._folder is None:
            self._pieces[0].append(rows)
            return
        number = self._num_chunks
        self._num_chunks += 1
        parted = rows.with_columns(__part=pl.col("user_id").hash(0) % self.num_parts).partition_by(
            "__part", as_dict=True, include_key=False, maintain_order=True
        )
        for (part,), piece in parted.items():
            folder = self._folder / f"{part:05d}"
            folder.mkdir(exist_ok=True)
            piece.write_ipc(folder / f"{number:07d}.arrow", compression="uncompressed")

    def parts(self) -> Iterator[pl.DataFrame]:
        """All rows of some users at a time, in the order they came."""
        for number in range(self.num_parts):
            pieces = self._pieces[number]
            if self._folder is not None:
                files = sorted((self._folder / f"{number:05d}").glob("*.arrow"))
                pieces = [pl.read_ipc(file) for file in files]
            if pieces:
                yield pl.concat(pieces)
