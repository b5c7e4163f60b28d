"""Which new ids get a row: those seen often enough lately, or a chance share of them.

An id that is rare is not worth a row. Monolith counts sightings in a sketch of 4 bits a cell, where strangers share
cells and 15 is the most; here ids have counters of their own, so no id is admitted for another's sightings, and any
threshold can be asked for.

Paper: Liu et al. 2022, arXiv:2209.07663, section 2.2.2; its code keeps a window of splits, as this does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from recsys.config import check_types
from recsys.kernels.hash_table import HashTable
from recsys.kernels.row_pages.marks import MOST_COUNT
from recsys.models.embedding_table.state_checks import check_range, tensor_of

Mode = Literal["all", "threshold", "probability"]


@dataclass(frozen=True)
class AdmissionConfig:
    """Which new ids get a row.

    Attributes:
        mode: all; threshold: those seen at least `threshold` times within the window; probability: each sighting has
            the chance that lets 95 % in by `threshold` of them.
        threshold: sightings, at least 1.
        capacity: most ids that are counted at a time, in mode threshold, however many a call has.
        splits: parts of the window. The oldest is forgotten at a time.
    """

    mode: Mode = "all"
    threshold: int = 1
    capacity: int = 1_000_000
    splits: int = 4

    def __post_init__(self) -> None:
        if self.mode not in ("all", "threshold", "probability"):
            raise ValueError(f"admission mode {self.mode!r}; wanted all, threshold or probability")
        check_types(self, "admission ")
        if self.threshold < 1:
            raise ValueError(f"admission threshold={self.threshold}; wanted at least 1")
        if self.mode == "all" and self.threshold != 1:
            raise ValueError(f"admission threshold={self.threshold} with mode=all; set mode=threshold, or probability")
        if self.splits < 2:
            raise ValueError(f"admission splits={self.splits}; wanted at least 2")
        if self.capacity < self.splits:
            raise ValueError(f"admission capacity={self.capacity}; wanted at least splits={self.splits}")


class Admission(Protocol):
    """Says which new ids get a row, and remembers what it must."""

    def admit(self, ids: Tensor, counts: Tensor) -> Tensor:
        """(M,) bool of the new ids (M,) int64, each once, seen `counts` (M,) times in this call."""

    @property
    def num_bytes(self) -> int:
        """Memory of what it remembers."""

    def state(self) -> dict[str, Tensor]:
        """What must be kept for exactly the same answers later."""

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Whether `load_state` would take it."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""


def build_admission(config: AdmissionConfig, seed: int) -> Admission | None:
    """What the config names; None lets all in."""
    if config.mode == "all" or (config.mode == "threshold" and config.threshold == 1):
        return None
    if config.mode == "threshold":
        return ThresholdAdmission(config.threshold, SlidingCounter(config.capacity, config.splits))
    return ChanceAdmission(config.threshold, seed)


class SlidingCounter:
    """How often ids were seen within a window of as many different ids as its capacity.

    The window is a ring of splits. An id is counted in the newest; when it is seen again there, its count comes along
    from the older split where it stood. When the newest is full, amid a call too, the oldest is forgotten: so an id is
    forgotten only if it was not seen while others were seen capacity // splits * (splits - 1) times, and no more ids
    are counted than the capacity. A call's sightings are added to what was known before it.
    """

    def __init__(self, capacity: int, splits: int) -> None:
        self._split_size = max(1, capacity // splits)
        self._num_splits = splits
        self._splits = [_Split()]  # the newest last

    def add(self, ids: Tensor, counts: Tensor) -> Tensor:
        """(M,) how often each of `ids` (M,) int64, each once, was seen until now, `counts` (M,) included."""
        known = torch.zeros_like(ids)
        for split in self._splits:  # the newest count is the highest
            known = torch.maximum(known, split.counts_of(ids))
        totals = known + counts
        self._put(ids, totals)
        return totals

    def _put(self, ids: Tensor, totals: Tensor) -> None:
        """Count ids (M,), each once, in their order."""
        while len(ids):
            newest, some = self._splits[-1], ids[: self._split_size]  # more never fit
            num_new = (newest.counts_of(some) == 0).cumsum(0)
            end = int((num_new <= self._split_size - len(newest)).sum())
            if end == 0:  # it is full
                self._splits = [*self._splits, _Split()][-self._num_splits :]
            else:
                newest.put(ids[:end], totals[:end])
                ids, totals = ids[end:], totals[end:]

    @property
    def num_bytes(self) -> int:
        """Memory of ids and counts."""
        return sum(split.num_bytes for split in self._splits)

    def state(self) -> dict[str, Tensor]:
        """Ids and counts of all splits, and where each begins."""
        parts = [split.export() for split in self._splits]
        return {
            "ids": torch.cat([ids for ids, _ in parts]),
            "counts": torch.cat([counts for _, counts in parts]),
            "sizes": torch.tensor([len(ids) for ids, _ in parts]),
        }

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Whether `load_state` would take it.

        Raises:
            ValueError: its parts do not fit each other, or are no counts.
        """
        ids, sizes = tensor_of(state, "ids"), tensor_of(state, "sizes")
        check_range("counts", tensor_of(state, "counts", len(ids)), 1, MOST_COUNT)
        check_range("sizes", sizes, 0, len(ids))
        if len(sizes) == 0 or int(sizes.sum()) != len(ids):
            raise ValueError(f"sizes are {sizes.tolist()}; wanted at least one, and a sum of {len(ids)}, as ids has")
        for part in torch.split(ids, sizes.tolist()):
            if len(torch.unique(part)) < len(part):
                raise ValueError("ids holds an id twice in one part of the window; wanted each once")

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        sizes = state["sizes"].tolist()
        self._splits = []
        for ids, counts in zip(torch.split(state["ids"], sizes), torch.split(state["counts"], sizes), strict=True):
            self._splits.append(_Split())
            self._splits[-1].put(ids, counts)


class _Split:
    def __init__(self) -> None:
        self._table = HashTable()
        self._counts = torch.zeros(16, dtype=torch.int32)
        self._exported: tuple[Tensor, Tensor] | None = None  # the older splits never change

    def __len__(self) -> int:
        return len(self._table)

    @property
    def num_bytes(self) -> int:
        exported = 0 if self._exported is None else sum(part.nbytes for part in self._exported)
        return self._table.num_bytes + self._counts.nbytes + exported

    def counts_of(self, ids: Tensor) -> Tensor:
        rows = self._table.find(ids)
        return torch.where(rows < 0, 0, self._counts[rows]).long()

    def put(self, ids: Tensor, counts: Tensor) -> None:
        self._exported = None
        rows = self._table.find_or_insert(ids).rows
        if len(self._table) > len(self._counts):
            more = len(self._table) + len(self._table) // 4 - len(self._counts)
            self._counts = torch.cat([self._counts, self._counts.new_zeros(more)])
        self._counts[rows] = counts.clamp(max=MOST_COUNT).int()

    def export(self) -> tuple[Tensor, Tensor]:
        if self._exported is None:
            ids, rows, _ = self._table.export()
            self._exported = ids, self._counts[rows].long()
        return self._exported


class ThresholdAdmission:
    """Ids seen often enough within the window."""

    def __init__(self, threshold: int, counter: SlidingCounter) -> None:
        self._threshold, self._counter = threshold, counter

    def admit(self, ids: Tensor, counts: Tensor) -> Tensor:
        """(M,) bool of the new ids (M,) int64, each once, seen `counts` (M,) times in this call."""
        return (self._counter.add(ids.cpu(), counts.cpu()) >= self._threshold).to(ids.device)

    @property
    def num_bytes(self) -> int:
        """Memory of ids and counts."""
        return self._counter.num_bytes

    def state(self) -> dict[str, Tensor]:
        """The counts."""
        return self._counter.state()

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Whether `load_state` would take it.

        Raises:
            ValueError: it is no window's.
        """
        self._counter.check_state(state)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        self._counter.load_state(state)


class ChanceAdmission:
    """Each sighting has the chance that lets 95 % of ids in by `threshold` sightings: 1 - .05^(1 / threshold)."""

    def __init__(self, threshold: int, seed: int) -> None:
        self._missed = 0.05 ** (1 / threshold)
        self._generator = torch.Generator().manual_seed(seed)

    def admit(self, ids: Tensor, counts: Tensor) -> Tensor:
        """(M,) bool of the new ids (M,) int64, each once, seen `counts` (M,) times in this call."""
        drawn = torch.rand(len(ids), generator=self._generator, dtype=torch.float64)
        return drawn.to(ids.device) >= self._missed ** counts.double()

    @property
    def num_bytes(self) -> int:
        """None to speak of."""
        return 0

    def state(self) -> dict[str, Tensor]:
        """The state of the random numbers."""
        return {"generator": self._generator.get_state()}

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Whether `load_state` would take it.

        Raises:
            ValueError: it is no state of random numbers.
        """
        try:
            torch.Generator().set_state(tensor_of(state, "generator", dtype=torch.uint8).cpu())
        except RuntimeError as error:
            raise ValueError(f"generator is no state of random numbers: {str(error).splitlines()[0]}") from error

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        self._generator.set_state(state["generator"].cpu())
