"""What a run is known by."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

from recsys import config as configs
from recsys.models import registry
from recsys.pipelines.run_config import PLACE, TrainConfig


def hash_of(config: TrainConfig) -> str:
    """12 hex digits over all that makes the run but its data and seed.

    Settings at their defaults are left out, so that one that is new changes no run that stands.
    """
    name = config.model["name"]
    default_train: Any = type(config.train)()
    given = {key: value for key, value in config.model.items() if key != "name"}
    model: Any = configs.load(registry.config_class(name), given, f"model {name}: ")
    default_model: Any = configs.load(registry.config_class(name), {}, f"model {name}: ")
    train = {key: value for key, value in _changed(config.train, default_train) if key not in PLACE}
    text = json.dumps([name, dict(_changed(model, default_model)), train], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _changed(part: Any, default: Any) -> Iterator[tuple[str, Any]]:
    values = configs.dump(part)
    for key, at_default in configs.dump(default).items():
        value, inner, inner_default = values[key], getattr(part, key), getattr(default, key)
        if is_dataclass(inner) and not isinstance(inner, type):
            is_new = type(inner) is not type(inner_default)  # such as one in place of None: known by its own defaults
            value = dict(_changed(inner, type(inner)() if is_new else inner_default))
            if value or is_new:
                yield key, value
        elif value != at_default:
            yield key, value
