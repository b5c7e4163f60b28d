"""A source file as bytes and as numbered lines: its hash, gzip, encoding, and what is wrong with them in one line."""

import dataclasses
import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.errors import DataError
from recsys.features.schema import ReadConfig

GZIP_MAGIC = b"\x1f\x8b"
SPLIT_BYTES = 1 << 27
HEAD_BYTES = 4096
CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f")) + b"\x7f"
# Random bytes hold 11 %.
BINARY_SHARE = 0.03


@dataclasses.dataclass(frozen=True)
class Source:
    """A file, read whole.

    Attributes:
        path: where it lies.
        size_bytes: as it lies on disk.
        sha256: of the bytes on disk, in hex.
        data: the bytes, unpacked where the file is gzip.
    """

    path: Path
    size_bytes: int
    sha256: str
    data: bytes

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.path.name


@dataclasses.dataclass(frozen=True)
class Lines:
    """A text file's lines.

    Attributes:
        text: (n,) String, without line ends; blank lines at the end of the file are left out.
        undecodable: numbers (from 1) of lines whose bytes are not text in the file's encoding.
    """

    text: pl.Series
    undecodable: npt.NDArray[np.int64]


def read_source(path: Path) -> Source:
    """The file's bytes, unpacked where they are gzip.

    Raises:
        DataError: no such file, a folder, unreadable, empty, or a gzip file that is cut short or damaged.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name one file")
    try:
        packed = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; name a CSV, TSV, Parquet, JSONL or MovieLens file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    data = _unpack(path, packed) if packed.startswith(GZIP_MAGIC) else packed
    if not data.strip():
        raise DataError(f"{path}: is empty; wanted at least one line of data")
    return Source(path, len(packed), hashlib.sha256(packed).hexdigest(), data)


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hex.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a file") from error


def read_lines(source: Source, config: ReadConfig) -> Lines:
    """The numbered lines of a text file.

    Raises:
        DataError: the file is in another encoding than `config.encoding`.
    """
    text, undecodable = _decode(source, config)
    text = text.removeprefix("\ufeff")
    if "\r" in text:
        text = text.replace("\r\n", "\n") if "\n" in text else text.replace("\r", "\n")
    lines = _split(text.rstrip("\n"))
    return Lines(_without_blank_end(lines), undecodable)


def _unpack(path: Path, packed: bytes) -> bytes:
    try:
        return gzip.decompress(packed)
    except EOFError as error:
        raise DataError(f"{path}: gzip file is cut short after {len(packed)} bytes; fetch or copy it again") from error
    except (OSError, zlib.error) as error:
        raise DataError(f"{path}: gzip file is damaged ({error}); fetch or copy it again") from error


def _decode(source: Source, config: ReadConfig) -> tuple[str, npt.NDArray[np.int64]]:
    is_utf8 = config.encoding.lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig")
    if is_utf8:
        _refuse_utf16(source)
    try:
        return source.data.decode(config.encoding), np.zeros(0, np.int64)
    except UnicodeDecodeError as error:
        if not is_utf8:
            what = f"byte {error.start} ({error.reason})"
            raise DataError(f"{source.path}: is not {config.encoding}: {what}; set read.encoding") from error
    bad = _undecodable_lines(source.data)
    total = source.data.count(b"\n") + (not source.data.endswith(b"\n"))
    if len(bad) > config.max_rejected_share * total:
        _refuse_binary(source)
        raise DataError(
            f"{source.path}: {len(bad)} of {total} lines are not UTF-8, the first is line {bad[0]}; the file looks "
            "like latin-1: set read.encoding=latin-1 (or the encoding it has)"
        )
    return source.data.decode("utf-8", errors="backslashreplace"), bad


def _refuse_utf16(source: Source) -> None:
    head = source.data[:HEAD_BYTES]
    has_mark = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    if not has_mark and head.count(0) <= len(head) // 4:
        return
    # Latin text has its zeros in one byte of each pair.
    if not has_mark and min(head[0::2].count(0), head[1::2].count(0)) > len(head) // 40:
        _refuse_binary(source)
    raise DataError(f"{source.path}: is not UTF-8 but looks like UTF-16; set read.encoding=utf-16")


def _refuse_binary(source: Source) -> None:
    head = source.data[:HEAD_BYTES]
    num_controls = len(head) - len(head.translate(None, CONTROLS))
    if num_controls > BINARY_SHARE * len(head):
        raise DataError(
            f"{source.path}: looks binary: {num_controls} of its first {len(head)} bytes are control bytes; "
            "name a CSV, TSV, Parquet, JSONL or MovieLens file; text may be gzip"
        )


def _undecodable_lines(data: bytes) -> npt.NDArray[np.int64]:
    """Line numbers, from 1; only lines with bytes above 127 are tried."""
    codes = np.frombuffer(data, np.uint8)
    ends = np.append(np.flatnonzero(codes == ord("\n")), len(data))
    candidates = np.unique(np.searchsorted(ends, np.flatnonzero(codes > 127)))
    starts = np.append(0, ends[:-1] + 1)
    return np.array([n + 1 for n in candidates.tolist() if not _is_utf8(data[starts[n] : ends[n]])], np.int64)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _split(text: str) -> pl.Series:
    """Lines of the text; in pieces, since one polars string holds 4 GiB."""
    pieces, start = [], 0
    while len(text) - start > SPLIT_BYTES:
        end = text.find("\n", start + SPLIT_BYTES)
        if end < 0:
            break
        pieces.append(_split_piece(text[start:end]))
        start = end + 1
    return pl.concat([*pieces, _split_piece(text[start:])])


def _split_piece(text: str) -> pl.Series:
    return pl.Series("text", [text], pl.String).str.split("\n").explode()


def _without_blank_end(lines: pl.Series) -> pl.Series:
    count = len(lines)
    while count and not lines[count - 1].strip():
        count -= 1
    return lines.head(count)
