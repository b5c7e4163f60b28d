import dataclasses

import numpy as np
import pytest

from recsys.features.simulate.shop_config import ShopConfig
from recsys.features.simulate.shop_walk import DAY_US, START_US, ShopEvents, walk
from recsys.features.simulate.shop_world import NEED, STEP, ShopWorld


def test_a_users_events_do_not_depend_on_who_else_is_simulated(
    small_world: ShopWorld, small_events: ShopEvents
) -> None:
    users = np.arange(small_world.config.users)
    parts = [walk(small_world, part) for part in np.array_split(users, 3)]
    for name in ("times", "items", "intents", "recent"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(joined, getattr(small_events, name))


def test_attempts_at_once_change_nothing(
    small_world: ShopWorld, small_events: ShopEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.features.simulate.shop_walk._ATTEMPTS_AT_ONCE", 1)
    again = walk(small_world, np.arange(small_world.config.users))
    assert np.array_equal(again.items, small_events.items)


def test_times_rise_strictly_within_a_user_and_lie_in_the_world(
    small_world: ShopWorld, small_events: ShopEvents
) -> None:
    events = small_events
    same_user = np.diff(events.user_of_event) == 0
    assert (np.diff(events.times)[same_user] > 0).all()
    assert events.times.min() >= START_US
    assert events.times.max() < START_US + small_world.config.days * DAY_US


def test_nobody_takes_an_item_twice_or_from_an_empty_shelf(small_world: ShopWorld, small_events: ShopEvents) -> None:
    events = small_events
    pairs = events.user_of_event * small_world.config.items + events.items
    assert len(np.unique(pairs)) == len(pairs)
    assert small_world.is_on_shelf[events.periods, events.items].all()


def test_a_running_intent_stands_before_its_last_step_of_a_real_need(
    small_world: ShopWorld, small_events: ShopEvents
) -> None:
    running = small_events.intents[small_events.intents[:, :, NEED] >= 0]
    assert len(running) > 1000
    assert (running[:, STEP] < small_world.lengths[running[:, NEED]] - 1).all()
    first = small_events.offsets[:-1]
    assert (small_events.intents[first, :, NEED] == -1).all()


def test_intents_interleave_only_when_asked(small_config: ShopConfig, small_events: ShopEvents) -> None:
    assert (small_events.intents[:, :, NEED] >= 0).all(1).mean() > 0.1
    world = ShopWorld.draw(dataclasses.replace(small_config, interleaving=0.0))
    events = walk(world, np.arange(small_config.users))
    assert not (events.intents[:, :, NEED] >= 0).all(1).any()


def test_the_number_of_events_is_as_asked_and_log_normal() -> None:
    world = ShopWorld.draw(ShopConfig(users=4000, events_per_user=30, intent_share=0.0))
    counts = np.diff(walk(world, np.arange(4000)).offsets)
    assert counts.mean() == pytest.approx(30, rel=0.05)
    logs = np.log(counts)
    assert counts.mean() > 1.3 * np.median(counts)
    assert abs(np.mean(logs) - np.median(logs)) < 0.15


def test_another_seed_gives_another_walk(small_config: ShopConfig, small_events: ShopEvents) -> None:
    world = ShopWorld.draw(dataclasses.replace(small_config, seed=4))
    assert not np.array_equal(walk(world, np.arange(20)).items, small_events.items[: small_events.offsets[20]])


def test_many_events_in_the_last_moment_still_rise_within_the_world(
    small_world: ShopWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.features.simulate.shop_walk._GAP_US", 1e13)
    events = walk(small_world, np.arange(100))
    rises = np.diff(events.times)[np.diff(events.user_of_event) == 0]
    assert rises.min() == 1
    assert events.times.max() < START_US + small_world.config.days * DAY_US


def test_steps_are_skipped_and_intents_given_up_as_often_as_asked(small_config: ShopConfig) -> None:
    config = dataclasses.replace(small_config, users=1500, skip=0.3, repeat=0.1, abandon=0.2, interleaving=0.0)
    world = ShopWorld.draw(config)
    events = walk(world, np.arange(config.users))
    before, after = (events.intents[rows, 0] for rows in (slice(None, -1), slice(1, None)))
    has_way = before[:, STEP] + 2 < world.lengths[before[:, NEED]] - 1
    starts = (np.diff(events.user_of_event) == 0) & (before[:, NEED] >= 0) & has_way
    ahead = np.where(after[starts, NEED] == before[starts, NEED], after[starts, STEP] - before[starts, STEP], -1)
    nexts, skips, given_up = ((ahead == 1).sum(), (ahead == 2).sum(), (ahead == -1).sum())
    assert skips / (nexts + skips) == pytest.approx(config.skip / (1 - config.repeat), rel=0.1)
    followed = (nexts + skips) / (1 - config.repeat) + given_up
    assert given_up / followed == pytest.approx(config.abandon, rel=0.1)


def test_the_intent_that_moved_is_the_one_followed_last(small_events: ShopEvents) -> None:
    events = small_events
    same_user = np.diff(events.user_of_event) == 0
    moved = (events.intents[1:] != events.intents[:-1]).any(-1) & same_user[:, None]  # (E-1, 2)
    for slot in (0, 1):
        assert moved[:, slot].sum() > 100
        assert (events.recent[1:][moved[:, slot]] == slot).all()
