"""Columns of an interaction log: their names, the names other tools give them, and how a source is to be read."""

import codecs
import dataclasses
import difflib
import fnmatch
import json
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from recsys.errors import DataError

Format = Literal["auto", "csv", "tsv", "parquet", "jsonl", "movielens", "sequences"]
OrderRule = Literal["auto", "time", "position", "rows"]
TimeUnit = Literal["auto", "s", "ms", "us", "ns"]
IdRule = Literal["auto", "int", "str"]
BadFiles = Literal["stop", "skip"]

# Names are compared in lower case, without type suffix (`user_id:token`), blanks, underscores and dashes. Where a
# source has several of a row, the first counts, and the others are told.
ALIASES: dict[str, tuple[str, ...]] = {
    "user_id": (
        *("userid", "user", "uid", "useridx", "queryid", "visitorid", "reviewerid", "customerid", "userindex"),
        *("username", "userno", "memberid"),
    ),
    "item_id": (
        *("itemid", "item", "iid", "itemidx", "itemindex", "movieid", "parentasin", "asin", "productid", "articleid"),
        *("trackid", "songid", "artistid", "videoid", "bookid", "businessid", "venueid", "newsid", "isbn"),
    ),
    "timestamp": (
        *("timestamp", "datetime", "unixreviewtime", "unixtimestamp", "eventtime", "eventtimestamp", "time", "ts"),
        *("createdat", "lastwatchdt", "tdat", "date"),
    ),
    "position": ("position", "pos"),
    "weight": ("weight", "rating", "relevance", "overall", "stars", "playcount", "watchratio"),
    "event_type": ("eventtype", "event", "behaviortype", "behavior", "actiontype", "action", "interactiontype"),
    "session_id": ("sessionid", "session", "usersession"),
}
COLUMNS = tuple(ALIASES)
REQUIRED = ("user_id", "item_id")
SHOWN_NAMES, SHOWN_LETTERS = 20, 40  # of columns in a message
MOVIELENS_NAMES = ("user_id", "item_id", "rating", "timestamp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """How a source is read; every `auto` is detected and told."""

    format: Format = "auto"
    separator: str | None = None  # of csv and tsv; None: detected among , tab ; |
    encoding: str = "utf-8"
    encodings: dict[str, str] = dataclasses.field(default_factory=dict)  # a file's name or a glob: its encoding
    bad_files: BadFiles = "stop"  # of many files: stop at one that cannot be read, or skip it, told
    header: bool | None = None  # None: a first line that names a known column
    names: tuple[str, ...] | None = None  # the columns of a source without a header line
    columns: dict[str, str] = dataclasses.field(default_factory=dict)  # our name: the source's name
    order: OrderRule = "auto"  # auto: time where there is one, else position, else the order of the rows
    time_unit: TimeUnit = "auto"
    latest_time: str | None = None  # ISO; later times are clamped; None: now + 1 day
    user_ids: IdRule = "auto"
    item_ids: IdRule = "auto"
    max_rejected_share: float = 0.05  # of the data lines; more stops the job

    def __post_init__(self) -> None:
        if not 0 <= self.max_rejected_share <= 1:
            raise ValueError(f"max_rejected_share={self.max_rejected_share}: wanted a share in 0..1")
        if self.separator is not None and (not self.separator or set(self.separator) & set('\r\n"')):
            raise ValueError(
                f"separator={self.separator!r}: wanted a character such as ',' or ';', no quote or line end"
            )
        for name in self.columns:
            if name not in COLUMNS:
                raise ValueError(f"columns.{name}: no such column; wanted one of {', '.join(COLUMNS)}")
        for key, encoding in {"encoding": self.encoding, **_keyed(self.encodings)}.items():
            try:
                codecs.lookup(encoding)
            except LookupError as error:
                raise ValueError(f"{key}={encoding!r}: unknown; wanted for example utf-8, utf-16, latin-1") from error

    def encoding_of(self, name: str) -> str:
        """The encoding of one file of the source, by the first glob of `encodings` that its name fits."""
        fitting = (encoding for pattern, encoding in self.encodings.items() if fnmatch.fnmatchcase(name, pattern))
        return next(fitting, self.encoding)


def _keyed(encodings: Mapping[str, str]) -> dict[str, str]:
    return {f"encodings.{pattern}": encoding for pattern, encoding in encodings.items()}


def plain_name(name: str) -> str:
    """A column's name without case, type suffix, blanks, underscores and dashes."""
    return re.sub(r"[\s_-]", "", name.lower().partition(":")[0])


def shown(names: Sequence[str]) -> str:
    """The names for a message: of one line, whatever they hold and however many they are."""
    cut = [name if len(name) <= SHOWN_LETTERS else f"{name[:SHOWN_LETTERS]}…" for name in names[:SHOWN_NAMES]]
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(name if name.isprintable() else repr(name)[1:-1] for name in cut) + more


def names_a_column(names: Sequence[str], config: ReadConfig) -> bool:
    """Whether at least one of the names is known, so that a first line made of them is a header."""
    known = {alias for aliases in ALIASES.values() for alias in aliases}
    return any(plain_name(name) in known or name in config.columns.values() for name in names)


def resolve_columns(found: Sequence[str], config: ReadConfig, where: str) -> tuple[dict[str, str], list[str]]:
    """Our column names and the source's name for each that it has, and what was chosen among several.

    Args:
        found: the source's column names.
        config: its `columns` go before aliases.
        where: the source's name, for messages.

    Raises:
        DataError: user, item or the order asked for has no column, a named column is not there, or two columns have
            the same name but for case and blanks.
    """
    resolved = {ours: _named(ours, name, found, where) for ours, name in config.columns.items()}
    notes = []
    for ours in (column for column in COLUMNS if column not in resolved):
        free = [name for name in found if name not in resolved.values()]
        match, others = _by_alias(ours, free, where)
        if match is not None:
            resolved[ours] = match
        if others:
            remedy = f"read.columns.{ours}={others[0]} reads the other"
            notes.append(f"{ours} is read from column {match}, not from {', '.join(others)}; {remedy}")
    if "user_id" not in resolved and "session_id" in resolved:
        resolved["user_id"] = resolved.pop("session_id")
        notes.append(f"no column for user_id: each {resolved['user_id']} is taken as a user")
    wanted = (*REQUIRED, *{"time": ("timestamp",), "position": ("position",)}.get(config.order, ()))
    for ours in wanted:
        if ours not in resolved:
            raise DataError(_missing(ours, found, resolved, where))
    return resolved, notes


def near_miss(ours: str, found: Sequence[str], resolved: Mapping[str, str]) -> str | None:
    """The unused column whose name looks most like one of ours, if any does."""
    free = {plain_name(name): name for name in found if name not in resolved.values()}
    scored = [
        (difflib.SequenceMatcher(None, plain, alias).ratio(), name)
        for plain, name in free.items()
        for alias in ALIASES[ours]
    ]
    best = max(scored, default=(0.0, ""))
    return best[1] if best[0] >= 0.6 else None


def _named(ours: str, name: str, found: Sequence[str], where: str) -> str:
    if name in found:
        return name
    close = difflib.get_close_matches(name, found, n=1, cutoff=0.0)
    nearest = f"; the nearest is {close[0][:SHOWN_LETTERS]!r}" if close else ""
    raise DataError(f"{where}: no column {name!r} (read.columns.{ours}); found {shown(found)}{nearest}")


def _by_alias(ours: str, free: Sequence[str], where: str) -> tuple[str | None, list[str]]:
    """The column that fits best, and the others that fit."""
    if ours in free:
        fitting = [ours, *(name for name in free if name != ours and plain_name(name) in ALIASES[ours])]
        return ours, fitting[1:]
    fitting = [name for alias in ALIASES[ours] for name in free if plain_name(name) == alias]
    if len(fitting) > 1 and plain_name(fitting[0]) == plain_name(fitting[1]):
        raise DataError(
            f"{where}: columns {fitting[0]!r} and {fitting[1]!r} both read as {ours}; "
            f"name one: read.columns.{ours}={json.dumps(fitting[0])}"
        )
    return (fitting[0], fitting[1:]) if fitting else (None, [])


def _missing(ours: str, found: Sequence[str], resolved: Mapping[str, str], where: str) -> str:
    nearest = near_miss(ours, found, resolved)
    free = [name for name in found if name not in resolved.values()]
    guess = nearest or (free[0] if free else "NAME")
    told = f"; the nearest is {nearest[:SHOWN_LETTERS]!r}" if nearest else ""
    name = shown([guess])
    return f"{where}: no column for {ours}; found {shown(found)}{told}; name it: read.columns.{ours}={name}"
