"""A safetensors file behind a line that tells its format, size and sha256: any byte that differs is seen.

It is written from the tensors' own memory, piece by piece, and hashed on the way: nothing is copied as a whole, and
hashing and writing let go of the interpreter's lock. The line is filled in last, before the file gets its name.

It is read twice: once as a whole, hashed, and then what is asked for. The first time a CRC-32 of every 64 KB is kept,
so that what the second reading brings is what was hashed, or refused.
"""

import hashlib
import json
import math
import zlib
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys.errors import DeltaError, GapError
from recsys.models.delta.files import Files
from recsys.models.delta.rows import Rows

FORMAT_VERSION = 1
PIECE_BYTES = 1 << 22  # written in one go
CHECKED_BYTES = 1 << 16  # have a CRC of their own
MOST_LINE_BYTES = 4096
ALIGNMENT = 8
KEY = "delta"  # of the text in the metadata
DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
OF_NAMES = {name: dtype for dtype, name in DTYPES.items()}


class Body:
    """The bytes of a file of tensors and a text, given once and in order, and the line that is known after the last.

    Args:
        tensors: by name; of rows a part is in memory at a time.
        text: beside them.

    Raises:
        DeltaError: a tensor is none that a file holds.
    """

    def __init__(self, tensors: Mapping[str, Tensor | Rows], text: str) -> None:
        for name, tensor in tensors.items():
            check(name, tensor)
        # Wide numbers first, so that each tensor begins at a multiple of its numbers' size.
        ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
        header: dict[str, object] = {"__metadata__": {KEY: text}}
        at = 0
        for name, tensor in ordered:
            offsets = [at, at + tensor.nbytes]
            header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
            at += tensor.nbytes
        told = json.dumps(header).encode()
        told += b" " * (-len(told) % ALIGNMENT)
        self._begin = len(told).to_bytes(8, "little") + told
        self._tensors = [tensor for _, tensor in ordered]
        self._num_bytes = len(self._begin) + at
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[memoryview | bytes]:
        """All bytes; blanks stand where the line will."""
        self._digest = hashlib.sha256(self._begin)
        yield b" " * (len(self.line()) - 1) + b"\n"
        yield self._begin
        num_bytes = len(self._begin)
        for tensor in self._tensors:
            for piece in _pieces(tensor):
                self._digest.update(piece)
                num_bytes += len(piece)
                yield piece
        assert num_bytes == self._num_bytes, (num_bytes, self._num_bytes)

    def line(self) -> bytes:
        """The first bytes, after all were given."""
        return _seal(self._num_bytes, self._digest.hexdigest())


class SealedFile:
    """A whole file; its tensors are read when they are asked for.

    Args:
        path: of it.
        files: by which it is read.

    Raises:
        DeltaError: it is torn or damaged, or of an unknown format version.
    """

    def __init__(self, path: Path, files: Files) -> None:
        self._path, self._files = path, files
        self._sums = array("I")  # CRC-32 of each CHECKED_BYTES behind the line
        self._begin = self._checked()
        size = int.from_bytes(self._bytes(0, 8), "little")
        try:
            self._header: dict[str, Any] = json.loads(self._bytes(8, size))
            self.text = str(self._header.pop("__metadata__")[KEY])
            self.dtypes = {name: OF_NAMES[about["dtype"]] for name, about in self._header.items()}
            self.shapes = {name: tuple(map(int, about["shape"])) for name, about in self._header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DeltaError(f"{path}: whole, but no delta ({error!r}); it was written by something else") from error
        self._at = 8 + size

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The tensor of that name, or its rows from `start` to `stop`.

        Raises:
            GapError: the file was removed meanwhile.
            DeltaError: its bytes are no longer those that were checked.
        """
        dtype, shape = self.dtypes[name], self.shapes[name]
        offset = self._at + int(self._header[name]["data_offsets"][0])
        if stop is not None:
            offset += start * math.prod(shape[1:]) * dtype.itemsize
            shape = (stop - start, *shape[1:])
        out = torch.empty(shape, dtype=dtype)
        if out.numel():
            self._fill(out.view(-1).view(torch.uint8).numpy().data, offset)
        return out

    def _bytes(self, start: int, count: int) -> bytearray:
        out = bytearray(count)
        self._fill(memoryview(out), start)
        return out

    def _fill(self, out: memoryview, start: int) -> None:
        """With the bytes from `start` on, behind the line."""
        stop, at = start + len(out), start - start % CHECKED_BYTES
        try:
            with self._files.open(self._path) as file:
                file.seek(self._begin + at)
                while at < stop:
                    piece, number = file.read(CHECKED_BYTES), at // CHECKED_BYTES
                    if number >= len(self._sums) or zlib.crc32(piece) != self._sums[number]:
                        raise DeltaError(
                            f"{self._path}: its bytes are no longer those that were checked: "
                            "it was replaced meanwhile, or the disk failed; ask again"
                        )
                    first, last = max(start, at), min(stop, at + len(piece))
                    out[first - start : last - start] = piece[first - at : last - at]
                    at += CHECKED_BYTES
        except FileNotFoundError as error:
            raise GapError(f"{self._path}: was removed meanwhile, by a compaction; ask again") from error

    def _checked(self) -> int:
        """Where the bytes behind the line begin, after all of them were hashed."""
        path = self._path
        with self._files.open(path) as file:
            line = file.readline(MOST_LINE_BYTES)
            try:
                told = json.loads(line)
                version, num_bytes, digest = told["format"], told["bytes"], told["sha256"]
            except (ValueError, KeyError, TypeError) as error:
                raise DeltaError(f"{path}: torn or damaged at its first line; fetch it again, or restore it") from error
            if isinstance(version, int) and version != FORMAT_VERSION:
                raise DeltaError(
                    f"{path}: format version {version}, wanted {FORMAT_VERSION}; upgrade the reader, or damaged"
                )
            found, size = hashlib.sha256(), 0
            while piece := file.read(CHECKED_BYTES):
                found.update(piece)
                self._sums.append(zlib.crc32(piece))
                size += len(piece)
        if size != num_bytes:
            raise DeltaError(f"{path}: torn: {size} bytes, wanted {num_bytes}; fetch it again, or restore it")
        if found.hexdigest() != digest or line != _seal(num_bytes, digest):
            raise DeltaError(f"{path}: damaged: its bytes differ from its sha256; fetch it again, or restore it")
        return len(line)


def check(name: str, tensor: Tensor | Rows) -> None:
    """Whether a file can hold the tensor.

    Raises:
        DeltaError: it is sparse, has no numbers, or its dtype is not one of DTYPES; the message names it.
    """
    if tensor.dtype not in DTYPES:
        raise DeltaError(f"{name!r} is {tensor.dtype}; wanted one of {', '.join(map(str, DTYPES))}")
    if isinstance(tensor, Tensor) and tensor.layout != torch.strided:
        raise DeltaError(f"{name!r} is {tensor.layout}; wanted a dense tensor")
    if isinstance(tensor, Tensor) and tensor.is_meta:
        raise DeltaError(f"{name!r} is on the device meta, and has no numbers; wanted it on cpu or cuda")


def _seal(num_bytes: int, digest: str) -> bytes:
    return json.dumps({"format": FORMAT_VERSION, "bytes": num_bytes, "sha256": digest}).encode() + b"\n"


def _pieces(tensor: Tensor | Rows) -> Iterator[memoryview]:
    if isinstance(tensor, Rows):
        for part in tensor.parts():
            yield from _pieces(part)
        return
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    for start in range(0, len(flat), PIECE_BYTES):
        yield flat[start : start + PIECE_BYTES]
