"""What is true in the shop: its items, needs and tastes, and the probability of every item as a user's next event.

A need is an ordered list of categories; an intent is a need with a style and a price level.
Before an event a user has up to two running intents. The next item is drawn from

    mix = (1 - intent_share)        * popularity in this period
        + intent_share * noise      * uniform over the shelf
        + intent_share * (1 - noise) * (P(new) * first step of an intent of the user's taste
                                       + sum over running intents of P(this one)
                                         * (repeat * same step + next step + skip * step after next))

where a step of an intent draws from its category by popularity * match(style) * match(price). What the user already had
is left out of `mix`. Needs numpy alone.

Dims: V items (0..V-1 here), S styles, R price levels, P periods, G segments, C categories, E events.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from recsys.features.simulate.shop_config import ShopConfig

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

NEED, STEP, STYLE, PRICE = range(4)  # columns of a running intent; NEED is -1 where none runs


@dataclasses.dataclass(frozen=True)
class ShopWorld:
    """Tables of the truth.

    Attributes:
        category, style, price: (V,) int64 of each item; items of one category stand together.
        popularity: (P, V) float64, sums to 1 in each period; 0 while an item is not on the shelf.
        steps: (needs, longest) int64 categories, -1 beyond the end. lengths: (needs,) int64.
        taste_need, taste_style, taste_price: (G, needs), (G, S), (G, R), rows sum to 1.
        segment: (users,) int64.
    """

    config: ShopConfig
    category: Integers
    style: Integers
    price: Integers
    popularity: Floats
    steps: Integers
    lengths: Integers
    taste_need: Floats
    taste_style: Floats
    taste_price: Floats
    segment: Integers

    @classmethod
    def draw(cls, config: ShopConfig) -> "ShopWorld":
        """The world of this seed."""
        rng = np.random.default_rng([config.seed, 0])
        category = np.sort(np.arange(config.items) % config.categories)
        lengths = rng.integers(config.intent_length[0], config.intent_length[1] + 1, config.needs)
        return cls(
            config=config,
            category=category,
            style=rng.integers(0, config.styles, config.items),
            price=rng.integers(0, config.price_levels, config.items),
            popularity=_draw_popularity(config, category, rng),
            steps=_draw_steps(config, lengths, rng),
            lengths=lengths,
            taste_need=_draw_taste(config, config.needs, rng),
            taste_style=_draw_taste(config, config.styles, rng),
            taste_price=_draw_taste(config, config.price_levels, rng),
            segment=rng.integers(0, config.segments, config.users),
        )

    @functools.cached_property
    def first_item(self) -> Integers:
        """(C+1,) int64: items of category c are first_item[c]..first_item[c+1]-1."""
        return np.searchsorted(self.category, np.arange(self.config.categories + 1))

    @functools.cached_property
    def is_on_shelf(self) -> npt.NDArray[np.bool_]:
        """(P, V)."""
        return self.popularity > 0

    @functools.cached_property
    def uniform(self) -> Floats:
        """(P, V): every item on the shelf alike."""
        return self.is_on_shelf / self.is_on_shelf.sum(1, keepdims=True)

    @functools.cached_property
    def style_match(self) -> Floats:
        """(S, V): 1 where the item has the wished style, `mismatch` elsewhere."""
        return np.where(self.style == np.arange(self.config.styles)[:, None], 1.0, self.config.mismatch)

    @functools.cached_property
    def price_match(self) -> Floats:
        """(R, V): price_tolerance ^ (levels apart)."""
        levels = np.abs(self.price - np.arange(self.config.price_levels)[:, None])
        return np.asarray(self.config.price_tolerance**levels, dtype=np.float64)

    @functools.cached_property
    def step_probability(self) -> Floats:
        """(S, R, P, V): probability of an item in a step of its own category; 0 while it is off the shelf."""
        weight = self.style_match[:, None, None] * self.price_match[None, :, None] * self.popularity
        total = np.add.reduceat(weight, self.first_item[:-1], axis=-1)  # (S, R, P, C)
        return np.asarray(weight / total[..., self.category])

    @functools.cached_property
    def opening(self) -> Floats:
        """(G, P, V): probability of an item as the first of an intent of this segment's taste."""
        starts = np.zeros((self.config.needs, self.config.categories))
        starts[np.arange(self.config.needs), self.steps[:, 0]] = 1.0
        category = (self.taste_need @ starts)[:, self.category]  # (G, V)
        pair = self.taste_style[:, :, None] * self.taste_price[:, None, :]  # (G, S, R)
        within = np.tensordot(pair, self.step_probability, axes=2)  # (G, P, V)
        return np.asarray(category[:, None] * within)

    def component_weights(self, intents: Integers, recent: Integers) -> Floats:
        """(E, 5): weights of popularity, uniform, a new intent, intent 0 and intent 1; rows sum to 1.

        Args:
            intents: (E, 2, 4) int64, the running intents before each event.
            recent: (E,) int64, which of two was followed last.
        """
        share, noise = self.config.intent_share, self.config.noise
        runs = intents[:, :, NEED] >= 0  # (E, 2)
        both, none = runs.all(1), ~runs.any(1)
        new = np.where(none, 1.0, np.where(both, 0.0, self.config.interleaving))
        weights = np.empty((len(intents), 5))
        weights[:, 0], weights[:, 1], weights[:, 2] = 1 - share, share * noise, share * (1 - noise) * new
        for slot in (0, 1):
            of_two = np.where(recent == slot, 1 - self.config.switching, self.config.switching)
            weights[:, 3 + slot] = share * (1 - noise) * np.where(both, of_two, np.where(runs[:, slot], 1 - new, 0.0))
        return weights

    def step_choices(self, intents: Integers, slot: int) -> Iterator[tuple[float, Integers]]:
        """For repeat, next and skip: its probability, and the category it leads to (E,), -1 where no intent runs."""
        need, step = intents[:, slot, NEED], intents[:, slot, STEP]
        chances = (self.config.repeat, 1 - self.config.repeat - self.config.skip, self.config.skip)
        for ahead, chance in enumerate(chances):
            category = self.steps[need, np.minimum(step + ahead, self.lengths[need] - 1)]
            yield chance, np.where(need >= 0, category, -1)

    def mix(self, users: Integers, periods: Integers, intents: Integers, recent: Integers) -> Floats:
        """(E, V): probability of every item as the next event, before what the user had is left out."""
        weights = self.component_weights(intents, recent)
        mix = weights[:, 0, None] * self.popularity[periods] + weights[:, 1, None] * self.uniform[periods]
        mix += weights[:, 2, None] * self.opening[self.segment[users], periods]
        for slot in (0, 1):
            within = self.step_probability[intents[:, slot, STYLE], intents[:, slot, PRICE], periods]  # (E, V)
            reach = np.zeros_like(within)
            for chance, category in self.step_choices(intents, slot):
                reach += chance * (self.category == category[:, None])
            mix += weights[:, 3 + slot, None] * reach * within
        return mix

    @classmethod
    def table_names(cls) -> list[str]:
        """The names of all tables, all but the config."""
        return [field.name for field in dataclasses.fields(cls) if field.name != "config"]


def _draw_popularity(config: ShopConfig, category: Integers, rng: np.random.Generator) -> Floats:
    """Zipf within the category, a random walk over the periods, births and deaths."""
    place = np.arange(config.items) - np.searchsorted(category, category)
    exponent = rng.uniform(*config.zipf, config.categories)[category]
    walk = np.cumsum(rng.normal(0, config.drift / np.sqrt(config.periods), (config.periods, config.items)), axis=0)
    log_popularity = walk - exponent * np.log(_shuffled_places(place, category, rng) + 1)
    popularity = np.exp(log_popularity) * _draw_shelf(config, place, rng)
    return np.asarray(popularity / popularity.sum(1, keepdims=True))


def _shuffled_places(place: Integers, category: Integers, rng: np.random.Generator) -> Integers:
    order = np.lexsort((rng.random(len(place)), category))
    return place[np.argsort(order)]


def _draw_shelf(config: ShopConfig, place: Integers, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """(P, V): when each item can be had; the first item of each category always can."""
    kind = rng.random(config.items)
    moment = rng.integers(1, max(config.periods, 2), config.items)  # period of the change
    period = np.arange(config.periods)[:, None]
    is_born, dies = kind < config.births, kind > 1 - config.deaths
    on_shelf = np.where(is_born, period >= moment, np.where(dies, period < moment, True))
    return np.asarray(on_shelf | (place == 0))


def _draw_steps(config: ShopConfig, lengths: Integers, rng: np.random.Generator) -> Integers:
    """Random orders of categories: every two share members, none repeats one until all were used."""
    steps = np.full((config.needs, int(lengths.max())), -1, dtype=np.int64)
    for need, length in enumerate(lengths):
        rounds = -(-int(length) // config.categories)
        steps[need, :length] = np.concatenate([rng.permutation(config.categories) for _ in range(rounds)])[:length]
    return steps


def _draw_taste(config: ShopConfig, choices: int, rng: np.random.Generator) -> Floats:
    weight = np.exp(config.taste * rng.normal(size=(config.segments, choices)))
    return np.asarray(weight / weight.sum(1, keepdims=True))
