"""Who sees whom, cut into regions that no query-key pair shares: rectangles, and bands around the diagonal.

    history     a query before the first target against the keys behind the global ones: a band, or all
    global      every query against the global keys; a global query against all keys, or the triangle before it
    targets     a target against the history (a rectangle), and against its own group (a small square)

So global tokens and targets need no mask of their own: a region is full, or it is a band as plain attention knows it.
A query that lies in several regions gets the parts of its result from each, and they are merged.
"""

from dataclasses import dataclass

import numpy as np

from recsys.kernels.attention.visibility import Visibility
from recsys.kernels.jagged import JaggedMeta

MIN_BLOCK, MAX_BLOCK = 64, 1024
Bounds = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # first and end of the queries, and of the keys


@dataclass(frozen=True)
class Items:
    """Runs of queries with the run of keys that they see.

    A column each, (n,) int64; `first_q`, `first_k` and `shift` are counted in the item's own sequence.
    """

    sequence: np.ndarray
    first_q: np.ndarray
    len_q: np.ndarray
    first_k: np.ndarray
    len_k: np.ndarray
    shift: np.ndarray  # place of a query among the keys, minus its number

    @classmethod
    def between(cls, bounds: Bounds, shift: np.ndarray, sequence: np.ndarray | None = None) -> "Items":
        """The items that are not empty on either side."""
        first_q, end_q, first_k, end_k = bounds
        sequence = np.arange(len(shift)) if sequence is None else sequence
        whole = cls(sequence, first_q, end_q - first_q, first_k, end_k - first_k, shift)
        return whole.take(np.flatnonzero((whole.len_q > 0) & (whole.len_k > 0)))

    @classmethod
    def joined(cls, parts: list["Items"]) -> "Items":
        """All items of the parts, in their order."""
        return cls(*(np.concatenate(columns) for columns in zip(*(part._columns() for part in parts), strict=True)))

    def take(self, chosen: np.ndarray) -> "Items":
        """The items at these positions."""
        return Items(*(column[chosen] for column in self._columns()))

    def _columns(self) -> tuple[np.ndarray, ...]:
        return self.sequence, self.first_q, self.len_q, self.first_k, self.len_k, self.shift


@dataclass(frozen=True)
class Region:
    """Items under one mask: `left` and `right` neighbours seen, -1 for no limit."""

    items: Items
    left: int
    right: int


@dataclass(frozen=True)
class _Sequences:
    """Of each sequence, (B,) int64."""

    num_q: np.ndarray
    shift: np.ndarray
    first_target: np.ndarray  # place among the keys
    num_history: np.ndarray  # queries before the first target
    num_global: np.ndarray


def regions(
    meta_q: JaggedMeta, meta_k: JaggedMeta, visibility: Visibility, num_targets: np.ndarray | None
) -> list[Region]:
    """Regions that cover what is seen, each pair once; rows that see nothing are in none."""
    left, right = visibility.window[0], 0 if visibility.causal else visibility.window[1]
    is_limited = left >= 0 or (right >= 0 and not visibility.causal)  # else global tokens change nothing
    sequences = _sequences(meta_q, meta_k, visibility.num_global if is_limited else 0, num_targets)
    found: dict[tuple[int, int], list[Items]] = {(left, right): _history(sequences, left, right)}
    rectangles = found.setdefault((-1, -1), [])
    if is_limited and visibility.num_global > 0:
        rectangles += _global_keys(sequences, visibility.causal)
        found.setdefault((-1, 0 if visibility.causal else -1), []).append(_global_rows(sequences, visibility.causal))
    if num_targets is not None:
        rectangles += _targets(sequences, left)
        rectangles.append(_groups(sequences, num_targets, visibility.target_group))
    joined = {mask: Items.joined(parts) for mask, parts in found.items() if parts}
    return [Region(items, *mask) for mask, items in joined.items() if len(items.sequence)]


def _sequences(meta_q: JaggedMeta, meta_k: JaggedMeta, num_global: int, num_targets: np.ndarray | None) -> _Sequences:
    num_q, num_k = meta_q.lengths, meta_k.lengths
    targets = np.zeros_like(num_k) if num_targets is None else num_targets
    first_target = num_k - targets
    return _Sequences(
        num_q=num_q,
        shift=num_k - num_q,
        first_target=first_target,
        num_history=np.maximum(num_q - targets, 0),
        num_global=np.minimum(num_global, first_target),
    )


def _history(s: _Sequences, left: int, right: int) -> list[Items]:
    """The band, behind the global keys and without the global rows."""
    zeros = np.zeros_like(s.shift)
    if not s.num_global.any():
        return [_band((zeros, s.num_history, zeros, s.first_target), s.shift, left, right)]
    before = np.clip(-s.shift, 0, s.num_history)  # queries that stand before the first key
    after = np.maximum(s.num_global - s.shift, 0)
    return [
        _band((after, s.num_history, s.num_global, s.first_target), s.shift, left, right),
        _band((zeros, before, s.num_global, s.first_target), s.shift, left, right),
    ]


def _band(bounds: Bounds, shift: np.ndarray, left: int, right: int) -> Items:
    """One item a sequence, from its first query that sees a key; long ones cut where the window is narrow."""
    first_q, end_q, first_k, end_k = bounds
    first_q = np.maximum(first_q, first_k - shift - right) if right >= 0 else first_q
    whole = Items.between((first_q, end_q, first_k, end_k), shift)
    if left < 0 or right < 0:
        return whole
    block = int(np.clip(1 << ((left + right) // 2).bit_length(), MIN_BLOCK, MAX_BLOCK))
    is_long = (whole.len_q > 2 * block) & (whole.len_k > block + left + right + 1)
    parts = [whole.take(np.flatnonzero(~is_long))]
    parts += [_blocks(whole.take(np.array([i])), block, left, right) for i in np.flatnonzero(is_long)]
    return Items.joined(parts)


def _blocks(item: Items, block: int, left: int, right: int) -> Items:
    """The blocks of a single whole sequence."""
    end_q, shift = int(item.first_q[0] + item.len_q[0]), int(item.shift[0])
    low_k, end_k = int(item.first_k[0]), int(item.first_k[0] + item.len_k[0])
    first_q = np.arange(int(item.first_q[0]), end_q, block)
    last_q = np.minimum(first_q + block, end_q)
    first_k = np.maximum(low_k, first_q + shift - left)
    last_k = np.minimum(end_k, last_q + shift + right)
    same = np.ones_like(first_q)
    return Items(item.sequence * same, first_q, last_q - first_q, first_k, last_k - first_k, item.shift * same)


def _global_keys(s: _Sequences, causal: bool) -> list[Items]:
    """The global keys, for all queries but the global ones."""
    zeros = np.zeros_like(s.shift)
    after = Items.between((np.maximum(s.num_global - s.shift, 0), s.num_history, zeros, s.num_global), s.shift)
    if causal:
        return [after]
    before = np.clip(-s.shift, 0, s.num_history)
    return [after, Items.between((zeros, before, zeros, s.num_global), s.shift)]


def _global_rows(s: _Sequences, causal: bool) -> Items:
    first_q, end_q = np.maximum(-s.shift, 0), np.clip(s.num_global - s.shift, 0, s.num_history)
    end_k = s.num_global if causal else s.first_target
    return Items.between((first_q, end_q, np.zeros_like(s.shift), end_k), s.shift)


def _targets(s: _Sequences, left: int) -> list[Items]:
    """All targets against the history: behind it they stand at one place, so each sees the same keys."""
    zeros = np.zeros_like(s.shift)
    first_k = zeros if left < 0 else np.maximum(s.first_target - left, 0)
    first_k = np.where(first_k <= s.num_global, 0, first_k)
    end_global = np.where(first_k > 0, s.num_global, 0)
    return [
        Items.between((s.num_history, s.num_q, first_k, s.first_target), s.shift),
        Items.between((s.num_history, s.num_q, zeros, end_global), s.shift),
    ]


def _groups(s: _Sequences, num_targets: np.ndarray, target_group: int) -> Items:
    """The square of each group of targets, without the rows that are no queries."""
    num_groups = -(-num_targets // target_group)
    sequence = np.repeat(np.arange(len(num_targets)), num_groups)
    number = np.arange(len(sequence)) - np.repeat(np.cumsum(num_groups) - num_groups, num_groups)
    first, shift = s.first_target[sequence] + number * target_group, s.shift[sequence]
    end = np.minimum(first + target_group, s.first_target[sequence] + num_targets[sequence])
    return Items.between((np.maximum(first - shift, 0), end - shift, first, end), shift, sequence)
