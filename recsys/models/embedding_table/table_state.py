"""A table as tensors: saved, checked before it is loaded, and loaded; with a cold file closed and resumed.

    ids, rows, free                        which id has which row, and which rows are no id's
    vectors, states, ticks, counts         of every row, free ones too; counts for lfu alone
    clock., admission., eviction., …       what each part of the table says of itself
    seed, optimizer, shard, split,         of the whole
      counts_so_far

Everything is checked before anything changes.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.row_pages.optimizers import NAMES as OPTIMIZERS

if TYPE_CHECKING:
    from recsys.models.embedding_table.cold_rows import ColdRows
    from recsys.models.embedding_table.table import EmbeddingTable

ANEW = ("eviction.", "prior.", "shard", "split")  # parts of a state that a table can do without
PLACES = ("ids", "rows", "free")
IN_FILE = ("vectors", "states", "ids")  # columns of cold rows that a state beside the file lacks

Block = tuple[int, Mapping[str, Tensor]]  # the first row, and numbers of it and of those that follow, by column


class Stateful(Protocol):
    """A part of a table with a state of its own."""

    def state(self) -> dict[str, Tensor]:
        """What must be kept to go on from it."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""


def state_of(table: "EmbeddingTable") -> dict[str, Tensor]:
    """All of the table."""
    return _with_columns(table, _columns(table))


def beside_rows(table: "EmbeddingTable") -> dict[str, Tensor]:
    """What of `state_of` is no row's; (N,) each."""
    state = {"free": table.index.free_rows}
    for part, of_part in table.parts().items():
        state |= {f"{part}.{name}": value for name, value in of_part.state().items()}
    state["seed"] = torch.from_numpy(np.array([table.seed], dtype=np.uint64).view(np.int64))
    state["optimizer"] = torch.tensor([OPTIMIZERS.index(table.config.optimizer.name)])
    if table.shard is not None:
        state["shard"] = torch.tensor(table.shard)
    if table.split is not None:
        state["split"] = torch.tensor([table.split])
    state["counts_so_far"] = torch.tensor(list(vars(table.counts).values()))
    return state


def load(table: "EmbeddingTable", state: Mapping[str, Tensor], blocks: Iterable[Block]) -> None:
    """Put what `state_of` gave in place of all that the table has, and blocks of the columns that have a shape alone.

    Raises:
        ValueError: it does not fit; nothing is changed.
    """
    _check(table, state, _columns(table))
    size = len(state["ticks"])
    if table.cold is not None:  # a full disk ends the call before anything changed
        table.cold.grow(size)
    table.index.import_(state["ids"], state["rows"], state["free"])
    table.pages.restore(_values(table, state), size)
    try:
        for start, columns in blocks:
            table.pages.fill(start, columns)
    except BaseException:
        _empty(table)
        raise
    if table.cold is None:
        table.pages.grow(table.config.expected)
    _load_rest(table, state)


def close(table: "EmbeddingTable", version: str | None) -> dict[str, Tensor]:
    """What goes with the cold file, which is closed, and marked if there is a version.

    Raises:
        ValueError: the table has no cold file.
        StorageError: the file could not be made durable.
    """
    cold = _cold(table, "close")
    rest = {} if version is None else _with_columns(table, _columns_beside_file(table))
    cold.close(version, table.num_rows)
    return rest


def resume(table: "EmbeddingTable", state: Mapping[str, Tensor], version: str) -> None:
    """Put what `close` gave, and the rows in the cold file, in place of all that the table has.

    Raises:
        ValueError: the table has no cold file, or the state does not fit; nothing is changed.
        CheckpointError: the file is not that version's; nothing is changed.
    """
    cold = _cold(table, "resume from")
    _check(table, state, _columns_beside_file(table))
    cold.file.check(version, state["rows"], state["ids"])
    table.index.import_(state["ids"], state["rows"], state["free"])
    cold.resume(_values(table, state), state["rows"], len(state["ticks"]))
    _load_rest(table, state)


def _cold(table: "EmbeddingTable", to_do: str) -> "ColdRows":
    if table.cold is None:
        raise ValueError(f"the table has no cold file to {to_do}; its config has cold_file=None")
    return table.cold


def _columns(table: "EmbeddingTable") -> list[str]:
    return [name for name in table.pages.columns if name != "ids"]


def _columns_beside_file(table: "EmbeddingTable") -> list[str]:
    return [name for name in table.pages.columns if name not in IN_FILE]


def _with_columns(table: "EmbeddingTable", columns: list[str]) -> dict[str, Tensor]:
    ids, rows, _ = table.index.export()
    pages, size = table.pages, table.num_rows
    state = {"ids": ids, "rows": rows}
    for name in columns:
        state[name] = pages.all_of(pages.columns[name], size)
    return state | beside_rows(table)


def _check(table: "EmbeddingTable", state: Mapping[str, Tensor], columns: list[str]) -> None:
    """Whether the table can go on from a state with these columns."""
    beside = beside_rows(table)
    for name in (*columns, "ids", "rows", *(name for name in beside if not name.startswith(ANEW))):
        if name not in state:
            raise ValueError(f"the state has no {name!r}, which a table with this configuration has")
    for name in (*PLACES, "deleted.ids", "clock.tick"):
        if state[name].dtype != torch.int64:
            raise ValueError(f"{name!r} is {state[name].dtype}; wanted int64")
    for name in state:
        if name not in beside and not name.startswith((*ANEW, "counts")) and name not in (*columns, *IN_FILE, "rows"):
            raise ValueError(f"the state has {name!r}, which a table with this configuration has not")
    if len(state["rows"]) != len(state["ids"]) or len(state["ids"]) + len(state["free"]) != len(state["ticks"]):
        raise ValueError(
            f"the state has {len(state['ids'])} ids, {len(state['rows'])} rows and {len(state['free'])} free ones, "
            f"but {len(state['ticks'])} ticks; wanted a tick for each"
        )
    kind = OPTIMIZERS[int(state["optimizer"][0])]
    if kind != table.config.optimizer.name:
        raise ValueError(f"the state's rows were trained by {kind}, this table's are by {table.config.optimizer.name}")
    _check_columns(table, state, columns)


def _check_columns(table: "EmbeddingTable", state: Mapping[str, Tensor], columns: list[str]) -> None:
    for name in columns:
        column = table.pages.columns[name]
        wanted = len(state["ticks"]), column.width
        if state[name].dtype != column.dtype:
            raise ValueError(f"{name!r} is {state[name].dtype}; wanted {column.dtype}")
        if tuple(state[name].shape) != wanted:
            raise ValueError(
                f"{name!r} is of the shape {tuple(state[name].shape)}; this table's is {wanted}: "
                "load it into a table of the same width and optimizer"
            )


def _values(table: "EmbeddingTable", state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The columns that a state holds, and the ids by row."""
    given = [name for name in table.pages.columns if name in state and name != "ids" and not state[name].is_meta]
    values = {name: state[name].to(table.device) for name in given}
    ids = torch.zeros(len(state["ticks"]), 1, dtype=torch.int64, device=table.device)
    ids[state["rows"].to(table.device), 0] = state["ids"].to(table.device)
    return values | {"ids": ids}


def _empty(table: "EmbeddingTable") -> None:
    none = torch.empty(0, dtype=torch.int64, device=table.device)
    table.index.import_(none, none, none)
    table.pages.clear()
    table.begin_anew(table.seed, table.shard, table.split, table.counts)


def _load_rest(table: "EmbeddingTable", state: Mapping[str, Tensor]) -> None:
    seed = int(state["seed"].cpu().numpy().view(np.uint64)[0])
    shard = (int(state["shard"][0]), int(state["shard"][1])) if "shard" in state else None
    split = int(state["split"][0]) if "split" in state else None
    table.begin_anew(seed, shard, split, type(table.counts)(*state["counts_so_far"].tolist()))
    for part, of_part in table.parts().items():
        start = f"{part}."
        if kept := {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}:
            of_part.load_state(kept)
