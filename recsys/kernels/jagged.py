"""Where the sequences of a jagged tensor begin and end, known on the host.

A jagged tensor keeps B sequences one after the other along its first axis, T tokens in all, without padding. Whatever
attention needs to know about a batch's lengths is worked out here once and shared by all layers.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

Plan = TypeVar("Plan")
LARGEST_TOTAL = 2**62
NUM_RECENT = 16  # batches that `JaggedMeta.of` remembers


@dataclass(frozen=True, eq=False)
class JaggedMeta:
    """Lengths and offsets of one batch; build it by `from_lengths`.

    Attributes:
        offsets: (B+1,) int64, sequence b holds the rows offsets[b] to offsets[b+1] - 1.
        lengths: (B,) int64 on the host.
        host_lengths: the same as a CPU tensor.
        max_len: longest sequence, 0 for an empty batch.
        total: T, tokens of all sequences.
    """

    offsets: Tensor
    lengths: np.ndarray
    host_lengths: Tensor
    max_len: int
    total: int
    _plans: dict[Hashable, object] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def from_lengths(
        cls, lengths: Sequence[int] | np.ndarray | Tensor, device: torch.device | str | None = None
    ) -> "JaggedMeta":
        """The meta of a batch.

        Args:
            lengths: (B,) integers >= 0. A tensor on another device is copied to the host, which waits for it.
            device: where `offsets` lies; the CPU by default.

        Raises:
            ValueError: lengths are not one-dimensional, or one is negative.
            TypeError: lengths are not integers.
        """
        host = _host_lengths(lengths)
        ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(host, dtype=np.int64)])
        offsets = torch.from_numpy(ends)
        offsets = offsets if device is None else offsets.to(device, non_blocking=True)
        meta = cls(
            offsets=offsets,
            lengths=host,
            host_lengths=torch.from_numpy(host),
            max_len=int(host.max(initial=0)),
            total=int(ends[-1]),
        )
        if offsets.device.type != "cpu":
            _remember(meta)  # an operator of torch's library shall find it again, and copy nothing anew
        return meta

    @classmethod
    def of(cls, host_lengths: Tensor, offsets: Tensor) -> "JaggedMeta":
        """The meta that has these: of the last few batches, the same object, with all that was worked out for it.

        Args:
            host_lengths: (B,) int64 on the CPU.
            offsets: (B+1,) int64, on the device of the batch.
        """
        with _recent_lock:
            found = _recent.get(_key(host_lengths.numpy(), offsets.device))
        meta = cls.from_lengths(host_lengths, offsets.device) if found is None else found
        _remember(meta)
        return meta

    @property
    def num_sequences(self) -> int:
        """B."""
        return len(self.lengths)

    @property
    def starts(self) -> np.ndarray:
        """(B,) int64 on the host, the first row of each sequence."""
        return cast(np.ndarray, np.cumsum(self.lengths) - self.lengths)

    def cached(self, key: Hashable, build: Callable[[], Plan]) -> Plan:
        """What `build` returns, worked out once for this batch and `key`."""
        if key not in self._plans:
            self._plans[key] = build()
        return cast(Plan, self._plans[key])


_recent: dict[tuple[bytes, str, int], JaggedMeta] = {}
_recent_lock = threading.Lock()


def _remember(meta: JaggedMeta) -> None:
    """As the youngest of the recent ones."""
    key = _key(meta.lengths, meta.offsets.device)
    with _recent_lock:
        _recent.pop(key, None)
        _recent[key] = meta
        if len(_recent) > NUM_RECENT:
            del _recent[next(iter(_recent))]


def _key(lengths: np.ndarray, device: torch.device) -> tuple[bytes, str, int]:
    """What is on a GPU belongs to the stream that copied it there: another one might read it too early."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return lengths.tobytes(), str(device), stream


def _host_lengths(lengths: Sequence[int] | np.ndarray | Tensor) -> np.ndarray:
    values = lengths.detach().cpu().numpy() if isinstance(lengths, Tensor) else np.asarray(lengths)
    if values.size == 0:
        values = values.astype(np.int64)
    if values.ndim != 1:
        raise ValueError(f"lengths has the shape {values.shape}; wanted (B,), one length a sequence")
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"lengths are {values.dtype}; wanted integers")
    if values.size and float(values.sum(dtype=np.float64)) >= LARGEST_TOTAL:
        raise ValueError(f"lengths sum up to {float(values.sum(dtype=np.float64)):.3g}; wanted below 2**62 tokens")
    host = values.astype(np.int64)  # a copy
    if (host < 0).any():
        b = int(np.argmax(host < 0))
        raise ValueError(f"lengths[{b}]={host[b]}; wanted a length >= 0")
    return host


def check_is_meta(name: str, meta: object) -> None:
    """Raise TypeError unless lengths come as a JaggedMeta."""
    if not isinstance(meta, JaggedMeta):
        raise TypeError(f"{name} is {type(meta).__name__}; wanted JaggedMeta.from_lengths(lengths)")
