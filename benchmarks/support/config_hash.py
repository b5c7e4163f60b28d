"""What a run is known by."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from recsys import config as configs
from recsys.pipelines.run_config import PLACE, TrainConfig


def hash_of(config: TrainConfig) -> str:
    """12 hex digits over all that makes the run but its data and seed.

    Settings at their defaults are left out, so that one that is new changes no run that stands.
    """
    name, defaults = config.model["name"], configs.dump(type(config.train)())
    default_model = replace(config, model={"name": name}).model_config
    train_keys = {key: value for key, value in _changed(configs.dump(config.train), defaults) if key not in PLACE}
    text = json.dumps([name, dict(_changed(config.model_config, default_model)), train_keys], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _changed(values: dict[str, Any], defaults: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            value = dict(_changed(value, defaults[key]))
            if value:
                yield key, value
        elif value != defaults[key]:
            yield key, value
