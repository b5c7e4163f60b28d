"""A stream of ever new ids: users and items are born, live and die, and who clicks on what is known.

    P(click) = sigmoid(b + a_u + q_i + <p_u, c_t(i) + e_i>)

An item has a topic t, of which there are few and which stay, and a vector of its own beside the topic's. Each hour
users and items are drawn apart from each other, by activity and by attention; attention falls from an item's birth on.
Both are heavy-tailed: most ids are seen a few times only. Ids are random 64-bit numbers. A function of the config.

Dims: E events, in order of time.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recsys.features.click_batch import ClickBatch

HOUR_US = 3_600_000_000
Integers = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

TOPICS, RANK = 40, 6
MEAN_LOGIT, OF_USER, OF_ITEM, OF_MATCH = -1.0, 0.5, 0.8, 1.2  # b, and deviations of the terms
OWN_SHARE = 0.5  # of a match's variance: the item's own, not its topic's
TAIL = 1.3  # Pareto exponent of activity and attention
MOST = 300.0  # times the least, of either


@dataclass(frozen=True)
class Births:
    """Of users or of items: how many are born a day, and how long they live."""

    a_day: int
    life_days: float  # median; log-normal
    half_life_days: float  # of what draws them; infinite: all their life the same


@dataclass(frozen=True, kw_only=True)
class IdWorldConfig:
    """Size of the stream."""

    seed: int = 0
    days: int = 40
    events_an_hour: int = 2_000
    users: Births = Births(a_day=1_500, life_days=8.0, half_life_days=float("inf"))
    items: Births = Births(a_day=3_000, life_days=4.0, half_life_days=1.5)

    @property
    def hours(self) -> int:
        """Of the whole stream."""
        return 24 * self.days


@dataclass(frozen=True)
class IdStream:
    """All events.

    Attributes:
        batch: ids user, item, topic; labels; times.
        truth: (E,) probability of each click.
        hours: (hours + 1,) int64, where each hour begins.
        num_users, num_items: how many came.
    """

    batch: ClickBatch
    truth: Floats
    hours: Integers
    num_users: int
    num_items: int


class _Living:
    """Users, or items: when they live and how often they are drawn."""

    def __init__(self, births: Births, days: int, generator: np.random.Generator) -> None:
        before = round(4 * births.life_days)  # so that the first day is like any other
        count = births.a_day * (days + before)
        self.born_day = np.sort(generator.uniform(-before, days, count))
        self.dies_day = self.born_day + births.life_days * np.exp(0.8 * generator.standard_normal(count))
        self.weight = np.minimum(generator.pareto(TAIL, count) + 1, MOST)
        self.rate = np.log(2) / births.half_life_days
        self.ids = generator.permutation(generator.integers(0, 2**63 - 1, count))
        assert len(np.unique(self.ids)) == count, "two of a million 63-bit numbers are equal once in 10^7 worlds"

    def draw(self, day: float, size: int, generator: np.random.Generator) -> Integers:
        alive = np.flatnonzero((self.born_day <= day) & (self.dies_day > day))
        weights = self.weight[alive] * np.exp(-self.rate * (day - self.born_day[alive]))
        sums = np.cumsum(weights)
        drawn: Integers = alive[np.searchsorted(sums, generator.random(size) * sums[-1], side="right")]
        return drawn


def simulate(config: IdWorldConfig) -> IdStream:
    """The stream."""
    generator = np.random.default_rng([config.seed, 7])
    users, items = (_Living(births, config.days, generator) for births in (config.users, config.items))
    size, shape = config.events_an_hour, (config.hours, config.events_an_hour)
    who, what = (
        np.concatenate([living.draw(hour / 24, size, generator) for hour in range(config.hours)])
        for living in (users, items)
    )
    minutes = np.sort(generator.random(shape), axis=1)
    times = ((np.arange(config.hours)[:, None] + minutes) * HOUR_US).astype(np.int64)
    topics = generator.integers(0, TOPICS, len(items.ids))
    scale = (OF_MATCH / RANK**0.5) ** 0.5  # of all three vectors' numbers
    tastes, centres, own = (
        scale * generator.standard_normal((count, RANK)) for count in (len(users.ids), TOPICS, len(items.ids))
    )
    vectors = (1 - OWN_SHARE) ** 0.5 * centres[topics] + OWN_SHARE**0.5 * own
    biases = OF_USER * generator.standard_normal(len(users.ids)), OF_ITEM * generator.standard_normal(len(items.ids))
    logits = MEAN_LOGIT + biases[0][who] + biases[1][what] + np.einsum("ed,ed->e", tastes[who], vectors[what])
    truth = 1 / (1 + np.exp(-logits))
    labels = (generator.random(len(truth)) < truth).astype(np.float32)
    ids = np.column_stack([users.ids[who], items.ids[what], topics[what]])
    return IdStream(
        batch=ClickBatch(torch.from_numpy(ids), torch.from_numpy(labels), times=torch.from_numpy(times.ravel())),
        truth=truth,
        hours=np.arange(config.hours + 1) * size,
        num_users=len(np.unique(who)),
        num_items=len(np.unique(what)),
    )
