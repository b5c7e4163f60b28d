"""A text file as numbered lines, in blocks of whole lines: memory is a block or two whatever the file's size.

A block is UTF-8 whatever the file's encoding was, every line of it ends with one line feed, and the blank lines at the
end of the file belong to no block.
"""

import codecs
import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from recsys.errors import DataError
from recsys.features.formats.source import SourceFile, SourceStream
from recsys.features.schema import ReadConfig

HEAD_BYTES = 1 << 18
CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f")) + b"\x7f"
# Random bytes hold 11 %.
BINARY_SHARE = 0.03
UTF8 = ("utf-8", "utf8", "utf-8-sig")


@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive whole lines.

    Attributes:
        data: UTF-8; every line ends with a line feed.
        first_line: the number of its first line, from 1.
        undecodable: numbers of lines whose bytes are not text in the file's encoding; they stand escaped in `data`.
        is_last: whether the file ends with it.
    """

    data: bytes
    first_line: int
    undecodable: frozenset[int] = frozenset()
    is_last: bool = True

    def line_starts(self) -> npt.NDArray[np.int64]:
        """(n+1,) where each line begins, and the end of the last."""
        ends = np.flatnonzero(np.frombuffer(self.data, np.uint8) == ord("\n"))
        return np.concatenate([np.zeros(1, np.int64), ends + 1])

    def lines(self) -> pl.Series:
        """(n,) String, each line without its end."""
        starts = self.line_starts()
        buffers = (pa.py_buffer(starts), pa.py_buffer(self.data))
        texts = pl.from_arrow(pa.LargeStringArray.from_buffers(len(starts) - 1, *buffers))
        assert isinstance(texts, pl.Series)
        return texts.str.strip_suffix("\n")

    def from_byte(self, used: int) -> "Block":
        """What follows the first `used` bytes, which end with a line."""
        first_line = self.first_line + self.data.count(b"\n", 0, used)
        undecodable = frozenset(line for line in self.undecodable if line >= first_line)
        return Block(self.data[used:], first_line, undecodable, self.is_last)

    def up_to(self, used: int) -> "Block":
        """The first `used` bytes, which end with a line, as a block that others follow."""
        return Block(self.data[:used], self.first_line, self.undecodable, is_last=False)


class TextFile:
    """A text file whose encoding is known."""

    def __init__(self, file: SourceFile, config: ReadConfig) -> None:
        """Look at the beginning of the file.

        `packing_factor` is how many bytes of text a byte of the file holds, about.

        Raises:
            DataError: it is empty, or in another encoding than it should be.
        """
        self.file = file
        self._config = config
        self.encoding = config.encoding_of(file.name)
        self._is_utf8 = self.encoding.lower().replace("_", "-") in UTF8
        with SourceStream(file) as stream:
            head = stream.read(HEAD_BYTES)
            self.packing_factor = stream.packing_factor(len(head))
        if not head.strip():
            self._refuse_empty()
        if head[257:262] == b"ustar":
            raise DataError(f"{file.path}: is a tar archive; wanted plain, gzip or zstd text; unpack it first")
        if self._is_utf8:
            self._refuse_utf16(head)
        self._head = head
        text = head if self._is_utf8 else head.decode(self.encoding, errors="replace").encode()
        self._ends_by_return = b"\r" in text and b"\n" not in text
        self.head = next(iter(self.blocks(HEAD_BYTES)))
        if self.head.undecodable:
            self._refuse_binary(head)

    def blocks(self, block_bytes: int) -> Iterator[Block]:
        """The lines of the file, `block_bytes` at a time and at least one line.

        Raises:
            DataError: the file is damaged, or too many lines are in another encoding.
        """
        line, num_undecodable, first_undecodable = 1, 0, 0
        waiting: Block | None = None
        for data in self._whole_lines(block_bytes):
            text, undecodable = _utf8(data, line) if self._is_utf8 else (data, frozenset[int]())
            if undecodable:
                first_undecodable = first_undecodable or min(undecodable)
                num_undecodable += len(undecodable)
            if waiting is not None:
                yield waiting
            waiting = Block(text, line, undecodable, is_last=False)
            line += text.count(b"\n")
        if waiting is None:
            self._refuse_empty()
            return
        if num_undecodable > self._config.max_rejected_share * (line - 1):
            self._refuse_encoding(num_undecodable, line - 1, first_undecodable)
        yield dataclasses.replace(waiting, is_last=True)

    def _whole_lines(self, block_bytes: int) -> Iterator[bytes]:
        """Bytes that end with a line; blank lines wait for a line that is not."""
        blank, part = b"", b""
        for piece in self._pieces(block_bytes):
            data = part + piece
            cut = data.rfind(b"\n") + 1
            data, part = data[:cut], data[cut:]
            if data:
                kept = blank + (data.replace(b"\r\n", b"\n") if b"\r" in data else data)
                cut = _end_of_text(kept)
                if cut:
                    yield kept[:cut]
                blank = kept[cut:]
        if part.strip():
            yield blank + part.removesuffix(b"\r") + b"\n"

    def _pieces(self, block_bytes: int) -> Iterator[bytes]:
        """The file's bytes as UTF-8, without byte order mark."""
        decoder = None if self._is_utf8 else codecs.getincrementaldecoder(self.encoding)()
        done, is_first = 0, True
        with SourceStream(self.file) as stream:
            while True:
                raw = stream.read(block_bytes)
                piece = raw if decoder is None else self._decoded(decoder, raw, done)
                done += len(raw)
                if self._ends_by_return:
                    piece = piece.replace(b"\r", b"\n")
                if is_first and piece:
                    is_first = False
                    if self._is_utf8 and len(piece) < len(codecs.BOM_UTF8):
                        piece += stream.read(len(codecs.BOM_UTF8))
                    piece = piece.removeprefix(codecs.BOM_UTF8)
                if piece:
                    yield piece
                if not raw:
                    return

    def _decoded(self, decoder: codecs.IncrementalDecoder, raw: bytes, done: int) -> bytes:
        try:
            return decoder.decode(raw, final=not raw).encode()
        except UnicodeError as error:
            at = done + (error.start if isinstance(error, UnicodeDecodeError) else 0)
            reason = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
            told = f"is not {self.encoding}: byte {at} ({reason})"
            raise DataError(f"{self.file.path}: {told}; set read.encoding{self._alone('utf-8')}") from error

    def _alone(self, encoding: str) -> str:
        """How to tell the encoding of this file of many."""
        return f", or, for this file alone, read.encodings={{{_quoted(self.file.name)}: {_quoted(encoding)}}}"

    def _refuse_empty(self) -> None:
        raise DataError(f"{self.file.path}: is empty; wanted at least one line of data")

    def _refuse_utf16(self, head: bytes) -> None:
        head = head[:4096]
        has_mark = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if not has_mark and head.count(0) <= len(head) // 4:
            return
        # Latin text has its zeros in one byte of each pair.
        if not has_mark and min(head[0::2].count(0), head[1::2].count(0)) > len(head) // 40:
            self._refuse_binary(head)
        told = f"set read.encoding=utf-16{self._alone('utf-16')}"
        raise DataError(f"{self.file.path}: is not UTF-8 but looks like UTF-16; {told}")

    def _refuse_binary(self, head: bytes) -> None:
        head = head[:4096]
        num_controls = len(head) - len(head.translate(None, CONTROLS))
        if num_controls > BINARY_SHARE * len(head):
            raise DataError(
                f"{self.file.path}: looks binary: {num_controls} of its first {len(head)} bytes are control bytes; "
                "name a CSV, TSV, Parquet, JSONL or MovieLens file; text may be gzip or zstd"
            )

    def _refuse_encoding(self, num_bad: int, num_lines: int, first: int) -> None:
        self._refuse_binary(self._head)
        raise DataError(
            f"{self.file.path}: {num_bad} of {num_lines} lines are not UTF-8, the first is line {first}; the file "
            f"looks like latin-1: set read.encoding=latin-1 (or the encoding it has){self._alone('latin-1')}"
        )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _end_of_text(data: bytes) -> int:
    """Where the last line that is not blank ends; 0 where all are."""
    end = len(data.rstrip())
    return data.index(b"\n", end) + 1 if end else 0


def _utf8(data: bytes, first_line: int) -> tuple[bytes, frozenset[int]]:
    """The lines as UTF-8, and the numbers of those that were not."""
    if data.isascii():
        return data, frozenset()
    try:
        data.decode()
    except UnicodeDecodeError:
        lines = data.split(b"\n")
        bad = frozenset(first_line + n for n, line in enumerate(lines) if not _is_utf8(line))
        return data.decode("utf-8", errors="backslashreplace").encode(), bad
    return data, frozenset()


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
