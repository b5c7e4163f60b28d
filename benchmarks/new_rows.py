"""Does it help that new rows start from the mean of their category or text? A stream of the simulated shop, by arms.

    python -m benchmarks.new_rows [--model sasrec] [--loss ce] [--seeds 0 1 2] [--births 0.5]

No vocabulary: a model trains on what each slice of time brings, with ids of 64 bits. Before a slice is trained, its
events are asked for: each history is ranked against all items that have a row, and the answers are told apart by how
often the target had been trained on. Items get their row on the first day that they stand on the shelf, in every arm.

Arms: noise (nothing is known), category, text (words of the title), and for bert4rec popularity: as category, with a
bias by how often new items are clicked at first.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from benchmarks.support.number_arguments import real, whole
from benchmarks.support.record import append
from recsys.features.batches import JaggedBatch
from recsys.features.simulate.shop import ShopConfig, simulate
from recsys.models import registry
from recsys.models.embedding_table import CategoryPrior, Prior, TextPrior, string_ids
from recsys.models.protocols import rows_of
from recsys.models.ranking.score import scores_of

SLICES, WARM = 20, 8  # of time; the first are trained on and not asked for
LENGTH, USERS_PER_BATCH, LR = 30, 64, 3e-3
MOST_KNOWN = 300  # questions a slice whose target was trained on often
METRICS = ("ndcg@10", "below")
NO_ANSWER = (float("nan"), float("nan"))
MOST_SEED = (1 << 32) - 1
MOST_BIRTHS = 0.7  # else the shelf is bare
LEAST_ITEMS = 168  # the shop wants four for each event of a user
BUCKETS = {"0": (0, 0), "1-4": (1, 4), "5-19": (5, 19), "20+": (20, 10**9)}

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stream:
    """Events in the order of time, and what is told of items. Items are numbered from 0 here."""

    users: Integers  # (E,)
    items: Integers  # (E,)
    slices: Integers  # (E,)
    ids: Tensor  # (V,) int64, of 64 bits
    born: Integers  # (V,) slice at whose start the item stands on the shelf
    categories: Tensor  # (V,) int64
    words: Tensor  # (V, W) float, of the title


class Known:
    """What is told of ids, and how often each was trained on."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._order = stream.ids.sort()
        self.trained = np.zeros(len(stream.ids), dtype=np.int64)
        self.first = np.full(len(stream.ids), np.nan)  # clicks in an item's first slice

    def numbers(self, ids: Tensor) -> Tensor:
        """(N,) items of ids (N,)."""
        return self._order.indices[torch.searchsorted(self._order.values, ids)]

    def popularity(self, ids: Tensor) -> Tensor:
        """(N,) clicks so far; of an item without any, what new items have in their first slice."""
        clicks = torch.from_numpy(self.trained)[self.numbers(ids)].double()
        new = float(np.nanmean(self.first)) if not np.isnan(self.first).all() else float("nan")
        return torch.where(clicks == 0, new, clicks)


def read_stream(config: ShopConfig) -> Stream:
    """The shop's events."""
    with tempfile.TemporaryDirectory() as folder:
        world = simulate(config, Path(folder) / "world")
        events = pl.read_parquet(world / "interactions.parquet")
        table = pl.read_parquet(world / "items.parquet")
    raw = table["item_id"].to_list()
    number = {item: place for place, item in enumerate(raw)}
    times = events["timestamp"].dt.epoch("us").to_numpy()
    edges = np.linspace(times[0], times[-1] + 1, SLICES + 1)
    titles = [title.lower().split() for title in table["title"]]
    words = {word: place for place, word in enumerate(sorted({word for title in titles for word in title}))}
    bags = torch.zeros(len(raw), len(words))
    for row, title in enumerate(titles):
        bags[row, [words[word] for word in title]] = 1.0
    kinds = {name: place for place, name in enumerate(sorted(set(table["category"])))}
    users = {user: place for place, user in enumerate(sorted(set(events["user_id"])))}
    return Stream(
        users=np.array([users[user] for user in events["user_id"]]),
        items=np.array([number[item] for item in events["item_id"]]),
        slices=np.searchsorted(edges, times, side="right") - 1,
        ids=string_ids(raw),
        born=np.maximum(np.searchsorted(edges, table["available_from"].dt.epoch("us").to_numpy(), side="right") - 1, 0),
        categories=torch.tensor([kinds[name] for name in table["category"]]),
        words=bags,
    )


def prior_of(arm: str, known: Known) -> Prior | None:
    """What an arm's new rows start from."""
    stream = known.stream
    if arm == "noise":
        return None
    if arm == "text":
        return TextPrior(lambda ids: stream.words[known.numbers(ids)])

    def category_of(ids: Tensor) -> Tensor:
        return stream.categories[known.numbers(ids)]

    size = int(stream.categories.max()) + 1
    return CategoryPrior(category_of, size, popularity_of=known.popularity if arm == "popularity" else None)


class Run:
    """One model on the stream."""

    def __init__(self, stream: Stream, model: str, loss: str, arm: str, seed: int, passes: int) -> None:
        self.stream, self.known, self.seed, self.passes = stream, Known(stream), seed, passes
        torch.manual_seed(seed)
        shape = {"d_model": 32, "num_layers": 2, "d_ff": 64, "dropout": 0.1, "max_len": LENGTH}
        config = {**shape, "inputs": {"embedding": "table"}, "loss": {"kind": loss}}
        self.model = cast(Any, registry.build(model, config, 0))
        (self.rows,) = rows_of(self.model).values()
        self.table = self.model.item.rows.table
        self.table.prior = prior_of(arm, self.known)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.0)
        self.histories: dict[int, list[int]] = {}
        self.found: dict[str, list[tuple[float, float]]] = {name: [] for name in BUCKETS}

    def go(self) -> dict[str, dict[str, float]]:
        """NDCG@10 and share of items below the target, by bucket."""
        for number in range(SLICES):
            self.model.train()
            on_shelf = torch.from_numpy(np.flatnonzero(self.stream.born <= number))
            self.table.look_up(self.stream.ids[on_shelf])
            of_slice = np.flatnonzero(self.stream.slices == number)
            if number >= WARM:
                self._ask(of_slice, number)
            self._train(of_slice, number)
            clicks = np.bincount(self.stream.items[of_slice], minlength=len(self.stream.ids))
            is_new = (self.stream.born == number) & (number > 0)
            self.known.first[is_new] = clicks[is_new]
            self.known.trained += clicks
        means = {name: np.mean(values or [NO_ANSWER], axis=0) for name, values in self.found.items()}
        return {metric: {name: float(mean[n]) for name, mean in means.items()} for n, metric in enumerate(METRICS)}

    def _train(self, events: Integers, number: int) -> None:
        fresh: dict[int, int] = {}
        for user, item in zip(self.stream.users[events].tolist(), self.stream.items[events].tolist(), strict=True):
            self.histories.setdefault(user, []).append(item)
            fresh[user] = fresh.get(user, 0) + 1
        draw = np.random.default_rng([self.seed, number])
        users = [user for user in fresh if len(self.histories[user]) > 1]
        length = min(LENGTH, self.model.train_len)
        self.model.train()
        for turn in range(self.passes):
            order = draw.permutation(len(users))
            for start in range(0, len(order), USERS_PER_BATCH):
                chosen = [users[place] for place in order[start : start + USERS_PER_BATCH]]
                sequences = [self.histories[u][-min(length, fresh[u] + 10) :] for u in chosen]
                torch.manual_seed(int(draw.integers(2**62)))
                generator = torch.Generator().manual_seed(int(draw.integers(2**62)) + turn)
                self.optimizer.zero_grad()
                torch.autograd.backward(self.model.loss(self._batch(sequences), generator))
                self.optimizer.step()
                self.rows.step(LR)

    def _ask(self, events: Integers, number: int) -> None:
        questions: list[tuple[list[int], int]] = []
        told = {user: list(history) for user, history in self.histories.items()}
        draw = np.random.default_rng([number])  # the same for all arms and seeds
        often = self.known.trained[self.stream.items[events]] >= BUCKETS["20+"][0]
        part_asked = MOST_KNOWN / max(1, int(often.sum()))
        is_asked = ~often | (draw.random(len(events)) < part_asked)
        for event, asked in zip(events.tolist(), is_asked.tolist(), strict=True):
            user, item = int(self.stream.users[event]), int(self.stream.items[event])
            history = told.setdefault(user, [])
            if asked and history:
                questions.append((history[-self.model.max_len :], item))
            history.append(item)
        self.model.eval()
        columns = self.known.numbers(self.model.item_ids())
        column_of = torch.full((len(self.stream.ids),), -1)
        column_of[columns] = torch.arange(1, len(columns) + 1)
        for start in range(0, len(questions), 256):
            part = questions[start : start + 256]
            scores = scores_of(self.model, self._batch([history for history, _ in part]))
            targets = torch.tensor([item for _, item in part])
            own = scores.gather(1, column_of[targets][:, None])
            ranks = (scores > own).sum(1) + 1
            gains = torch.where(ranks <= 10, 1 / (ranks + 1).double().log2(), 0.0)
            below = 1.0 - (ranks - 1).double() / (len(columns) - 1)
            for item, gain, share in zip(targets.tolist(), gains.tolist(), below.tolist(), strict=True):
                self.found[_bucket(int(self.known.trained[item]))].append((gain, share))

    def _batch(self, sequences: list[list[int]]) -> JaggedBatch:
        return JaggedBatch.from_sequences([self.stream.ids[sequence].tolist() for sequence in sequences])


def _bucket(count: int) -> str:
    return next(name for name, (low, high) in BUCKETS.items() if low <= count <= high)


def measure(
    stream: Stream, model: str, loss: str, arms: Sequence[str], seeds: Sequence[int], passes: int
) -> Iterator[dict[str, Any]]:
    """A row a run."""
    for seed in seeds:
        for arm in arms:
            began = time.perf_counter()
            run = Run(stream, model, loss, arm, seed, passes)
            figures = run.go()
            yield {
                "model": model,
                "loss": loss,
                "arm": arm,
                "seed": seed,
                "passes": passes,
                **figures,
                "n": {name: len(values) for name, values in run.found.items()},
                "seconds": round(time.perf_counter() - began, 1),
            }


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
    """Every arm with every seed, a line each, then the differences to noise; all appended to results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["sasrec", "bert4rec"], default="sasrec")
    parser.add_argument("--loss", choices=["ce", "sampled_softmax"], default="ce")
    parser.add_argument("--seeds", type=whole(0, MOST_SEED), nargs="+", default=[0, 1, 2])
    parser.add_argument("--passes", type=whole(1, 1000), default=3, help="over the events of a slice")
    parser.add_argument("--users", type=whole(1, 100_000), default=3000)
    parser.add_argument("--items", type=whole(LEAST_ITEMS, 100_000), default=600)
    parser.add_argument(
        "--births", type=real(0, MOST_BIRTHS), default=0.5, help="share of items that appear after the first day"
    )
    parser.add_argument("--world-seed", type=whole(0, MOST_SEED), default=101)
    options = parser.parse_args(arguments)
    arms = ["noise", "category", "text", *(["popularity"] if options.model == "bert4rec" else [])]
    stream = read_stream(
        ShopConfig(seed=options.world_seed, users=options.users, items=options.items, births=options.births)
    )
    rows = []
    for row in measure(stream, options.model, options.loss, arms, options.seeds, options.passes):
        rows.append(row)
        figures = "  ".join(f"{n} {row['ndcg@10'][n]:.4f} {row['below'][n]:.3f}" for n in BUCKETS)
        say(f"{row['model']} {row['arm']:<10} seed {row['seed']}  {figures}  n {row['n']}  {row['seconds']} s")
    of = {(row["arm"], row["seed"]): row for row in rows}
    for arm, metric, name in itertools.product(arms[1:], METRICS, BUCKETS):
        gains = np.array([of[arm, seed][metric][name] - of["noise", seed][metric][name] for seed in options.seeds])
        error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        say(
            f"{arm:<10} - noise, target seen {name:>4} times: {metric} {gains.mean():+.4f} (standard error {error:.4f})"
        )
    append("new_rows", {"births": options.births, "users": options.users, "items": options.items, "runs": rows})


if __name__ == "__main__":
    main()
