"""Id vectors of items in a collisionless table, for a vocabulary that is known and for ids that nobody knows yet.

    TableItems    by item index, 1..V; row 0 is padding, as in a matrix
    StreamItems   by raw 64-bit id; an item is there from the first training batch that holds it until its row goes

A row of width D + 1 holds the item's bias as its last number. Rows come with the seed drawn from torch's default
generator, so that a run's seed decides them. Ids are looked up where the table lies, vectors go to the model's device.

Dims: T tokens, V items, M items with a row, D width.
"""

import torch
from torch import Tensor

from recsys.errors import ConfigError
from recsys.models.embedding_table import CollisionlessEmbedding
from recsys.models.item_inputs import DenseItems, ItemInputs, ItemInputsConfig, Scored, TableInputsConfig


def build_item_inputs(
    config: ItemInputsConfig, num_items: int, d_model: int, *, every: bool, has_bias: bool = False
) -> ItemInputs:
    """Id vectors as `config.embedding` names them, and what is added to them.

    Args:
        config: what is read; where a switch is on its size is set.
        num_items: V; 0 is no vocabulary, which a table alone can do.
        d_model: D.
        every: whether the model's loss scores every item in each step.
        has_bias: whether a table's rows hold the items' biases too.

    Raises:
        ConfigError: a size is missing, or the table's settings make no sense with this vocabulary or loss.
    """
    if config.table is None:
        return DenseItems(config, num_items, d_model)
    _check_settings(config, config.table, num_items, every)
    return (TableItems if num_items else StreamItems)(config, config.table, num_items, d_model, has_bias)


class TableItems(ItemInputs):
    """Id vectors in a table by item index; index 0 has none and reads zeros, as does an item without a row.

    Args:
        config: what is read; where a switch is on its size is set.
        settings: of the table.
        num_items: V.
        d_model: D.
        has_bias: whether rows have the items' biases for a last number.
    """

    padding: Tensor  # (1, D) or (1, D+1), zeros

    def __init__(
        self, config: ItemInputsConfig, settings: TableInputsConfig, num_items: int, d_model: int, has_bias: bool
    ) -> None:
        super().__init__()
        self.num_items, self.d_model, self.has_bias = num_items, d_model, has_bias
        seed = int(torch.randint(2**63 - 1, ()))
        self.rows = CollisionlessEmbedding(settings.table(d_model + has_bias, seed))
        self.register_buffer("padding", torch.zeros(1, d_model + has_bias), persistent=False)
        self._add_sides(config, num_items, d_model)
        self._begin()

    def id_vectors(self, item_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """(T, D) id vectors of tokens, and (T,) bool which ids have a row and are trained; None where nobody asks."""
        rows = self._rows_of(item_ids)
        return self._vectors(rows)[:, : self.d_model], self._is_known(rows, item_ids)

    def output_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """(V+1, D) vectors that are scored, or the rows `item_ids`; row 0 is padding. With biases, D+1 numbers each."""
        if item_ids is None:
            every = torch.arange(self.num_items + 1, device=self.padding.device)
            return torch.cat([self.padding, self.output_vectors(every[1:])])
        vectors = self._vectors(self._rows_of(item_ids))
        if not self.config.has_content:
            return vectors
        of_ids = vectors[:, : self.d_model] * self.is_trained[item_ids][:, None]
        return torch.cat([self._with_content(of_ids, item_ids), vectors[:, self.d_model :]], dim=1)

    def scored(self, item_ids: Tensor, bias: Tensor | None, *, every: bool) -> Scored:
        """All items, or those of `item_ids` (N,) int64 alone, which then are all that get a gradient."""
        assert bias is None, "rows hold the biases"
        if every:
            return self._scored(self.output_vectors()[1:], item_ids - 1, None)
        items, places = torch.unique(item_ids, return_inverse=True)
        return self._scored(self.output_vectors(items), places, (items - 1).clamp(min=0))

    def item_ids(self) -> Tensor:
        """(V,) int64 whose vectors rows 1, 2, … of `output_vectors()` are."""
        return torch.arange(1, self.num_items + 1)

    @torch.no_grad()
    def all_rows(self) -> Tensor:
        """(V+1, D), with biases (V+1, D+1): what stands in each item's row, zeros where it has none."""
        return self.rows.table.pages.gather(self.rows.table.index.find(torch.arange(self.num_items + 1)))

    @torch.no_grad()
    def put_rows(self, vectors: Tensor) -> None:
        """Let every item's row, made where it has none, hold `vectors` (V+1, D) or (V+1, D+1); row 0 is left out."""
        rows = self.rows.table.look_up(torch.arange(1, self.num_items + 1))
        self.rows.table.pages.vectors.put(rows, vectors[1:])

    def _begin(self) -> None:
        self.rows.clock(0.0)  # time stands still: a run gives the same bytes whenever it runs

    def _scored(self, vectors: Tensor, places: Tensor, items: Tensor | None) -> Scored:
        bias = vectors[:, self.d_model] if self.has_bias else None
        return Scored(vectors[:, : self.d_model], bias, places, items)

    def _is_known(self, rows: Tensor, item_ids: Tensor) -> Tensor | None:
        if not hasattr(self, "is_trained"):
            return None
        return (rows >= 0).to(self.padding.device) & self.is_trained[item_ids]

    def _rows_of(self, item_ids: Tensor) -> Tensor:
        """(N,) int64 rows, on the table's device; -1 for none. The first call in training makes those of all items."""
        ids = item_ids.to(self.rows.table.device)
        is_item = ids > 0
        if bool(is_item.all()):
            return self._looked_up(ids)
        return torch.full_like(ids, -1).masked_scatter(is_item, self._looked_up(ids[is_item]))

    def _looked_up(self, ids: Tensor) -> Tensor:
        # In evaluation nothing is counted: it runs in several threads, and a checkpoint holds the counts.
        if not self.training:
            return self.rows.table.index.find(ids)
        if self.num_items and not len(self.rows.table):
            # A sampled loss may never draw an item; without a row it would score 0, above all negative scores.
            self.rows.rows_of(torch.arange(1, self.num_items + 1, device=ids.device))
        return self.rows.rows_of(ids)

    def _vectors(self, rows: Tensor) -> Tensor:
        return self.rows.of_rows(rows).to(self.padding.device)


class StreamItems(TableItems):
    """Id vectors in a table by raw 64-bit id, any of them; nothing is known of an item before a training batch has it.

    `output_vectors()` is (M+1, D) of the items with a row, `item_ids()` says whose they are.
    """

    def output_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """(M+1, D) vectors of the items with a row; row 0 is padding. Or those of `item_ids`."""
        if item_ids is not None:  # to ask for an id is no sighting: it gets no row by it
            return self._vectors(self.rows.table.index.find(item_ids.to(self.rows.table.device)))
        return torch.cat([self.padding, self._vectors(self.rows.table.live_rows())])

    def scored(self, item_ids: Tensor, bias: Tensor | None, *, every: bool) -> Scored:
        """All items with a row, or those among `item_ids` (N,) int64."""
        assert bias is None, "rows hold the biases"
        rows = self._rows_of(item_ids)
        shown = self.rows.table.live_rows() if every else torch.unique(rows[rows >= 0])
        places = torch.where(rows < 0, -1, torch.searchsorted(shown, rows))
        return self._scored(self._vectors(shown), places.to(self.padding.device), None)

    def item_ids(self) -> Tensor:
        """(M,) int64 whose vectors rows 1, 2, … of `output_vectors()` are."""
        return self.rows.table.ids_of(self.rows.table.live_rows())

    def _begin(self) -> None:
        """The clock is the machine's until it is set."""

    def _is_known(self, rows: Tensor, item_ids: Tensor) -> Tensor | None:  # noqa: ARG002  # there is no list of trained ones
        return (rows >= 0).to(self.padding.device) if self.unknown is not None else None

    def _rows_of(self, item_ids: Tensor) -> Tensor:
        return self._looked_up(item_ids.to(self.rows.table.device))


def _check_settings(config: ItemInputsConfig, table: TableInputsConfig, num_items: int, every: bool) -> None:
    at = "model.inputs.table"
    if not num_items and config.has_content:
        raise ConfigError(
            "model.inputs.categories and frozen_vectors are those of a vocabulary's items, and there is no vocabulary; "
            "set them to false"
        )
    if num_items and table.ttl_s is not None:
        raise ConfigError(f"{at}.ttl_s={table.ttl_s}: items of a vocabulary do not expire; leave it out")
    if num_items and table.admission.mode != "all":
        raise ConfigError(
            f"{at}.admission.mode={table.admission.mode}: the vocabulary says which items have a row; leave it out, "
            "and prepare the data with filters.min_item_events"
        )
    if num_items and table.capacity is not None and table.capacity < num_items:
        raise ConfigError(
            f"{at}.capacity={table.capacity}, and the vocabulary has {num_items} items, each of which needs a row to "
            f"be ranked: raise it to {num_items}, or leave it out"
        )
    if not every:
        return
    if table.eviction != "none" or table.ttl_s is not None:
        key = f"eviction={table.eviction}" if table.eviction != "none" else f"ttl_s={table.ttl_s}"
        raise ConfigError(
            f"{at}.{key} with loss.kind=ce, which touches every row in each step, so that none is ever old; "
            "set model.loss.kind=sampled_softmax"
        )
