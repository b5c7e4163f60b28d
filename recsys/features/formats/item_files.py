"""Files that describe items, as raw tables: the columns as they stand in the file, and the lines that hold none."""

import dataclasses
import json
from typing import Any

import polars as pl
import pyarrow as pa

from recsys.errors import DataError
from recsys.features.formats.opening import is_parquet
from recsys.features.formats.parquet import batches, open_parquet
from recsys.features.formats.raw import LINE, RawTable, rejected_frame
from recsys.features.formats.source import SourceFile
from recsys.features.formats.text.blocks import HEAD_BYTES, TextFile
from recsys.features.formats.text.detect import MOVIELENS_SEPARATOR, separator_of, text_format
from recsys.features.formats.text.lines import usable_lines
from recsys.features.formats.text.opened import parsed
from recsys.features.formats.text.separated import SeparatedParser
from recsys.features.schema import ReadConfig

MOVIELENS_ITEM_NAMES = ("item_id", "title", "genres")
BLOCK_BYTES, BATCH_ROWS = 1 << 24, 100_000
ATTRIBUTES = "attributes"


@dataclasses.dataclass(frozen=True)
class RawItems:
    """What a file of items holds, before its values are judged.

    Attributes:
        rows: LINE (Int64) and the source's columns: String of text formats, typed of Parquet, Object of JSON.
        rejected: `line`, `reason`, `text` of each line that holds no row.
        texts: the whole line of each row.
    """

    rows: pl.DataFrame
    rejected: pl.DataFrame
    texts: list[str]


def read_item_file(file: SourceFile, config: ReadConfig) -> RawItems:
    """The rows of a file of items.

    Raises:
        DataError: the file is damaged, of no known format, or names no columns.
    """
    if is_parquet(file, config):
        return _parquet(file)
    text = TextFile(file, config)
    lines = text.head.lines().head(50).to_list()
    kind = text_format(file, lines, config)
    if kind == "sequences":
        raise DataError(f"{file.path}: holds no table with columns; set items_read.format or items_read.names")
    if kind == "jsonl":
        mapping = _mapping(text, lines)
        return _json_lines(file, text) if mapping is None else _attributes(mapping)
    return _separated(text, MOVIELENS_SEPARATOR if kind == "movielens" else separator_of(lines, config), config)


def _parquet(file: SourceFile) -> RawItems:
    schema = open_parquet(file).schema_arrow
    found = [pa.Table.from_batches([batch]) for batch in batches(file, list(schema.names), BATCH_ROWS)]
    frame = pl.from_arrow(pa.concat_tables(found) if found else schema.empty_table())
    assert isinstance(frame, pl.DataFrame)
    if frame.is_empty():
        raise DataError(f"{file.path}: has columns and no row; wanted at least one item")
    texts = [", ".join(f"{n}={v}" for n, v in zip(frame.columns, row, strict=True)) for row in frame.iter_rows()]
    return RawItems(frame.with_row_index(LINE, 1).cast({LINE: pl.Int64}), rejected_frame([]), texts)


def _separated(text: TextFile, separator: str, config: ReadConfig) -> RawItems:
    head, names = text.head, config.names
    first = head.data[: head.data.index(b"\n")].decode()
    if names is None and separator == MOVIELENS_SEPARATOR and first.count(separator) == 2:
        names = MOVIELENS_ITEM_NAMES
    header = names is None if config.header is None else config.header
    told = dataclasses.replace(config, header=header, names=names)
    parser = SeparatedParser(text.file, head, separator, told)
    wanted = {name: name for name in parser.names}
    tables = list(parsed(text, parser, wanted, BLOCK_BYTES))
    return RawItems(
        pl.concat([table.rows for table in tables]),
        pl.concat([table.rejected for table in tables]),
        [line for table in tables for line in _texts(table)],
    )


def _texts(table: RawTable) -> list[str]:
    lines: list[str] = table.texts(pl.Series(range(table.rows.height), dtype=pl.Int64)).to_list()
    return lines


def _json_lines(file: SourceFile, text: TextFile) -> RawItems:
    good: list[tuple[int, str, dict[str, Any]]] = []
    bad: list[tuple[int, str, str]] = []
    unusable = []
    for block in text.blocks(BLOCK_BYTES):
        numbered, blank = usable_lines(block)
        unusable.append(blank)
        for line, content in numbered.iter_rows():
            value = _parsed(content)
            if isinstance(value, dict):
                good.append((line, content, value))
            else:
                bad.append((line, "no valid JSON" if value is _NO_JSON else "no JSON object", content))
    if not good:
        raise DataError(
            f"{file.path}: no line is a JSON object; wanted one a line, or one object {{item: [attributes]}}"
        )
    names = dict.fromkeys(key for _, _, row in good for key in row)
    columns = [_column(name, [row.get(name) for _, _, row in good]) for name in names]
    rows = pl.DataFrame([pl.Series(LINE, [line for line, _, _ in good], pl.Int64), *columns])
    return RawItems(rows, pl.concat([*unusable, rejected_frame(bad)]).sort("line"), [line for _, line, _ in good])


_NO_JSON = object()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _NO_JSON


def _mapping(text: TextFile, lines: list[str]) -> list[tuple[str, list[Any]]] | None:
    """The pairs of a file that is one object of lists, or None where it is not."""
    is_one = len(lines) == 1 and text.head.is_last
    value = _parsed(lines[0])
    is_open = value is _NO_JSON and lines[0].strip() in ("{", "[")
    if not (is_one or is_open or len(text.head.data) >= HEAD_BYTES and text.head.data.count(b"\n") == 1):
        return None
    whole = b"".join(block.data for block in text.blocks(BLOCK_BYTES)).decode()
    try:
        pairs = json.loads(whole, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return None
    is_pairs = isinstance(pairs, list) and pairs and all(isinstance(pair, tuple) for pair in pairs)
    return pairs if is_pairs and all(isinstance(value, list) for _, value in pairs) else None


def _attributes(pairs: list[tuple[str, list[Any]]]) -> RawItems:
    ids = pl.Series("item_id", [item for item, _ in pairs], pl.String)
    lists = _column(ATTRIBUTES, [values for _, values in pairs])
    lines = pl.Series(LINE, [1] * len(pairs), pl.Int64)
    return RawItems(pl.DataFrame([lines, ids, lists]), rejected_frame([]), [json.dumps(dict([pair])) for pair in pairs])


def _column(name: str, values: list[Any]) -> pl.Series:
    """JSON values as a column: numbers, texts, truths or lists of one kind; anything else as JSON text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int} and all(-(2**63) <= value < 2**63 for value in values if value is not None):
        return pl.Series(name, values, pl.Int64 if kinds else pl.String)
    if kinds <= {int, float}:
        return pl.Series(name, [None if value is None else float(value) for value in values], pl.Float64)
    if kinds == {str}:
        return pl.Series(name, values, pl.String)
    if kinds == {bool}:
        return pl.Series(name, values, pl.Boolean)
    if kinds == {list}:
        return _lists(name, values)
    return pl.Series(name, [_as_text(value) for value in values], pl.String)


def _lists(name: str, values: list[list[Any] | None]) -> pl.Series:
    kinds = {type(entry) for value in values or [] for entry in value or []}
    if kinds <= {int, float} and float in kinds:
        floats = [None if value is None else [float(entry) for entry in value] for value in values]
        return pl.Series(name, floats, pl.List(pl.Float64))
    texts = [None if value is None else [_as_text(entry) for entry in value] for value in values]
    return pl.Series(name, texts, pl.List(pl.String))


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
