"""A base and the deltas after it, put together: the state of a trainer, or the next base."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from recsys.errors import DeltaError, GapError
from recsys.models.delta.delta import Delta, Part, RowState, TableDelta, Tables, Version
from recsys.models.embedding_table import EmbeddingTable

IDS = "ids"


class FoldedTable:
    """Rows of a table, free ones too, and what belongs to no row.

    Args:
        name: to be named.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._num_rows = 0
        self._columns: dict[str, Tensor] = {}  # each (at least num_rows, …)
        self.parts: dict[str, Tensor] = {}
        self.unknown: Tensor | None = None
        self._raw_ids: dict[int, str] = {}

    def apply(self, delta: TableDelta) -> None:
        """Go on by a delta, the first of which is a base's.

        Raises:
            DeltaError: it holds no state, as those that servers are sent.
        """
        state = delta.state
        if state is None:
            raise DeltaError(f"a delta of {self._name!r} has no state of a trainer; take the trainer's own log")
        values = {IDS: delta.ids, "vectors": delta.vectors, **state.columns}
        self._num_rows = state.num_rows
        for name, given in values.items():
            column = self._columns.get(name, given[:0])
            if name not in self._columns or len(column) < self._num_rows:
                grown = given.new_zeros(max(self._num_rows, len(column) * 3 // 2), *given.shape[1:])
                grown[: len(column)] = column
                self._columns[name] = column = grown
            column[state.rows] = given
        self.parts = {
            name: torch.cat([self.parts[name][: part.kept], part.tail]) if part.kept else part.tail
            for name, part in state.parts.items()
        }
        if delta.unknown is not None:
            self.unknown = delta.unknown
        for id_ in delta.deleted.tolist() if self._raw_ids else ():
            self._raw_ids.pop(id_, None)
        self._raw_ids |= delta.raw_ids

    def state(self, table: EmbeddingTable) -> dict[str, Tensor]:
        """What `table.load_state` takes."""
        free, rows = self.parts["free"], self._live_rows()
        state = dict(self.parts)
        for name, values in self._columns.items():
            if name != IDS:
                state[name] = values[: self._num_rows]
                if name in table.pages.columns:
                    state[name][free] = torch.tensor(table.pages.columns[name].fill, dtype=values.dtype)
        return {**state, "ids": self._columns[IDS][rows], "rows": rows}

    def as_base(self) -> TableDelta:
        """The same as a base's."""
        rows = self._live_rows()
        values = {name: column[rows] for name, column in self._columns.items()}
        parts = {name: Part(0, tail) for name, tail in self.parts.items()}
        ids, vectors = values.pop(IDS), values.pop("vectors")
        state = RowState(self._num_rows, rows, values, parts)
        return TableDelta(ids, vectors, ids[:0], dict(self._raw_ids), state, self.unknown)

    def _live_rows(self) -> Tensor:
        is_live = torch.ones(self._num_rows, dtype=torch.bool)
        is_live[self.parts["free"]] = False
        return is_live.nonzero().squeeze(1)


class Folded:
    """A base and what was applied to it.

    Attributes:
        version: that it is at; None before the base.
        tables: by name.
        dense: all parameters.
        extra: of the last delta.
    """

    def __init__(self) -> None:
        self.version: Version | None = None
        self.bundle = ""
        self.tables: Tables[FoldedTable] = Tables()
        self.dense: dict[str, Tensor] = {}
        self.extra: Mapping[str, Any] = {}

    def apply(self, delta: Delta) -> None:
        """Go on by a delta.

        Raises:
            GapError: it does not follow the one before.
            DeltaError: it holds no state, or is of a table that is unknown.
        """
        if delta.since is None:
            self.tables = Tables({name: FoldedTable(name) for name in delta.tables})
            self.dense, self.bundle = {}, delta.bundle
        elif delta.since != self.version:
            raise GapError(f"{delta.version} follows {delta.since}, but this is at {self.version}; apply those between")
        for name, table in delta.tables.items():
            self.tables[name].apply(table)
        self.dense |= delta.dense
        self.extra, self.version = delta.extra, delta.version

    def as_base(self) -> Delta:
        """All of it as a base of the same version."""
        assert self.version is not None
        tables = {name: table.as_base() for name, table in self.tables.items()}
        return Delta(self.bundle, *self.version, None, tables, self.dense, self.extra)
