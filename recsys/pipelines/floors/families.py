"""The families of floors: what a trial of each draws, and how settings become a scorer.

The settings of a random trial are a function of (seed, family, its number in the family, V): a tuning that stops and
goes on, or is asked for more trials, draws the same ones. `docs/floors.md` tells the ranges in words.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys import config as configs
from recsys.features.dataset import PreparedDataset
from recsys.models.floors import EaseConfig, ItemKNNConfig, RecentConfig, TransitionConfig

FAMILIES = ("popularity", "recent-popularity", "transition-knn", "item-knn", "ease", "blend")
MAX_WINDOW = 20

# In the order in which they are tried; of equal ones the first is kept.
NAMED: Mapping[str, TransitionConfig] = {
    "default": TransitionConfig(),
    "popular": TransitionConfig(popularity_power=0.0),
    "rare": TransitionConfig(popularity_power=-0.5),
    "markov": TransitionConfig(window=1, query_last=1, popularity_power=0.0),
    "short": TransitionConfig(window=2, decay=0.7, query_last=3, query_decay=0.6, popularity_power=0.0),
    "short, rare": TransitionConfig(window=2, decay=0.7, query_last=3, query_decay=0.6),
    "sharp": TransitionConfig(window=5, decay=0.6, query_last=5, query_decay=0.5, popularity_power=0.0),
    "long": TransitionConfig(window=10, decay=0.9, query_last=20, query_decay=0.9),
}

# Whose turn the n-th random trial is: of each twenty nine, six, three and two.
_TURNS = "titetitrititetiretit"
_OF_TURN = {"t": "transition-knn", "i": "item-knn", "e": "ease", "r": "recent-popularity"}
_NEARBY = 0.12  # of a range: how far a local trial steps

Settings = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """Numbers between low and high, evenly or evenly in their logarithm; below `floor` they are `floor`."""

    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False
    floor: float = -math.inf

    def at(self, place: float) -> float:
        """The number at a place from 0 to 1."""
        value = self.low + place * (self.high - self.low)
        if self.is_log:
            value = self.low * (self.high / self.low) ** place
        return round(value) if self.is_whole else float(f"{max(value, self.floor):.4g}")

    def place(self, value: float) -> float:
        """Where a number stands, from 0 to 1."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Choice:
    """One of a few values that have an order."""

    values: Sequence[Any]


def turns(families: Sequence[str], trials: int) -> Iterator[tuple[str, int]]:
    """Family, and number in the family, of each random trial."""
    mine = [family for family in (_OF_TURN[turn] for turn in _TURNS) if family in families]
    numbers = dict.fromkeys(mine, 0)
    for n in range(trials if mine else 0):
        family = mine[n % len(mine)]
        yield family, numbers[family]
        numbers[family] += 1


def named(dataset: PreparedDataset, family: str) -> dict[str, Settings]:
    """Settings that are tried whatever is drawn, by name."""
    if family == "transition-knn":
        return {name: configs.dump(config) for name, config in NAMED.items()}
    if family == "ease":
        levels = _l2_levels(dataset.num_items)
        return {"paper": configs.dump(EaseConfig(l2=levels[len(levels) // 2]))}
    if family == "item-knn":
        return {"default": configs.dump(ItemKNNConfig())}
    if family == "recent-popularity":
        return {"default": configs.dump(RecentConfig())}
    return {"popularity": {}} if family == "popularity" else {}


def drawn(dataset: PreparedDataset, family: str, number: int, seed: int) -> Settings:
    """Settings of the random trial of this number in its family."""
    ranges = _ranges(dataset, family, number)
    generator = np.random.default_rng([seed, FAMILIES.index(family), number])
    return {name: _any_of(spread, generator) for name, spread in ranges.items()}


def nearby(dataset: PreparedDataset, family: str, around: Settings, number: int, seed: int) -> Settings:
    """Settings near `around`, for the local trial of this number."""
    ranges = _ranges(dataset, family, 0 if around.get("unit", "events") == "events" else 1)
    generator = np.random.default_rng([seed, FAMILIES.index(family), number, 1])
    return {name: _near(spread, around[name], generator) for name, spread in ranges.items()}


def _any_of(spread: Range | Choice, generator: np.random.Generator) -> Any:
    place = float(generator.random())
    return spread.at(place) if isinstance(spread, Range) else spread.values[int(place * len(spread.values))]


def _near(spread: Range | Choice, value: Any, generator: np.random.Generator) -> Any:
    step = float(generator.normal())
    if isinstance(spread, Range):
        return spread.at(min(max(spread.place(value) + _NEARBY * step, 0.0), 1.0))
    index = list(spread.values).index(value) + (abs(step) > 1) * (1 if step > 0 else -1)
    return spread.values[min(max(index, 0), len(spread.values) - 1)]


def _ranges(dataset: PreparedDataset, family: str, number: int) -> Mapping[str, Range | Choice]:
    if family == "transition-knn":
        return {
            "window": Range(1, MAX_WINDOW, is_log=True, is_whole=True),
            "decay": Range(0.3, 1.0),
            "query_last": Range(1, 50, is_log=True, is_whole=True),
            "query_decay": Range(0.3, 1.0),
            "popularity_power": Range(-1.0, 0.5),
            "source_power": Range(-0.3, 1.0, floor=0.0),
            "backward": Range(-0.4, 1.0, floor=0.0),
        }
    if family == "item-knn":
        return {
            "window": Choice((2, 5, 10, 20, None)),
            "neighbours": Range(20, 2000, is_log=True, is_whole=True),
            "shrink": Range(0.1, 100.0, is_log=True),
            "source_power": Range(0.0, 1.0),
            "target_power": Range(0.0, 1.0),
            "query_last": Range(1, 100, is_log=True, is_whole=True),
            "query_decay": Range(0.3, 1.0),
        }
    if family == "ease":
        return {
            "l2": Choice(_l2_levels(dataset.num_items)),
            "query_last": Range(3, 500, is_log=True, is_whole=True),
            "query_decay": Range(0.5, 1.0),
            "popularity_power": Range(-0.5, 0.2),
        }
    # Half-lives in seconds have a meaning only where times are real: there they take every second turn.
    if dataset.order == "time" and number % 2 == 1:
        return {"half_life": Range(3.6e3, 1e8, is_log=True), "unit": Choice(("seconds",))}
    return {"half_life": Range(0.5, 1000.0, is_log=True), "unit": Choice(("events",))}


def _l2_levels(num_items: int) -> tuple[float, ...]:
    """Every value costs time that grows with V^3, so trials on many items share few of them."""
    if num_items > 13_000:
        return (300.0,)
    if num_items > 5_000:
        return (100.0, 500.0)
    return tuple(float(f"{10 ** (n / 2):.3g}") for n in range(9))
