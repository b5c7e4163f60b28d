"""What changed since the last cut, taken from tables that train on.

    tracker = Tracker({"items": table}, bundle)
    cut = tracker.cut(version, dense, extra)       between two steps: what is small is read at once
    while not cut.copy(num_rows=50_000): ...       between later steps: rows, as they stood at the cut
    delta = cut.delta()

Free rows, admission and the like are told as what differs from the last cut (`Part`); so a delta costs as much as what
changed, but for the sightings that admission counts in its newest split and the queue of rows to be evicted, which are
told whole.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, BinaryIO
from weakref import WeakKeyDictionary, WeakValueDictionary, finalize, ref

import torch
from torch import Tensor

from recsys.errors import DeltaError
from recsys.kernels.row_pages import RowPages
from recsys.models.delta import sealed
from recsys.models.delta.delta import Delta, Part, RowState, TableDelta, Version, json_of, row_key
from recsys.models.delta.row_copy import RowCopy, columns_of
from recsys.models.delta.row_room import FileRoom, room_bytes
from recsys.models.delta.rows import MEMORY_BYTES, Rows, part_of
from recsys.models.embedding_table import CollisionlessEmbedding, EmbeddingTable

GENERATOR = "generator"  # of a module's id dropout, beside its table's parts

Source = EmbeddingTable | CollisionlessEmbedding


class Cut:
    """A delta whose rows are being copied.

    Args:
        delta: without vectors, states and counts.
        copies: of the rows, by table.
        num_bytes: of the rows.
    """

    def __init__(self, delta: Delta, copies: Mapping[str, RowCopy], num_bytes: int) -> None:
        self._delta, self._copies, self.num_bytes = delta, copies, num_bytes

    @property
    def version(self) -> Version:
        """That it makes."""
        return self._delta.version

    def copy(self, num_rows: int) -> bool:
        """Copy at most so many rows; whether all are copied."""
        for copy in self._copies.values():
            if num_rows > 0 and not copy.is_done:
                num_rows -= copy.copy(num_rows)
        return all(copy.is_done for copy in self._copies.values())

    def delta(self) -> Delta:
        """The delta, after what is left was copied; rows that were copied to a file are its `stored` ones."""
        return self._with({name: copy.finished() for name, copy in self._copies.items()})

    def in_place(self) -> Delta:
        """The delta, whose rows are read from the tables when it is written; until then no step may be taken."""
        return self._with({name: copy.in_place() for name, copy in self._copies.items()})

    def cancel(self) -> None:
        """Let the tables go."""
        for copy in self._copies.values():
            copy.cancel()

    def _with(self, found: Mapping[str, Mapping[str, Tensor | Rows]]) -> Delta:
        tables, stored = {}, dict[str, Rows]()
        for number, (name, table) in enumerate(self._delta.tables.items()):
            columns = dict[str, Tensor]()
            for column, values in found[name].items():
                if isinstance(values, Rows):
                    stored[row_key(number, column)] = values
                    columns[column] = torch.empty(0, *values.shape[1:], dtype=values.dtype)
                else:
                    columns[column] = values
            state = table.state
            assert state is not None
            vectors = columns.pop("vectors")
            state = RowState(state.num_rows, state.rows, {**state.columns, **columns}, state.parts)
            tables[name] = replace(table, vectors=vectors, state=state)
        return replace(self._delta, tables=tables, stored=stored)


@dataclass(frozen=True)
class _Followed:
    """A table, and where it stood at the last cut: its tick, parts and unknown vector, and how often ticks were
    renumbered.
    """

    source: Source
    tick: int = 0
    parts: dict[str, Tensor] = field(default_factory=dict)
    unknown: Tensor | None = None
    times_renumbered: int = 0


class Tracker:
    """Follows tables, and dense parameters, from cut to cut.

    Args:
        sources: by name.
        bundle: sha256 of the bundle that the model began with.
        memory_bytes: rows of a cut that are more are copied to files.
        place: of the log, to be named.

    Raises:
        DeltaError: a source is no table, or stands there twice; the message names it.
    """

    def __init__(
        self, sources: Mapping[str, Source], bundle: str, memory_bytes: int = MEMORY_BYTES, place: str = ""
    ) -> None:
        check_sources(sources)
        self._bundle, self._memory_bytes, self.place = bundle, memory_bytes, place
        self._followed = {name: _Followed(source) for name, source in sources.items()}
        self._dense: dict[str, Tensor] = {}
        self._version: Version | None = None  # of the last cut; None: the next is a base
        self._copies: WeakValueDictionary[str, RowCopy] = WeakValueDictionary()  # of the last cut, while it is there
        self._is_abandoned = False  # it is lost, and the next is a base
        finalize(self, _cancel_all, self._copies)

    @property
    def version(self) -> Version | None:
        """Of the last cut."""
        return self._version

    def resume(self, version: Version, dense: Mapping[str, Tensor], parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from a version that was loaded into the tables."""
        self._version, self._dense = version, dict(dense)
        for name, followed in self._followed.items():
            self._followed[name] = _marked(followed.source, dict(parts[name]), unknown_of(followed.source))
        self._claim()

    def abandon(self) -> None:
        """The last cut will never be written: its copies end, other logs may follow the tables, and the next cut is a
        base.
        """
        self._is_abandoned = True
        _cancel_all(self._copies)
        for followed in self._followed.values():
            if _follower_of(followed.source) is self:
                del _FOLLOWERS[table_of(followed.source)]

    def check(
        self, dense: Mapping[Any, Any], extra: Mapping[Any, Any], raw_ids: Mapping[str, Mapping[Any, Any]]
    ) -> None:
        """Whether a cut may be made of this; nothing is changed.

        Raises:
            DeltaError: a value is none that a file holds, `raw_ids` names an unknown table, gradients wait for a step,
                the last cut's rows are still being copied, or another log follows a table; the message names it.
        """
        for name, followed in self._followed.items():
            other = _follower_of(followed.source)
            if other is not None and other is not self:
                raise DeltaError(
                    f"{name!r} is followed by the log {other.place}, and a table tells one log what changed; "
                    "call that log's abandon, or let it go, or copy the table"
                )
            if table_of(followed.source).pages.before_write is not None:
                raise DeltaError(
                    f"rows of {name!r} are still being copied for another cut; finish it, or abandon it, first"
                )
            if isinstance(followed.source, CollisionlessEmbedding) and followed.source.has_gradients:
                raise DeltaError(
                    f"{name!r} has gradients that no step applied, and no delta holds them; "
                    "call its step, or drop_gradients, before the cut"
                )
        for name, value in dense.items():
            if not isinstance(value, Tensor):
                raise DeltaError(f"dense[{name!r}] is {type(value).__name__}; wanted a tensor")
        for kind, values in (("dense", dense), ("extra", extra)):
            for name, value in values.items():
                if not isinstance(name, str):
                    raise DeltaError(f"{kind}[{name!r}]: wanted a name that is a text")
                if isinstance(value, Tensor):
                    sealed.check(f"{kind}/{name}", value)
                else:
                    json_of(name, value)
        for name, texts in raw_ids.items():
            if name not in self._followed:
                raise DeltaError(f"raw_ids of {name!r}, which is unknown; wanted {', '.join(sorted(self._followed))}")
            for id_, text in texts.items():
                if isinstance(id_, bool) or not isinstance(id_, Integral) or not isinstance(text, str):
                    raise DeltaError(f"raw_ids[{name!r}][{id_!r}] is {text!r}; wanted a text by the id, an integer")

    def cut(
        self,
        version: Version,
        dense: Mapping[str, Tensor],
        extra: Mapping[str, Any],
        raw_ids: Mapping[str, Mapping[int, str]],
        scratch: Callable[[int], BinaryIO] | None = None,
    ) -> Cut:
        """What changed since the last cut; the first one is a base, and one after ticks were renumbered is too.

        Args:
            version: that it makes.
            dense: all parameters; those that are as they were are left out.
            extra: see `Delta`.
            raw_ids: what new ids are the hash of, by table.
            scratch: gives a file of so many bytes, to which rows are copied that are many; None: they stay where they
                are until `Cut.delta` or `Cut.in_place`.

        Raises:
            DeltaError: see `check`; nothing is changed.
            OSError: there is no such file; nothing is changed.
        """
        self.check(dense, extra, raw_ids)
        # The caller may go on to change a list or a tensor that it gave.
        kept = {
            key: value.clone() if isinstance(value, Tensor) else json.loads(json_of(key, value))
            for key, value in extra.items()
        }
        since = None if self._is_base_next else self._version
        touched = {name: self._touched(followed, since is None) for name, followed in self._followed.items()}
        num_rows = {name: len(rows) for name, (rows, _) in touched.items()}
        num_bytes = sum(room_bytes(columns_of(self._pages(name)), count) for name, count in num_rows.items())
        is_large = scratch is not None and num_bytes > self._memory_bytes
        rooms = {name: self._room(name, count, scratch if is_large else None) for name, count in num_rows.items()}
        tables, after, copies = {}, dict[str, _Followed](), {}
        for name, followed in self._followed.items():
            rows, deleted = touched[name]
            tables[name], after[name] = _cut_of(followed, since is None, rows, deleted, raw_ids.get(name, {}))
            copies[name] = RowCopy(self._pages(name), rows, rooms[name], part_of(self._memory_bytes))
        moved = {
            name: value.detach().cpu().resolve_neg().clone()
            for name, value in dense.items()
            if since is None or self._moved(name, value)
        }
        delta = Delta(self._bundle, version.epoch, version.sequence, since, tables, moved, kept)
        cut = Cut(delta, copies, num_bytes)
        self._go_on(version, after, self._dense | moved, copies)
        return cut

    @property
    def _is_base_next(self) -> bool:
        """Whether changes since the last cut are not all known."""
        return self._is_abandoned or any(
            _follower_of(followed.source) is not self
            or table_of(followed.source).times_renumbered != followed.times_renumbered
            for followed in self._followed.values()
        )

    def _go_on(
        self,
        version: Version,
        after: dict[str, _Followed],
        dense: dict[str, Tensor],
        copies: Mapping[str, RowCopy],
    ) -> None:
        """From a cut; where this is interrupted the cut is abandoned."""
        before = self._version, self._followed, self._dense
        try:
            self._copies.clear()
            self._copies.update(copies)
            for copy in copies.values():
                copy.begin()
            self._version, self._followed, self._dense = version, after, dense
            self._claim()
            for followed in after.values():
                table_of(followed.source).follow(followed.tick)
            self._is_abandoned = False
        except BaseException:
            self._version, self._followed, self._dense = before
            self.abandon()
            raise

    def _claim(self) -> None:
        for followed in self._followed.values():
            _FOLLOWERS[table_of(followed.source)] = ref(self)

    def _touched(self, followed: _Followed, is_base: bool) -> tuple[Tensor, Tensor]:
        """(M,) int64 rows, ascending, and (K,) int64 deleted ids."""
        table = table_of(followed.source)
        if is_base:
            return table.live_rows(), torch.empty(0, dtype=torch.int64)
        changes = table.changes(followed.tick)
        return changes.rows, changes.deleted

    def _pages(self, name: str) -> RowPages:
        return table_of(self._followed[name].source).pages

    def _room(self, name: str, num_rows: int, scratch: Callable[[int], BinaryIO] | None) -> FileRoom | None:
        columns = columns_of(self._pages(name))
        if scratch is None or num_rows == 0:
            return None
        return FileRoom(columns, num_rows, scratch(room_bytes(columns, num_rows)), part_of(self._memory_bytes))

    def _moved(self, name: str, value: Tensor) -> bool:
        return name not in self._dense or not have_same_bits(self._dense[name], value.detach().cpu())


# Who follows a table: it keeps the ids that were deleted since one tick, not since several.
_FOLLOWERS: WeakKeyDictionary[EmbeddingTable, ref[Tracker]] = WeakKeyDictionary()


def check_sources(sources: Mapping[str, Source]) -> None:
    """Whether they are tables, by name, each once.

    Raises:
        DeltaError: they are not; the message names the one.
    """
    if not isinstance(sources, Mapping):
        raise DeltaError(f"tables is {type(sources).__name__}; wanted tables by name, {{name: table}}")
    names = dict[int, str]()
    for name, source in sources.items():
        if not isinstance(name, str):
            raise DeltaError(f"tables[{name!r}]: wanted a name that is a text")
        if not isinstance(source, Source):
            raise DeltaError(
                f"tables[{name!r}] is {type(source).__name__}; wanted a CollisionlessEmbedding or an EmbeddingTable"
            )
        other = names.setdefault(id(table_of(source)), name)
        if other != name:
            raise DeltaError(f"tables[{name!r}] is the same table as tables[{other!r}]; name it once")


def have_same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two dense tensors on the CPU are of the same dtype, shape and bits: -0 is not 0, and a NaN is itself."""
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bytes_of(one), _bytes_of(other))


def table_of(source: Source) -> EmbeddingTable:
    """A module's table, or the table."""
    return source.table if isinstance(source, CollisionlessEmbedding) else source


def unknown_of(source: Source) -> Tensor | None:
    """(width,) float32 copy of a module's learned vector of unknown ids, on the CPU; None where it has none."""
    learned = source.unknown if isinstance(source, CollisionlessEmbedding) else None
    return None if learned is None else learned.detach().to("cpu", torch.float32, copy=True)


def difference(before: Tensor | None, now: Tensor) -> Part:
    """`now` (N,) as so many of the first numbers of `before` (M,), and the rest."""
    if before is None or before.dtype != now.dtype:
        return Part(0, now)
    size = min(len(before), len(now))
    differing = (_integers(before[:size]) != _integers(now[:size])).nonzero()
    kept = int(differing[0]) if len(differing) else size
    return Part(kept, now[kept:])


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _integers(numbers: Tensor) -> Tensor:
    """The bits of floating-point numbers (N,); others as they are."""
    sizes = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return numbers.view(sizes[numbers.itemsize]) if numbers.is_floating_point() else numbers


def _follower_of(source: Source) -> Tracker | None:
    follower = _FOLLOWERS.get(table_of(source))
    return None if follower is None else follower()


def _cancel_all(copies: Mapping[str, RowCopy]) -> None:
    for copy in copies.values():
        copy.cancel()


def _marked(source: Source, parts: dict[str, Tensor], unknown: Tensor | None) -> _Followed:
    """A table that is followed from here on."""
    table = table_of(source)
    table.follow()
    return _Followed(source, table.follow(table.tick), parts, unknown, table.times_renumbered)


def _cut_of(
    followed: _Followed, is_base: bool, rows: Tensor, deleted: Tensor, raw_ids: Mapping[int, str]
) -> tuple[TableDelta, _Followed]:
    """A table's part of a cut, and where the next begins; the table is as it was."""
    source, table = followed.source, table_of(followed.source)
    earlier, before = ({}, None) if is_base else (followed.parts, followed.unknown)
    now = _beside_rows(table)
    if isinstance(source, CollisionlessEmbedding):
        now[GENERATOR] = source.generator.get_state()
    parts = {name: difference(earlier.get(name), value) for name, value in now.items()}
    state = RowState(table.num_rows, rows.cpu(), {"ticks": table.pages.ticks.gather(rows).cpu()}, parts)
    unknown = unknown_of(source)
    moved = None if before is not None and unknown is not None and have_same_bits(before, unknown) else unknown
    ids = table.ids_of(rows).cpu()
    of_table = TableDelta(ids, torch.empty(0, 0), deleted.cpu(), dict(raw_ids), state, moved)
    return of_table, _Followed(source, table.tick, now, unknown, table.times_renumbered)


def _beside_rows(table: EmbeddingTable) -> dict[str, Tensor]:
    """What of the table's state is no row's once it is followed from this tick on: deleted ids of before are gone."""
    state = {name: value.cpu() for name, value in table.state_beside_rows().items()}
    ticks, sizes = state["deleted.ticks"], state["deleted.sizes"]
    is_late = ticks >= table.tick
    ids = state["deleted.ids"][torch.repeat_interleave(is_late, sizes)]
    late = {"since": torch.tensor([table.tick]), "ticks": ticks[is_late], "sizes": sizes[is_late], "ids": ids}
    return state | {f"deleted.{name}": value for name, value in late.items()}
