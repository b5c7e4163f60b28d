"""What a scorer costs: numbers and bytes to store, milliseconds to answer one user.

A model is asked through the `Ranker`, as a server asks it. A floor has no bundle; it answers by the same steps: raw ids
in, seen items out, the ten best, raw ids back.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.models.bundle import Bundle
from recsys.models.protocols import Scorer
from recsys.models.ranking.ranker import History, ItemId, Ranker
from recsys.models.ranking.top_k import top_k

K = 10
REQUESTS = 200
WARM_UP = 10
LONGEST_S = 20.0


@dataclass(frozen=True)
class Cost:
    """parameters: trained weights, or stored counts of a floor. median_ms, p99_ms: of one answer of ten items."""

    parameters: int
    size_bytes: int
    median_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Request:
    """One user's question, in raw ids."""

    history: History
    query_time: int | None
    user: int


def requests_of(dataset: PreparedDataset, count: int = REQUESTS, seed: int = 0) -> list[Request]:
    """Questions of random users of the test part."""
    queries = dataset.queries("test")
    rows = np.random.default_rng(seed).permutation(len(queries))[:count]
    asked = []
    for row in rows.tolist():
        items, times = queries.gather(row)
        history = History(
            dataset.items.decode(np.asarray(items, dtype=np.int64)), None if times is None else times.tolist()
        )
        query_time = None if queries.query_time is None else int(queries.query_time[row])
        asked.append(Request(history, query_time, int(queries.user[row])))
    return asked


def cost_of_model(bundle: Bundle, asked: list[Request]) -> Cost:
    """What the bundle weighs, and how fast its ranker answers."""
    ranker = Ranker(bundle)
    assert isinstance(bundle.model, nn.Module)
    median, p99 = _milliseconds(
        lambda request: ranker.recommend([request.history], K, query_time=request.query_time), asked
    )
    parameters = sum(parameter.numel() for parameter in bundle.model.parameters())
    return Cost(parameters, _folder_bytes(bundle.path), median, p99)


def cost_of_floor(floor: Scorer, dataset: PreparedDataset, asked: list[Request]) -> Cost:
    """What the floor's arrays weigh, and how fast it answers."""
    is_hidden = torch.from_numpy(dataset.train_counts() == 0)
    median, p99 = _milliseconds(lambda request: _answer(floor, dataset, is_hidden, request), asked)
    arrays = _arrays(floor)
    return Cost(sum(array.size for array in arrays), sum(array.nbytes for array in arrays), median, p99)


def _answer(floor: Scorer, dataset: PreparedDataset, is_hidden: Tensor, request: Request) -> list[ItemId]:
    indices = dataset.items.encode(request.history.item_ids)
    batch = JaggedBatch.from_sequences(
        [indices],
        times=None if request.history.times is None else [request.history.times],
        query_times=None if request.query_time is None else [request.query_time],
        users=[request.user],
        max_len=getattr(floor, "max_len", None),
    )
    scores = floor.scores(batch).clone()
    scores[:, is_hidden] = -torch.inf
    scores[0, torch.from_numpy(indices)] = -torch.inf
    best, values = top_k(scores, K)
    return list(dataset.items.decode(best[0, torch.isfinite(values[0])].numpy()))


def _milliseconds(answer: Callable[[Request], object], asked: list[Request]) -> tuple[float, float]:
    """Median and 99 % quantile; it ends early where answers are so slow that the count would take minutes."""
    for request in asked[:WARM_UP]:
        answer(request)
    took, began = [], time.perf_counter()
    for request in asked:
        start = time.perf_counter()
        answer(request)
        took.append((time.perf_counter() - start) * 1000)
        if time.perf_counter() - began > LONGEST_S:
            break
    median, p99 = np.quantile(took, [0.5, 0.99]).tolist()
    return round(median, 3), round(p99, 3)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _arrays(scorer: object) -> list[np.ndarray[Any, Any]]:
    """Every array that a floor holds, those of the floors inside it too; each once."""
    found: dict[int, np.ndarray[Any, Any]] = {}
    waiting: list[object] = [scorer]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            value = value.detach().cpu().numpy()
        if isinstance(value, np.ndarray):
            found[id(value)] = value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif type(value).__module__.startswith("recsys.models"):
            waiting += vars(value).values() if hasattr(value, "__dict__") else ()
    return list(found.values())
