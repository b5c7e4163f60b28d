from pathlib import Path
from typing import Any

import pytest

from recsys import config as configuration
from recsys.errors import ConfigError
from recsys.features.simulate import shop_config
from recsys.features.simulate.shop_config import ShopConfig


def test_the_yaml_beside_the_class_holds_its_defaults() -> None:
    mapping = configuration.read(Path(shop_config.__file__).with_name("shop.yaml"))
    assert configuration.load(ShopConfig, mapping) == ShopConfig()
    assert set(mapping) == set(configuration.dump(ShopConfig()))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("users", 0),
        ("items", 100),
        ("days", 1),
        ("categories", 1000),
        ("styles", 0),
        ("price_levels", 9),
        ("events_per_user", 1000.0),
        ("intent_share", 1.5),
        ("noise", -0.1),
        ("mismatch", 0.0),
        ("price_tolerance", 2.0),
        ("intent_length", [5, 3]),
        ("intent_length", [1, 3]),
        ("zipf", [1.0, 0.5]),
        ("taste", -1.0),
        ("drift", float("nan")),
        ("seed", -1),
    ],
)
def test_a_knob_out_of_range_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key}"):
        configuration.load(ShopConfig, {key: value})


def test_knobs_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="births . deaths"):
        ShopConfig(births=0.6, deaths=0.3)
    with pytest.raises(ValueError, match="skip . repeat"):
        ShopConfig(skip=0.6, repeat=0.5)
    with pytest.raises(ValueError, match="leave at least 1 %"):
        ShopConfig(intent_share=1.0, noise=0.0)
