"""States of an embedding table cut into shards by id, and put together again.

    shards = split_state(table.state(), 2)      each loads into a table of the same config, but for its capacity
    whole = merge_states([shard.state() for shard in tables])

Each part says which shard it is, of how many, and so does the table that loads it (`EmbeddingTable.shard`, to be set
where shards begin as new tables). All shards of one split are merged, in any order; a table that was never split merges
only alone. Each part says too of which state it is, by a hash of its ids, ticks and some rows: shards of two tables
that have the same seed and clock are refused. Shards that began as new tables, and older states, say nothing of it.

Id, vector, optimizer's state, tick, count and second of every row stay as they are, to the bit. Of the rest:

    rows        numbered anew in the order of their ids, so that the result depends on no number of shards; of rows that
                have the same tick it is then the lower id that is evicted first
    free rows   none: they were only room
    eviction    the queue is looked for anew; lru and ttl choose the same rows, lfu looks at all rows a little earlier
    admission   threshold: an id's sightings go where the id goes; parts of the window are laid over each other from the
                newest on. probability: every shard goes on from the same random numbers, a merged one from its first's
    clock       each shard's; those that are merged must have the same, ticks and seconds
    deleted     ids go where they belong; merged, changes are known from the first tick since which all know them
    counters    what was counted so far stays with the first shard, and is summed
    seed        of new rows, and the optimizer: those that are merged must have the same
    prior       where new rows start: every shard has it; a merged one fits it anew
    generator   of id dropout, where the state is a module's: as the random numbers of admission

A shard's window of admission holds `capacity` ids of its own: a share of them keeps the window as long as it was.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.mixing import mixed_bits
from recsys.models.embedding_table.ids import check_ids

State = dict[str, Tensor]

COLUMNS = ("vectors", "states", "ticks", "counts")  # of rows
CLOCK = ("clock.now", "clock.tick", "clock.starts", "clock.seconds")
WINDOW = ("admission.ids", "admission.counts", "admission.sizes")
SAME = ("seed", "optimizer")
SHARD = "shard"  # (2,) int64: its number from 0, and of how many
SPLIT = "split"  # (1,) int64: the state that was split
PRIOR = "prior."
DELETED = ("deleted.since", "deleted.ticks", "deleted.sizes", "deleted.ids")
RANDOM = ("admission.generator", "generator")
QUEUE = ("eviction.rows", "eviction.ticks")
PLACES = ("ids", "rows", "free")
NEEDED = (*PLACES, "vectors", "states", "ticks", *CLOCK, *DELETED, *SAME, "counts_so_far")
ALL = {*NEEDED, *COLUMNS, *WINDOW, *RANDOM, *QUEUE, SHARD, SPLIT}
HASHED_ROWS = 1024  # whose vectors and optimizer's states tell one state from another

_SALT = np.uint64(0x5851F42D4C957F2D)  # so that the ids of a shard are no pattern for the table's own hash


def shard_of(ids: Tensor, num_shards: int) -> Tensor:
    """(N,) int64 in [0, num_shards): the shard of ids (N,) int64, by their hash; the same everywhere.

    Raises:
        ValueError: `ids` is no tensor of int64, or there is no such number of shards.
    """
    check_ids(ids)
    if type(num_shards) is not int or num_shards < 1:
        raise ValueError(f"num_shards={num_shards!r}; wanted a whole number of at least 1")
    hashes = mixed_bits(ids.cpu().numpy().astype(np.uint64) ^ _SALT)
    return torch.from_numpy((hashes % np.uint64(num_shards)).astype(np.int64)).to(ids.device)


def split_state(state: Mapping[str, Tensor], num_shards: int) -> list[State]:
    """What `state` of a table gave, cut into so many states by `shard_of` their ids.

    Raises:
        ValueError: the state lacks a part, or has one that is not known here; it is one of several shards; or there is
            no such number of shards.
    """
    _check_parts(state, "the state")
    number, of = _shard_said(state, "the state") or (0, 1)
    if of > 1:
        raise ValueError(f"the state is shard {number} of {of}; merge all of them before it is split anew")
    shards, split = shard_of(state["ids"], num_shards), _hash_of(state)
    return [{**_shard(state, shard, num_shards, shards == shard), SPLIT: split.clone()} for shard in range(num_shards)]


def merge_states(states: Sequence[Mapping[str, Tensor]]) -> State:
    """The state of one table that has all rows of these.

    Raises:
        ValueError: there is none; they are not all shards of one split, each once; they are of different tables; their
            clocks differ; not all of them are followed; or an id stands in two of them. The message names it.
    """
    if not states:
        raise ValueError("there is no state to merge; wanted at least one")
    for number, state in enumerate(states):
        _check_parts(state, f"state {number}")
    _check_shards(states)
    _check_split(states)
    for number, state in enumerate(states):
        _check_alike(states[0], state, number)
    ids = torch.cat([state["ids"] for state in states])
    ids, order = ids.sort()
    _check_once(states, ids)
    merged: State = {"ids": ids, **_numbered(len(ids))}
    for name in COLUMNS:
        if name in states[0]:
            merged[name] = torch.cat([state[name][state["rows"]] for state in states])[order]
    for name in (*CLOCK, *SAME, *RANDOM):
        if name in states[0]:
            merged[name] = states[0][name].clone()
    if QUEUE[0] in states[0]:
        merged |= _empty_queue()
    if WINDOW[0] in states[0]:
        merged |= _merged_windows(states)
    if f"{PRIOR}fitted_at" in states[0]:
        merged[f"{PRIOR}fitted_at"] = torch.tensor([-1, 0])
    merged |= _merged_deleted(states)
    merged["counts_so_far"] = torch.stack([state["counts_so_far"] for state in states]).sum(0)
    return merged


def _shard(state: Mapping[str, Tensor], shard: int, num_shards: int, is_here: Tensor) -> State:
    ids, order = state["ids"][is_here].sort()
    part: State = {"ids": ids, **_numbered(len(ids)), SHARD: torch.tensor([shard, num_shards])}
    rows = state["rows"][is_here][order]
    for name in COLUMNS:
        if name in state:
            part[name] = state[name][rows]
    for name in (*CLOCK, *SAME, *RANDOM, *(name for name in state if name.startswith(PRIOR))):
        if name in state:
            part[name] = state[name].clone()
    if QUEUE[0] in state:
        part |= _empty_queue()
    if WINDOW[0] in state:
        kept = shard_of(state["admission.ids"], num_shards) == shard
        part["admission.ids"], part["admission.counts"] = state["admission.ids"][kept], state["admission.counts"][kept]
        part["admission.sizes"] = _sizes_of(kept, state["admission.sizes"])
    kept = shard_of(state["deleted.ids"], num_shards) == shard
    part["deleted.since"], part["deleted.ticks"] = state["deleted.since"].clone(), state["deleted.ticks"].clone()
    part["deleted.ids"], part["deleted.sizes"] = state["deleted.ids"][kept], _sizes_of(kept, state["deleted.sizes"])
    counted = state["counts_so_far"]
    part["counts_so_far"] = counted.clone() if shard == 0 else torch.zeros_like(counted)
    return part


def _hash_of(state: Mapping[str, Tensor]) -> Tensor:
    """(1,) int64: the same for equal states; for others the same by chance alone, unless they differ in few rows."""
    count, rows = len(state["rows"]), state["rows"]
    some = rows[torch.arange(min(count, HASHED_ROWS)) * count // max(1, min(count, HASHED_ROWS))]
    digest = hashlib.blake2b(digest_size=8)
    for part in (state["ids"], rows, state["ticks"], *(state[name] for name in (*CLOCK, *SAME))):
        digest.update(part.cpu().contiguous().numpy().data)
    for name in ("vectors", "states"):
        digest.update(state[name][some].cpu().contiguous().numpy().data)
    return torch.tensor([int.from_bytes(digest.digest(), "little", signed=True)])


def _numbered(count: int) -> State:
    return {"rows": torch.arange(count), "free": torch.empty(0, dtype=torch.int64)}


def _empty_queue() -> State:
    return {name: torch.empty(0, dtype=torch.int64) for name in QUEUE}


def _sizes_of(kept: Tensor, sizes: Tensor) -> Tensor:
    """(P,) how many are kept in each part."""
    parts = [int(part.sum()) for part in torch.split(kept, sizes.tolist())]
    return torch.tensor(parts, dtype=torch.int64)


def _merged_windows(states: Sequence[Mapping[str, Tensor]]) -> State:
    most = max(len(state["admission.sizes"]) for state in states)
    parts: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in range(most)]  # the newest last
    for state in states:
        sizes = state["admission.sizes"].tolist()
        split = zip(
            torch.split(state["admission.ids"], sizes), torch.split(state["admission.counts"], sizes), strict=True
        )
        for (ids, counts), (some, their) in zip(parts[most - len(sizes) :], split, strict=True):
            ids.append(some)
            counts.append(their)
    flat = [torch.cat(ids) for ids, _ in parts]
    return {
        "admission.ids": torch.cat(flat),
        "admission.counts": torch.cat([torch.cat(counts) for _, counts in parts]),
        "admission.sizes": torch.tensor([len(ids) for ids in flat], dtype=torch.int64),
    }


def _merged_deleted(states: Sequence[Mapping[str, Tensor]]) -> State:
    since = max(int(state["deleted.since"]) for state in states)
    found: dict[int, list[Tensor]] = {}
    for state in states:
        parts = torch.split(state["deleted.ids"], state["deleted.sizes"].tolist())
        for tick, ids in zip(state["deleted.ticks"].tolist(), parts, strict=True):
            if tick >= since and len(ids):
                found.setdefault(tick, []).append(ids)
    by_tick = [(tick, torch.unique(torch.cat(found[tick]))) for tick in sorted(found)]
    return {
        "deleted.since": torch.tensor([since]),
        "deleted.ticks": torch.tensor([tick for tick, _ in by_tick], dtype=torch.int64),
        "deleted.sizes": torch.tensor([len(ids) for _, ids in by_tick], dtype=torch.int64),
        "deleted.ids": torch.cat([torch.empty(0, dtype=torch.int64), *(ids for _, ids in by_tick)]),
    }


def _check_parts(state: Mapping[str, Tensor], name: str) -> None:
    missing = [part for part in NEEDED if part not in state]
    if missing:
        raise ValueError(f"{name} has no {missing[0]!r}; wanted what state() of a table gives")
    others = sorted(name for name in state.keys() - ALL if not name.startswith(PRIOR))
    if others:
        raise ValueError(
            f"{name} has {others[0]!r}, which resharding does not know; wanted what state() of a table gives"
        )


def _shard_said(state: Mapping[str, Tensor], name: str) -> tuple[int, int] | None:
    """Which shard it is, and of how many; None for a table that was never split."""
    if SHARD not in state:
        return None
    said = state[SHARD].tolist()
    if not (isinstance(said, list) and len(said) == 2 and 0 <= said[0] < said[1]):
        raise ValueError(f"{name} says that it is shard {said}; wanted its number from 0, and of how many")
    return said[0], said[1]


def _check_shards(states: Sequence[Mapping[str, Tensor]]) -> None:
    """All shards of one split, or a table that was never split."""
    seen: dict[int, int] = {}
    first: tuple[int, int] | None = None
    for place, state in enumerate(states):
        said = _shard_said(state, f"state {place}")
        if said is None:
            if len(states) == 1:
                return
            raise ValueError(
                f"state {place} does not say which shard it is, as a table that was never split: it merges only alone; "
                "wanted what split_state gave, or the states of tables whose `shard` is set"
            )
        first = first or said
        if said[1] != first[1]:
            raise ValueError(
                f"states 0 and {place} are of different splits: shard {first[0]} of {first[1]} and shard {said[0]} of "
                f"{said[1]}; wanted all shards of one"
            )
        if said[0] in seen:
            raise ValueError(
                f"states {seen[said[0]]} and {place} are both shard {said[0]} of {said[1]}; wanted each shard once"
            )
        seen[said[0]] = place
    assert first is not None
    missing = sorted(set(range(first[1])) - seen.keys())
    if missing:
        raise ValueError(f"shards {missing} of {first[1]} are missing, and so their ids; wanted all of them")


def _check_split(states: Sequence[Mapping[str, Tensor]]) -> None:
    """All shards of one state, as far as they say of which."""
    said = [int(state[SPLIT][0]) if SPLIT in state else None for state in states]
    strange = [place for place, split in enumerate(said) if split != said[0]]
    if strange:
        hashes = ["none" if split is None else f"{split % 2**64:016x}" for split in (said[0], said[strange[0]])]
        raise ValueError(
            f"states 0 and {strange[0]} are shards of different tables, or of splits at different times: "
            f"{SPLIT!r} is {hashes[0]} and {hashes[1]}; wanted all shards that one call of split_state gave"
        )


def _check_alike(first: Mapping[str, Tensor], state: Mapping[str, Tensor], number: int) -> None:
    differing = sorted(name for name in first.keys() ^ state.keys() if not name.startswith(PRIOR))
    if differing:
        raise ValueError(f"states 0 and {number} are of different tables: one alone has {differing[0]!r}")
    for name in ("vectors", "states"):
        if state[name].shape[1] != first[name].shape[1]:
            raise ValueError(
                f"states 0 and {number} are of different tables: {name!r} is {first[name].shape[1]} wide in the one, "
                f"{state[name].shape[1]} in the other"
            )
    for name in SAME:
        if not torch.equal(state[name], first[name]):
            raise ValueError(f"{name!r} of states 0 and {number} differ; wanted the same")
    for name in CLOCK:
        if not torch.equal(state[name], first[name]):
            raise ValueError(
                f"{name!r} of states 0 and {number} differ, so that neither touches nor times to live compare: "
                "set the clocks of all shards to the same seconds, and advance all of them at every step"
            )
    if (int(state["deleted.since"]) < 0) != (int(first["deleted.since"]) < 0):
        raise ValueError(
            f"one of states 0 and {number} is followed, the other is not: its deleted ids are not known; "
            "call follow() on all shards, or on none"
        )


def _check_once(states: Sequence[Mapping[str, Tensor]], ids: Tensor) -> None:
    """Of the sorted ids of all states."""
    again = ids[1:][ids[1:] == ids[:-1]]
    if len(again):
        where = [number for number, state in enumerate(states) if bool((state["ids"] == again[0]).any())]
        raise ValueError(f"id {int(again[0])} stands in the states {where}; wanted in one")
