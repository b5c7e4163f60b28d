"""What a model knows of an event: its item's id, and where it is told to, event type, category and a frozen vector.

    token(t)  = E[x_t] + C[category(x_t)] + A v(x_t) + Y[type_t]
    vector(i) = E[i]   + C[category(i)]   + A v(i)

Category and frozen vector stand on both sides, as the id does whose matrix is tied; the type of an event is known of
the past alone. An item without a training event has no row of its own that means anything: E[i] is then left out of its
vector where category or frozen vector say something, and of its token.

Id dropout: in training the id of an event is replaced, with probability `id_dropout`, by one learned vector, the
unknown item; category, vector and type stay. It stands in for every id that the vocabulary lacks (index 0) and every
item without a training event.

Frozen vectors are scaled to length 1 and never trained, the adapter A is a matrix: Hou et al. 2022, arXiv:2206.05941.
Differs: one linear adapter, no mixture of experts, no whitening.

Where the id vectors come from is a subclass's: a matrix with a row for each item here, a table in `item_table.py`.

Dims: T tokens, V items, D width, M vectors that a loss scores.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from recsys.errors import ConfigError
from recsys.features.dataset import PreparedDataset
from recsys.kernels.jagged_embedding import jagged_embedding
from recsys.kernels.row_pages import RowOptimizer
from recsys.models.embedding_table import AdmissionConfig, TableConfig


@dataclass(frozen=True, kw_only=True)
class TableInputsConfig:
    """A table of id vectors: `TableConfig` without what the model says itself, its width and its seed.

    The optimizer's defaults are those of `train` for all other weights: Adam with its beta2, no weight decay. The rate
    is `train.lr` with its schedule.
    """

    optimizer: Literal["sgd", "row_wise_adagrad", "adagrad", "adam"] = "adam"
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    initial_accumulator: float = 0.0  # of both adagrads
    init_std: float = 0.02
    capacity: int | None = None
    eviction: Literal["none", "lru", "lfu", "ttl"] = "none"
    ttl_s: float | None = None
    admission: AdmissionConfig = AdmissionConfig()

    def __post_init__(self) -> None:
        self.table(1, 0)

    def table(self, width: int, seed: int) -> TableConfig:
        """Of rows of this width; ids without a row are the model's to read as its unknown item.

        Raises:
            ValueError: a value out of range.
        """
        optimizer = RowOptimizer(
            self.optimizer,
            eps=self.eps,
            beta1=self.beta1,
            beta2=self.beta2,
            initial_accumulator=self.initial_accumulator,
        )
        return TableConfig(
            width=width,
            optimizer=optimizer,
            init_std=self.init_std,
            capacity=self.capacity,
            eviction=self.eviction,
            ttl_s=self.ttl_s,
            admission=self.admission,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class ItemInputsConfig:
    """What is read of an event beside its item. The sizes are those of the dataset, filled in when a run begins."""

    embedding: Literal["dense", "table"] = "dense"  # of the ids: a matrix, or a collisionless table
    table: TableInputsConfig | None = None  # of embedding=table
    event_types: bool = False
    categories: bool = False
    frozen_vectors: bool = False
    id_dropout: float = 0.0  # of the inputs in training; above 0 the model has an unknown item
    event_type_names: tuple[str, ...] = ()  # number 1 first
    num_categories: int = 0
    vector_width: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.id_dropout < 1.0:
            raise ValueError(f"id_dropout={self.id_dropout} must be in [0, 1)")
        if self.embedding == "dense" and self.table is not None:
            raise ValueError("inputs.table is given with inputs.embedding=dense; set inputs.embedding=table")
        if self.embedding == "table" and self.table is None:
            object.__setattr__(self, "table", TableInputsConfig())

    @property
    def has_content(self) -> bool:
        """Whether an item has a vector beside that of its id."""
        return self.categories or self.frozen_vectors

    def fitted(self, dataset: PreparedDataset) -> "ItemInputsConfig":
        """This config with the dataset's sizes.

        Raises:
            ConfigError: the dataset lacks what is asked for, or a size that is set differs from its own.
        """
        sizes: dict[str, tuple[str, int | tuple[str, ...], str]] = {
            "event_types": ("event_type_names", dataset.event_type_names, _NO_TYPES),
            "categories": ("num_categories", len(dataset.category_names), _NO_CATEGORIES),
            "frozen_vectors": ("vector_width", dataset.vector_width, _NO_VECTORS),
        }
        found = self
        for switch, (name, there, remedy) in sizes.items():
            if not getattr(self, switch):
                continue
            if not there:
                raise ConfigError(f"model.inputs.{switch}=true: {dataset.path} {remedy}, or set it to false")
            if getattr(self, name) not in (type(there)(), there):
                raise ConfigError(
                    f"model.inputs.{name}={_shown(getattr(self, name))}, but {dataset.path} has {_shown(there)}; "
                    "leave it out: it is taken from the dataset"
                )
            found = replace(found, **{name: there})  # type: ignore[arg-type]  # each of its field's type
        return found


def inputs_of(model: object) -> ItemInputsConfig:
    """What the model reads of an event beside its item: its `inputs`; nothing where it has none."""
    inputs = getattr(model, "inputs", None)
    return inputs if isinstance(inputs, ItemInputsConfig) else ItemInputsConfig()


class Scored(NamedTuple):
    """Vectors that a loss scores, and where some ids stand among them.

    Attributes:
        vectors: (M, D).
        bias: (M,), or None.
        places: (N,) int64 of the ids asked for; -1 for one that has no vector.
        items: (M,) int64 whose vectors, from 0; None where they are those of the whole vocabulary, or there is none.
    """

    vectors: Tensor
    bias: Tensor | None
    places: Tensor
    items: Tensor | None = None


class ItemInputs(nn.Module):
    """The items' id vectors, and what is added to them. A subclass holds the vectors, and calls `_add_sides`."""

    config: ItemInputsConfig
    categories: Tensor  # (V+1,) int64
    vectors: Tensor  # (V+1, vector_width) float, each of length 1 or 0
    is_trained: Tensor  # (V+1,) bool

    def _add_sides(self, config: ItemInputsConfig, num_items: int, d_model: int) -> None:
        """Make what the config asks for beside the ids.

        Raises:
            ConfigError: a size is missing.
        """
        _check_sizes(config)
        self.config = config
        self.event_type = (
            nn.Embedding(len(config.event_type_names) + 1, d_model, padding_idx=0) if config.event_types else None
        )
        self.category = nn.Embedding(config.num_categories + 1, d_model, padding_idx=0) if config.categories else None
        self.adapter = nn.Linear(config.vector_width, d_model, bias=False) if config.frozen_vectors else None
        self.unknown = nn.Parameter(torch.zeros(d_model)) if config.id_dropout else None
        if config.categories:
            self.register_buffer("categories", torch.zeros(num_items + 1, dtype=torch.int64))
        if config.frozen_vectors:
            self.register_buffer("vectors", torch.zeros(num_items + 1, config.vector_width))
        if config.has_content or config.id_dropout:
            self.register_buffer("is_trained", torch.arange(num_items + 1) > 0)

    def id_vectors(self, item_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """(T, D) id vectors of tokens, and (T,) bool which ids mean anything; None where nobody asks."""
        raise NotImplementedError

    def output_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """(V+1, D) vectors that are scored, or the rows `item_ids`; row 0 is padding."""
        raise NotImplementedError

    def scored(self, item_ids: Tensor, bias: Tensor | None, *, every: bool) -> Scored:
        """What a loss scores.

        Args:
            item_ids: (N,) int64; their places are told.
            bias: (V+1,) of the items where it is no part of their rows, or None.
            every: all items; else those of `item_ids` at least.
        """
        raise NotImplementedError

    def item_ids(self) -> Tensor:
        """(V,) int64 whose vectors rows 1, 2, … of `output_vectors()` are."""
        raise NotImplementedError

    def read(self, dataset: PreparedDataset) -> None:
        """Take categories and vectors of the items, and which of them training sees."""
        if self.category is not None:
            self.categories.copy_(torch.from_numpy(np.asarray(dataset.item_categories, dtype=np.int64)))
        if self.adapter is not None:
            vectors = torch.from_numpy(np.array(dataset.item_vectors))
            self.vectors.copy_(nn.functional.normalize(vectors, dim=1))
        if hasattr(self, "is_trained"):
            self.is_trained.copy_(torch.from_numpy(dataset.train_counts() > 0))

    def tokens(
        self, item_ids: Tensor, event_types: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """(T, D) vectors of events.

        Args:
            item_ids: (T,) int64; 0 is an item that the vocabulary lacks.
            event_types: (T,) int64, 0 unknown; None: all unknown. A type that came after training is unknown.
            generator: CPU generator of the id dropout; without one, and in eval mode, no id is dropped.
        """
        x, is_known = self.id_vectors(item_ids)
        if is_known is not None and self.unknown is not None:
            x = torch.where(self._is_unknown(is_known, generator)[:, None], self.unknown, x)
        elif is_known is not None:
            x = x * is_known[:, None]
        x = self._with_content(x, item_ids)
        if self.event_type is not None and event_types is not None:
            known = torch.where(event_types < self.event_type.num_embeddings, event_types, 0)
            x = x + self.event_type(known)
        return x

    def _is_unknown(self, is_known: Tensor, generator: torch.Generator | None) -> Tensor:
        if not self.training or generator is None:
            return ~is_known
        is_dropped = torch.rand(len(is_known), generator=generator) < self.config.id_dropout
        return ~is_known | is_dropped.to(is_known.device, non_blocking=True)

    def _with_content(self, x: Tensor, item_ids: Tensor | None) -> Tensor:
        rows = slice(None) if item_ids is None else item_ids
        if self.category is not None:
            x = x + self.category(self.categories[rows])
        if self.adapter is not None:
            x = x + self.adapter(self.vectors[rows])
        return x


class DenseItems(ItemInputs, nn.Embedding):
    """Id vectors in a matrix, `weight` (V+1, D); without side columns an nn.Embedding.

    Args:
        config: what is read; where a switch is on its size is set.
        num_items: V.
        d_model: D.

    Raises:
        ConfigError: a size is missing.
    """

    def __init__(self, config: ItemInputsConfig, num_items: int, d_model: int) -> None:
        nn.Embedding.__init__(self, num_items + 1, d_model, padding_idx=0)
        self._add_sides(config, num_items, d_model)

    def forward(self, item_ids: Tensor) -> Tensor:
        """(T, D) id vectors."""
        return jagged_embedding(self.weight, item_ids, padding_idx=self.padding_idx)

    def id_vectors(self, item_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """(T, D) id vectors of tokens, and (T,) bool which items are trained; None where nobody asks."""
        return self(item_ids), self.is_trained[item_ids] if hasattr(self, "is_trained") else None

    def output_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """(V+1, D) vectors that are scored, or the rows `item_ids`; row 0 is padding."""
        vectors = self.weight if item_ids is None else self.weight[item_ids]
        if not self.config.has_content:
            return vectors
        is_trained = self.is_trained if item_ids is None else self.is_trained[item_ids]
        return self._with_content(vectors * is_trained[:, None], item_ids)

    def scored(self, item_ids: Tensor, bias: Tensor | None, *, every: bool) -> Scored:  # noqa: ARG002  # a matrix is there as a whole
        """All items, and the places of `item_ids` (N,) int64 among them."""
        return Scored(self.output_vectors()[1:], None if bias is None else bias[1:], item_ids - 1)

    def item_ids(self) -> Tensor:
        """(V,) int64: 1..V."""
        return torch.arange(1, self.num_embeddings)


_NO_TYPES = "has no event types; prepare a log with a column of them again: --set read.columns.event_type=NAME"
_NO_CATEGORIES = "has no categories of items; prepare it again: --items TABLE --set item_category=COLUMN"
_NO_VECTORS = "has no vectors of items; prepare it again: --items TABLE --set item_vectors=COLUMN"


def _check_sizes(config: ItemInputsConfig) -> None:
    switches = {"event_types": "event_type_names", "categories": "num_categories", "frozen_vectors": "vector_width"}
    for switch, size in switches.items():
        if getattr(config, switch) and not getattr(config, size):
            raise ConfigError(
                f"model.inputs.{switch}=true, but inputs.{size} is not set; train with a dataset, which sets it"
            )


def _shown(size: int | tuple[str, ...]) -> str:
    return str(size) if isinstance(size, int) else ", ".join(size)
