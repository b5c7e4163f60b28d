"""Which files a source consists of, and their bytes, unpacked where they are gzip or zstd."""

import dataclasses
import glob
import gzip
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from types import TracebackType
from typing import IO, Any

import pyarrow as pa

from recsys.errors import DataError
from recsys.files import sha256_of

GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
OTHER_PACKERS = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x1f\x9d": "compress"}
PACKED_SUFFIXES = (".gz", ".zst", ".zstd")
MAGIC_BYTES = 8
PIECE_BYTES = 1 << 24
# What tells about data and is none; a name that ends like a log is one.
DOCUMENT = re.compile(
    r"(?!.*\.(csv|tsv|parquet|jsonl|ndjson|inter)(\.(gz|zstd?))?$)"
    r"((readme|licen[cs]e|copying|notice|changelog|citation|authors)([._-].*)?$|.*\.(md|rst|pdf|html?|docx?|tex|bib)$)",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        name: relative to the folder that was named, with `/`; the file name where one file was named.
        path: where it lies.
        bytes: its size on disk.
    """

    name: str
    path: Path
    bytes: int

    @property
    def suffix(self) -> str:
        """The last suffix in lower case, that of packing left out."""
        suffixes = [suffix.lower() for suffix in PurePath(self.name).suffixes]
        kept = [suffix for suffix in suffixes if suffix not in PACKED_SUFFIXES]
        return kept[-1] if kept else ""


def list_files(path: Path) -> tuple[list[SourceFile], list[str]]:
    """The files of a source in the order of their names, and what was left out: of many, hidden files and documents.

    Args:
        path: a file, a folder (with its folders), or a glob such as `logs/2024-*.csv.gz`.

    Raises:
        DataError: nothing is there, a glob matches no file, or a folder holds none.
    """
    if path.is_file():
        return [_described(path, path.parent)], []
    if path.is_dir():
        return _listed(path, [entry for entry in path.rglob("*") if entry.is_file()], f"{path}: holds no file to read")
    if glob.has_magic(str(path)) and not path.exists():
        base = _base_of(path)
        found = [Path(entry) for entry in glob.glob(str(path), recursive=True, include_hidden=True)]
        return _listed(base, [entry for entry in found if entry.is_file()], f"{path}: no file matches")
    if path.exists():
        raise DataError(f"{path}: is no regular file; name a file, a folder or a glob")
    raise DataError(f"{path}: no such file; name a CSV, TSV, Parquet, JSONL or MovieLens file, a folder or a glob")


def hash_files(files: Sequence[SourceFile]) -> list[dict[str, str | int]]:
    """`name`, `bytes` and `sha256` of each file.

    Raises:
        DataError: a file cannot be read.
    """
    return [{"name": file.name, "bytes": file.bytes, "sha256": hash_file(file.path)} for file in files]


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hex.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a file") from error


class SourceStream:
    """The bytes of a file, unpacked, front to back; every error is one line that names the file."""

    def __init__(self, file: SourceFile) -> None:
        """Open the file.

        Raises:
            DataError: it cannot be read, or is packed by what is not known here.
        """
        self._file = file
        try:
            self._raw: IO[bytes] = file.path.open("rb")
        except OSError as error:
            raise DataError(f"{file.path}: cannot be read ({error.strerror}); check its permissions") from error
        magic = self._raw.read(MAGIC_BYTES)
        self._raw.seek(0)
        self.packing = "gzip" if magic.startswith(GZIP_MAGIC) else "zstd" if magic.startswith(ZSTD_MAGIC) else None
        for other, name in OTHER_PACKERS.items():
            if magic.startswith(other):
                self._raw.close()
                raise DataError(f"{file.path}: is packed by {name}; wanted plain, gzip or zstd; unpack it first")
        self._bytes: Any = self._raw
        if self.packing == "gzip":
            self._bytes = gzip.GzipFile(fileobj=self._raw)
        elif self.packing == "zstd":
            self._bytes = pa.CompressedInputStream(pa.PythonFile(self._raw, mode="r"), "zstd")

    def __enter__(self) -> "SourceStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raw.close()

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end alone.

        Raises:
            DataError: the file is cut short or damaged, or the disk fails.
        """
        pieces, wanted = [], size
        while wanted:
            piece = self._read(min(wanted, PIECE_BYTES))
            if not piece:
                break
            pieces.append(piece)
            wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def packing_factor(self, num_read: int) -> float:
        """How many bytes were read, `num_read` in all, for each byte of the file."""
        return 1.0 if self.packing is None else num_read / max(min(self._raw.tell(), self._file.bytes), 1)

    def read_all(self) -> bytes:
        """What is left."""
        return b"".join(iter(lambda: self.read(PIECE_BYTES), b""))

    def _read(self, size: int) -> bytes:
        path = self._file.path
        try:
            return bytes(self._bytes.read(size))
        except EOFError as error:
            what = f"{self.packing} file is cut short after {self._file.bytes} bytes"
            raise DataError(f"{path}: {what}; fetch or copy it again") from error
        except (OSError, zlib.error) as error:
            if self.packing is None:
                raise DataError(f"{path}: cannot be read ({error}); check the disk") from error
            what = str(error).splitlines()[0]
            raise DataError(f"{path}: {self.packing} file is damaged ({what}); fetch or copy it again") from error


def _described(path: Path, base: Path) -> SourceFile:
    relative = os.fsencode(path.relative_to(base).as_posix())
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return SourceFile(relative.decode("utf-8", "backslashreplace"), path, size)


def _base_of(path: Path) -> Path:
    """The folder above the first part with a wildcard."""
    plain = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        plain.append(part)
    return Path(*plain)


def _listed(base: Path, found: Sequence[Path], nothing: str) -> tuple[list[SourceFile], list[str]]:
    files = sorted((_described(path, base) for path in found), key=lambda file: file.name)
    left_out: dict[str, list[str]] = {"hidden": [], "document": []}
    kept = []
    for file in files:
        kind = "hidden" if _is_hidden(file.name) else "document" if _is_document(file.name) else None
        if kind is None:
            kept.append(file)
        else:
            left_out[kind].append(file.name)
    hidden, documents = left_out["hidden"], left_out["document"]
    if not kept:
        told = f" but hidden ones such as {hidden[0]}" if hidden else ""
        told = f" but documents such as {documents[0]}" if documents else told
        raise DataError(f"{nothing}{told}; name a file, a folder or a glob")
    notes = [f"{len(hidden):,} hidden files left out: {', '.join(hidden[:3])}"] if hidden else []
    if documents:
        notes.append(f"{len(documents):,} documents left out: {', '.join(documents[:3])}; one named alone is read")
    return kept, notes


def _is_hidden(name: str) -> bool:
    """Names that Hadoop, Spark and file systems give to what is no data."""
    return any(part.startswith((".", "_")) for part in _parts(name))


def _is_document(name: str) -> bool:
    """README, LICENSE, Markdown and the like: prose that would read as "user item item" lines."""
    return DOCUMENT.match(name.rpartition("/")[2]) is not None


def _parts(name: str) -> Iterator[str]:
    yield from name.split("/")
