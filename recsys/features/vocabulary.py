"""Raw ids and their indices: 1..V by first appearance, 0 for what is unknown.

Stored as UTF-8 bytes and int64 offsets, so that a file maps into memory whatever the ids are. Append-only: an index
once given is never given to another id. Needs numpy and the standard library alone.
"""

import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from recsys.errors import DataError
from recsys.features.arrays import load_array

IdKind = Literal["int", "str"]

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
DECIMALS = len(str(INT64_MIN))


class Vocabulary:
    """Ids in the order of their indices; the index of the first is 1."""

    def __init__(self, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], kind: IdKind) -> None:
        """Wrap stored ids.

        Args:
            data: (bytes,) uint8, the ids one after another as UTF-8 text; integers in decimal.
            offsets: (V+1,) int64, where each id starts; offsets[0] = 0.
            kind: what `decode` gives back.

        Raises:
            ValueError: an unknown kind.
        """
        if kind not in ("int", "str"):
            raise ValueError(f"kind={kind!r}: wanted 'int' or 'str'")
        self.data, self.offsets, self.kind = data, offsets, kind

    @classmethod
    def from_ids(cls, ids: Sequence[int] | Sequence[str] | npt.NDArray[np.int64]) -> "Vocabulary":
        """A vocabulary of distinct ids in this order.

        Args:
            ids: all integers within int64, or all non-empty strings; none of them makes kind `int`.

        Raises:
            ValueError: an id occurs twice, is empty, beyond int64, or integers and strings are mixed.
        """
        if isinstance(ids, np.ndarray) and ids.dtype == np.int64:
            return cls(*_decimal_texts(_distinct(ids)), "int")
        plain: list[int] | list[str] = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)  # type: ignore[assignment]  # one kind, checked below
        kind = _kind_of(plain)
        if len(set(plain)) != len(plain):
            raise ValueError(f"{_first_repeated(plain)!r} occurs twice; ids must be distinct")
        texts = [str(raw).encode() for raw in plain]
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(text) for text in texts], out=offsets[1:])
        return cls(np.frombuffer(b"".join(texts), np.uint8), offsets, kind)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} ids of kind {self.kind})"

    def encode(self, ids: Sequence[int | str] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The index of each id, (n,) int64; 0 where the id is unknown.

        An integer and its decimal text mean the same id, whatever the kind: 12 and "12", never "012".
        """
        if isinstance(ids, np.ndarray) and ids.dtype == np.int64 and self.kind == "int":
            return self._search(ids)
        index, ids = self._index, ids.tolist() if isinstance(ids, np.ndarray) else ids
        if self.kind == "int":
            keys = (_integer(raw) if isinstance(raw, str) else raw for raw in ids)
            found = (0 if raw is None or isinstance(raw, bool) else index.get(raw, 0) for raw in keys)
        else:
            found = (index.get(raw if isinstance(raw, str) else str(raw), 0) for raw in ids)
        return np.fromiter(found, np.int64, len(ids))

    def decode(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> list[int] | list[str]:
        """The id of each index in 1..V.

        Raises:
            ValueError: an index is 0 (padding), negative or above V.
        """
        rows = np.asarray(indices, np.int64).ravel()
        if len(rows) and (rows.min() < 1 or rows.max() > len(self)):
            wrong = int(rows[(rows < 1) | (rows > len(self))][0])
            raise ValueError(f"index {wrong} is no item index; wanted 1..{len(self)} (0 is padding)")
        texts = (self._text(row) for row in rows.tolist())
        return [int(text) for text in texts] if self.kind == "int" else list(texts)

    def save(self, folder: Path, name: str) -> None:
        """Write `{name}_bytes.npy`, `{name}_offsets.npy` and `{name}.json` into the folder, made where absent."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}_bytes.npy", np.asarray(self.data, np.uint8))
        np.save(folder / f"{name}_offsets.npy", np.asarray(self.offsets, np.int64))
        (folder / f"{name}.json").write_text(json.dumps({"kind": self.kind, "size": len(self)}) + "\n")

    @classmethod
    def load(cls, folder: Path, name: str) -> "Vocabulary":
        """The vocabulary saved under this name, memory-mapped.

        Raises:
            DataError: a file is missing, damaged or does not fit the others.
        """
        data = load_array(folder / f"{name}_bytes.npy", np.uint8)
        offsets = load_array(folder / f"{name}_offsets.npy", np.int64)
        kind, size = _load_header(folder / f"{name}.json")
        fits = len(offsets) == size + 1 and offsets[0] == 0 and offsets[-1] == len(data)
        if not fits or bool(np.any(np.diff(offsets) <= 0)):
            raise DataError(
                f"{folder}: vocabulary {name!r} is damaged, its files do not fit each other; prepare it again"
            )
        return cls(data, offsets, kind)

    @functools.cached_property
    def _index(self) -> dict[int | str, int]:
        raw: Sequence[int | str] = self.decode(np.arange(1, len(self) + 1))
        return {key: position for position, key in enumerate(raw, start=1)}

    def _search(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """As `encode`, for very many integers at once."""
        known, index = self._sorted
        if not len(known):
            return np.zeros(len(ids), np.int64)
        place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.where(known[place] == ids, index[place], 0)

    @functools.cached_property
    def _sorted(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The integers in ascending order, and the index of each."""
        values = np.fromiter((int(text) for text in self._texts()), np.int64, len(self))
        order = np.argsort(values)
        return values[order], order + 1

    def _texts(self) -> Iterator[bytes]:
        bounds, blob = self._bounds, self._blob
        return (blob[start:end] for start, end in itertools.pairwise(bounds))

    @functools.cached_property
    def _bounds(self) -> list[int]:
        bounds: list[int] = np.asarray(self.offsets).tolist()
        return bounds

    @functools.cached_property
    def _blob(self) -> bytes:
        return np.asarray(self.data).tobytes()

    def _text(self, index: int) -> str:
        return self._blob[self._bounds[index - 1] : self._bounds[index]].decode()


def _distinct(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    ordered = np.sort(ids)
    if bool((ordered[1:] == ordered[:-1]).any()):
        raise ValueError(f"{_first_repeated(ids.tolist())!r} occurs twice; ids must be distinct")
    return ids


def _decimal_texts(ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The integers in decimal, one after another, and where each starts."""
    fixed = ids.astype(f"S{DECIMALS}")
    lengths = np.char.str_len(fixed)
    offsets = np.zeros(len(ids) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    letters = fixed.view(np.uint8).reshape(len(ids), DECIMALS)
    return letters[np.arange(DECIMALS) < lengths[:, None]], offsets


def _kind_of(ids: list[int] | list[str]) -> IdKind:
    if all(isinstance(raw, str) for raw in ids) and ids:
        if "" in ids:
            raise ValueError("an id is the empty text; ids must not be empty")
        return "str"
    for raw in ids:
        if not isinstance(raw, int) or isinstance(raw, bool):
            raise ValueError(f"id {raw!r} is a {type(raw).__name__}; wanted all integers or all strings")
        if not INT64_MIN <= raw <= INT64_MAX:
            raise ValueError(f"id {raw} is beyond int64; give such ids as strings")
    return "int"


def _first_repeated(ids: list[int] | list[str]) -> int | str:
    count: Counter[int | str] = Counter(ids)
    return next(raw for raw in ids if count[raw] > 1)


def _integer(text: str) -> int | None:
    """The integer whose decimal form is exactly this text."""
    try:
        value = int(text)
    except ValueError:
        return None
    return value if str(value) == text else None


def _load_header(path: Path) -> tuple[IdKind, int]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        kind, size = header["kind"], header["size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: missing or damaged ({error}); prepare the dataset again") from error
    if kind not in ("int", "str") or not isinstance(size, int):
        raise DataError(f"{path}: wanted kind int or str and a size, found {header}; prepare the dataset again")
    return kind, size
