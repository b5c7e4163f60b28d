"""Names of models, and where each one's config and class lie; nothing is imported until it is asked for.

A third party adds a model by an entry point of the group `recsys.models` whose value is a `ModelEntry`:

    [project.entry-points."recsys.models"]
    my_model = "my_package.my_module:ENTRY"
"""

import dataclasses
import difflib
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast

from recsys import config as configs
from recsys.errors import ConfigError
from recsys.features.dataset import PreparedDataset
from recsys.models.item_inputs import ItemInputsConfig
from recsys.models.protocols import NextItemModel

GROUP = "recsys.models"


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """Import strings `module:attribute` of a config dataclass and of a class called as `Model(config, num_items)`."""

    config: str
    model: str


BUILT_IN = {
    "sasrec": ModelEntry("recsys.models.sasrec:SASRecConfig", "recsys.models.sasrec:SASRec"),
    "bert4rec": ModelEntry("recsys.models.bert4rec:BERT4RecConfig", "recsys.models.bert4rec:BERT4Rec"),
}


def names() -> list[str]:
    """Every registered model name, sorted."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def config_class(name: str) -> type:
    """The config dataclass of a model.

    Raises:
        ConfigError: no model has this name (the nearest one is named).
    """
    return cast(type, _attribute(_entry(name).config))


def full_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Every key of the model's config with its value, defaults filled in, as JSON values.

    Raises:
        ConfigError: unknown name, unknown key or a value out of range.
    """
    return configs.dump(configs.load(config_class(name), config, f"model {name}: "))


def fitted_config(name: str, config: Mapping[str, Any], dataset: PreparedDataset) -> dict[str, Any]:
    """As `full_config`, with the sizes of the dataset that the model's inputs need.

    Raises:
        ConfigError: as `full_config`, or the dataset lacks what the inputs ask for.
    """
    loaded: Any = configs.load(config_class(name), config, f"model {name}: ")
    inputs = getattr(loaded, "inputs", None)
    if isinstance(inputs, ItemInputsConfig):
        loaded = dataclasses.replace(loaded, inputs=inputs.fitted(dataset))
    return configs.dump(loaded)


def build(name: str, config: Mapping[str, Any], num_items: int) -> NextItemModel:
    """The model `name` with fresh weights drawn from torch's default generator.

    Raises:
        ConfigError: unknown name, unknown key or a value out of range.
    """
    entry = _entry(name)
    loaded: Any = configs.load(config_class(name), config, f"model {name}: ")
    return cast(NextItemModel, _attribute(entry.model)(loaded, num_items))


def _entry(name: str) -> ModelEntry:
    if name in BUILT_IN:
        return BUILT_IN[name]
    for point in entry_points(group=GROUP, name=name):
        entry = point.load()
        if not isinstance(entry, ModelEntry):
            raise ConfigError(f"entry point {GROUP}:{name} is a {type(entry).__name__}, wanted a registry.ModelEntry")
        return entry
    close = difflib.get_close_matches(str(name), names(), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known models: {', '.join(names())}"
    raise ConfigError(f"model.name={name!r}: no such model; {hint}")


def _attribute(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)
