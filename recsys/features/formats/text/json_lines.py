"""JSONL: one object a line. The types of ids are kept: 5 is a number, "5" a text.

Lines that are made alike (the same keys in the same order, plain values) are taken apart by one regular expression, all
at once; any other line goes through the json module. Both ways give the same values.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from recsys.errors import DataError
from recsys.features.formats.raw import LINE, TEXT, RawTable, rejected_frame
from recsys.features.formats.source import SourceFile
from recsys.features.formats.text.blocks import Block
from recsys.features.formats.text.json_shape import shape_of
from recsys.features.formats.text.lines import usable_lines
from recsys.features.schema import COLUMNS, REQUIRED

NAMING_LINES = 1000
MAX_SHAPES = 8
SHAPE_LINES = 20
NEEDED = (*REQUIRED, "timestamp", "position")
_ABSENT = object()
_DECODER = json.JSONDecoder()


class JsonLinesParser:
    """The values of each line's object, as text, under the source's own keys."""

    is_sequences = False

    def __init__(self, file: SourceFile, head: Block) -> None:
        """Find the keys.

        Raises:
            DataError: the file is one JSON array, or its first lines hold no object.
        """
        self.names = _names(file, head)

    def parse(self, block: Block, wanted: Mapping[str, str]) -> tuple[RawTable, int]:
        """The rows of a block, and how many of its bytes they took: all.

        Args:
            block: consecutive lines.
            wanted: our column names, and the keys to give.
        """
        rest, unusable = usable_lines(block)
        found, typed_ids = [], set[str]()
        for _ in range(MAX_SHAPES):
            shape = next(filter(None, (shape_of(text, wanted) for text in rest[TEXT].head(SHAPE_LINES))), None)
            if shape is None:
                break
            values = shape.values(rest, typed_ids)
            found.append(values)
            rest = (
                rest.filter(~pl.col(LINE).is_in(values[LINE].implode()))
                if values.height < rest.height
                else rest.clear()
            )
            if rest.height < SHAPE_LINES:
                break
        plain, bad = read_line_by_line(rest, wanted, typed_ids)
        rows = pl.concat([*found, plain])
        rows = rows.sort(LINE) if len(found) != 1 or plain.height else rows
        rejected = pl.concat([unusable, rejected_frame(bad)]).sort("line")
        texts = functools.partial(_texts, block, rows[LINE])
        return RawTable(rows, rejected, texts, frozenset(typed_ids)), len(block.data)


def _texts(block: Block, lines: pl.Series, numbers: pl.Series) -> pl.Series:
    return block.lines().gather(lines.gather(numbers) - block.first_line)


def _names(file: SourceFile, head: Block) -> list[str]:
    """All keys of the first objects."""
    texts = [text for text in head.lines().head(NAMING_LINES).to_list() if text.strip()]
    if texts and texts[0].lstrip().startswith("["):
        raise DataError(f"{file.path}: holds a JSON array; wanted one JSON object a line (jq -c '.[]' writes that)")
    objects = [value for value in map(_parse, texts) if isinstance(value, dict)]
    if not objects:
        raise DataError(f"{file.path}: none of the first {len(texts)} lines is a JSON object; wanted one a line")
    return list(dict.fromkeys(key for row in objects for key in row))


def read_line_by_line(
    numbered: pl.DataFrame, wanted: Mapping[str, str], typed_ids: set[str]
) -> tuple[pl.DataFrame, list[tuple[int, str, str]]]:
    """The slow and exact way: the values of each line's object, and `line`, `reason`, `text` of the others.

    Args:
        numbered: LINE and TEXT.
        wanted: our column names, and the keys to give.
        typed_ids: gets the names of ids that are texts.
    """
    good: list[tuple[int | str | None, ...]] = []
    bad: list[tuple[int, str, str]] = []
    for line, text in numbered.select(LINE, TEXT).iter_rows():
        values = _values(text, wanted, typed_ids)
        if isinstance(values, str):
            bad.append((line, values, text))
        else:
            good.append((line, *values.values()))
    schema = {LINE: pl.Int64} | dict.fromkeys(wanted.values(), pl.String)
    return pl.DataFrame(good, schema=schema, orient="row"), bad


def _parse(text: str) -> Any:
    """The value, or None where the text is no JSON."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def _values(text: str, wanted: Mapping[str, str], typed_ids: set[str]) -> dict[str, str | None] | str:
    """One text a key, or why the line is unusable; notes which ids are texts."""
    row = _parse(text)
    if not isinstance(row, dict):
        return "no valid JSON" if row is None and text.strip() != "null" else "no JSON object"
    values: dict[str, str | None] = {}
    typed = set()
    for ours, key in wanted.items():
        value = row.get(key, _ABSENT)
        if value is _ABSENT:
            if ours in NEEDED:
                return "missing fields: " + ", ".join(n for n in NEEDED if n in wanted and wanted[n] not in row)
            value = None
        if isinstance(value, str):
            if _has_surrogate(value):
                if ours in COLUMNS:
                    return "text that is no valid Unicode"
                value = json.dumps(value)
            if ours in REQUIRED:
                typed.add(ours)
        elif type(value) is int:
            value = str(value)
        elif value is not None:
            if ours in REQUIRED:
                return f"{ours} is no string or integer"
            value = json.dumps(value)
        values[key] = value
    typed_ids |= typed
    return values


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)
