"""From raw histories to ranked raw items: the one path of batch recommendation and of the online service.

Dims: B histories, V items, K candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from recsys.features.batches import JaggedBatch
from recsys.features.vocabulary import Vocabulary
from recsys.models.item_inputs import inputs_of
from recsys.models.protocols import NextItemModel
from recsys.models.ranking.score import scores_of
from recsys.models.ranking.top_k import top_k

ItemId = int | str
ROWS_PER_BATCH = 256


@dataclass(frozen=True)
class History:
    """What a user did, oldest first: raw item ids and, where known, times (us UTC) and names of event types."""

    item_ids: Sequence[ItemId]
    times: Sequence[int] | None = None
    event_types: Sequence[str | None] | None = None


@dataclass(frozen=True)
class Ranked:
    """Items, best first. `source` says who ranked; `unknown` are the ids of the history that the model does not know.

    `scores` are the model's dot products, or counts where `source` is `popularity`; None for an unknown candidate.
    """

    item_ids: list[ItemId]
    scores: list[float | None]
    source: Literal["model", "popularity"]
    unknown: list[ItemId] = field(default_factory=list)


class Rankable(Protocol):
    """What of a bundle ranks."""

    @property
    def model(self) -> NextItemModel:
        """In evaluation mode."""
        ...

    @property
    def items(self) -> Vocabulary:
        """Raw ids of the V items."""
        ...

    @property
    def popularity(self) -> np.ndarray:
        """(V+1,) int64, events of each item in the training part."""
        ...


@dataclass(frozen=True)
class _Known:
    """A history as the model reads it: indices, times in us, numbers of event types, each (n,) int64."""

    item_ids: np.ndarray
    times: np.ndarray | None
    event_types: np.ndarray


BundleT = TypeVar("BundleT", bound=Rankable)


class Ranker(Generic[BundleT]):
    """Ranks items for histories with the model of a bundle.

    Items that never occurred in training are not recommended: their vectors are untrained.
    """

    def __init__(self, bundle: BundleT) -> None:
        self.bundle = bundle
        self._is_hidden = torch.from_numpy(bundle.popularity == 0)  # (V+1,)
        self._is_hidden[0] = True
        with torch.no_grad():
            # (V+1, D), in float64 as in evaluation: a score then does not depend on how many are answered at once.
            self._item_vectors = bundle.model.item_vectors().double()
        self._popularity = torch.from_numpy(bundle.popularity.astype(np.float32))
        inputs = inputs_of(bundle.model)
        self._reads_unknown = inputs.id_dropout > 0
        self._event_types = {name: number for number, name in enumerate(inputs.event_type_names, start=1)}

    def recommend(
        self,
        histories: Sequence[History],
        k: int,
        *,
        exclude_seen: bool = True,
        exclude: Sequence[Iterable[ItemId]] | None = None,
        query_time: int | None = None,
    ) -> list[Ranked]:
        """The k best items for each history; fewer where fewer are left.

        Args:
            histories: B histories; one without a known item is answered from the popularity list.
            k: at least 1.
            exclude_seen: leave out every item of the history.
            exclude: for each history, raw ids to leave out too.
            query_time: us UTC, when the question is asked.

        Raises:
            ValueError: k < 1, or `exclude` has not one entry for each history.
        """
        if exclude is not None and len(exclude) != len(histories):
            raise ValueError(f"exclude has {len(exclude)} entries for {len(histories)} histories; give one for each")
        ranked: list[Ranked] = []
        for first in range(0, len(histories), ROWS_PER_BATCH):
            part = histories[first : first + ROWS_PER_BATCH]
            left_out = exclude[first : first + ROWS_PER_BATCH] if exclude is not None else [()] * len(part)
            ranked += self._recommend(part, k, exclude_seen, left_out, query_time)
        return ranked

    def rank(self, history: History, candidates: Sequence[ItemId], *, query_time: int | None = None) -> Ranked:
        """All candidates, best first; those the model does not know stand last, in the order given, with score None."""
        known, unknown_in_history = self._split(history)
        indices = self.bundle.items.encode(candidates)  # (K,)
        is_known = ~self._is_hidden.numpy()[indices]
        scores = self._scores([known], query_time)[0].numpy()[indices]
        order = np.lexsort((indices, -scores, ~is_known))
        count = int(is_known.sum())
        last = [i for i in range(len(candidates)) if not is_known[i]]
        return Ranked(
            item_ids=[candidates[i] for i in [*order[:count], *last]],
            scores=[float(scores[i]) for i in order[:count]] + [None] * len(last),
            source=_source(known),
            unknown=unknown_in_history,
        )

    def _recommend(
        self,
        histories: Sequence[History],
        k: int,
        exclude_seen: bool,
        exclude: Sequence[Iterable[ItemId]],
        query_time: int | None,
    ) -> list[Ranked]:
        split = [self._split(history) for history in histories]
        scores = self._scores([known for known, _ in split], query_time)  # (B, V+1)
        scores[:, self._is_hidden] = -torch.inf
        for row, ((known, _), left_out) in enumerate(zip(split, exclude, strict=True)):
            if exclude_seen:
                scores[row, torch.from_numpy(known.item_ids)] = -torch.inf
            scores[row, torch.from_numpy(self.bundle.items.encode(list(left_out)))] = -torch.inf
        indices, best = top_k(scores, k)
        answers = []
        for row, (known, unknown) in enumerate(split):
            shown = torch.isfinite(best[row])
            answers.append(
                Ranked(
                    item_ids=list(self.bundle.items.decode(indices[row, shown].numpy())),
                    scores=best[row, shown].tolist(),
                    source=_source(known),
                    unknown=unknown,
                )
            )
        return answers

    def _split(self, history: History) -> tuple[_Known, list[ItemId]]:
        """The history in item indices, and the raw ids that the bundle does not know.

        Those are left out, or stand as index 0 where the model has an unknown item; a history of them alone is empty.
        """
        indices = self.bundle.items.encode(history.item_ids)
        is_known = indices > 0
        is_read = is_known | (self._reads_unknown and bool(is_known.any()))
        times = None if history.times is None else np.asarray(history.times, dtype=np.int64)[is_read]
        unknown = [item for item, known in zip(history.item_ids, is_known, strict=True) if not known]
        return _Known(indices[is_read], times, self._encoded_types(history, is_read)), unknown

    def _encoded_types(self, history: History, is_read: np.ndarray) -> np.ndarray:
        """Numbers of the event types, 0 where none is told or the model does not know it."""
        if history.event_types is None or not self._event_types:
            return np.zeros(int(is_read.sum()), dtype=np.int64)
        numbers = (self._event_types.get(name or "", 0) for name in history.event_types)
        return np.fromiter(numbers, np.int64, len(history.event_types))[is_read]

    @torch.no_grad()
    def _scores(self, histories: Sequence[_Known], query_time: int | None) -> Tensor:
        """(B, V+1): the model's scores, or the popularity counts for an empty history."""
        scores = self._popularity.repeat(len(histories), 1)
        rows = [row for row, history in enumerate(histories) if len(history.item_ids)]
        if rows:
            times = [histories[row].times for row in rows]
            batch = JaggedBatch.from_sequences(
                [histories[row].item_ids for row in rows],
                times=[t for t in times if t is not None] if all(t is not None for t in times) else None,
                query_times=None if query_time is None else [query_time] * len(rows),
                max_len=self.bundle.model.max_len,
                event_types=[histories[row].event_types for row in rows] if self._event_types else None,
            )
            scores[torch.tensor(rows)] = scores_of(self.bundle.model, batch, self._item_vectors)
        return scores


def _source(known: _Known) -> Literal["model", "popularity"]:
    return "model" if len(known.item_ids) else "popularity"
