"""The best possible scorer of a simulated shop: the true probability of every item as the next event.

It knows what is true and what each user has in mind before an event, not the random draws to come. It answers questions
that stand right before an event of the world: target rule `next`.

Dims: B users, V items of the dataset, K candidates, E events of the world.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys import config as configuration
from recsys.errors import DataError
from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.features.simulate.shop import FORMAT, FORMAT_VERSION, ShopConfig
from recsys.features.simulate.shop_walk import ShopEvents
from recsys.features.simulate.shop_world import ShopWorld
from recsys.features.slices import ranges
from recsys.features.vocabulary import Vocabulary

Integers = npt.NDArray[np.int64]


class ShopOracle:
    """Scorer: log-probability of each item, -inf for what the user had and for what is off the shelf."""

    def __init__(self, world: Path, dataset: PreparedDataset) -> None:
        """Open the truth of a world for a dataset that was prepared from its interactions.

        Args:
            world: the folder that `simulate` wrote.
            dataset: any split and filter of its log.

        Raises:
            DataError: no simulated shop there, a damaged one, or the dataset holds users or items of another log.
        """
        self.folder = Path(world)
        truth = self.folder / "truth"
        config = _read_config(self.folder)
        tables = {name: _load(truth / f"world_{name}.npy") for name in ShopWorld.table_names()}
        self.world = ShopWorld(config=config, **tables)
        columns = {name: _load(truth / f"events_{name}.npy") for name in ShopEvents.__dataclass_fields__}
        self.events = ShopEvents(**columns)
        self._user = _world_numbers(dataset.users, _load(truth / "user_ids.npy"), "user", self.folder)
        self._item = _world_numbers(dataset.items, _load(truth / "item_ids.npy"), "item", self.folder)
        self._start = int(self.events.times.min())
        self._span = int(self.events.times.max()) - self._start + 1
        self._keys = self.events.user_of_event * self._span + (self.events.times - self._start)

    def scores(self, batch: JaggedBatch, candidates: Tensor | None = None) -> Tensor:
        """(B, V+1) float64 log-probabilities, column 0 -inf; or (B, K) for `candidates`.

        Raises:
            DataError: the batch has no users or query times, or asks at a time at which the user has no event.
        """
        event = self._events_of(batch)
        users = self.events.user_of_event[event]
        mix = self.world.mix(users, self.events.periods[event], self.events.intents[event], self.events.recent[event])
        start = self.events.offsets[users]
        mix[np.repeat(np.arange(len(event)), event - start), self.events.items[ranges(start, event)]] = 0.0
        mix /= mix.sum(1, keepdims=True)
        with np.errstate(divide="ignore"):
            scores = np.log(mix[:, np.maximum(self._item, 0)])  # (B, V+1)
        scores[:, 0] = -np.inf
        result = torch.from_numpy(scores).to(batch.values.device)
        return result if candidates is None else result.gather(1, candidates)

    def _events_of(self, batch: JaggedBatch) -> Integers:
        """The event of the world that each question stands before, (B,)."""
        if batch.users is None or batch.query_times is None:
            raise DataError("the oracle needs users and query times; prepare the world's interactions in order of time")
        users, times = self._user[batch.users.cpu().numpy()], batch.query_times.cpu().numpy() - self._start
        keys = users * self._span + times
        event = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        is_found = (self._keys[event] == keys) & (users >= 0) & (times >= 0) & (times < self._span)
        if not is_found.all():
            row = int(np.flatnonzero(~is_found)[0])
            raise DataError(
                f"{self.folder}: user index {int(batch.users[row])} has no event at {int(batch.query_times[row])} us; "
                "the oracle knows the moment before each event alone: prepare this world with target rule next"
            )
        return event


def _read_config(folder: Path) -> ShopConfig:
    header = configuration.read(folder / "world.yaml")
    if header.get("format") != FORMAT or header.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{folder / 'world.yaml'}: wanted format {FORMAT}, version {FORMAT_VERSION}, found "
            f"{header.get('format')!r}, {header.get('format_version')!r}; simulate the shop again"
        )
    return configuration.load(ShopConfig, header.get("config", {}), f"{folder / 'world.yaml'}: ")


def _load(path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: missing or damaged ({error}); simulate the shop again") from error
    return array.astype(np.int64) if array.dtype.kind == "i" else array


def _world_numbers(vocabulary: Vocabulary, ids: npt.NDArray[Any], what: str, folder: Path) -> Integers:
    """(len+1,) int64: the world's number of each index of the dataset; -1 for index 0."""
    numbers = {raw.decode(): number for number, raw in enumerate(ids.tolist())}
    result = np.full(len(vocabulary) + 1, -1, dtype=np.int64)
    for index, raw in enumerate(vocabulary.decode(np.arange(1, len(vocabulary) + 1)), start=1):
        if raw not in numbers:
            raise DataError(
                f"{folder}: {what} {raw!r} of the dataset does not live in this world; name the world it is of"
            )
        result[index] = numbers[raw]
    return result
