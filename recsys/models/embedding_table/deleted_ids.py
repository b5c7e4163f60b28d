"""Ids that lost their row, for those who follow a table: kept from the first time that somebody follows it on."""

from collections.abc import Mapping

import torch
from torch import Tensor

from recsys.models.embedding_table.state_checks import check_range, tensor_of


class DeletedIds:
    """Ids by the tick at which they lost their row."""

    def __init__(self) -> None:
        self.since: int | None = None  # from which tick on they are kept; None: nobody follows
        self._parts: list[tuple[int, Tensor]] = []

    @property
    def ticks(self) -> list[int]:
        """All ticks that it speaks of."""
        return [*([] if self.since is None else [self.since]), *(tick for tick, _ in self._parts)]

    def follow(self, tick: int, since: int | None) -> None:
        """Keep them from `tick` on, if nobody followed before; forget those before `since`."""
        if self.since is None:
            self.since = tick
        elif since is not None and since > self.since:
            self.since = since
            self._parts = [(at, ids) for at, ids in self._parts if at >= since]

    def note(self, tick: int, ids: Tensor) -> None:
        """Ids (N,) int64 lost their rows."""
        if self.since is not None:
            self._parts.append((tick, ids.clone()))

    def after(self, since: int) -> Tensor:
        """(K,) int64, ascending and each once: those of tick `since` or later, some of which may have a row again.

        Raises:
            ValueError: they were not kept since then.
        """
        if self.since is None or since < self.since:
            raise ValueError(
                f"changes since tick {since} are not known, only those since {self.since}; "
                "call follow() before the first, and take the whole table once"
            )
        late = [ids.cpu() for tick, ids in self._parts if tick >= since]
        return torch.unique(torch.cat(late)) if late else torch.empty(0, dtype=torch.int64)

    def renumber(self, kept: Tensor) -> None:
        """Ticks `kept` (K,) int64, ascending, are numbers 0 to K - 1 from here on."""
        self._parts = [(int(torch.searchsorted(kept, tick)), ids) for tick, ids in self._parts]
        if self.since is not None:
            self.since = int(torch.searchsorted(kept, self.since))

    def state(self) -> dict[str, Tensor]:
        """All of it."""
        return {
            "since": torch.tensor([-1 if self.since is None else self.since]),
            "ticks": torch.tensor([tick for tick, _ in self._parts], dtype=torch.int64),
            "sizes": torch.tensor([len(ids) for _, ids in self._parts], dtype=torch.int64),
            "ids": torch.cat([torch.empty(0, dtype=torch.int64), *(ids.cpu() for _, ids in self._parts)]),
        }

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Whether `load_state` would take it.

        Raises:
            ValueError: its parts do not fit each other.
        """
        tensor_of(state, "since", 1)
        ids, sizes = tensor_of(state, "ids"), tensor_of(state, "sizes")
        tensor_of(state, "ticks", len(sizes))
        check_range("sizes", sizes, 0, len(ids))
        if int(sizes.sum()) != len(ids):
            raise ValueError(f"sizes are of {int(sizes.sum())} ids; wanted {len(ids)}, as many as ids has")

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        since = int(state["since"][0])
        self.since = None if since < 0 else since
        parts = torch.split(state["ids"].clone(), state["sizes"].tolist())
        self._parts = list(zip(state["ticks"].tolist(), parts, strict=True))
