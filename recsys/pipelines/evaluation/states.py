"""The model's state after each history: worked out once, read by ranking and by the lists of best items.

Which histories are encoded together depends on their lengths alone, never on the memory for scores: the last bits of a
matrix product may depend on its shape, and so a state is the same whatever is done with it.

Dims: N queries, B rows of a batch, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recsys.errors import DataError
from recsys.features.batches import JaggedBatch, query_batches
from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Queries
from recsys.models.item_inputs import inputs_of
from recsys.models.protocols import NextItemModel, Scorer
from recsys.models.ranking.threads import in_threads

KEPT_BYTES = 2**30  # of states; more are encoded again by whoever asks again
ROWS_AT_ONCE = 2048

Integers = npt.NDArray[np.int64]


class QueryStates:
    """States (B, D) of the queries, on the model's device, in an order of their own.

    Args:
        model: encoded in eval mode.
        dataset: the queries are of this dataset.
        queries: each has at least one event.

    Raises:
        DataError: the model reads event types, and those of the dataset are numbered otherwise.
    """

    def __init__(self, model: NextItemModel, dataset: PreparedDataset, queries: Queries) -> None:
        _check_event_types(model, dataset)
        self.model, self.dataset, self.queries = model, dataset, queries
        self._kept: list[tuple[Integers, Tensor]] | None = None

    def __iter__(self) -> Iterator[tuple[Integers, Tensor]]:
        """Query numbers (B,) and their states (B, D), each query once."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[tuple[Integers, Tensor]] = []
        for rows, states in self._encoded():
            if len(self.queries) * states.shape[1] * states.element_size() <= KEPT_BYTES:
                kept.append((rows, states))
            yield rows, states
        self._kept = kept if kept else None

    def _encoded(self) -> Iterator[tuple[Integers, Tensor]]:
        longest = min(int(self.queries.lengths.max(initial=1)), self.model.max_len)
        rows: list[Integers] = []
        states: list[Tensor] = []
        with eval_mode(self.model):
            device = device_of(self.model)
            batches = query_batches(self.dataset, self.queries, max_len=longest)
            for number, encoded in in_threads(lambda part: self._encode(part, device), batches, device):
                rows.append(number)
                states.append(encoded)
                if sum(len(part) for part in rows) >= ROWS_AT_ONCE:
                    yield np.concatenate(rows), torch.cat(states)
                    rows, states = [], []
        if rows:
            yield np.concatenate(rows), torch.cat(states)

    def _encode(self, part: tuple[Integers, JaggedBatch], device: torch.device) -> tuple[Integers, Tensor]:
        return part[0], self.model.encode(part[1].to(device))


def _check_event_types(model: NextItemModel, dataset: PreparedDataset) -> None:
    known, there = inputs_of(model).event_type_names, dataset.event_type_names
    if there[: len(known)] != known:
        raise DataError(
            f"{dataset.path}: its event types are {', '.join(there) or 'none'}, those of the model {', '.join(known)}; "
            "evaluate on the dataset it was trained on, or a day appended to it"
        )


def device_of(scorer: NextItemModel | Scorer) -> torch.device:
    """Where the scorer's parameters lie; the CPU if it has none."""
    parameters = scorer.parameters() if isinstance(scorer, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


@contextmanager
def eval_mode(scorer: NextItemModel | Scorer) -> Iterator[None]:
    """The scorer without dropout; in training mode again afterwards if it was."""
    if not isinstance(scorer, nn.Module) or not scorer.training:
        yield
        return
    scorer.eval()
    try:
        yield
    finally:
        scorer.train()
