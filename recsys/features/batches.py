"""Prepared sequences into jagged batches: no padding between the disk and the kernel.

Dims: B sequences, T tokens of a batch. Needs torch and numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.features.dataset import PreparedDataset
from recsys.features.sampling import Sampling, windows_of
from recsys.features.slices import Queries, offsets_of, ranges


@dataclass(frozen=True)
class JaggedBatch:
    """B sequences of item indices, one after another.

    values: (T,) int64, oldest first inside a sequence. offsets: (B+1,) int64. lengths: the same on the host.
    times: (T,) int64 us UTC. query_times: (B,) int64 us, when the question is asked. users: (B,) int64, 0 unknown.
    instances: (B,) int64 on the host, of training sequences: window * copies + copy, the same in every epoch.
    event_types: (T,) int64, number of each event's type from 1, 0 unknown; None where no event has one.
    In `values` 0 is an item that the vocabulary lacks.
    """

    values: Tensor
    offsets: Tensor
    lengths: tuple[int, ...]
    times: Tensor | None = None
    query_times: Tensor | None = None
    users: Tensor | None = None
    instances: Tensor | None = None
    event_types: Tensor | None = None

    @property
    def max_len(self) -> int:
        """Length of the longest sequence, known on the host."""
        return max(self.lengths, default=0)

    @classmethod
    def from_sequences(
        cls,
        sequences: Sequence[Sequence[int] | np.ndarray],
        times: Sequence[Sequence[int] | np.ndarray] | None = None,
        query_times: Sequence[int] | None = None,
        users: Sequence[int] | None = None,
        max_len: int | None = None,
        event_types: Sequence[Sequence[int] | np.ndarray] | None = None,
    ) -> JaggedBatch:
        """A batch of the last `max_len` items of each sequence (all of them by default).

        Raises:
            ValueError: `times` or `event_types` does not match `sequences` in shape.
        """
        for name, columns in (("times", times), ("event_types", event_types)):
            if columns is not None and [len(column) for column in columns] != [len(s) for s in sequences]:
                raise ValueError(f"{name} must have one value for each item of sequences")
        cut = slice(None) if max_len is None else slice(-max_len, None) if max_len else slice(0, 0)
        rows = [np.asarray(sequence, dtype=np.int64)[cut] for sequence in sequences]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)

        def flat(columns: Sequence[Sequence[int] | np.ndarray] | None) -> Tensor | None:
            return None if columns is None else _flat([np.asarray(column, dtype=np.int64)[cut] for column in columns])

        return cls(
            values=_flat(rows),
            offsets=torch.from_numpy(offsets_of(lengths)),
            lengths=tuple(lengths.tolist()),
            times=flat(times),
            query_times=None if query_times is None else torch.tensor(query_times, dtype=torch.int64),
            users=None if users is None else torch.tensor(users, dtype=torch.int64),
            event_types=flat(event_types),
        )

    def to(self, device: torch.device | str) -> JaggedBatch:
        """The same batch with its tensors on `device`; `instances` stay on the host, where masks are made."""

        def move(tensor: Tensor | None) -> Any:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            values=move(self.values),
            offsets=move(self.offsets),
            times=move(self.times),
            query_times=move(self.query_times),
            users=move(self.users),
            event_types=move(self.event_types),
        )


class TrainBatches:
    """Training sequences in batches of at most `tokens_per_batch` tokens, or of `sequences_per_batch` sequences.

    The order is a function of (seed, epoch): a run that stops at any step goes on with exactly the batch it would have
    seen.

    Args:
        dataset: prepared dataset; every user's training part of at least `min_len` events is used.
        max_len: longest sequence.
        tokens_per_batch: upper bound on T, at least one sequence each; not looked at where `sequences_per_batch` is
            given.
        seed: of the order.
        sequences_per_batch: B; the last batch of an epoch may hold fewer.
        sampling: which windows of a training part are sequences, and how often each occurs in an epoch; by default the
            last `max_len` events, once.

    Raises:
        ValueError: `tokens_per_batch` rules and is less than one sequence.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        *,
        max_len: int,
        tokens_per_batch: int,
        seed: int,
        sequences_per_batch: int | None = None,
        sampling: Sampling | None = None,
        min_len: int = 2,
    ) -> None:
        if sequences_per_batch is None and tokens_per_batch < max_len:
            raise ValueError(
                f"tokens_per_batch={tokens_per_batch} is less than one sequence of max_len={max_len}; raise it"
            )
        sampling = sampling or Sampling()
        slices = dataset.train_slices()
        keep = np.flatnonzero(slices.lengths >= min_len)
        run, self.start, self.end = windows_of(slices.start[keep], slices.end[keep], max_len, sampling.window_stride)
        self.shard, self.user = slices.shard[keep[run]], slices.user[keep[run]]
        self.lengths = self.end - self.start
        self.dataset, self.seed, self.copies = dataset, seed, sampling.copies
        self.tokens_per_batch, self.sequences_per_batch = tokens_per_batch, sequences_per_batch

    @property
    def num_windows(self) -> int:
        """Distinct sequences."""
        return len(self.lengths)

    @property
    def num_instances(self) -> int:
        """Sequences of one epoch: each window as often as it is copied."""
        return self.num_windows * self.copies

    @property
    def num_tokens(self) -> int:
        """Tokens of one epoch."""
        return int(self.lengths.sum()) * self.copies

    def num_batches(self, epoch: int) -> int:
        """Batches of one epoch."""
        if self.sequences_per_batch is not None:
            return -(-self.num_instances // self.sequences_per_batch)
        return len(self.plan(epoch))

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The instance numbers of each batch of one epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_instances)
        if self.sequences_per_batch is not None:
            size = self.sequences_per_batch
            return [order[first : first + size] for first in range(0, len(order), size)]
        ends = np.cumsum(self.lengths[order // self.copies])
        batches, first, done = [], 0, 0
        while first < len(order):
            last = max(int(np.searchsorted(ends, done + self.tokens_per_batch, side="right")), first + 1)
            batches.append(order[first:last])
            first, done = last, int(ends[last - 1])
        return batches

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[JaggedBatch]:
        """The batches of one epoch, from `first_step` on."""
        for instances in self.plan(epoch)[first_step:]:
            yield self.gather(instances)

    def gather(self, instances: np.ndarray) -> JaggedBatch:
        """The batch of these instance numbers (B,) int64."""
        rows = instances // self.copies
        batch = _gather(self.dataset, self.shard[rows], self.start[rows], self.end[rows], self.user[rows], None)
        return replace(batch, instances=torch.from_numpy(instances))


def query_batches(
    dataset: PreparedDataset, queries: Queries, *, max_len: int, tokens_per_batch: int = 32_768, max_rows: int = 1024
) -> Iterator[tuple[np.ndarray, JaggedBatch]]:
    """Each question once, by similar length: (query numbers (B,), the last `max_len` events of their histories).

    A batch holds at most `tokens_per_batch` tokens (but at least one question) and at most `max_rows` questions.
    """
    start = np.maximum(queries.start, queries.end - max_len)
    lengths = queries.end - start
    order = np.argsort(lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    first, done = 0, 0
    while first < len(order):
        last = int(np.searchsorted(ends, done + tokens_per_batch, side="right"))
        last = max(min(last, first + max_rows), first + 1)
        rows = order[first:last]
        times = None if queries.query_time is None else torch.from_numpy(queries.query_time[rows])
        yield rows, _gather(dataset, queries.shard[rows], start[rows], queries.end[rows], queries.user[rows], times)
        first, done = last, int(ends[last - 1])


def _gather(
    dataset: PreparedDataset,
    shard: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    user: np.ndarray,
    query_times: Tensor | None,
) -> JaggedBatch:
    lengths = end - start
    offsets = offsets_of(lengths)
    values = np.empty(offsets[-1], dtype=np.int64)
    times = np.empty(offsets[-1], dtype=np.int64) if dataset.order == "time" else None
    event_types = np.empty(offsets[-1], dtype=np.int64) if dataset.event_type_names else None
    position = ranges(start, end)
    shard_of_token = np.repeat(shard, lengths)
    for number in np.unique(shard):
        part, tokens = dataset.shards[number], shard_of_token == number
        values[tokens] = part.items[position[tokens]]
        if times is not None and part.times is not None:
            times[tokens] = part.times[position[tokens]]
        if event_types is not None and part.event_types is not None:
            event_types[tokens] = part.event_types[position[tokens]]
    return JaggedBatch(
        values=torch.from_numpy(values),
        offsets=torch.from_numpy(offsets),
        lengths=tuple(lengths.tolist()),
        times=None if times is None else torch.from_numpy(times),
        query_times=query_times,
        users=torch.from_numpy(np.ascontiguousarray(user, dtype=np.int64)),
        event_types=None if event_types is None else torch.from_numpy(event_types),
    )


def _flat(rows: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(rows) if rows else np.empty(0, dtype=np.int64))
