"""Events on the wrong side of a cut in time: of the whole dataset's cuts, or of a user's own first target."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from recsys.features.dataset import PreparedDataset
from recsys.features.leakage.blocks import Block, blocks
from recsys.features.leakage.leak import Leak
from recsys.features.slices import Int64s
from recsys.features.splits import cut_places

PARTS = ("train", "valid", "test")


def check_cut_times(dataset: PreparedDataset) -> list[Leak]:
    """Cuts in the manifest other than its shares give for these events: `misplaced cut`."""
    if dataset.protocol != "time":
        return []
    split, cuts = dataset.manifest["config"]["split"], dataset.manifest["cuts_us"]
    before, until = np.zeros(2, np.int64), np.zeros(2, np.int64)
    num_events = 0
    for block in blocks(dataset):
        assert block.times is not None
        before += [np.count_nonzero(block.times < cut) for cut in cuts]
        until += [np.count_nonzero(block.times <= cut) for cut in cuts]
        num_events += len(block.times)
    leaks = []
    for n, place in enumerate(cut_places(num_events, split["valid_share"], split["test_share"])):
        if not before[n] <= place < until[n]:
            example = f"{cuts[n]} us stands after {before[n]:,} of {num_events:,} events, not after {place:,}"
            leaks.append(Leak("misplaced cut", f"cuts_us[{n}] of the manifest", 1, example))
    return leaks


def check_sides(dataset: PreparedDataset) -> list[Leak]:
    """Events beyond their part's cuts, of a split by time.

    Names: `future event` at or after the part's cut, `misplaced event` before it, and
    `same-second tie across the cut` where other events of that very timestamp stand on the other side.
    """
    if dataset.protocol != "time":
        return []
    wrong = _Wrong()
    for block in blocks(dataset):
        wrong.look(block, dataset.manifest["cuts_us"])
    return wrong.leaks(dataset)


def check_own_targets(dataset: PreparedDataset) -> list[Leak]:
    """Training events later than the same user's first target, by any protocol: `future event`."""
    count, example = 0, ""
    for block in blocks(dataset) if dataset.order == "time" else ():
        assert block.times is not None
        has_target = (block.train_end > 0) & (block.train_end < block.lengths)
        start = block.offsets[:-1][has_target]
        if not len(start):
            continue
        end = start + block.train_end[has_target]
        # The maximum over [start, end) of each such user; what lies between two of them is passed over.
        latest = np.maximum.reduceat(block.times, np.stack([start, end], 1).ravel())[::2]
        is_later = latest > block.times[end]
        if is_later.any() and not count:
            example = f"user index {block.users[has_target][is_later][0]}"
        count += int(is_later.sum())
    where = "users with a training event later than their own first target"
    return [Leak("future event", where, count, example)] if count else []


class _Wrong:
    """Collects the events that stand beyond the cuts of their part."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, int], int] = {}
        self.examples: dict[tuple[str, int], str] = {}
        self.times: list[Int64s] = []

    def look(self, block: Block, cuts: Sequence[int]) -> None:
        assert block.times is not None
        due = (block.times >= cuts[0]).view(np.int8) + (block.times >= cuts[1]).view(np.int8)
        parts = block.parts()
        if np.array_equal(due, parts):
            return
        for name, is_wrong in (("future event", due > parts), ("misplaced event", due < parts)):
            for number in range(3):
                self._count(block, name, number, is_wrong & (parts == number))

    def _count(self, block: Block, name: str, part: int, is_wrong: npt.NDArray[np.bool_]) -> None:
        assert block.times is not None
        if not is_wrong.any():
            return
        first = int(np.flatnonzero(is_wrong)[0])
        self.examples.setdefault((name, part), f"user index {block.owner(first)} at {block.times[first]} us")
        self.counts[name, part] = self.counts.get((name, part), 0) + int(is_wrong.sum())
        self.times.append(np.unique(block.times[is_wrong]))

    def leaks(self, dataset: PreparedDataset) -> list[Leak]:
        leaks = []
        for (name, part), count in sorted(self.counts.items()):
            beyond = "at or after" if name == "future event" else "before"
            where = f"the {PARTS[part]} part holds events {beyond} its cut"
            leaks.append(Leak(name, where, count, self.examples[name, part]))
        return _ties(dataset, np.unique(np.concatenate(self.times))) + leaks if leaks else []


def _ties(dataset: PreparedDataset, times: Int64s) -> list[Leak]:
    """Timestamps among `times` that events of two parts share."""
    in_part = np.zeros((3, len(times)), bool)
    for block in blocks(dataset):
        assert block.times is not None
        place = np.minimum(np.searchsorted(times, block.times), len(times) - 1)
        is_one = times[place] == block.times
        in_part[block.parts()[is_one], place[is_one]] = True
    shared = times[in_part.sum(0) > 1]
    where = "timestamps whose events stand on both sides of a cut"
    return [Leak("same-second tie across the cut", where, len(shared), f"{shared[0]} us")] if len(shared) else []
