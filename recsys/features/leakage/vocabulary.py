"""What the vocabularies give away: ids given twice, indices that only the future could give."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from recsys.features.dataset import PreparedDataset
from recsys.features.leakage.blocks import blocks
from recsys.features.leakage.leak import Leak
from recsys.features.slices import Int64s
from recsys.features.vocabulary import Vocabulary

NEVER = np.iinfo(np.int64).max
IDS_PER_BLOCK = 1 << 20
UInt64s = npt.NDArray[np.uint64]


def check_ids(dataset: PreparedDataset) -> list[Leak]:
    """Raw ids with two indices: `duplicated user`, `duplicated item`; more ids than indices: `vocabulary from test`."""
    leaks = []
    for what, vocabulary, size in (
        ("user", dataset.users, dataset.num_users),
        ("item", dataset.items, dataset.num_items),
    ):
        twice = _repeated(vocabulary)
        if len(twice):
            raw = vocabulary.decode(twice[:1])[0]
            where = f"raw ids that two {what} indices have"
            leaks.append(Leak(f"duplicated {what}", where, len(twice), f"{raw!r} at index {twice[0]}"))
        if len(vocabulary) != size:
            where = f"the vocabulary holds {len(vocabulary):,} {what}s, the manifest counts {size:,}"
            leaks.append(Leak("vocabulary from test", where, abs(len(vocabulary) - size), f"index {size + 1}"))
    return leaks


def check_items(dataset: PreparedDataset) -> list[Leak]:
    """Item indices without an event, or before those that were known earlier.

    Names: `unknown item` for an index outside 1..V, `vocabulary from test` where an item without an event, or one that
    appeared after the first cut, stands before items known at it, `vocabulary order` for any other disorder. Order is
    that of first appearance, and can be checked where times are known. As many disorders as the manifest declares late
    events are no leak: in all, and among what an append brought of those since. With events.repeats=last indices given
    before an append that superseded events have no order that could be checked.
    """
    size, lowest, highest = dataset.num_items, 1, 1
    has_times = dataset.order == "time"
    first = np.full(size + 1, NEVER, np.int64)
    for block in blocks(dataset):
        if not len(block.items):
            continue
        lowest, highest = min(lowest, int(block.items.min())), max(highest, int(block.items.max()))
        if lowest < 1 or highest > size:
            wrong = lowest if lowest < 1 else highest
            return [Leak("unknown item", f"an index outside 1..{size}", 1, f"item index {wrong}")]
        if block.times is not None:
            np.minimum.at(first, block.items, block.times)
        else:
            first[block.items] = 0
    leaks = []
    unused = np.flatnonzero(first[1:] == NEVER) + 1
    if len(unused):
        where = "items of the vocabulary without any event"
        leaks.append(Leak("vocabulary from test", where, len(unused), f"item index {unused[0]}"))
    return leaks + (_disorder(dataset, "item", first) if has_times else [])


def check_user_order(dataset: PreparedDataset) -> list[Leak]:
    """User indices that do not follow the users' first events, where times are known: `vocabulary order`."""
    if dataset.order != "time":
        return []
    first = np.full(dataset.num_users + 1, NEVER, np.int64)
    for block in blocks(dataset):
        assert block.times is not None
        has_events = block.lengths > 0
        first[block.users[has_events]] = block.times[block.offsets[:-1][has_events]]
    return _disorder(dataset, "user", first)


def _disorder(dataset: PreparedDataset, what: Literal["item", "user"], first: Int64s) -> list[Leak]:
    """Indices that appeared before one with a lower index of the same append did.

    Args:
        dataset: whose manifest tells appends and cuts.
        what: whose indices.
        first: (V+1,) int64 us, first appearance of each index.
    """
    appends = dataset.manifest.get("appends") or []
    starts = [1, *(int(append[f"first_new_{what}_index"]) for append in appends), len(first)]
    late = [int(append.get("late_events", 0)) for append in appends]
    unsettled = _num_unsettled(dataset)
    starts, late = starts[unsettled:], late[unsettled:]
    everything = _without_never(first[starts[0] :])
    is_early = everything < np.maximum.accumulate(everything)
    if is_early.sum() > sum(late):
        # More than all late events can explain: what came by which append does not matter.
        starts, late = [starts[0], len(first)], [0]
    cut = dataset.manifest["cuts_us"][0] if dataset.protocol == "time" and dataset.manifest["cuts_us"] else None
    known, other = 0, 0
    example = {"known": "", "other": ""}
    for n, (start, end) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        if end <= start:
            continue
        times = first[start:end]
        latest = np.maximum.accumulate(_without_never(times))
        is_early = times < latest
        # A late event lowers the first appearance of one item and one user at most.
        if not is_early.any() or int(is_early.sum()) <= sum(late[n:]):
            continue
        is_known = is_early & ((times < cut) & (latest >= cut) if cut is not None else np.False_)
        for kind, mask in (("known", is_known), ("other", is_early & ~is_known)):
            if mask.any() and not example[kind]:
                example[kind] = f"{what} index {start + int(np.flatnonzero(mask)[0])}"
        known, other = known + int(is_known.sum()), other + int((is_early & ~is_known).sum())
    leaks = []
    if known:
        where = f"{what}s known at the first cut stand behind one that appeared after it"
        leaks.append(Leak("vocabulary from test", where, known, example["known"]))
    if other:
        where = f"{what}s stand behind one that appeared later"
        leaks.append(Leak("vocabulary order", where, other, example["other"]))
    return leaks


def _num_unsettled(dataset: PreparedDataset) -> int:
    """How many of the first source and the appends gave indices whose order nothing tells any more.

    With events.repeats=last a later event takes out the first appearance itself, of any index given before it.
    """
    if dataset.manifest.get("config", {}).get("events", {}).get("repeats") != "last":
        return 0
    appends = dataset.manifest.get("appends") or []
    return max((n + 1 for n, append in enumerate(appends) if append.get("superseded_events", 0)), default=0)


def _without_never(times: Int64s) -> Int64s:
    """The times, with the earliest in place of indices that never appear: those are told apart."""
    is_never = times == NEVER
    return np.where(is_never, times.min(), times) if is_never.any() else times


def _repeated(vocabulary: Vocabulary) -> Int64s:
    """Indices of ids that stand in the vocabulary before, by their meaning: 12 and 012 are one integer."""
    hashes = np.empty(len(vocabulary), np.uint64)
    for start in range(0, len(vocabulary), IDS_PER_BLOCK):
        end = min(start + IDS_PER_BLOCK, len(vocabulary))
        hashes[start:end] = id_numbers(vocabulary, start, end)
    ordered = np.sort(hashes)
    suspected = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(suspected):
        return np.zeros(0, np.int64)
    places = np.flatnonzero(np.isin(hashes, suspected)) + 1
    seen: set[int | str] = set()
    again = []
    raw_ids: list[int | str] = [*vocabulary.decode(places)]
    for place, raw in zip(places.tolist(), raw_ids, strict=True):
        if raw in seen:
            again.append(place)
        seen.add(raw)
    return np.array(again, np.int64)


def id_numbers(vocabulary: Vocabulary, start: int, end: int) -> UInt64s:
    """A number for each id, (n,) uint64: equal ids have equal ones; an integer's is its value."""
    offsets = np.asarray(vocabulary.offsets[start : end + 1])
    data = np.asarray(vocabulary.data[offsets[0] : offsets[-1]])
    lengths, starts = np.diff(offsets), offsets[:-1] - offsets[0]
    is_int = vocabulary.kind == "int"
    numbers = np.full(len(lengths), 0 if is_int else 0x9E3779B97F4A7C15, np.uint64)
    for n in range(int(lengths.max(initial=0))):
        has = slice(None) if n < lengths.min() else np.flatnonzero(lengths > n)
        byte = data[starts[has] + n].astype(np.uint64)
        numbers[has] = _with_digit(numbers[has], byte) if is_int else _with_byte(numbers[has], byte)
    if is_int and len(data):
        is_negative = data[starts] == ord("-")
        numbers[is_negative] = np.uint64(0) - numbers[is_negative]
    return numbers


def _with_digit(numbers: UInt64s, byte: UInt64s) -> UInt64s:
    return np.where(byte < ord("0"), numbers, numbers * np.uint64(10) + (byte - np.uint64(ord("0"))))


def _with_byte(numbers: UInt64s, byte: UInt64s) -> UInt64s:
    mixed = (numbers ^ byte) * np.uint64(0x100000001B3)
    return mixed ^ (mixed >> np.uint64(29))
