import numpy as np
import pytest

from recsys.features.simulate.shop_config import ShopConfig
from recsys.features.simulate.shop_walk import ShopEvents, walk
from recsys.features.simulate.shop_world import ShopWorld

SMALL = ShopConfig(
    seed=3,
    users=300,
    items=160,
    days=24,
    events_per_user=20,
    categories=8,
    styles=3,
    needs=6,
    segments=4,
    interleaving=0.3,
)


@pytest.fixture(scope="session")
def small_config() -> ShopConfig:
    return SMALL


@pytest.fixture(scope="session")
def small_world(small_config: ShopConfig) -> ShopWorld:
    return ShopWorld.draw(small_config)


@pytest.fixture(scope="session")
def small_events(small_world: ShopWorld) -> ShopEvents:

    return walk(small_world, np.arange(small_world.config.users))
