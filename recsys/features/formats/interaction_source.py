"""A log as chunks of typed interactions: any number of files of any format, in memory that does not grow with them.

    good lines + rejected lines = data lines, in every chunk

What is not set is decided when the source is opened, from the first lines of its files: the same decision whatever the
size of the chunks.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from recsys.errors import DataError
from recsys.features.dataset import Order
from recsys.features.formats.decisions import decide, misfits, order_of
from recsys.features.formats.opening import open_file
from recsys.features.formats.quarantine import Rules, judge
from recsys.features.formats.raw import OpenedFile, RawTable
from recsys.features.formats.source import SourceFile, list_files
from recsys.features.schema import REQUIRED, ReadConfig

CHUNK_ROWS = 1_000_000
OPTIONAL = {"weight": pl.Float64, "event_type": pl.String, "session_id": pl.String}
TOLD_CLAMPS = 3


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive lines of one file.

    Attributes:
        interactions: `file` (Int32, number in `InteractionSource.files`), `line` (Int64), `user_id`, `item_id`,
            `timestamp` (Int64 us UTC; null where it lies in the future) with `is_clamped`, or `position`, and what the
            source has of `weight`, `event_type`, `session_id`.
        rejected: `file` (name), `line`, `reason`, `text`.
        num_lines: data lines, good and rejected.
        num_good: lines whose events are all in `interactions`; fewer than these where a line holds many.
        missing: lines without a value by column, where they are asked for: ours by our names, others by their own.
    """

    interactions: pl.DataFrame
    rejected: pl.DataFrame
    num_lines: int
    num_good: int
    missing: Mapping[str, int] = dataclasses.field(default_factory=dict)


class InteractionSource:
    """A log, opened.

    Attributes:
        files: in the order they are read.
        order: what orders the events.
        order_notes: why no times do, where that was decided by what the files hold.
        time_unit: what numbers of the time column count, `iso`, `type`, or None without times.
        columns: our column names, and those of the first file.
        names: every column of the files, ours or not.
        notes: what was chosen and a reader of the log should know; grows while chunks are read.
        user_kind, item_kind: `int` or `str`.
        num_rows_estimate: events; exact for Parquet, else by the bytes of the files.
    """

    def __init__(self, path: Path, config: ReadConfig) -> None:
        """Open every file and look at its first lines.

        Raises:
            DataError: nothing is there, a file cannot be used as asked, or the files do not go together.
        """
        self._config = config
        listed, self._notes = list_files(path)
        self._is_one = len(listed) == 1
        self.files: list[SourceFile] = []
        opened = [one for file in listed if (one := self._open(file)) is not None]
        opened, self.order, order_notes = self._of_one_order(opened)
        if not opened:
            raise DataError(f"{path}: none of its {len(listed)} files has an event; the last: {self._notes[-1]}")
        self.files = [one.file for one in opened]
        self.columns = dict(opened[0].resolved)
        self.names = list(dict.fromkeys(name for one in opened for name in one.names))
        for one in opened:
            self._notes += [note if self._is_one else f"{one.file.name}: {note}" for note in one.notes]
        self._notes += order_notes
        self.order_notes = order_notes
        self._rules, self._time_kinds = decide(opened, self.order, config)
        self._opened = opened
        self.user_kind, self.item_kind = self._rules.id_kinds["user_id"], self._rules.id_kinds["item_id"]
        self._optional = [name for name in OPTIONAL if any(name in one.resolved for one in opened)]
        self.num_rows_estimate = sum(one.num_rows_estimate for one in opened)
        self.notes = list(self._notes)

    @property
    def time_unit(self) -> str | None:
        """What numbers of the time column count, `iso`, `type`, or None without times."""
        if self.order != "time":
            return None
        return self._rules.unit if self._rules.time_kind == "number" else self._rules.time_kind

    def chunks(self, *, rows: int = CHUNK_ROWS, counts_missing: bool = False) -> Iterator[Chunk]:
        """The events in chunks of about this many rows, from the start, in the order (file, line).

        Args:
            rows: of a chunk.
            counts_missing: whether every column, ours or not, is read to fill `Chunk.missing`.

        Raises:
            MixedIds: ids taken as integers hold a text; open the source again by `with_string_ids`.
            DataError: a file is damaged, or is in another encoding.
        """
        if rows < 1:
            raise ValueError(f"rows={rows}: wanted at least 1")
        self.notes[:] = self._notes
        clamped: list[str] = []
        num_clamped = num_credible = 0
        for number, (opened, kind) in enumerate(zip(self._opened, self._time_kinds, strict=True)):
            rules = dataclasses.replace(self._rules, time_kind=kind)
            for table in self._tables(opened, rows, counts_missing=counts_missing):
                chunk = self._chunk(number, opened, table, rules)
                if self.order == "time":
                    num_credible += chunk.interactions["timestamp"].count()
                if self.order == "time" and chunk.interactions["is_clamped"].any():
                    late = chunk.interactions.filter("is_clamped")
                    num_clamped += late.height
                    lines = late["line"].head(TOLD_CLAMPS - len(clamped)).to_list()
                    clamped += [f"{opened.file.name}:{line}" for line in lines]
                yield chunk
        if num_clamped and num_credible:
            at = ", ".join(clamped)
            times = "time" if num_clamped == 1 else "times"
            where = f"the latest credible one, the first: {at}"
            self.notes.append(f"{num_clamped:,} {times} in the future set back to {where}")

    def _chunk(self, number: int, opened: OpenedFile, table: RawTable, rules: Rules) -> Chunk:
        judged = judge(table, opened.resolved, rules, f"{opened.file.path}")
        good, rejected = judged.good, judged.rejected
        if opened.is_sequences and rejected.height:
            rejected = rejected.unique("line", keep="first", maintain_order=True)
            good = good.filter(~pl.col("line").is_in(rejected["line"].implode()))
        num_good = good["line"].n_unique() if opened.is_sequences else good.height
        lacking = [pl.lit(None, OPTIONAL[name]).alias(name) for name in self._optional if name not in good.columns]
        good = good.with_columns(pl.lit(number, pl.Int32).alias("file"), *lacking)
        keys = {"time": ["timestamp", "is_clamped"], "position": ["position"], "rows": []}[self.order]
        good = good.select("file", "line", *REQUIRED, *keys, *self._optional)
        rejected = rejected.select(pl.lit(opened.file.name).alias("file"), pl.all())
        ours = {theirs: name for name, theirs in opened.resolved.items()}
        missing = {ours.get(name, name): count for name, count in table.missing.items()}
        return Chunk(good, rejected, num_good + rejected.height, num_good, missing)

    def _open(self, file: SourceFile) -> OpenedFile | None:
        """The file; None where it cannot be read and may be skipped."""
        try:
            opened = open_file(file, self._config)
            if self._config.bad_files == "skip" and not self._is_one:
                for _ in opened.tables(CHUNK_ROWS):
                    pass
        except DataError as error:
            self._leave_out(file, error)
            return None
        if opened.num_rows_estimate == 0:
            if self._is_one:
                raise DataError(f"{file.path}: has a header and no data; wanted at least one event")
            self._notes.append(f"{file.name}: has a header and no data")
            return None
        return opened

    def _of_one_order(self, opened: list[OpenedFile]) -> tuple[list[OpenedFile], Order, list[str]]:
        """The files that go together, what orders their events, and what to say about it.

        Raises:
            DataError: one does not go with the others and may not be skipped.
        """
        kept, orders, notes = [], list[Order](), list[list[str]]()
        for one in opened:
            try:
                order, told = order_of(one, self._config)
            except DataError as error:
                self._leave_out(one.file, error)
                continue
            kept.append(one)
            orders.append(order)
            notes.append(told)
        if not kept:
            return [], "rows", []
        wrong = misfits(kept, orders, self._config)
        for number, why in wrong.items():
            self._leave_out(kept[number].file, DataError(why))
        first = next(number for number in range(len(kept)) if number not in wrong)
        return [one for number, one in enumerate(kept) if number not in wrong], orders[first], notes[first]

    def _leave_out(self, file: SourceFile, error: DataError) -> None:
        """Tell that the file is skipped; raises where it is not to be."""
        if self._is_one:
            raise error
        if self._config.bad_files == "stop":
            raise DataError(f"{error}; or set read.bad_files=skip to leave such files out") from error
        self._notes.append(f"{file.name}: left out: {error}")

    def _tables(self, opened: OpenedFile, rows: int, *, counts_missing: bool) -> Iterator[RawTable]:
        try:
            yield from opened.tables(rows, counts_missing=counts_missing)
        except DataError as error:
            if self._is_one:
                raise
            raise DataError(f"{error}; or set read.bad_files=skip to leave such files out") from error
