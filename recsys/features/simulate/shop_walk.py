"""What the users of a shop do: when they come, and event by event which item they take.

Every random number is a hash of (seed, user, event, draw), so a user's events do not depend on who is simulated beside
him: any split of the users over processes gives the same bytes. Items are drawn from the mix of `shop_world` by
rejection: component, intent, step and item together, again while the user already had the item.

Needs numpy alone. Dims: U users of this walk, E events of them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.features.simulate.shop_config import PERIOD_DAYS
from recsys.features.simulate.shop_world import NEED, PRICE, STEP, STYLE, Floats, Integers, ShopWorld

START_US = 1_735_689_600_000_000  # 2025-01-01 UTC
DAY_US = 86_400_000_000
MOST_EVENTS = 400  # of one user
_MOST_OF_SHELF = 0.4  # of what stands there in the barest period
_EVENTS_PER_SESSION = 5.0
_GAP_US = 45e6  # median within a session

_ARRIVAL, _STAY, _ACTIVITY, _VISIT, _WAIT, _CHOICE = range(6)  # streams of random numbers
_DRAWS = 8  # of one attempt at an event
_ATTEMPTS_AT_ONCE = 8  # after a first one that failed


@dataclass(frozen=True)
class ShopEvents:
    """Events of some users, user by user, in order of time, and the hidden state before each.

    Attributes:
        users: (U,) int64, numbers in the world. offsets: (U+1,) int64.
        times: (E,) int64 us UTC, strictly increasing within a user. items: (E,) int64.
        intents: (E, 2, 4) int64, running intents before the event: need (-1 for none), last step, style, price.
        recent: (E,) int64, which of the two was followed last.
    """

    users: Integers
    offsets: Integers
    times: Integers
    items: Integers
    intents: Integers
    recent: Integers

    @property
    def user_of_event(self) -> Integers:
        """(E,) int64."""
        return np.repeat(self.users, np.diff(self.offsets))

    @property
    def periods(self) -> Integers:
        """(E,) int64, period of each event."""
        return period_of(self.times)


def period_of(times: Integers) -> Integers:
    """The period of popularity in which each time (us) lies."""
    return (times - START_US) // (PERIOD_DAYS * DAY_US)


def walk(world: ShopWorld, users: Integers) -> ShopEvents:
    """The events of these users, in this order.

    Args:
        world: what is true.
        users: (U,) int64, distinct numbers in 0..config.users-1.
    """
    arrival, end, counts = _presence(world)
    counts = counts[users]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    times = _draw_times(world, users, arrival[users], end[users], offsets)
    E = int(offsets[-1])
    events = ShopEvents(
        users, offsets, times, np.empty(E, np.int64), np.empty((E, 2, 4), np.int64), np.zeros(E, np.int64)
    )
    order = np.argsort(-counts, kind="stable")
    step = _Step(world, events)
    for number in range(int(counts.max(initial=0))):
        step.take(order[: np.searchsorted(-counts[order], -number)], number)
    return events


def _presence(world: ShopWorld) -> tuple[Floats, Floats, Integers]:
    """When each user of the world comes and leaves (days), and how many events he has in between."""
    config = world.config
    users = np.arange(config.users)
    arrival = np.maximum(config.days * (1.25 * _uniform(config.seed, _ARRIVAL, users) - 0.3), 0.0)
    stay = -0.35 * config.days * np.log1p(-_uniform(config.seed, _STAY, users)) + 0.5
    end = np.minimum(arrival + stay, config.days)
    rate = np.exp(config.activity * _normal(config.seed, _ACTIVITY, users)) * np.sqrt(end - arrival)
    counts = np.rint(rate * config.events_per_user * config.users / rate.sum()).astype(np.int64)
    most = min(MOST_EVENTS, int(_MOST_OF_SHELF * world.is_on_shelf.sum(1).min()))
    return arrival, end, np.clip(counts, 2, most)


def _draw_times(world: ShopWorld, users: Integers, arrival: Floats, end: Floats, offsets: Integers) -> Integers:
    """(E,) int64 us: sessions at random moments of the stay, short waits within."""
    seed, counts = world.config.seed, np.diff(offsets)
    owner = np.repeat(np.arange(len(users)), counts)
    number = np.arange(offsets[-1]) - offsets[owner]
    session = number // np.ceil(_EVENTS_PER_SESSION * (0.5 + _uniform(seed, _VISIT, users, draw=1)))[owner].astype(
        np.int64
    )
    moment = _uniform(seed, _VISIT, users[owner], session, 2)
    wait = (_GAP_US * np.exp(_normal(seed, _WAIT, users[owner], number))).astype(np.int64)
    is_first = np.diff(session, prepend=-1) != 0
    is_first[offsets[:-1]] = True
    total = np.cumsum(wait)
    since = total - np.repeat(total[is_first], np.diff(np.append(np.flatnonzero(is_first), len(total))))
    start = ((arrival[owner] + moment * (end - arrival)[owner]) * DAY_US).astype(np.int64)
    times = np.minimum(start + since, world.config.days * DAY_US - 2 * MOST_EVENTS)
    times = times[np.lexsort((times, owner))]
    block = owner * (world.config.days + 1) * DAY_US  # later than every time of the users before
    return START_US + np.maximum.accumulate(times + block - number) - block + number


class _Step:
    """One event of every user who still has one; keeps what each user runs and had."""

    def __init__(self, world: ShopWorld, events: ShopEvents) -> None:
        self.world, self.events, self.seed = world, events, world.config.seed
        U = len(events.users)
        self.intents = np.full((U, 2, 4), -1, dtype=np.int64)
        self.recent = np.zeros(U, dtype=np.int64)
        self.had = np.zeros((U, world.config.items), dtype=bool)
        self.popularity, self.uniform = _Rows(world.popularity), _Rows(world.uniform)
        self.within = _Rows(world.step_probability.reshape(-1, world.config.items))
        self.tastes = [_Rows(taste) for taste in (world.taste_need, world.taste_style, world.taste_price)]

    def take(self, users: Integers, number: int) -> None:
        """Event `number` of these users (places in `events.users`)."""
        event = self.events.offsets[users] + number
        self.events.intents[event], self.events.recent[event] = self.intents[users], self.recent[users]
        periods = period_of(self.events.times[event])
        pending, attempt, block = np.arange(len(users)), 0, 1
        while len(pending):
            place = np.repeat(pending, block)
            attempts = attempt + np.tile(np.arange(block), len(pending))
            draw = _Draws.start(self.seed, self.events.users[users[place]], number, attempts)
            items, slot, intents = self._attempt(users[place], periods[place], draw)
            is_new = ~self.had[users[place], items].reshape(len(pending), block)
            first = np.flatnonzero(is_new.any(1)) * block + is_new.argmax(1)[is_new.any(1)]
            chosen = users[place[first]]
            self.events.items[event[place[first]]] = items[first]
            self.had[chosen, items[first]] = True
            self._follow(chosen, slot[first], intents[first], draw(7)[first])
            pending, attempt, block = pending[~is_new.any(1)], attempt + block, _ATTEMPTS_AT_ONCE

    def _attempt(self, users: Integers, periods: Integers, draw: "_Draws") -> tuple[Integers, Integers, Integers]:
        """An item for each user, the slot of the intent that led to it (-1 for none), and that intent (n, 4)."""
        weights = self.world.component_weights(self.intents[users], self.recent[users])
        component = np.minimum((draw(0)[:, None] >= np.cumsum(weights, axis=1)).sum(1), 4)
        items = np.where(component == 0, self.popularity.draw(periods, draw(1)), self.uniform.draw(periods, draw(1)))
        slot, intents = np.full(len(users), -1), np.zeros((len(users), 4), dtype=np.int64)
        led = np.flatnonzero(component >= 2)
        slot[led], intents[led] = self._intent(users[led], component[led], draw.rows(led))
        items[led] = self._item(intents[led], periods[led], draw(1)[led])
        return items, slot, intents

    def _intent(self, users: Integers, component: Integers, draw: "_Draws") -> tuple[Integers, Integers]:
        """The intent each user follows with its step moved on: a new one in the free slot, or a running one."""
        is_new = component == 2
        free = (self.intents[users, 0, NEED] >= 0).astype(np.int64)
        slot = np.where(is_new, free, component - 3)
        intents = self.intents[users, slot]
        config, step = self.world.config, draw(2)
        ahead = (step >= config.repeat).astype(np.int64) + (step >= 1 - config.skip)
        intents[:, STEP] = np.minimum(intents[:, STEP] + ahead, self.world.lengths[intents[:, NEED]] - 1)
        new = np.flatnonzero(is_new)
        segment = self.world.segment[self.events.users[users[new]]]
        for k, (column, taste) in enumerate(zip((NEED, STYLE, PRICE), self.tastes, strict=True)):
            intents[new, column] = taste.draw(segment, draw(3 + k)[new])
        intents[new, STEP] = 0
        return slot, intents

    def _item(self, intents: Integers, periods: Integers, uniform: Floats) -> Integers:
        config, first = self.world.config, self.world.first_item
        category = self.world.steps[intents[:, NEED], intents[:, STEP]]
        row = (intents[:, STYLE] * config.price_levels + intents[:, PRICE]) * config.periods + periods
        return self.within.draw(row, uniform, first[category], first[category + 1])

    def _follow(self, users: Integers, slot: Integers, intents: Integers, uniform: Floats) -> None:
        """Keep the step that was done; an intent ends with its last step, or is given up."""
        led = np.flatnonzero(slot >= 0)
        users, slot, intents = users[led], slot[led], intents[led]
        is_over = intents[:, STEP] == self.world.lengths[intents[:, NEED]] - 1
        is_over |= uniform[led] < self.world.config.abandon
        self.intents[users, slot] = np.where(is_over[:, None], -1, intents)
        self.recent[users] = slot


class _Rows:
    """Draws a column from given rows of a matrix of weights."""

    def __init__(self, weights: Floats) -> None:
        self.width = weights.shape[1]
        within = np.cumsum(weights, axis=1)
        self.scale = within[:, -1].max() * 1.0000001  # rows follow each other without overlap
        self.flat = (within + self.scale * np.arange(len(weights))[:, None]).ravel()

    def draw(
        self, rows: Integers, uniform: Floats, first: Integers | None = None, end: Integers | None = None
    ) -> Integers:
        """One column a row, by weight; among first..end-1 where given."""
        start = rows * self.width
        low = start if first is None else start + first
        high = (start + self.width if end is None else start + end) - 1
        base = np.where(low == start, self.scale * rows, self.flat[low - 1])
        found = np.searchsorted(self.flat, base + uniform * (self.flat[high] - base), side="right")
        return np.clip(found, low, high) - start


@dataclass(frozen=True)
class _Draws:
    """The random numbers of some attempts: draw(k) is (n,) in [0, 1)."""

    bits: npt.NDArray[np.uint64]

    @classmethod
    def start(cls, seed: int, users: Integers, number: int, attempts: Integers) -> "_Draws":
        bits = _hash(seed, _CHOICE, users, number)
        return cls(bits + (_DRAWS * attempts).astype(np.uint64))

    def __call__(self, k: int) -> Floats:
        return _unit(self.bits + np.uint64(k))

    def rows(self, keep: Integers) -> "_Draws":
        return _Draws(self.bits[keep])


def _uniform(seed: int, stream: int, users: Integers, event: Integers | int = 0, draw: int = 0) -> Floats:
    """(n,) in [0, 1), a function of all five."""
    return _unit(_hash(seed, stream, users, event) + np.uint64(draw))


def _unit(bits: npt.NDArray[np.uint64]) -> Floats:
    return (_mix(bits) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _hash(seed: int, stream: int, users: Integers, event: Integers | int) -> npt.NDArray[np.uint64]:
    bits = np.uint64(seed) + np.zeros(len(users), dtype=np.uint64)
    for part in (stream, users, event):
        bits = _mix(bits + np.asarray(part).astype(np.uint64))
    return bits


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One round of splitmix64 (Steele, Lea and Flood 2014)."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _normal(seed: int, stream: int, users: Integers, event: Integers | int = 0) -> Floats:
    """(n,) standard normal, by Box and Muller."""
    first, second = (_uniform(seed, stream, users, event, draw) for draw in (0, 1))
    return np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)
