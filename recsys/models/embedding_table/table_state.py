"""A table as tensors: saved, checked before it is loaded, and loaded; with a cold file closed and resumed.

    ids, rows, free                        which id has which row, and which rows are no id's
    vectors, states, ticks, counts         of every row, free ones too; counts for lfu alone
    clock., admission., eviction., …       what each part of the table says of itself
    seed, optimizer, shard, split,         of the whole
      counts_so_far

Everything is checked before anything changes: the index is built beside the one that is there, each part says whether
it can go on from what the state says of it, and only then the new takes the place of the old.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.hash_table import HashTable
from recsys.kernels.row_pages.marks import FREE, MOST_COUNT
from recsys.kernels.row_pages.optimizers import NAMES as OPTIMIZERS
from recsys.models.embedding_table.state_checks import Checked, Forgetting, OfWidth, check_range, tensor_of

if TYPE_CHECKING:
    from recsys.models.embedding_table.cold_rows import ColdRows
    from recsys.models.embedding_table.table import EmbeddingTable

PRIOR = "prior"
ANEW = ("eviction.", "prior.", "shard", "split")  # parts of a state that a table can do without
PLACES = ("ids", "rows", "free")
SIZES = {"seed": 1, "optimizer": 1, "shard": 2, "split": 1}  # of int64, where they stand
IN_FILE = ("vectors", "states", "ids")  # columns of cold rows that a state beside the file lacks

Block = tuple[int, Mapping[str, Tensor]]  # the first row, and numbers of it and of those that follow, by column


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
        ValueError: it does not fit, or the rows are being copied; nothing is changed.
        StorageError: the disk is full; nothing is changed.
    """
    index = _checked(table, state, _columns(table))
    size = len(state["ticks"])
    before = _load_prior(table, state)
    if table.cold is not None:
        try:
            table.cold.file.make_whole()
            table.cold.grow(size)
        except BaseException:  # a full disk ends the call before anything changed
            _restore_prior(table, before)
            raise
    table.index = index
    try:
        table.pages.restore(_values(table, state), size)
        _fill(table, blocks, size if any(value.is_meta for value in state.values()) else 0)
    except BaseException:
        _empty(table)
        raise
    if table.cold is None:
        table.pages.grow(table.config.expected)
    _load_rest(table, state)


def _fill(table: "EmbeddingTable", blocks: Iterable[Block], size: int) -> None:
    """Put blocks of so many rows, which follow each other, in their places."""
    at = 0
    for start, columns in blocks:
        if start != at:
            raise ValueError(f"a block of rows begins at {start}; wanted one from {at} on")
        table.pages.fill(start, columns)
        at += len(next(iter(columns.values())))
    if at != size:
        raise ValueError(f"the blocks hold {at} rows; wanted {size}")


def close(table: "EmbeddingTable", version: str | None) -> dict[str, Tensor]:
    """What goes with the cold file, which is closed, and marked if there is a version.

    Raises:
        ValueError: the table has no cold file, or it is closed and there is a version.
        StorageError: the file could not be made durable.
    """
    cold = _cold(table, "close")
    if version is not None:
        cold.file.check_usable()
    rest = {} if version is None else _with_columns(table, _columns_beside_file(table))
    cold.close(version, table.num_rows)
    return rest


def resume(table: "EmbeddingTable", state: Mapping[str, Tensor], version: str) -> None:
    """Put what `close` gave, and the rows in the cold file, in place of all that the table has.

    Raises:
        ValueError: the table has no cold file, its rows are being copied, or the state does not fit; nothing is
            changed.
        CheckpointError: the file is not that version's; nothing is changed.
    """
    cold = _cold(table, "resume from")
    index = _checked(table, state, _columns_beside_file(table))
    cold.file.check(version, state["rows"], state["ids"])
    _load_prior(table, state)
    cold.resume(_values(table, state), state["rows"], len(state["ticks"]))
    table.index = index
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


def _checked(table: "EmbeddingTable", state: Mapping[str, Tensor], columns: list[str]) -> HashTable:
    """The index of a state with these columns, from all of which the table can go on; nothing is changed."""
    if table.pages.before_write is not None:
        raise ValueError("the rows are being copied for a delta; finish, or cancel, that copy first")
    if table.cold is not None:
        table.cold.file.check_usable()
    _check_names(table, state, columns)
    _check_columns(table, state, columns)
    for part, of_part in table.parts().items():
        if isinstance(of_part, Checked) and (kept := _of_part(state, part)):
            try:
                of_part.check_state(kept)
            except ValueError as error:
                raise ValueError(f"{part}.{error}") from error
            width = of_part.width_of(kept) if isinstance(of_part, OfWidth) else None
            if width not in (None, table.config.width):
                raise ValueError(
                    f"the state's {part} was fitted to rows of {width} numbers; wanted {table.config.width}, or none "
                    f"of the tensors that begin with {part}.: it is fitted anew then"
                )
    index = HashTable(max_rows=table.config.capacity, device=table.device)
    index.import_(state["ids"], state["rows"], state["free"])
    index.num_refused = table.index.num_refused
    _check_touches(table, state)
    return index


def _check_touches(table: "EmbeddingTable", state: Mapping[str, Tensor]) -> None:
    """Every touch, count and deletion of a state whose rows are checked lies where its clock and rows have been."""
    tick = int(state["clock.tick"][0])
    ticks = state["ticks"].squeeze(1)
    check_range("ticks of rows with an id", ticks[state["rows"].to(ticks.device)], 0, tick)
    check_range("ticks of free rows", ticks[state["free"].to(ticks.device)], FREE, FREE)
    if table.pages.counts is not None:
        check_range("counts", state["counts"].squeeze(1), 0, MOST_COUNT)
    check_range("deleted.since", state["deleted.since"], -1, tick)
    check_range("deleted.ticks", state["deleted.ticks"], 0, tick)
    if table.config.eviction != "none" and _of_part(state, "eviction"):
        check_range("eviction.rows", state["eviction.rows"], 0, len(ticks) - 1)
        check_range("eviction.ticks", state["eviction.ticks"], 0, tick - 1)


def _check_names(table: "EmbeddingTable", state: Mapping[str, Tensor], columns: list[str]) -> None:
    """Whether a state has all that the table has, and no more, and that which is of the whole fits."""
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
    for name in PLACES:
        tensor_of(state, name)
    if state["ticks"].dim() != 2:
        raise ValueError(f"'ticks' is of the shape {tuple(state['ticks'].shape)}; wanted (N, 1)")
    if len(state["rows"]) != len(state["ids"]) or len(state["ids"]) + len(state["free"]) != len(state["ticks"]):
        raise ValueError(
            f"the state has {len(state['ids'])} ids, {len(state['rows'])} rows and {len(state['free'])} free ones, "
            f"but {len(state['ticks'])} ticks; wanted a tick for each"
        )
    for name in SIZES:
        if name in state:
            tensor_of(state, name, SIZES[name])
    check_range("counts_so_far", tensor_of(state, "counts_so_far", len(vars(table.counts))), 0, 2**63 - 1)
    if "shard" in state and not 0 <= int(state["shard"][0]) < int(state["shard"][1]):
        raise ValueError(f"shard is {state['shard'].tolist()}; wanted its number from 0, and of how many")
    check_range("optimizer", state["optimizer"], 0, len(OPTIMIZERS) - 1)
    kind = OPTIMIZERS[int(state["optimizer"][0])]
    if kind != table.config.optimizer.name:
        raise ValueError(f"the state's rows were trained by {kind}, this table's are by {table.config.optimizer.name}")


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
    _load_prior(table, {})
    table.begin_anew(table.seed, table.shard, table.split, table.counts)


def _load_rest(table: "EmbeddingTable", state: Mapping[str, Tensor]) -> None:
    seed = int(state["seed"].cpu().numpy().view(np.uint64)[0])
    shard = (int(state["shard"][0]), int(state["shard"][1])) if "shard" in state else None
    split = int(state["split"][0]) if "split" in state else None
    table.begin_anew(seed, shard, split, type(table.counts)(*state["counts_so_far"].tolist()))
    for part, of_part in table.parts().items():
        if part != PRIOR and (kept := _of_part(state, part)):
            of_part.load_state(kept)


def _load_prior(table: "EmbeddingTable", state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the prior had; it is the caller's and may know of no check: it is loaded while all else can be left."""
    if table.prior is None:
        return {}
    before, kept = table.prior.state(), _of_part(state, PRIOR)
    if kept:
        try:
            table.prior.load_state(kept)
        except (KeyError, IndexError, TypeError, RuntimeError, ValueError) as error:
            table.prior.load_state(before)
            raise ValueError(f"the prior does not take what the state says of it: {error!r}") from error
    elif isinstance(table.prior, Forgetting):
        table.prior.forget()
    return before


def _restore_prior(table: "EmbeddingTable", before: Mapping[str, Tensor]) -> None:
    if table.prior is not None:
        table.prior.load_state(before)


def _of_part(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    start = f"{part}."
    return {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
