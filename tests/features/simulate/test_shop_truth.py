import dataclasses

import numpy as np

from recsys.features.simulate.shop_config import ShopConfig
from recsys.features.simulate.shop_truth import TERMS, event_terms, seen_mass
from recsys.features.simulate.shop_walk import ShopEvents, walk
from recsys.features.simulate.shop_world import ShopWorld


def test_terms_and_seen_mass_equal_the_whole_distribution(small_world: ShopWorld, small_events: ShopEvents) -> None:
    world, events = small_world, small_events
    mix = world.mix(events.user_of_event, events.periods, events.intents, events.recent)  # (E, V)
    event = np.arange(len(events.items))
    terms = event_terms(world, events)
    assert terms.shape == (len(event), len(TERMS))
    np.testing.assert_allclose(terms.sum(1), mix[event, events.items], atol=1e-14)
    start = np.repeat(events.offsets[:-1], np.diff(events.offsets))
    wanted = [mix[e, events.items[s:e]].sum() for e, s in zip(event, start, strict=True)]
    np.testing.assert_allclose(seen_mass(world, events), wanted, atol=1e-12)


def test_the_true_probabilities_are_calibrated(small_world: ShopWorld, small_events: ShopEvents) -> None:
    """What was drawn agrees with what was promised: log-loss with entropy, counts of categories with their sums."""
    world, events = small_world, small_events
    mix = world.mix(events.user_of_event, events.periods, events.intents, events.recent)
    start = np.repeat(events.offsets[:-1], np.diff(events.offsets))
    for e in range(len(mix)):
        mix[e, events.items[start[e] : e]] = 0.0
    truth = mix / mix.sum(1, keepdims=True)
    entropy = -np.sum(truth * np.log(np.where(truth > 0, truth, 1.0)), axis=1)
    loss = -np.log(truth[np.arange(len(truth)), events.items])
    surprise = loss - entropy
    assert abs(surprise.mean()) < 4 * surprise.std() / np.sqrt(len(surprise))
    expected = np.add.reduceat(truth, world.first_item[:-1], axis=1)
    drawn = world.category[events.items][:, None] == np.arange(world.config.categories)
    deviation = (drawn - expected).sum(0) / np.sqrt((expected * (1 - expected)).sum(0))
    assert np.abs(deviation).max() < 4


def test_in_the_null_world_popularity_is_the_only_term(small_config: ShopConfig) -> None:
    world = ShopWorld.draw(dataclasses.replace(small_config, intent_share=0.0))
    terms = event_terms(world, walk(world, np.arange(50)))
    assert (terms[:, 0] > 0).all()
    assert (terms[:, 1:] == 0).all()
