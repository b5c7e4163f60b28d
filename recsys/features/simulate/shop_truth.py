"""The true probability of each event of a shop, with its terms.

    probability = mix(item) / (1 - mix(what the user had))

Needs numpy alone. Dims: E events, P periods, V items (0..V-1 here).
"""

from collections.abc import Callable

import numpy as np

from recsys.features.simulate.shop_walk import ShopEvents
from recsys.features.simulate.shop_world import PRICE, STYLE, Floats, Integers, ShopWorld
from recsys.features.slices import ranges

TERMS = ("popularity", "uniform", "new_intent", "intent_0", "intent_1")


def event_terms(world: ShopWorld, events: ShopEvents) -> Floats:
    """(E, 5): what each component of the mix gives to the item that was taken, in the order of TERMS."""
    return _mix_at(world, events, np.arange(len(events.items)), events.items)


def seen_mass(world: ShopWorld, events: ShopEvents) -> Floats:
    """(E,): what the mix gives to the items that the user had before each event."""
    weights = world.component_weights(events.intents, events.recent)
    segment, items = world.segment[events.user_of_event], events.items
    mass = weights[:, 0] * _mass_before(events, lambda period: world.popularity[period, items])
    mass += weights[:, 1] * _mass_before(events, lambda period: world.uniform[period, items])
    mass += weights[:, 2] * _mass_before(events, lambda period: world.opening[segment, period, items])
    earlier = _Earlier(world, events)
    for slot in (0, 1):
        for chance, category in world.step_choices(events.intents, slot):
            mass += weights[:, 3 + slot] * chance * earlier.mass(slot, category)
    return mass


def _mix_at(world: ShopWorld, events: ShopEvents, event: Integers, items: Integers) -> Floats:
    """(n, 5): the components of the mix before these events, at these items."""
    intents, periods = events.intents[event], events.periods[event]
    terms = world.component_weights(intents, events.recent[event])
    terms[:, 0] *= world.popularity[periods, items]
    terms[:, 1] *= world.uniform[periods, items]
    terms[:, 2] *= world.opening[world.segment[events.user_of_event[event]], periods, items]
    for slot in (0, 1):
        within = world.step_probability[intents[:, slot, STYLE], intents[:, slot, PRICE], periods, items]
        reach = np.zeros(len(items))
        for chance, category in world.step_choices(intents, slot):
            reach += chance * (category == world.category[items])
        terms[:, 3 + slot] *= reach * within
    return terms


def _mass_before(events: ShopEvents, at: Callable[[int], Floats]) -> Floats:
    """(E,): sum of at(period of the event) over the user's earlier events; at(period) is (E,)."""
    mass, periods, counts = np.zeros(len(events.items)), events.periods, np.diff(events.offsets)
    for period in np.unique(periods).tolist():
        total = np.concatenate([[0.0], np.cumsum(at(period))])
        before = total[:-1] - np.repeat(total[events.offsets[:-1]], counts)
        is_now = periods == period
        mass[is_now] = before[is_now]
    return mass


class _Earlier:
    """Finds a user's earlier items of one category."""

    def __init__(self, world: ShopWorld, events: ShopEvents) -> None:
        self.world, self.events = world, events
        self.group = events.user_of_event * world.config.categories
        E = len(events.items)
        place = (self.group + world.category[events.items]) * E + np.arange(E)
        self.order = np.argsort(place)  # user by user, category by category, in order of time
        self.place = place[self.order]

    def mass(self, slot: int, category: Integers) -> Floats:
        """(E,): probability that a step in `category` (-1 for none) falls on an item the user had."""
        E, periods = len(category), self.events.periods
        event = np.flatnonzero(category >= 0)
        key = (self.group[event] + category[event]) * E
        start, end = np.searchsorted(self.place, key), np.searchsorted(self.place, key + event)
        asking = np.repeat(event, end - start)
        had = self.events.items[self.order[ranges(start, end)]]
        style, price = self.events.intents[asking, slot, STYLE], self.events.intents[asking, slot, PRICE]
        within = self.world.step_probability[style, price, periods[asking], had]
        return np.bincount(asking, weights=within, minlength=E).astype(np.float64)
