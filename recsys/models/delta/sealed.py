"""A safetensors file behind a line that tells its format, size and sha256: any byte that differs is seen.

It is written from the tensors' own memory, piece by piece: nothing is copied as a whole, and hashing and writing let go
of the interpreter's lock.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

from recsys.errors import DeltaError

FORMAT_VERSION = 1
PIECE_BYTES = 1 << 22
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


def chunks(tensors: Mapping[str, Tensor], text: str) -> Iterator[memoryview | bytes]:
    """The bytes of a file of tensors and a text.

    Raises:
        DeltaError: a tensor is none that a file holds.
    """
    for name, tensor in tensors.items():
        check(name, tensor)
    # Wide numbers first, so that each tensor begins at a multiple of its numbers' size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, object] = {"__metadata__": {KEY: text}}
    at = 0
    for name, tensor in ordered:
        offsets = [at, at + tensor.nbytes]
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        at += tensor.nbytes
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % ALIGNMENT)
    begin = len(told).to_bytes(8, "little") + told
    digest = hashlib.sha256(begin)
    for _, tensor in ordered:
        for piece in _pieces(tensor):
            digest.update(piece)
    yield _seal(len(begin) + at, digest.hexdigest())
    yield begin
    for _, tensor in ordered:
        yield from _pieces(tensor)


def check(name: str, tensor: Tensor) -> None:
    """Whether a file can hold the tensor.

    Raises:
        DeltaError: it is sparse, or its dtype is not one of DTYPES; the message names it.
    """
    if tensor.dtype not in DTYPES:
        raise DeltaError(f"{name!r} is {tensor.dtype}; wanted one of {', '.join(map(str, DTYPES))}")
    if tensor.layout != torch.strided:
        raise DeltaError(f"{name!r} is {tensor.layout}; wanted a dense tensor")


def opened(content: bytes, path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors and text of a file's bytes.

    Args:
        content: the bytes.
        path: to be named.

    Raises:
        DeltaError: it is torn or damaged, or of an unknown format version.
    """
    line, _, rest = content.partition(b"\n")
    try:
        told = json.loads(line)
        version, num_bytes, digest = told["format"], told["bytes"], told["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise DeltaError(f"{path}: torn or damaged at its first line; fetch it again, or restore it") from error
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise DeltaError(f"{path}: format version {version}, wanted {FORMAT_VERSION}; upgrade the reader, or damaged")
    if len(rest) != num_bytes:
        raise DeltaError(f"{path}: torn: {len(rest)} bytes, wanted {num_bytes}; fetch it again, or restore it")
    if hashlib.sha256(rest).hexdigest() != digest or line + b"\n" != _seal(num_bytes, digest):
        raise DeltaError(f"{path}: damaged: its bytes differ from its sha256; fetch it again, or restore it")
    size = int.from_bytes(rest[:8], "little")
    return load(rest), str(json.loads(rest[8 : 8 + size])["__metadata__"][KEY])


def _seal(num_bytes: int, digest: str) -> bytes:
    return json.dumps({"format": FORMAT_VERSION, "bytes": num_bytes, "sha256": digest}).encode() + b"\n"


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    for start in range(0, len(flat), PIECE_BYTES):
        yield flat[start : start + PIECE_BYTES]
