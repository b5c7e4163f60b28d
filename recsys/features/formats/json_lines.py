"""JSONL: one object a line. The types of ids are kept: 5 is a number, "5" a text."""

import json
from typing import Any

import polars as pl

from recsys.errors import DataError
from recsys.features.formats.raw import LINE, TEXT, RawTable, rejected_frame
from recsys.features.formats.separated import number_lines, reject_unusable
from recsys.features.formats.source import Lines, Source
from recsys.features.schema import REQUIRED, ReadConfig, resolve_columns

NAMING_LINES = 1000
NEEDED = (*REQUIRED, "timestamp", "position")
_ABSENT = object()
_DECODER = json.JSONDecoder()


def read_json_lines(source: Source, lines: Lines, config: ReadConfig) -> RawTable:
    """The values of each line's object, as text, under the source's own keys.

    Raises:
        DataError: the file is one JSON array, or no key names a user or an item.
    """
    numbered, unusable = reject_unusable(number_lines(lines), lines)
    names = _names(source, numbered)
    resolved = resolve_columns(names, config, str(source.path))
    good: list[int] = []
    bad: list[tuple[int, str, str]] = []
    columns: list[list[str | None]] = [[] for _ in resolved]
    typed_ids: set[str] = set()
    for row, (line, text) in enumerate(zip(numbered[LINE].to_list(), numbered[TEXT], strict=True)):
        values = _values(text, resolved, typed_ids)
        if isinstance(values, str):
            bad.append((line, values, text))
        else:
            good.append(row)
            for column, value in zip(columns, values, strict=True):
                column.append(value)
    fields = [pl.Series(key, column, pl.String) for key, column in zip(resolved.values(), columns, strict=True)]
    rejected = pl.concat([unusable, rejected_frame(bad)]).sort("line")
    return RawTable(names, numbered[good].with_columns(fields), rejected, frozenset(typed_ids))


def _names(source: Source, numbered: pl.DataFrame) -> list[str]:
    """All keys of the first objects."""
    texts = numbered[TEXT].head(NAMING_LINES).to_list()
    if texts and texts[0].lstrip().startswith("["):
        raise DataError(f"{source.path}: holds a JSON array; wanted one JSON object a line (jq -c '.[]' writes that)")
    objects = [value for value in map(_parse, texts) if isinstance(value, dict)]
    if not objects:
        raise DataError(f"{source.path}: none of the first {len(texts)} lines is a JSON object; wanted one a line")
    return list(dict.fromkeys(key for row in objects for key in row))


def _parse(text: str) -> Any:
    """The value, or None where the text is no JSON."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def _values(text: str, resolved: dict[str, str], typed_ids: set[str]) -> list[str | None] | str:
    """One text a column, or why the line is unusable; notes which ids are texts."""
    row = _parse(text)
    if not isinstance(row, dict):
        return "no valid JSON" if row is None and text.strip() != "null" else "no JSON object"
    values: list[str | None] = []
    for ours, key in resolved.items():
        value = row.get(key, _ABSENT)
        if value is _ABSENT:
            if ours in NEEDED:
                return "missing fields: " + ", ".join(n for n in NEEDED if n in resolved and resolved[n] not in row)
            value = None
        if isinstance(value, str):
            if _has_surrogate(value):
                return "text that is no valid Unicode"
            if ours in REQUIRED:
                typed_ids.add(ours)
        elif type(value) is int:
            value = str(value)
        elif value is not None:
            if ours in REQUIRED:
                return f"{ours} is no string or integer"
            value = json.dumps(value)
        values.append(value)
    return values


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)
