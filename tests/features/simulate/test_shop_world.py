import dataclasses

import numpy as np

from recsys.features.simulate.shop_config import ShopConfig
from recsys.features.simulate.shop_walk import ShopEvents
from recsys.features.simulate.shop_world import NEED, PRICE, STEP, STYLE, ShopWorld


def test_every_distribution_sums_to_one(small_world: ShopWorld, small_events: ShopEvents) -> None:
    assert np.allclose(small_world.popularity.sum(1), 1)
    assert np.allclose(small_world.uniform.sum(1), 1)
    assert np.allclose(small_world.opening.sum(-1), 1)
    per_category = np.add.reduceat(small_world.step_probability, small_world.first_item[:-1], axis=-1)
    assert np.allclose(per_category, 1)
    events = small_events
    mix = small_world.mix(events.user_of_event, events.periods, events.intents, events.recent)
    assert np.allclose(mix.sum(1), 1)


def test_the_mix_equals_its_definition(small_world: ShopWorld) -> None:
    """Two running intents, term by term."""
    world, config, user, period = small_world, small_world.config, 5, 2
    intents = np.full((1, 2, 4), -1)
    intents[0, 0] = [1, 0, 2, 1]
    intents[0, 1] = [2, 1, 0, 0]
    wanted = (1 - config.intent_share) * world.popularity[period]
    wanted += config.intent_share * config.noise * world.is_on_shelf[period] / world.is_on_shelf[period].sum()
    chances = {0: config.repeat, 1: 1 - config.repeat - config.skip, 2: config.skip}
    for intent, of_two in ((intents[0, 1], 1 - config.switching), (intents[0, 0], config.switching)):
        for ahead, chance in chances.items():
            step = min(intent[STEP] + ahead, world.lengths[intent[NEED]] - 1)
            weight = np.where(world.category == world.steps[intent[NEED], step], world.popularity[period], 0.0)
            weight = weight * np.where(world.style == intent[STYLE], 1.0, config.mismatch)
            weight = weight * config.price_tolerance ** np.abs(world.price - intent[PRICE])
            wanted += config.intent_share * (1 - config.noise) * of_two * chance * weight / weight.sum()
    found = world.mix(np.array([user]), np.array([period]), intents, np.array([1]))
    np.testing.assert_allclose(found[0], wanted, atol=1e-15)


def test_the_null_world_knows_popularity_alone(small_config: ShopConfig) -> None:
    world = ShopWorld.draw(dataclasses.replace(small_config, intent_share=0.0))
    intents = np.zeros((4, 2, 4), dtype=np.int64)
    mix = world.mix(np.arange(4), np.array([0, 1, 2, 3]), intents, np.zeros(4, dtype=np.int64))
    np.testing.assert_allclose(mix, world.popularity[:4], atol=1e-15)


def test_popularity_follows_zipf_within_a_category() -> None:
    world = ShopWorld.draw(ShopConfig(drift=0.0, births=0.0, deaths=0.0))
    for first, end in zip(world.first_item[:-1], world.first_item[1:], strict=True):
        falling = np.sort(world.popularity[0, first:end])[::-1]
        exponent = -np.polyfit(np.log(np.arange(1, end - first + 1)), np.log(falling), 1)[0]
        assert 0.8 <= exponent <= 1.1


def test_items_are_born_and_die_and_popularity_drifts() -> None:
    config = ShopConfig()
    world = ShopWorld.draw(config)
    first, last = world.is_on_shelf[0], world.is_on_shelf[-1]
    assert abs((~first).mean() - config.births) < 0.04
    assert abs((~last).mean() - config.deaths) < 0.04
    always = world.is_on_shelf.all(0)
    change = np.log(world.popularity[-1, always] / world.popularity[0, always])
    assert abs(change.std() - config.drift) < 0.1


def test_one_item_does_not_tell_the_need() -> None:
    world = ShopWorld.draw(ShopConfig())
    members = np.zeros((world.config.needs, world.config.categories), dtype=bool)
    for need, steps in enumerate(world.steps):
        members[need, steps[steps >= 0]] = True
    shared = members.sum(0)
    assert shared.mean() >= 2
    assert (world.lengths >= 3).all()
    assert (world.lengths <= 12).all()


def test_tastes_are_alike_without_taste(small_config: ShopConfig) -> None:
    world = ShopWorld.draw(dataclasses.replace(small_config, taste=0.0))
    np.testing.assert_allclose(world.taste_need, 1 / small_config.needs)
    np.testing.assert_allclose(world.opening[0], world.opening[-1])
