"""The collisionless table as a module of torchrec: 64-bit ids in, rows of an embedding table out.

`CollisionlessManagedCollisionModule` stands where torchrec's `MCHManagedCollisionModule` and
`HashZchManagedCollisionModule` stand, in a `ManagedCollisionCollection`. It differs from both: a new id has its row in
the batch that brings it, any int64 is an id, eviction is exact, on a CPU too, and the rows do not depend on the number
of processes. `reset_evicted_rows` begins the rows anew that an id had to leave, which torchrec does on a GPU alone.

It is not built on `EmbeddingTable`, whose rows, policies and states are those of one growing table: here every bucket
fills and evicts for itself, so that the result does not depend on the number of processes, and torchrec wants a fixed
number of rows, whose weights it holds itself, and a state of registered tensors that it can cut by row. So ids and uses
stand in `BoundedRows`, with an lru and lfu of their own; index and mixing of ids are the same.

Needs the extra `torchrec`. Papers: Liu et al. 2022, arXiv:2209.07663 (collisionless tables), arXiv:2602.17050 (MPZCH).
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from recsys.errors import missing_extra
from recsys.kernels.mixing import mixed, unmixed
from recsys.models.embedding_table.bounded_rows import EVICTIONS, BoundedRows, Eviction, RowState, rows_of_bucket

try:
    from torchrec.distributed.mc_embedding_modules import BaseShardedManagedCollisionEmbeddingCollection
    from torchrec.modules.mc_embedding_modules import BaseManagedCollisionEmbeddingCollection
    from torchrec.modules.mc_modules import ManagedCollisionModule
    from torchrec.sparse.jagged_tensor import JaggedTensor
except ImportError as error:
    missing_extra("torchrec", "torchrec", error)

MOST_BUCKETS = 1024  # torchrec writes so many down

_BUFFERS = ("_row_ids", "_row_last_use", "_row_counts", "_current_iter_tensor", "_output_segments_tensor")

_log = logging.getLogger("recsys.models")


class CollisionlessManagedCollisionModule(ManagedCollisionModule):  # type: ignore[misc]  # torchrec publishes no types
    """Rows by id, in [0, zch_size): each id has a row of its own, as long as there is room.

    In training a new id gets a row at once; in evaluation nothing changes. The rows are cut into `buckets` of equally
    many, and a hash of the id, by which torchrec sends it to a process, says to which one it belongs.
    The last row of a bucket is for all of its ids that have none of their own: unknown ones in evaluation, and in
    training those for which there was no room. They are counted (`gauges`), and the first one is told to the log.

    Args:
        zch_size: rows of the embedding table; `buckets` of them are shared ones.
        device: of the ids and the rows.
        eviction: who makes room for a new id in a full bucket: `lru` the id whose last use is longest ago, `lfu` the
            one that was asked for least often since it came in, `none` nobody. Ids of the same call stay.
        buckets: what can be moved between processes, so a multiple of how many of them there will ever be.
        name: of the table, for the log.
        bucket_range: those held here, by default all; then `zch_size` counts their rows alone.

    Raises:
        ValueError: `zch_size` is not so many buckets of two rows or more, or there are more than 1024 of them.
    """

    _row_ids: Tensor
    _row_last_use: Tensor
    _row_counts: Tensor
    _current_iter_tensor: Tensor
    _output_segments_tensor: Tensor

    def __init__(
        self,
        zch_size: int,
        device: torch.device | str = "cpu",
        *,
        eviction: Eviction = "lru",
        buckets: int = 1,
        name: str = "",
        bucket_range: tuple[int, int] | None = None,
    ) -> None:
        if eviction not in EVICTIONS:
            raise ValueError(f"eviction={eviction!r}; wanted {', '.join(EVICTIONS)}")
        if buckets > MOST_BUCKETS:
            raise ValueError(f"buckets={buckets}; wanted at most {MOST_BUCKETS}")
        first, last = bucket_range or (0, buckets)
        size = rows_of_bucket(zch_size, last - first)
        super().__init__(torch.device(device), [bucket * size for bucket in range(buckets + 1)])
        self._name, self._eviction = name, eviction
        self._bucket_range = (first, last, buckets)
        self._bucket_size, self._offset = size, first * size
        state = RowState.empty(zch_size, self.device)
        self.register_buffer("_row_ids", state.ids)
        self.register_buffer("_row_last_use", state.last_use)
        self.register_buffer("_row_counts", state.counts)
        self._table: BoundedRows | None = None
        self._left: list[Tensor] = []
        self._num_inserted = self._num_evicted = self._num_unknown = 0
        self._has_warned = False
        self.on_eviction: Callable[[Tensor], None] | None = None

    def preprocess(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Ids one to one onto others, so that ids with a pattern fall into all buckets alike; unchanged for one bucket.

        torchrec calls it before it sends ids to the process of their bucket, unless the `ManagedCollisionCollection` is
        built with `need_preprocess=False`, which must not be.

        Raises:
            ValueError: the ids are no integers.
        """
        if self.buckets() == 1:
            return features
        return {name: _with_values(feature, mixed(self._ids_of(feature))) for name, feature in features.items()}

    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """The same: uses are written down by `remap`, which knows the rows."""
        return features

    def forward(self, features: dict[str, JaggedTensor], mutate_miss_lengths: bool = True) -> dict[str, JaggedTensor]:
        """Rows in place of ids."""
        return self.remap(self.preprocess(features), mutate_miss_lengths)

    @torch.no_grad()
    def remap(
        self,
        features: dict[str, JaggedTensor],
        mutate_miss_lengths: bool = True,  # noqa: ARG002  # torchrec's name; every id has a row, so no length changes
        write_weights: Tensor | None = None,
    ) -> dict[str, JaggedTensor]:
        """Rows in place of what `preprocess` gave; in training new ids get theirs, and uses are written down.

        Raises:
            ValueError: the ids are no integers, or `write_weights` is given.
        """
        if write_weights is not None:
            raise ValueError("write_weights is given; wanted None: rows are written by an optimizer alone")
        if self.training:
            self._current_iter_tensor += 1
        return {name: self._remapped(feature) for name, feature in features.items()}

    def evict(self) -> Tensor | None:
        """(M,) int64 rows that another id had before, since the last call; None where there are none.

        `on_eviction` is told of them in their stead, where it is set, before their new ids are looked up.
        """
        left, self._left = self._left, []
        if len(left) < 2:
            return left[0] if left else None
        return torch.unique(torch.cat(left))

    def output_size(self) -> int:
        """How many rows are held here."""
        return len(self._row_ids)

    def input_size(self) -> int:
        """0, which to torchrec means that any int64 is an id."""
        return 0

    def buckets(self) -> int:
        """How many buckets there are in all processes."""
        return self._bucket_range[2]

    def open_slots(self) -> Tensor:
        """(1,) how many more ids have room before one has to go."""
        return torch.tensor([self.table.room], device=self.device)

    @property
    def table(self) -> BoundedRows:
        """The rows that are held here, counted from 0."""
        if self._table is None:
            state = RowState(self._row_ids, self._row_last_use, self._row_counts)
            self._table = BoundedRows(state, self._bucket_range, self._eviction)
        return self._table

    def gauges(self) -> dict[str, float]:
        """How full the rows held here are, and what was lost; size and counts as `EmbeddingTable.gauges` names them.

        size: ids that have a row, of rows; load and fullest_bucket: share of the rows for ids that is taken, of all and
        of the fullest bucket. refused: how often, in training, an id found no room; it survives a checkpoint. inserted:
        ids that got a row, evicted: ids that had to go, and unknown: how often, in evaluation, an id had no row: all
        three since this object was made.
        """
        loads = self.table.loads
        return {
            "rows": self.output_size(),
            "size": len(self.table),
            "load": float(loads.mean()),
            "fullest_bucket": float(loads.max()),
            "inserted": self._num_inserted,
            "refused": int(self._shared_counts.sum()),
            "evicted": self._num_evicted,
            "unknown": self._num_unknown,
        }

    def export(self) -> tuple[Tensor, Tensor]:
        """(M,) ids and their (M,) rows in the whole table, ascending by row."""
        is_taken = self._row_counts > 0
        is_taken[self._bucket_size - 1 :: self._bucket_size] = False
        rows = is_taken.nonzero().squeeze(1)
        ids = self._row_ids[rows]
        return ids if self.buckets() == 1 else unmixed(ids), rows + self._offset

    def validate_state(self) -> None:
        """Look through what was loaded, and take it up.

        `load_state_dict` has looked through it before it came into the buffers; torchrec calls this after it, and what
        `torch.distributed.checkpoint` wrote into the buffers themselves is looked through here alone.

        Raises:
            ValueError: it is not the state of a table with these buckets.
        """
        self._table = self._checked({name: getattr(self, name) for name in _BUFFERS})
        self._left = []

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """As nn.Module has it; a state that a table cannot have changes no buffer.

        Raises:
            ValueError: it is not the state of a table with these buckets.
        """
        held = {name: getattr(self, name) for name in _BUFFERS}
        self._checked({name: state_dict.get(prefix + name, tensor) for name, tensor in held.items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _checked(self, given: Mapping[str, Tensor]) -> BoundedRows:
        """The rows of these buffers."""
        for name, tensor in given.items():
            wanted_shape = getattr(self, name).shape
            if tensor.dtype != torch.int64 or tensor.shape != wanted_shape:
                raise ValueError(
                    f"{self._title}: {name} is {tensor.dtype} of the shape {tuple(tensor.shape)}; wanted torch.int64 "
                    f"of {tuple(wanted_shape)}"
                )
        segments = given["_output_segments_tensor"]
        found = segments[segments >= 0].tolist()
        wanted = [bucket * self._bucket_size for bucket in range(self.buckets() + 1)]
        if found != wanted:
            raise ValueError(
                f"{self._title} has {self.buckets()} buckets of {self._bucket_size} rows, what is loaded has "
                f"{len(found) - 1} of {found[1] if len(found) > 1 else 0}; build it with the same"
            )
        latest, calls = int(given["_row_last_use"].max()), int(given["_current_iter_tensor"])
        if latest > calls:
            raise ValueError(f"{self._title}: a row was used in call {latest}, of {calls}; it is damaged")
        state = RowState(given["_row_ids"], given["_row_last_use"], given["_row_counts"])
        try:
            return BoundedRows(state, self._bucket_range, self._eviction)
        except ValueError as error:
            raise ValueError(f"{self._title}: {error}") from error

    def rebuild_with_output_id_range(
        self,
        output_id_range: tuple[int, int],
        output_segments: list[int],  # noqa: ARG002  # torchrec's name; buckets are finer than processes
        device: torch.device | None = None,
    ) -> "CollisionlessManagedCollisionModule":
        """The module of one process: the rows from the first to before the last, with the ids they hold.

        Raises:
            ValueError: the range cuts a bucket in two, or lies outside.
        """
        start, stop = (row - self._offset for row in output_id_range)
        size = self._bucket_size
        if start % size or stop % size or not 0 <= start < stop <= self.output_size():
            raise ValueError(
                f"{self._title} cannot give rows {output_id_range[0]} to {output_id_range[1]} of buckets of {size}; "
                "make buckets a multiple of the number of processes"
            )
        first = self._bucket_range[0]
        part = type(self)(
            stop - start,
            device or self.device,
            eviction=self._eviction,
            buckets=self.buckets(),
            name=self._name,
            bucket_range=(first + start // size, first + stop // size),
        )
        if self.device.type != "meta":
            for mine, theirs in zip(part._row_buffers, self._row_buffers, strict=True):
                mine.copy_(theirs[start:stop])
            part._current_iter_tensor.copy_(self._current_iter_tensor)
        return part.train(self.training)

    @property
    def _row_buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._row_ids, self._row_last_use, self._row_counts

    @property
    def _shared_counts(self) -> Tensor:
        return self._row_counts[self._bucket_size - 1 :: self._bucket_size]

    @property
    def _title(self) -> str:
        return f"table {self._name!r}" if self._name else "the table"

    def _remapped(self, feature: JaggedTensor) -> JaggedTensor:
        ids = self._ids_of(feature)
        rows = self._inserted(ids) if self.training else self._found(ids)
        return _with_values(feature, rows + self._offset if self._offset else rows)

    def _ids_of(self, feature: JaggedTensor) -> Tensor:
        """(N,) int64."""
        ids: Tensor = feature.values()
        if ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"{self._title}: ids are {ids.dtype}; wanted int64 or int32")
        return ids.to(torch.int64).contiguous()

    def _found(self, ids: Tensor) -> Tensor:
        rows = self.table.find(ids)
        self._num_unknown += int((rows % self._bucket_size == self._bucket_size - 1).sum())
        return rows

    def _inserted(self, ids: Tensor) -> Tensor:
        before = len(self.table)
        rows, changed = self.table.find_or_insert(ids, int(self._current_iter_tensor))
        self._num_inserted += len(self.table) - before + len(changed)
        if len(changed):
            self._num_evicted += len(changed)
            if self.on_eviction is not None:
                self.on_eviction(changed)
            else:
                self._left.append(changed + self._offset)
        if not self._has_warned and bool(self._shared_counts.any()):
            self._has_warned = True
            _log.warning("%s is full: new ids share a row; gauges()['refused'] counts them", self._title)
        return rows

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CollisionlessManagedCollisionModule":
        self._table = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}


def _with_values(feature: JaggedTensor, values: Tensor) -> JaggedTensor:
    return JaggedTensor(
        values=values,
        lengths=feature.lengths_or_none(),
        offsets=feature.offsets_or_none(),
        weights=feature.weights_or_none(),
    )


class _Rows(Protocol):
    """Where a table's weights and its optimizer's state lie, one element of dim 0 a row."""

    def tensors(self) -> tuple[Tensor, list[Tensor]]:
        """The weights, and the state."""


@dataclass
class _Reset:
    """Begins rows anew: weights as `initial` draws them, the optimizer's state as zeros."""

    rows: _Rows
    initial: Callable[[Tensor], Tensor | None]

    def __call__(self, changed: Tensor) -> None:
        with torch.no_grad():
            weight, state = self.rows.tensors()
            fresh = torch.empty_like(weight[changed])
            self.initial(fresh)
            weight.data[changed] = fresh
            for tensor in state:
                tensor[changed] = 0


@dataclass
class _ParameterRows:
    """Rows of a parameter that a torch optimizer trains."""

    owner: nn.Module
    name: str
    optimizer: torch.optim.Optimizer | None

    def tensors(self) -> tuple[Tensor, list[Tensor]]:
        weight = self.owner.get_parameter(self.name)
        state: Mapping[str, object] = {} if self.optimizer is None else self.optimizer.state.get(weight, {})
        return weight, [value for value in state.values() if isinstance(value, Tensor) and _has_rows(value, weight)]


@dataclass
class _FusedRows:
    """Rows of a table in fbgemm's batch of tables, which trains them itself."""

    tables: Any
    number: int

    def tensors(self) -> tuple[Tensor, list[Tensor]]:
        weight = self.tables.split_embedding_weights()[self.number]
        state = self.tables.split_optimizer_states()
        return weight, [value for value in state[self.number] if _has_rows(value, weight)] if state else []


def reset_evicted_rows(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """From here on, begin a row anew when another id takes it: weights by the table's `init_fn`, optimizer's state 0.

    Without it, a `ManagedCollisionEmbeddingCollection` in one process lets the new id begin with the weights of the old
    one (torchrec's `evict` there is empty), a sharded one resets the state of row-wise Adagrad alone, and on a CPU that
    fails: `fbgemm::reset_weight_momentum` has no CPU kernel.

    Args:
        model: holds managed-collision embedding collections, of one process or sharded by `DistributedModelParallel`.
        optimizer: that trains the tables, unless fbgemm does so itself.

    Returns:
        For how many tables.

    Raises:
        ValueError: the model holds no `CollisionlessManagedCollisionModule` in an embedding collection, or sends each
            id of a batch once (`use_index_dedup`).
    """
    done = 0
    for collection in model.modules():
        if isinstance(collection, BaseShardedManagedCollisionEmbeddingCollection):
            place = _sharded_rows
            if collection._managed_collision_collection._use_index_dedup:
                raise ValueError(
                    "use_index_dedup=True adds numbers to ids, and so mixes up those of 64 bits; set it to False: "
                    "an id may stand in a batch more than once"
                )
        elif isinstance(collection, BaseManagedCollisionEmbeddingCollection):
            place = _local_rows
        else:
            continue
        configs = {config.name: config for config in _configs(collection)}
        for table, module in collection._managed_collision_collection._managed_collision_modules.items():
            if isinstance(module, CollisionlessManagedCollisionModule):
                module.on_eviction = _Reset(place(collection, table, optimizer), configs[table].init_fn)
                done += 1
    if done == 0:
        raise ValueError(f"{type(model).__name__} has no embedding collection of a CollisionlessManagedCollisionModule")
    return done


def _configs(collection: Any) -> list[Any]:
    if isinstance(collection, BaseShardedManagedCollisionEmbeddingCollection):
        return list(collection._managed_collision_collection._table_name_to_config.values())
    return list(collection._managed_collision_collection.embedding_configs())


def _local_rows(collection: Any, table: str, optimizer: torch.optim.Optimizer | None) -> _Rows:
    tables = collection._embedding_module
    held = tables.embeddings if hasattr(tables, "embeddings") else tables.embedding_bags
    return _ParameterRows(held, f"{table}.weight", optimizer)


def _sharded_rows(collection: Any, table: str, optimizer: torch.optim.Optimizer | None) -> _Rows:
    tables, number = collection._table_to_tbe_and_index[table]
    if hasattr(tables, "split_optimizer_states"):
        return _FusedRows(tables, int(number))
    return _local_rows(collection, table, optimizer)


def _has_rows(value: Tensor, weight: Tensor) -> bool:
    return value.dim() > 0 and len(value) == len(weight)
