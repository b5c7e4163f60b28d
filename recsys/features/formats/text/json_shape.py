"""Lines of JSON that are made alike, taken apart by one regular expression.

The expression holds the keys in their order and a strict pattern for each value, so what matches is valid JSON and
means what the json module would say. Texts with a backslash, long integers and nested values do not match.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import polars as pl

from recsys.features.formats.raw import LINE, TEXT
from recsys.features.schema import REQUIRED

# Eighteen digits are below 2^63; -0 is 0 to the json module.
INTEGER = r"0|-?[1-9][0-9]{0,17}"
NUMBER = r"(?:0|-?[1-9][0-9]{0,17})(?:\.[0-9]{1,17})?(?:[eE][+-]?[0-9]{1,2})?"
STRING = r'"[^"\\\x00-\x1f]*"'
ESCAPED = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'
ANY = rf"(?:{NUMBER}|{ESCAPED}|true|false|null|\[\]|\{{\}})"
OF_COLUMN = {
    "user_id": rf"{INTEGER}|{STRING}",
    "item_id": rf"{INTEGER}|{STRING}",
    "timestamp": rf"{NUMBER}|{STRING}",
    "position": rf"{INTEGER}|{STRING}",
    "weight": rf"{NUMBER}|{STRING}|null",
    "event_type": rf"{INTEGER}|{STRING}|null",
    "session_id": rf"{INTEGER}|{STRING}|null",
}
NEEDED = (*REQUIRED, "timestamp", "position")
STYLES = ((", ", ": "), (",", ":"))


@dataclasses.dataclass(frozen=True)
class Shape:
    """The keys of a line in their order, with what stands between them.

    Attributes:
        pattern: of a whole line; one group a column that the line has.
        columns: our name of each group.
        wanted: our column names, and the keys to give.
    """

    pattern: str
    columns: tuple[str, ...]
    wanted: Mapping[str, str]

    def values(self, numbered: pl.DataFrame, typed_ids: set[str]) -> pl.DataFrame:
        """LINE and the wanted keys, as text, of the lines that match; adds to `typed_ids` which ids are texts."""
        groups = numbered[TEXT].str.extract_groups(self.pattern).struct.unnest()
        groups.columns = list(self.columns)
        is_match = groups.to_series(0).is_not_null()
        lines = numbered[LINE]
        if not is_match.all():
            groups, lines = groups.filter(is_match), lines.filter(is_match)
        typed_ids |= {ours for ours in REQUIRED if groups[ours].str.starts_with('"').any()}
        columns = [lines]
        for ours, key in self.wanted.items():
            columns.append(_plain(groups[ours], ours).alias(key) if ours in self.columns else _absent(key, len(lines)))
        return pl.DataFrame(columns)


def shape_of(line: str, wanted: Mapping[str, str]) -> Shape | None:
    """The shape of a line, or None where it has none that a regular expression could hold."""
    try:
        pairs: list[tuple[str, Any]] = json.loads(line, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return None
    keys = [pair[0] for pair in pairs] if isinstance(pairs, list) and all(map(_is_pair, pairs)) else []
    ours_of = {key: ours for ours, key in wanted.items()}
    has_needed = all(key in keys for ours, key in wanted.items() if ours in NEEDED)
    if not keys or len(set(keys)) < len(keys) or not has_needed or len(ours_of) < len(wanted):
        return None
    columns = tuple(ours_of[key] for key in keys if key in ours_of)
    for between, after in STYLES:
        fields = [_field(key, after, ours_of) for key in keys]
        pattern = r"^\{" + between.join(fields) + r"\}$"
        if pl.Series([line]).str.contains(pattern).item():
            return Shape(pattern, columns, wanted)
    return None


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _field(key: str, after: str, ours_of: Mapping[str, str]) -> str:
    value = f"({OF_COLUMN.get(ours_of[key], ANY)})" if key in ours_of else ANY
    return re.escape(json.dumps(key, ensure_ascii=False)) + after + value


def _plain(tokens: pl.Series, ours: str) -> pl.Series:
    """The values without quotes; null where the value is null."""
    if ours not in NEEDED:
        tokens = tokens.set(tokens == "null", None)
    return tokens.str.strip_prefix('"').str.strip_suffix('"')


def _absent(key: str, count: int) -> pl.Series:
    return pl.Series(key, [None], pl.String).new_from_index(0, count)
