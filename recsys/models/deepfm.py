"""DeepFM: a factorization machine and a deep network on the same vectors of ids.

    logit of a click = b + sum_f w_f + sum_{f<g} <v_f, v_g> + MLP([v_1 … v_F, dense]) + <w_dense, dense>

Paper: Guo et al. 2017, arXiv:1703.04247. Taken rather than DCN v2 (Wang et al. 2021, arXiv:2008.13535) because Monolith
measured collisions with it (Liu et al. 2022, arXiv:2209.07663), and because a pair of ids meets in one inner product:
what shared rows spoil is seen there at once.
Differs: a field may hold several ids, whose vectors are averaged (a short history); fields may share rows; dense
columns go to the network and the linear term, and have no vectors; no dropout.

Vectors come from tables, one a space of ids, of rows (w, v). A table looks ids up when called, gives new ones rows in
training mode alone, and updates rows itself:

    loss = model.loss(batch)
    loss.backward()
    dense_optimizer.step()
    model.step_tables(lr)

Dims: N examples, F fields, D width, H last hidden layer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.features.click_batch import NO_ID, ClickBatch
from recsys.models.protocols import Labels


class IdEmbedding(Protocol):
    """Vectors by id, each row with its optimizer: `HashedEmbedding`, `CollisionlessEmbedding`. A torch module, too."""

    @property
    def width(self) -> int:
        """Numbers of a row."""
        ...

    def __call__(self, ids: Tensor) -> Tensor:
        """(*shape, width) of ids int64 of any shape."""
        ...

    def step(self, lr: float) -> None:
        """Update rows by the gradients of the lookups since the last step."""
        ...

    def clock(self, seconds: float) -> None:
        """Tell the time, for what is touched from here on."""
        ...

    def expire(self) -> int:
        """Drop rows that are too old; returns how many."""
        ...

    def gauges(self) -> dict[str, float]:
        """`size` in rows, `bytes`, and more."""
        ...


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of ids.

    Attributes:
        name: of the field.
        length: columns of ids; their vectors are averaged, those without an id left out.
        space: whose rows they are; fields of one space share rows. By default one of its own.
    """

    name: str
    length: int = 1
    space: str | None = None

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length={self.length} of the field {self.name!r}; wanted at least 1")

    @property
    def rows(self) -> str:
        """Name of the space."""
        return self.space or self.name


@dataclass(frozen=True, kw_only=True)
class DeepFMConfig:
    """Fields, sizes, and what the labels are.

    Attributes:
        fields: in the order of the columns of `ids`.
        width: D, of a field's vector; a row of a table has D + 1 numbers.
        hidden: sizes of the hidden layers; the last is H.
        num_dense: dense columns.
        labels: impression: what was shown and taken or not; sampled: negatives were drawn, so that an output is the
            chance of a positive among those drawn, and no click probability.
        negatives_kept: share of the impressions without a click that training sees, of labels `impression`; predictions
            are corrected by its logarithm (uniform thinning).
    """

    fields: tuple[Field, ...]
    width: int = 16
    hidden: tuple[int, ...] = (64, 32)
    num_dense: int = 0
    labels: Labels = "impression"
    negatives_kept: float = 1.0

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"fields are {', '.join(names) or 'none'}; wanted at least one, each name once")
        if self.width < 1 or self.num_dense < 0 or not self.hidden or min(self.hidden) < 1:
            raise ValueError(
                f"width={self.width}, hidden={self.hidden}, num_dense={self.num_dense}; wanted sizes of at least 1, "
                "one hidden layer or more, and num_dense of at least 0"
            )
        if self.labels not in get_args(Labels):
            raise ValueError(f"labels={self.labels!r}; wanted {' or '.join(get_args(Labels))}")
        if not 0 < self.negatives_kept <= 1:
            raise ValueError(f"negatives_kept={self.negatives_kept}; wanted a share above 0 and up to 1")
        if self.labels == "sampled" and self.negatives_kept != 1:
            raise ValueError(
                f"negatives_kept={self.negatives_kept} corrects thinned impressions; labels are sampled, and have no "
                "click probability: leave it at 1, or train on impressions"
            )

    @property
    def num_columns(self) -> int:
        """Columns of `ids`."""
        return sum(field.length for field in self.fields)

    @property
    def spaces(self) -> tuple[str, ...]:
        """Spaces of ids, in the order in which fields name them."""
        return tuple(dict.fromkeys(field.rows for field in self.fields))

    @property
    def row_width(self) -> int:
        """Numbers of a table's row: the weight, then the vector."""
        return self.width + 1


class DeepFM(nn.Module):
    """ClickModel on any tables of ids.

    Args:
        config: fields and sizes.
        tables: of each space, rows of `config.row_width` numbers.
        seed: of the network's first weights.

    Raises:
        ValueError: a table is missing, one is not named by any field, or its rows are of another width.
    """

    def __init__(self, config: DeepFMConfig, tables: Mapping[str, nn.Module], *, seed: int = 0) -> None:
        super().__init__()
        if set(tables) != set(config.spaces):
            raise ValueError(
                f"tables are {', '.join(tables) or 'none'}; wanted those of the spaces {', '.join(config.spaces)}"
            )
        for space, table in tables.items():
            if (width := getattr(table, "width", None)) != config.row_width:
                raise ValueError(
                    f"the table of the space {space!r} has rows of width {width}; wanted {config.row_width}, the "
                    f"vector's {config.width} and a weight: make it with config.row_width"
                )
        self.config, self.labels = config, config.labels
        self._now_s = -math.inf
        self.tables = nn.ModuleDict(tables)
        sizes = (len(config.fields) * config.width + config.num_dense, *config.hidden)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.out = nn.Linear(config.hidden[-1], 1)  # its bias is b
        self.dense_weights = nn.Linear(config.num_dense, 1, bias=False) if config.num_dense else None
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def loss(self, batch: ClickBatch) -> Tensor:
        """Scalar: the mean binary cross entropy.

        In training mode the tables are told the batch's last time; a batch that comes late does not set them back.

        Raises:
            ValueError: there are no examples, no labels, a label is neither 0 nor 1, or columns do not fit.
        """
        if batch.labels is None:
            raise ValueError("the batch has no labels; wanted (N,) of 0 and 1")
        if not len(batch):
            raise ValueError("the batch has no examples, and no mean loss; leave empty batches out of training")
        is_wrong = (batch.labels != 0) & (batch.labels != 1)
        if bool(is_wrong.any()):
            raise ValueError(
                f"{int(is_wrong.sum())} of {len(batch)} labels are neither 0 nor 1, the first is "
                f"{batch.labels[is_wrong][0].item()}; wanted 1 where it was taken, else 0"
            )
        if self.training and batch.times is not None:
            self._now_s = max(self._now_s, float(batch.times.max()) / 1e6)
            self.clock(self._now_s)
        return functional.binary_cross_entropy_with_logits(self.logits(batch), batch.labels.float())

    def predict(self, batch: ClickBatch) -> Tensor:
        """(N,) probability; of labels `sampled` that of a positive among those drawn, good for order alone."""
        with torch.no_grad():
            return torch.sigmoid(self.logits(batch) + math.log(self.config.negatives_kept))

    def hidden(self, batch: ClickBatch) -> Tensor:
        """(N, H): the last hidden layer, by which alike examples are found."""
        with torch.no_grad():
            return self._hidden(self._rows(batch)[..., 1:], batch)

    def logits(self, batch: ClickBatch) -> Tensor:
        """(N,) log-odds, as they were trained.

        Raises:
            ValueError: columns do not fit.
        """
        rows = self._rows(batch)  # (N, F, 1 + D)
        weights, vectors = rows[..., 0], rows[..., 1:]
        logit = weights.sum(1) + pair_products(vectors) + self.out(self._hidden(vectors, batch)).squeeze(1)
        if self.dense_weights is not None:
            logit = logit + self.dense_weights(batch.dense).squeeze(1)
        return logit

    def dense_parameters(self) -> list[nn.Parameter]:
        """What torch.optim trains: all but the rows of the tables."""
        return list(self.parameters())

    def step_tables(self, lr: float) -> None:
        """Update the rows of all tables by the gradients since the last step."""
        for table in self._tables.values():
            table.step(lr)

    def clock(self, seconds: float) -> None:
        """Tell all tables the time."""
        for table in self._tables.values():
            table.clock(seconds)

    def expire(self) -> int:
        """How many rows all tables drop because they are too old."""
        return sum(table.expire() for table in self._tables.values())

    def gauges(self) -> dict[str, dict[str, float]]:
        """Those of each table, by its space."""
        return {space: table.gauges() for space, table in self._tables.items()}

    @property
    def _tables(self) -> dict[str, IdEmbedding]:
        return dict(self.tables.items())  # type: ignore[arg-type]  # modules that are tables

    def _hidden(self, vectors: Tensor, batch: ClickBatch) -> Tensor:
        x = vectors.flatten(1)
        if batch.dense is not None:
            x = torch.cat([x, batch.dense], dim=1)
        for layer in self.layers:
            x = functional.relu(layer(x))
        return x

    def _rows(self, batch: ClickBatch) -> Tensor:
        """(N, F, 1 + D): weight and vector of each field."""
        columns = 0 if batch.dense is None else batch.dense.shape[1]
        if batch.ids.shape[1] != self.config.num_columns or columns != self.config.num_dense:
            raise ValueError(
                f"the batch has {batch.ids.shape[1]} columns of ids and {columns} dense ones; the fields have "
                f"{self.config.num_columns} and {self.config.num_dense}"
            )
        parts = dict(
            zip(self.config.fields, torch.split(batch.ids, [f.length for f in self.config.fields], 1), strict=True)
        )
        found: dict[str, Tensor] = {}
        for space in self.config.spaces:  # one lookup a space
            fields = [field for field in parts if field.rows == space]
            ids = torch.cat([parts[field] for field in fields], dim=1)
            vectors, is_id = self._looked_up(space, ids)
            lengths = [field.length for field in fields]
            for field, rows, present in zip(
                fields, *(torch.split(part, lengths, 1) for part in (vectors, is_id)), strict=True
            ):
                found[field.name] = (
                    rows[:, 0] if field.length == 1 else rows.sum(1) / present.sum(1, keepdim=True).clamp(min=1)
                )
        return torch.stack([found[field.name] for field in self.config.fields], dim=1)

    def _looked_up(self, space: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(N, K, 1 + D), zeros where there is no id, and (N, K) whether there is one."""
        table, is_id = self._tables[space], ids != NO_ID
        if bool(is_id.all()):
            return table(ids), is_id
        places = is_id.flatten().nonzero().squeeze(1)
        vectors = table(ids.flatten()[places])
        empty = vectors.new_zeros(ids.numel(), self.config.row_width)
        return empty.index_copy(0, places, vectors).view(*ids.shape, -1), is_id


def pair_products(vectors: Tensor) -> Tensor:
    """(N,) sum of the inner products of all pairs of the fields' vectors (N, F, D), in O(F D) (Rendle 2010, ICDM)."""
    total = vectors.sum(1)
    return 0.5 * (total * total - (vectors * vectors).sum(1)).sum(1)
