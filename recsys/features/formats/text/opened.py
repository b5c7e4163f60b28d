"""A text file of any format, opened: its columns, and its rows block by block."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Protocol

from recsys.features.formats.raw import RawTable
from recsys.features.formats.source import SourceFile
from recsys.features.formats.text.blocks import HEAD_BYTES, Block, TextFile
from recsys.features.formats.text.detect import MOVIELENS_SEPARATOR, separator_of, text_format
from recsys.features.formats.text.json_lines import JsonLinesParser
from recsys.features.formats.text.separated import SeparatedParser
from recsys.features.formats.text.sequences import SequenceParser
from recsys.features.formats.times import is_empty
from recsys.features.schema import ReadConfig, resolve_columns

MAX_BLOCK_BYTES = 1 << 26
OTHER = "other:"  # stands before the name of a column that has no meaning for us


class Parser(Protocol):
    """One text format."""

    @property
    def names(self) -> list[str]: ...
    @property
    def is_sequences(self) -> bool: ...
    def parse(self, block: Block, wanted: Mapping[str, str]) -> tuple[RawTable, int]:
        """The rows of a block, and how many of its bytes they took."""


class OpenedText:
    """See `OpenedFile`."""

    def __init__(self, file: SourceFile, config: ReadConfig) -> None:
        """Tell the format and the columns.

        Raises:
            DataError: the file cannot be read as asked.
        """
        self.file = file
        self._text = TextFile(file, config)
        self._parser = parser_of(file, self._text.head, config)
        self.names, self.is_sequences = self._parser.names, self._parser.is_sequences
        self.resolved, self.notes = resolve_columns(self.names, config, str(file.path))
        head = self._text.head
        table, used = self._parser.parse(head, self.resolved)
        num_rows = table.rows.height + table.rejected.height
        self._row_bytes = used / max(num_rows, 1)
        size = file.bytes * self._text.packing_factor
        self.num_rows_estimate = num_rows if head.is_last else max(num_rows, round(size / self._row_bytes))

    def tables(self, rows: int | None, *, counts_missing: bool = False) -> Iterator[RawTable]:
        """See `OpenedFile`."""
        wanted_bytes = HEAD_BYTES if rows is None else int(rows * self._row_bytes)
        block_bytes = max(1, min(wanted_bytes, MAX_BLOCK_BYTES))
        if not counts_missing:
            yield from parsed(self._text, self._parser, self.resolved, block_bytes)
            return
        ours = self.resolved.values()
        wanted = self.resolved | {f"{OTHER}{name}": name for name in self.names if name not in ours}
        for table in parsed(self._text, self._parser, wanted, block_bytes):
            missing = {name: int(is_empty(table.rows[name]).sum()) for name in self.names}
            yield dataclasses.replace(table, missing=missing)


def parser_of(file: SourceFile, head: Block, config: ReadConfig) -> Parser:
    """What reads the lines of this file.

    Raises:
        DataError: the first lines fit no format, or name no columns.
    """
    lines = head.lines().head(50).to_list()
    kind = text_format(file, lines, config)
    if kind == "jsonl":
        return JsonLinesParser(file, head)
    if kind == "sequences":
        return SequenceParser()
    separator = MOVIELENS_SEPARATOR if kind == "movielens" else separator_of(lines, config)
    return SeparatedParser(file, head, separator, config)


def parsed(text: TextFile, parser: Parser, wanted: Mapping[str, str], block_bytes: int) -> Iterator[RawTable]:
    """The rows of each block; what a block leaves unfinished goes before the next one."""
    rest: Block | None = None
    for block in text.blocks(block_bytes):
        joined = block if rest is None else _joined(rest, block)
        rest = None
        while joined.data:
            table, used = parser.parse(joined, wanted)
            if table.rows.height or table.rejected.height:
                yield table
            joined = joined.from_byte(used)
            if not joined.is_last:
                rest = joined if joined.data else None
                break


def _joined(rest: Block, block: Block) -> Block:
    return dataclasses.replace(
        block, data=rest.data + block.data, first_line=rest.first_line, undecodable=rest.undecodable | block.undecodable
    )
