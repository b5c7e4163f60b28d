"""Which events are kept: by the number of events of their item and of their user."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from recsys.errors import DataError
from recsys.features.preparation.steps.arrange import Part
from recsys.features.slices import Int64s, offsets_of

Booleans = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Thresholds. Items are filtered once, then users once; a k-core goes on until nothing changes."""

    min_item_events: int = 1
    min_user_events: int = 1
    k_core: int | None = None

    def __post_init__(self) -> None:
        for name in ("min_item_events", "min_user_events", "k_core"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: wanted at least 1")

    @property
    def leaves_out(self) -> bool:
        """Whether any event can be left out."""
        return max(self.min_item_events, self.min_user_events, self.k_core or 1) > 1


@dataclasses.dataclass
class Kept:
    """What the filters keep.

    Attributes:
        parts: the arranged shards.
        numbers: of each part, the number in 0..G-1 of each of its items.
        items: (G,) whether the item is kept.
        users: of each part, (n,) whether the user is kept.
    """

    parts: Sequence[Part]
    numbers: Sequence[Int64s]
    items: Booleans
    users: list[Booleans]

    @classmethod
    def all_of(cls, parts: Sequence[Part], numbers: Sequence[Int64s], num_items: int) -> "Kept":
        """Nothing is left out."""
        users = [np.ones(len(part.offsets) - 1, np.bool_) for part in parts]
        return cls(parts, numbers, np.ones(num_items, np.bool_), users)

    def events(self, part: int) -> Booleans:
        """Whether each event of the part is kept, (E,)."""
        lengths = np.diff(self.parts[part].offsets)
        kept: Booleans = self.items[self.numbers[part]][self.parts[part].item] & np.repeat(self.users[part], lengths)
        return kept

    def item_counts(self) -> Int64s:
        """Kept events of each item, (G,) int64."""
        counts = np.zeros(len(self.items), np.int64)
        for number, part in enumerate(self.parts):
            local = np.bincount(part.item[self.events(number)], minlength=len(self.numbers[number]))
            np.add.at(counts, self.numbers[number], local)
        return counts

    def user_counts(self, part: int) -> Int64s:
        """Kept events of each user of the part, (n,) int64."""
        return counts_by_user(self.events(part), self.parts[part].offsets)

    def num_events(self) -> int:
        """Kept events."""
        return sum(int(np.count_nonzero(self.events(number))) for number in range(len(self.parts)))


def counts_by_user(chosen: Booleans, offsets: Int64s) -> Int64s:
    """How many of each user's events are chosen, (n,) int64."""
    before = offsets_of(chosen.astype(np.int64))
    return before[offsets[1:]] - before[offsets[:-1]]


def keep_frequent(kept: Kept, config: FilterConfig) -> None:
    """Leave out what has too few events; `kept` is changed in place.

    Args:
        kept: as `Kept.all_of` gives it.
        config: thresholds.

    Raises:
        DataError: nothing is left.
    """
    if not config.leaves_out:
        return
    num_events = kept.num_events()
    _keep_items(kept, config.min_item_events)
    _keep_users(kept, config.min_user_events)
    if config.k_core is not None:
        before, left = -1, kept.num_events()
        while left != before:
            _keep_items(kept, config.k_core)
            _keep_users(kept, config.k_core)
            before, left = left, kept.num_events()
    if not kept.num_events():
        rules = ", ".join(f"filters.{name}={value}" for name, value in dataclasses.asdict(config).items() if value)
        raise DataError(f"no event of {num_events:,} is left by {rules}; lower them")


def _keep_items(kept: Kept, minimum: int) -> None:
    if minimum > 1:
        kept.items &= kept.item_counts() >= minimum


def _keep_users(kept: Kept, minimum: int) -> None:
    if minimum > 1:
        for number, users in enumerate(kept.users):
            users &= kept.user_counts(number) >= minimum
