"""A JaggedBatch as torchrec's KeyedJaggedTensor or JaggedTensor, and back: exact, with no padding in between.

Each column of the batch that is there is a feature of its own, int64, under the column's name: `items`, `times` and
`event_types` with an element for each event, `query_times`, `users` and `instances` with one for each sequence. Times
are no weights: a weight is float32, and microseconds need 51 bits. Needs the extra `torchrec`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recsys.errors import missing_extra
from recsys.features.batches import JaggedBatch

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

ITEMS = "items"
OF_EVENTS = (ITEMS, "times", "event_types")
OF_SEQUENCES = ("query_times", "users", "instances")


def to_keyed_jagged_tensor(batch: JaggedBatch, columns: Sequence[str] | None = None) -> KeyedJaggedTensor:
    """The features of a batch, B sequences each, on the device of its items.

    Args:
        columns: features and their order; by default all that the batch has, `items` first.

    Raises:
        ValueError: the batch has no such column.
        MissingExtraError: torchrec is not installed.
    """
    _, KeyedJaggedTensor = _types()
    held = {name: batch.values if name == ITEMS else getattr(batch, name) for name in OF_EVENTS + OF_SEQUENCES}
    held = {name: column for name, column in held.items() if column is not None}
    names = list(held) if columns is None else list(columns)
    for name in names:
        if name not in held:
            raise ValueError(f"the batch has no column {name!r}; it has {', '.join(held)}")
    lengths = batch.offsets.diff()
    ones = torch.ones_like(lengths)
    return KeyedJaggedTensor(
        keys=names,
        values=torch.cat([held[name].to(batch.values.device) for name in names]),
        lengths=torch.cat([lengths if name in OF_EVENTS else ones for name in names]),
    )


def from_keyed_jagged_tensor(features: KeyedJaggedTensor) -> JaggedBatch:
    """The batch whose `to_keyed_jagged_tensor` this is.

    Raises:
        ValueError: `items` is missing, or a feature is none of a batch's columns, has weights, or is of another shape
            or type.
    """
    if features.weights_or_none() is not None:
        raise ValueError("the features have weights, for which a batch has no place; leave them out")
    if features.variable_stride_per_key():
        raise ValueError("the features differ in how many sequences they have; wanted as many of each")
    names = features.keys()
    if ITEMS not in names:
        raise ValueError(f"the features are {', '.join(names) or 'none'}; {ITEMS!r} is missing")
    all_lengths = features.lengths().to(torch.int64).view(len(names), -1 if len(features.lengths()) else 0)
    lengths = all_lengths[names.index(ITEMS)]
    ones = torch.ones_like(lengths)
    held: dict[str, Tensor] = {}
    first = 0
    for name, own in zip(names, all_lengths, strict=True):
        if name not in OF_EVENTS + OF_SEQUENCES:
            raise ValueError(f"the feature {name!r} is none of {', '.join(OF_EVENTS + OF_SEQUENCES)}; leave it out")
        if not torch.equal(own, lengths if name in OF_EVENTS else ones):
            wanted = f"as many elements as {ITEMS!r} in" if name in OF_EVENTS else "one element of"
            raise ValueError(f"the feature {name!r} has other lengths; wanted {wanted} each sequence")
        last = first + int(own.sum())
        held[name] = _int64(name, features.values()[first:last])
        first = last
    values = held.pop(ITEMS)
    if "instances" in held:
        held["instances"] = held["instances"].cpu()
    return JaggedBatch(values=values, offsets=_offsets(lengths), lengths=tuple(lengths.tolist()), **held)


def to_jagged_tensor(batch: JaggedBatch, column: str = ITEMS) -> JaggedTensor:
    """One column of the batch's events as B jagged sequences; its memory is shared.

    Raises:
        ValueError: the batch's events have no such column.
        MissingExtraError: torchrec is not installed.
    """
    JaggedTensor, _ = _types()
    values = batch.values if column == ITEMS else getattr(batch, column) if column in OF_EVENTS else None
    if values is None:
        raise ValueError(f"the batch's events have no column {column!r}")
    return JaggedTensor(values=values, lengths=batch.offsets.diff(), offsets=batch.offsets)


def from_jagged_tensor(items: JaggedTensor) -> JaggedBatch:
    """A batch of these items, its memory shared where they are int64.

    Raises:
        ValueError: there are weights, or the items are no integers.
    """
    if items.weights_or_none() is not None:
        raise ValueError("the items have weights, for which a batch has no place; leave them out")
    lengths = items.lengths().to(torch.int64)
    return JaggedBatch(values=_int64(ITEMS, items.values()), offsets=_offsets(lengths), lengths=tuple(lengths.tolist()))


def _types() -> tuple[type[JaggedTensor], type[KeyedJaggedTensor]]:
    try:
        from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor
    except ImportError as error:
        missing_extra("torchrec", "torchrec", error)
    return JaggedTensor, KeyedJaggedTensor


def _int64(name: str, values: Tensor) -> Tensor:
    if values.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"the feature {name!r} is {values.dtype}; wanted int64 or int32")
    return values.to(torch.int64)


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
