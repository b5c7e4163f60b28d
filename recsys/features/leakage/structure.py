"""What holds for every protocol: each user once, events in order, items known, cuts where the protocol puts them."""

import numpy as np

from recsys.features.dataset import PreparedDataset
from recsys.features.leakage.blocks import Block, blocks
from recsys.features.leakage.leak import Leak
from recsys.features.slices import Int64s
from recsys.features.splits import by_time, leave_one_out, ratio, split_hash

UNIT_RATIO = 500  # units of time are a factor of 1,000 apart


def check_cuts(dataset: PreparedDataset) -> list[Leak]:
    """Cuts outside of their user's events, offsets that go back: `misplaced cut`; empty rows: `user without events`."""
    leaks = []
    for number, shard in enumerate(dataset.shards):
        lengths = np.diff(shard.offsets)
        is_back = lengths < 0
        in_place = (shard.train_end >= 0) & (shard.train_end <= shard.valid_end) & (shard.valid_end <= lengths)
        is_wrong = is_back | ~in_place
        if is_wrong.any():
            row = int(np.flatnonzero(is_wrong)[0])
            cuts = f"{shard.train_end[row]} <= {shard.valid_end[row]} <= {lengths[row]}"
            leaks.append(_misplaced(number, int(is_wrong.sum()), f"user index {shard.users[row]}: not 0 <= {cuts}"))
        empty = np.flatnonzero(lengths == 0)
        if len(empty):
            example = _user(int(shard.users[empty[0]]))
            leaks.append(Leak("user without events", f"rows of shard {number}", len(empty), example))
    return leaks


def check_rule(dataset: PreparedDataset) -> list[Leak]:
    """Cuts other than the protocol gives for these very events: `misplaced cut`, and `changed split` by its hash."""
    leaks = []
    for number, shard in enumerate(dataset.shards):
        count, example = 0, ""
        for block in blocks(PreparedDataset(dataset.path, dataset.manifest, [shard])):
            train_end, valid_end = _expected(dataset, block)
            is_wrong = (train_end != block.train_end) | (valid_end != block.valid_end)
            if is_wrong.any() and not count:
                row = int(np.flatnonzero(is_wrong)[0])
                found = f"{block.train_end[row]} and {block.valid_end[row]}"
                wanted = f"{train_end[row]} and {valid_end[row]}"
                example = f"user index {block.users[row]}: cuts at {found}, {dataset.protocol} gives {wanted}"
            count += int(is_wrong.sum())
        if count:
            leaks.append(_misplaced(number, count, example))
    found = split_hash(dataset)
    if found != dataset.split_hash:
        example = f"{found} instead of {dataset.split_hash}"
        leaks.append(Leak("changed split", "the cuts are not those that were prepared", 1, example))
    return leaks


def check_users(dataset: PreparedDataset) -> list[Leak]:
    """Rows with one user index, in one shard or in two: `duplicated user`; indices that no user has: `unknown user`."""
    seen = np.zeros(dataset.num_users + 1, bool)
    repeated: list[int] = []
    count = 0
    for shard in dataset.shards:
        users = np.asarray(shard.users)
        is_outside = (users < 1) | (users > dataset.num_users)
        if is_outside.any():
            wrong = int(users[is_outside][0])
            where = f"an index outside 1..{dataset.num_users}"
            return [Leak("unknown user", where, int(is_outside.sum()), f"user index {wrong}")]
        is_again, num_before = seen[users], np.count_nonzero(seen)
        seen[users] = True
        if np.count_nonzero(seen) - num_before != len(users) - np.count_nonzero(is_again):
            is_again[np.setdiff1d(np.arange(len(users)), np.unique(users, return_index=True)[1])] = True
        repeated += users[is_again][:1].tolist()
        count += int(is_again.sum())
    leaks = []
    if count:
        leaks.append(Leak("duplicated user", "rows with an index that another row has", count, _user(repeated[0])))
    if not seen[1:].all():
        missing = np.flatnonzero(~seen[1:]) + 1
        where = "users of the vocabulary without a row"
        leaks.append(Leak("unknown user", where, len(missing), _user(int(missing[0]))))
    return leaks


def check_order(dataset: PreparedDataset) -> list[Leak]:
    """Events that are earlier than the one before them: `events out of order`."""
    count, example = 0, ""
    for block in blocks(dataset) if dataset.order == "time" else ():
        assert block.times is not None
        is_back = block.times[1:] < block.times[:-1]
        borders = block.offsets[1:-1]
        is_back[borders[(borders > 0) & (borders < len(block.times))] - 1] = False
        if is_back.any() and not count:
            example = _user(block.owner(int(np.flatnonzero(is_back)[0]) + 1))
        count += int(is_back.sum())
    return [Leak("events out of order", "events earlier than the one before", count, example)] if count else []


def check_units(dataset: PreparedDataset) -> list[Leak]:
    """A shard whose times count in another unit than the other shards': `times of another unit`."""
    if dataset.order != "time":
        return []
    spans = [(int(s.times.min()), int(s.times.max())) for s in dataset.shards if s.times is not None and len(s.times)]
    leaks = []
    for number, (low, high) in enumerate(spans):
        others = [span for other, span in enumerate(spans) if other != number]
        is_small = others and all(high * UNIT_RATIO < other for other, _ in others)
        is_large = others and all(low > other * UNIT_RATIO for _, other in others) and len(others) > 1
        if is_small or is_large:
            where = f"shard {number}: its times are a factor of {UNIT_RATIO} or more from those of all others"
            example = f"{low} to {high} us beside {others[0][0]} to {others[0][1]} us"
            leaks.append(Leak("times of another unit", where, 1, example))
    return leaks


def _expected(dataset: PreparedDataset, block: Block) -> tuple[Int64s, Int64s]:
    if dataset.protocol == "time":
        assert block.times is not None
        return by_time(block.offsets, block.times, dataset.manifest["cuts_us"])
    if dataset.protocol == "ratio":
        split = dataset.manifest["config"]["split"]
        return ratio(block.offsets, split["valid_share"], split["test_share"])
    return leave_one_out(block.offsets, with_valid=dataset.protocol == "loo")


def _misplaced(shard: int, count: int, example: str) -> Leak:
    return Leak("misplaced cut", f"users of shard {shard}", count, example)


def _user(index: int) -> str:
    return f"user index {index}"
