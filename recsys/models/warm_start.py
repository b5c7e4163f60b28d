"""Weights of a bundle for a fresh model of the same architecture, whose vocabulary may have grown.

Rows of items go by raw id, rows of event types by name, rows of categories by the items they share; every other tensor
is copied as it is. An item that the bundle lacks starts from the unknown item where the bundle has one, else from the
mean of the bundle's items, with a tenth of their spread as noise: equal rows would get nearly equal gradients. What the
dataset gives (frozen vectors, categories of items) is the dataset's. An unknown item the bundle lacks starts fresh.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recsys.errors import ConfigError
from recsys.features.dataset import PreparedDataset
from recsys.models import registry
from recsys.models.bundle import Bundle
from recsys.models.item_inputs import ItemInputsConfig, inputs_of
from recsys.models.item_table import TableItems
from recsys.models.protocols import NextItemModel

NOISE = 0.1  # of the spread of the bundle's rows
# Settings that say what the weights mean, though another value may leave every shape as it is.
ARCHITECTURE = (
    *("d_model", "num_layers", "num_heads", "d_ff", "max_len", "block", "norm", "norm_eps", "positions", "activation"),
    *("scale_inputs", "token_type"),
)
SWITCHES = ("event_types", "categories", "frozen_vectors", "embedding")
OF_DATASET = ("item.categories", "item.vectors", "item.is_trained")
Integers = npt.NDArray[np.int64]


@torch.no_grad()
def warm_start(
    model: NextItemModel,
    bundle: Bundle,
    name: str,
    config: Mapping[str, Any],
    dataset: PreparedDataset,
    *,
    seed: int = 0,
) -> int:
    """Copy the bundle's weights into `model`; gives back how many items they share.

    Args:
        model: fresh, with the dataset read.
        bundle: of the same architecture.
        name, config: the model's registered name and its configuration.
        dataset: what the model is to be trained on.
        seed: of the noise of new rows.

    Raises:
        ConfigError: the bundle is of another model or architecture, shares no item, or its frozen vectors are others.
    """
    where = f"warm_start={bundle.path}"
    _check_architecture(bundle, name, config, where)
    raw: Any = dataset.items.decode(np.arange(1, dataset.num_items + 1))
    row_of = np.append(0, bundle.items.encode(raw))  # (V+1,) row in the bundle, 0: none
    shared = int(np.count_nonzero(row_of))
    if not shared:
        raise ConfigError(
            f"{where}: none of its {len(bundle.items):,} items is among the {dataset.num_items:,} of {dataset.path}; "
            "name a bundle trained on earlier days of this data, or leave warm_start out"
        )
    assert isinstance(model, nn.Module)
    assert isinstance(bundle.model, nn.Module)
    tables = {f"{name}.rows.": part for name, part in model.named_modules() if isinstance(part, TableItems)}
    fresh, old = (_without(tables, module.state_dict()) for module in (model, bundle.model))
    _check_nothing_is_lost(fresh, old, where)
    _check_vectors(fresh, old, row_of, where)
    rows_of: dict[str, Integers] = dict.fromkeys(_item_rows(model, name, where), row_of)
    rows_of["item.event_type.weight"] = _by_name(inputs_of(bundle.model).event_type_names, inputs_of(model))
    if "item.categories" in old and "item.categories" in fresh:
        rows_of["item.category.weight"] = _by_item(fresh, old, row_of)
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in fresh.items():
        if key in OF_DATASET or (key == "item.unknown" and key not in old):
            continue
        _check_shape(key, tensor, old.get(key), key in rows_of, where)
        source = old[key].to(tensor.device)
        if key not in rows_of:
            tensor.copy_(source)
            continue
        tensor.copy_(_rows(source, rows_of[key], old.get("item.unknown") if key == "item.weight" else None, generator))
    for name, items in tables.items():
        theirs = bundle.model.get_submodule(name.removesuffix(".rows."))
        assert isinstance(theirs, TableItems)
        vectors, biases = theirs.all_rows().tensor_split([items.d_model], dim=1)
        rows = _rows(vectors, row_of, old.get("item.unknown"), generator)
        if items.has_bias:
            rows = torch.cat([rows, _rows(biases, row_of, None, generator)], dim=1)
        items.put_rows(rows)
    return shared


def _without(tables: Iterable[str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What belongs to no table: its rows go by id, and its optimizer, clock and queue begin anew."""
    return {key: tensor for key, tensor in state.items() if not key.startswith(tuple(tables))}


def _rows(old: Tensor, row_of: Integers, unknown: Tensor | None, generator: torch.Generator) -> Tensor:
    """(V+1, …): the bundle's rows, new ones in the place of those it lacks; row 0 is the bundle's."""
    known = old[1:] if len(old) > 1 else old
    start = known.mean(0) if unknown is None else unknown
    noise = torch.randn(len(row_of), *old.shape[1:], generator=generator).to(old.device)
    spread = known.std(0) if len(known) > 1 else torch.zeros_like(start)
    is_new = torch.from_numpy(row_of == 0).to(old.device)
    is_new[0] = False
    found = old[torch.from_numpy(row_of).to(old.device)]
    return torch.where(is_new.view(-1, *[1] * (old.dim() - 1)), start + NOISE * spread * noise, found)


def _by_name(names: tuple[str, ...], inputs: ItemInputsConfig) -> Integers:
    number_of = {name: number for number, name in enumerate(names, start=1)}
    return np.array([0, *(number_of.get(name, 0) for name in inputs.event_type_names)], dtype=np.int64)


def _by_item(fresh: Mapping[str, Tensor], old: Mapping[str, Tensor], row_of: Integers) -> Integers:
    """Of each category the bundle's number that most of the items it shares with the bundle have there; 0: none."""
    there, here = old["item.categories"].cpu().numpy()[row_of], fresh["item.categories"].cpu().numpy()
    counts = np.zeros((len(fresh["item.category.weight"]), len(old["item.category.weight"])), dtype=np.int64)
    np.add.at(counts, (here, there), 1)
    counts[0], counts[:, 0] = 0, 0
    return counts.argmax(1)


def _item_rows(model: NextItemModel, name: str, where: str) -> tuple[str, ...]:
    """Names of the model's tensors with a row for each item; a guess by their length could mix items up."""
    rows: tuple[str, ...] | None = getattr(model, "item_rows", None)
    if rows is None:
        raise ConfigError(
            f"{where}: model {name} does not say in `item_rows` which of its tensors have a row for each item; "
            "leave warm_start out"
        )
    return rows


def _check_architecture(bundle: Bundle, name: str, config: Mapping[str, Any], where: str) -> None:
    if bundle.name != name:
        raise ConfigError(f"{where}: a bundle of {bundle.name}, but this run trains {name}; name a bundle of {name}")
    theirs, ours = _settings(registry.full_config(name, bundle.config)), _settings(config)
    for key, value in ours.items():
        if theirs[key] != value:
            raise ConfigError(
                f"{where}: has {key}={theirs[key]}, this run {key}={value}; train with model.{key}={theirs[key]}, "
                "or leave warm_start out"
            )


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: config[key] for key in ARCHITECTURE if key in config}
    inputs = config.get("inputs")
    if isinstance(inputs, Mapping):
        found |= {f"inputs.{key}": inputs[key] for key in SWITCHES if key in inputs}
    return found


def _check_shape(key: str, tensor: Tensor, old: Tensor | None, by_row: bool, where: str) -> None:
    if old is None:
        raise ConfigError(f"{where}: has no weights {key!r}, which this model needs; train with the bundle's settings")
    if tensor.shape[by_row:] != old.shape[by_row:]:
        raise ConfigError(
            f"{where}: its {key!r} is of shape {tuple(old.shape)}, this model's {tuple(tensor.shape)}; "
            "train with the bundle's settings"
        )


def _check_nothing_is_lost(fresh: Mapping[str, Tensor], old: Mapping[str, Tensor], where: str) -> None:
    """The row of the unknown item may go: it is only read for items outside the vocabulary."""
    lost = [key for key in old if key not in fresh and key != "item.unknown" and key not in OF_DATASET]
    if lost:
        raise ConfigError(
            f"{where}: has weights {', '.join(map(repr, lost))}, which this model lacks; "
            "train with the bundle's settings"
        )


def _check_vectors(fresh: Mapping[str, Tensor], old: Mapping[str, Tensor], row_of: Integers, where: str) -> None:
    """An adapter is of no use for vectors that another model made."""
    if "item.vectors" not in fresh or "item.vectors" not in old:
        return
    ours, theirs = fresh["item.vectors"].cpu(), old["item.vectors"].cpu()
    if ours.shape[1] != theirs.shape[1]:
        raise ConfigError(
            f"{where}: its frozen vectors have {theirs.shape[1]} numbers, those of the data {ours.shape[1]}; "
            "prepare the data with the vectors it was trained on"
        )
    shared = torch.from_numpy(np.flatnonzero(row_of))
    is_same = (ours[shared] - theirs[torch.from_numpy(row_of)[shared]]).abs().amax(1) < 1e-3
    if is_same.float().mean() < 0.5:
        raise ConfigError(
            f"{where}: most items had other frozen vectors there; prepare the data with the vectors it was trained on"
        )
