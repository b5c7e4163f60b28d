"""The format of a text file, told by its first lines and its name."""

import re
from collections.abc import Sequence
from typing import Literal

from recsys.errors import DataError
from recsys.features.formats.source import SourceFile
from recsys.features.schema import ReadConfig, names_a_column

TextFormat = Literal["jsonl", "movielens", "separated", "sequences"]

SEPARATORS = (",", "\t", ";", "|")
MOVIELENS_SEPARATOR = "::"
SAMPLE_LINES = 50


def text_format(file: SourceFile, lines: Sequence[str], config: ReadConfig) -> TextFormat:
    """The text format of the file.

    Args:
        file: for its suffix, and for messages.
        lines: the first ones.
        config: its `format` and `separator` go first.

    Raises:
        DataError: the first lines fit no format.
    """
    if config.format in ("jsonl", "movielens", "sequences"):
        return config.format
    if config.format in ("csv", "tsv"):
        return "separated"
    if config.separator is not None:
        return "movielens" if config.separator == MOVIELENS_SEPARATOR else "separated"
    sample = _sample(lines)
    if re.match(r"\s*\[\s*\{", "\n".join(sample)):
        raise DataError(f"{file.path}: holds a JSON array; wanted one JSON object a line (jq -c '.[]' writes that)")
    if sample[0].lstrip().startswith("{") or file.suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    if MOVIELENS_SEPARATOR in sample[0]:
        return "movielens"
    if _is_tabbed_sequence(sample[0], config):
        return "sequences"
    if any(separator in _unquoted(sample[0]) for separator in SEPARATORS):
        return "separated"
    if len(sample[0].split()) >= 2:
        return "separated" if names_a_column(sample[0].split(), config) else "sequences"
    raise DataError(
        f"{file.path}: cannot tell the format from line 1, {sample[0][:60]!r}; wanted CSV, TSV, JSONL, "
        "MovieLens '::' or 'user item item' lines; set read.format and read.separator"
    )


def separator_of(lines: Sequence[str], config: ReadConfig) -> str:
    """The separator of a CSV or TSV file: the one whose count is the same in most of the first lines."""
    if config.separator is not None:
        return config.separator
    if config.format == "tsv":
        return "\t"
    sample = [_unquoted(line) for line in _sample(lines)]
    present = [separator for separator in SEPARATORS if separator in sample[0]]
    if not present:
        return " " if " " in sample[0] else ","
    return max(present, key=lambda separator: _agreement(sample, separator))


def _is_tabbed_sequence(line: str, config: ReadConfig) -> bool:
    """Whether the line is a user, a tab and blank-separated items, and no header."""
    fields = line.split("\t")
    is_told = config.header is not None or config.names is not None
    if is_told or [len(field.split()) > 1 for field in fields] != [False, True]:
        return False
    return not names_a_column(fields, config)


def _agreement(sample: list[str], separator: str) -> tuple[int, int]:
    wanted = sample[0].count(separator)
    return sum(line.count(separator) == wanted for line in sample), wanted


def _sample(lines: Sequence[str]) -> list[str]:
    return [line for line in lines[:SAMPLE_LINES] if line.strip()] or [""]


def _unquoted(line: str) -> str:
    return re.sub(r'"[^"]*"', "", line)
