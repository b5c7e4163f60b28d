"""One step of a followed model from a version to the next: rows touched, ids deleted, dense parameters that moved.

    Version       (epoch, sequence): the epoch grows when a trainer takes over, the sequence with every delta
    Delta         since -> (epoch, sequence); since None: a base, all there is at that version
    TableDelta    rows by id, and ids that have none; with `state` the trainer's own log can go on from it bit for bit

A file is a line of JSON (format, bytes, sha256) and a safetensors file of so many bytes, which the sha256 is of.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from recsys.errors import DeltaError
from recsys.models.delta import sealed
from recsys.models.delta.files import Files, or_os, write_durably
from recsys.models.delta.rows import Rows, rows_by, rows_of

SUFFIX = ".delta"
# Keys of a tensor within a file. Names of tables and parameters may hold any character but the separator.
SEPARATOR = "/"
ROW_COLUMNS = ("ids", "vectors", "rows")  # of a table, and all that is in `columns`: what grows with its rows

T = TypeVar("T")


class Version(NamedTuple):
    """Of a model that is followed; versions ascend."""

    epoch: int
    sequence: int

    def __str__(self) -> str:
        return f"(epoch {self.epoch}, sequence {self.sequence})"


class Tables(dict[str, T]):
    """By name; one that is not there is refused by name (DeltaError)."""

    def __missing__(self, name: str) -> T:
        raise DeltaError(f"table {name!r} is unknown; wanted {', '.join(sorted(self)) or 'none: there are no tables'}")


class Part(NamedTuple):
    """A sequence of numbers, as so many of the first of the version before, and what follows them.

    kept: how many. tail: (N,).
    """

    kept: int
    tail: Tensor


@dataclass(frozen=True, eq=False)
class RowState:
    """What a trainer needs beside ids and vectors.

    Attributes:
        num_rows: of the table, free ones too.
        rows: (M,) int64 row of each id of the delta.
        columns: (M, …) by name: states, ticks, and counts where there are.
        parts: free rows, clock, admission, eviction and more, by name.
    """

    num_rows: int
    rows: Tensor
    columns: Mapping[str, Tensor]
    parts: Mapping[str, Part]


@dataclass(frozen=True, eq=False)
class TableDelta:
    """Of one table.

    Attributes:
        ids: (M,) int64, each once: rows that were touched; in a base all.
        vectors: (M, width) float32.
        deleted: (K,) int64, each once: ids that lost their row and have none.
        raw_ids: what new ids are the hash of, where the trainer knows.
        state: for the trainer alone.
        unknown: (width,) float32 learned vector of ids without a row, if it moved; in a base, if there is one.
    """

    ids: Tensor
    vectors: Tensor
    deleted: Tensor
    raw_ids: Mapping[int, str] = field(default_factory=dict)
    state: RowState | None = None
    unknown: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Delta:
    """From `since` to (epoch, sequence).

    Attributes:
        bundle: sha256 of the bundle that the model began with.
        epoch, sequence: of the version that it makes.
        since: the version that it is applied to; None: it is a base.
        tables: by name.
        dense: parameters that moved, by name; in a base all.
        extra: tensors and JSON values for the trainer alone: random numbers, dense optimizer, {writer: offset} of the
            journal, clock. That of the last delta holds.
        stored: columns of rows that do not lie in memory, by `row_key`: the tables have empty tensors in their place.
            `write` brings them into memory part by part, `loaded` as a whole.
    """

    bundle: str
    epoch: int
    sequence: int
    since: Version | None
    tables: Mapping[str, TableDelta]
    dense: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    stored: Mapping[str, Rows] = field(default_factory=dict)

    @property
    def version(self) -> Version:
        """That it makes."""
        return Version(self.epoch, self.sequence)

    @property
    def name(self) -> str:
        """Of its file."""
        return file_name(self.sequence, is_base=self.since is None)

    @property
    def num_bytes(self) -> int:
        """Of its tensors."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def without_state(self) -> "Delta":
        """The same for servers: no optimizer state, nothing that is the trainer's alone."""
        tables = {name: replace(table, state=None) for name, table in self.tables.items()}
        return replace(self, tables=tables, extra={})

    def write(self, path: Path | str, files: Files | None = None) -> None:
        """Write it whole or not at all; it outlives a crash when this returns.

        Raises:
            DeltaError: it holds what no file can; the message names it.
            OSError: the disk is full or failed; what had the name stays.
        """
        body = self.body()
        write_durably(or_os(files), Path(path), body, body.line)

    def body(self) -> sealed.Body:
        """The bytes of its file."""
        return sealed.Body(self._tensors(), self._told())

    @classmethod
    def read(cls, path: Path | str, files: Files | None = None, part_bytes: int | None = None) -> "Delta":
        """What `write` wrote.

        Args:
            path: of the file.
            files: by which it is read.
            part_bytes: columns of rows stay in the file, to be read by parts of so many; None: all is read.

        Raises:
            DeltaError: it is torn or damaged, or of an unknown format version.
        """
        path = Path(path)
        file = sealed.SealedFile(path, or_os(files))
        tensors, stored = {}, {}
        for name, dtype in file.dtypes.items():
            if part_bytes is None or not _is_row_column(name):
                tensors[name] = file.read(name)
            else:
                tensors[name] = torch.empty(0, *file.shapes[name][1:], dtype=dtype)
                stored[name] = rows_by(part_bytes, dtype, file.shapes[name], partial(file.read, name))
        try:
            return replace(_built(tensors, file.text), stored=stored)
        except (KeyError, TypeError, ValueError) as error:
            raise DeltaError(f"{path}: whole, but no delta ({error!r}); it was written by something else") from error

    def loaded(self) -> "Delta":
        """The same with all of it in memory."""
        if not self.stored:
            return self
        tensors = {
            name: value.loaded() if isinstance(value, Rows) else value for name, value in self._tensors().items()
        }
        return _built(tensors, self._told())

    def rows_of(self, number: int) -> dict[str, Rows]:
        """All columns of the rows of its table of that number, by their names in memory or not."""
        prefix = f"tables{SEPARATOR}{number}{SEPARATOR}"
        return {
            key.removeprefix(prefix).removeprefix(f"columns{SEPARATOR}"): rows_of(value)
            if isinstance(value, Tensor)
            else value
            for key, value in self._tensors().items()
            if key.startswith(prefix) and _is_row_column(key)
        }

    def _tensors(self) -> dict[str, Tensor | Rows]:
        tensors: dict[str, Tensor | Rows] = {f"dense{SEPARATOR}{name}": value for name, value in self.dense.items()}
        for name, value in self.extra.items():
            if isinstance(value, Tensor):
                tensors[f"extra{SEPARATOR}{name}"] = value
        for number, table in enumerate(self.tables.values()):
            of_table = {"ids": table.ids, "vectors": table.vectors, "deleted": table.deleted}
            if table.unknown is not None:
                of_table["unknown"] = table.unknown
            if table.state is not None:
                of_table["rows"] = table.state.rows
                of_table |= {f"columns{SEPARATOR}{key}": value for key, value in table.state.columns.items()}
                of_table |= {f"parts{SEPARATOR}{key}": part.tail for key, part in table.state.parts.items()}
            tensors |= {f"tables{SEPARATOR}{number}{SEPARATOR}{key}": value for key, value in of_table.items()}
        return {name: self.stored.get(name, value) for name, value in tensors.items()}

    def _told(self) -> str:
        tables = [
            {
                "name": name,
                "raw_ids": {str(id_): text for id_, text in table.raw_ids.items()},
                "num_rows": None if table.state is None else table.state.num_rows,
                "kept": {} if table.state is None else {key: part.kept for key, part in table.state.parts.items()},
            }
            for name, table in self.tables.items()
        ]
        extra = {name: value for name, value in self.extra.items() if not isinstance(value, Tensor)}
        for name, value in extra.items():
            json_of(name, value)
        told = {"bundle": self.bundle, "version": self.version, "since": self.since, "tables": tables, "extra": extra}
        return json.dumps(told, sort_keys=True)


def json_of(name: str, value: Any) -> str:
    """The text of a value of `extra`.

    Raises:
        DeltaError: it is no JSON value, or has tuples, or keys that are no texts; the message names it.
    """
    try:
        text = json.dumps(value, sort_keys=True)
        is_kept = _is_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise DeltaError(f"extra[{name!r}]: {error}; wanted a tensor or a JSON value") from error
    if not is_kept:
        raise DeltaError(
            f"extra[{name!r}] would be read otherwise than it was written; wanted a tensor or a JSON value: "
            "lists for tuples, and keys that are texts"
        )
    return text


def _is_json(value: Any) -> bool:
    """Whether JSON brings a value back that it can write."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    return not isinstance(value, tuple) and (not isinstance(value, list) or all(map(_is_json, value)))


def row_key(number: int, column: str) -> str:
    """Of a column of the rows of the table of that number, in a file and in `stored`."""
    within = column if column in ROW_COLUMNS else f"columns{SEPARATOR}{column}"
    return f"tables{SEPARATOR}{number}{SEPARATOR}{within}"


def file_name(sequence: int, *, is_base: bool) -> str:
    """Of a delta's file: names ascend with the sequence."""
    return f"{'base' if is_base else 'delta'}-{sequence:012d}{SUFFIX}"


def _built(tensors: dict[str, Tensor], told_text: str) -> Delta:
    told = json.loads(told_text)
    tables = {}
    for number, about in enumerate(told["tables"]):
        mine = _part(tensors, f"tables{SEPARATOR}{number}{SEPARATOR}")
        state = None
        if about["num_rows"] is not None:
            tails = _part(mine, f"parts{SEPARATOR}")
            parts = {key: Part(kept, tails[key]) for key, kept in about["kept"].items()}
            state = RowState(about["num_rows"], mine["rows"], _part(mine, f"columns{SEPARATOR}"), parts)
        raw_ids = {int(id_): text for id_, text in about["raw_ids"].items()}
        ids, vectors, deleted, unknown = mine["ids"], mine["vectors"], mine["deleted"], mine.get("unknown")
        tables[about["name"]] = TableDelta(ids, vectors, deleted, raw_ids, state, unknown)
    epoch, sequence = told["version"]
    since = None if told["since"] is None else Version(*told["since"])
    dense, extra = (_part(tensors, f"{key}{SEPARATOR}") for key in ("dense", "extra"))
    return Delta(told["bundle"], epoch, sequence, since, tables, dense, told["extra"] | extra)


def _is_row_column(key: str) -> bool:
    kind, _, within = key.split(SEPARATOR, 2) if key.count(SEPARATOR) >= 2 else (key, "", "")
    return kind == "tables" and (within in ROW_COLUMNS or within.startswith(f"columns{SEPARATOR}"))


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
