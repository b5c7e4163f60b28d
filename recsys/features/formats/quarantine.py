"""Raw values into typed interactions; every row that cannot be used is set aside with its reason."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import polars as pl

from recsys.errors import DataError, MixedIds
from recsys.features.formats.raw import LINE, REJECTED_SCHEMA, RawTable
from recsys.features.formats.times import TimeKind, Unit, is_empty, parse_times
from recsys.features.schema import REQUIRED, ReadConfig
from recsys.features.vocabulary import IdKind

INTEGER = r"^-?[0-9]+$"
# Quoted fields and JSON may hold tabs and line ends.
CONTROL = r"[\p{Cc}--[\t\n\r]]"


@dataclasses.dataclass(frozen=True)
class Rules:
    """How every value of a source is judged, the same for every block of every file.

    Attributes:
        order: which column, if any, must hold an order key.
        id_kinds: of user_id and item_id, how ids are kept.
        told_ids: those of them whose kind was set; in the others a text among integers is `MixedIds`.
        time_kind: what the values of the time column are.
        unit: what its numbers count.
        is_unit_told: whether the unit was set.
        latest_us: later times are not credible.
    """

    order: Literal["time", "position", "rows"]
    id_kinds: Mapping[str, IdKind]
    told_ids: frozenset[str]
    time_kind: TimeKind
    unit: Unit | None
    is_unit_told: bool
    latest_us: int


@dataclasses.dataclass(frozen=True)
class Judged:
    """Rows after judgement.

    Attributes:
        good: `line`, `user_id`, `item_id`, `timestamp` (Int64 us) or `position` (Int64) unless the order is the rows',
            `is_clamped` with times, and the optional columns `weight`, `event_type`, `session_id` that the source has;
            an empty one is null.
        rejected: `line`, `reason`, `text`.
    """

    good: pl.DataFrame
    rejected: pl.DataFrame


def judge(table: RawTable, resolved: Mapping[str, str], rules: Rules, where: str) -> Judged:
    """The usable rows, typed, and the others with the first reason against each.

    Args:
        table: as the format's reader gave it.
        resolved: our column names and the source's.
        rules: kinds, order and units.
        where: the file's name, for messages.

    Raises:
        MixedIds: ids taken as integers hold a text.
    """
    rows = table.rows
    columns = {"line": rows[LINE]}
    problems: list[pl.Series | None] = []
    for name in REQUIRED:
        columns[name], problem = _ids(rows[resolved[name]], name, rules, table, where)
        problems.append(problem)
    if rules.order == "time":
        raw = rows[resolved["timestamp"]]
        times = parse_times(raw, rules.time_kind, rules.unit, rules.latest_us, is_unit_told=rules.is_unit_told)
        never = pl.repeat(value=False, n=rows.height, dtype=pl.Boolean, eager=True)
        columns |= {"timestamp": times.us, "is_clamped": never if times.is_clamped is None else times.is_clamped}
        problems.append(times.problem)
    elif rules.order == "position":
        name = "position" if "position" in resolved else "timestamp"
        columns["position"], problem = _whole(rows[resolved[name]], name)
        problems.append(problem)
    if "weight" in resolved:
        columns["weight"], problem = _number(rows[resolved["weight"]])
        problems.append(problem)
    for name in ("event_type", "session_id"):
        if name in resolved:
            text = rows[resolved[name]].cast(pl.String)
            columns[name] = text.set(is_empty(text), None)
    good = pl.DataFrame([column.alias(name) for name, column in columns.items()])
    return _parted(good, [problem for problem in problems if problem is not None], table)


def kind_of_ids(raw: pl.Series, name: str, table: RawTable) -> IdKind | None:
    """How ids like these are kept; None where there is none."""
    if raw.dtype != pl.String:
        return None if raw.dtype == pl.Null or raw.null_count() == len(raw) else "int"
    if name in table.typed_ids:
        return "str"
    frame = raw.to_frame("raw").with_columns(number=pl.col("raw").cast(pl.Int64, strict=False))
    if frame.select(is_empty(frame["raw"]).all()).item():
        return None
    return "int" if _all_integers(frame.filter(~_is_control())) else "str"


def _parted(good: pl.DataFrame, problems: list[pl.Series], table: RawTable) -> Judged:
    if not problems:
        return Judged(good, table.rejected)
    reason = pl.DataFrame([p.alias(str(n)) for n, p in enumerate(problems)]).select(pl.coalesce(pl.all())).to_series()
    is_bad = reason.is_not_null()
    rejected = table.rejected
    if is_bad.any():
        lines, texts = good["line"].filter(is_bad), table.texts(is_bad.arg_true())
        refused = pl.DataFrame([lines, reason.filter(is_bad).alias("reason"), texts.alias("text")], REJECTED_SCHEMA)
        rejected = pl.concat([rejected, refused]).sort("line", maintain_order=True)
        good = good.filter(~is_bad)
    return Judged(good, rejected)


def _ids(raw: pl.Series, name: str, rules: Rules, table: RawTable, where: str) -> tuple[pl.Series, pl.Series | None]:
    """Ids of one kind, and why a row has none; None where every row has one."""
    kind = rules.id_kinds[name]
    if raw.dtype != pl.String:
        return _numeric_ids(raw, name, kind)
    number = raw.cast(pl.Int64, strict=False) if kind == "int" else None
    has_all = number is not None and number.null_count() == 0
    frame = raw.to_frame("raw").with_columns(number=number if number is not None else pl.lit(None, pl.Int64))
    if kind == "int" and name not in rules.told_ids:
        usable = frame if has_all else frame.filter(~_is_control())
        if name in table.typed_ids or not _holds_integers(usable):
            raise MixedIds(
                name, f"{where}: {name} holds texts after integers; set read.{name.removesuffix('_id')}_ids=str"
            )
    if has_all and number is not None:
        return number, None
    is_blank = pl.col("raw").is_null() | (pl.col("raw") == "")
    empty = pl.when(is_blank).then(pl.lit(f"{name} is empty"))
    unusable = empty.when(_is_control()).then(pl.lit(f"{name} holds a control character"))
    if kind == "str":
        problem = frame.select(problem=unusable).to_series()
        return raw, None if problem.null_count() == len(problem) else problem
    is_beyond = pl.col("number").is_null() & pl.col("raw").str.contains(INTEGER)
    beyond = unusable.when(is_beyond).then(pl.lit(f"{name} is beyond int64"))
    other = beyond.when(pl.col("number").is_null()).then(pl.lit(f"{name} is no integer"))
    return frame["number"], frame.select(problem=other).to_series()


def _is_control() -> pl.Expr:
    return pl.col("raw").str.contains(CONTROL).fill_null(value=False)


def _all_integers(frame: pl.DataFrame) -> bool:
    """Whether every text that is not empty is an integer as Python writes it, and one of them fits int64."""
    return frame["number"].count() > 0 and _holds_integers(frame)


def _holds_integers(frame: pl.DataFrame) -> bool:
    """Whether every text that is not empty is an integer as Python writes it: `012` and `+5` are texts."""
    changed = pl.col("number").is_not_null() & (pl.col("number").cast(pl.String) != pl.col("raw"))
    if frame["number"].null_count() == 0:
        return not frame.select(changed.any()).item()
    other = pl.col("number").is_null() & (pl.col("raw") != "") & ~pl.col("raw").str.contains(r"^-?[1-9][0-9]*$")
    return not frame.select((changed | other).any()).item()


def _numeric_ids(raw: pl.Series, name: str, kind: IdKind) -> tuple[pl.Series, pl.Series | None]:
    whole = raw if kind == "str" and not raw.dtype.is_float() else _whole_numbers(raw)
    ids = whole.cast(pl.String) if kind == "str" else whole
    if whole.null_count() == 0:
        return ids, None
    beyond = pl.lit(f"{name} is no integer" if raw.dtype.is_float() else f"{name} is beyond int64")
    is_null = raw.is_null() | raw.is_nan() if raw.dtype.is_float() else raw.is_null()
    frame = pl.DataFrame({"whole": whole, "is_null": is_null})
    problem = pl.when("is_null").then(pl.lit(f"{name} is empty")).when(pl.col("whole").is_null()).then(beyond)
    return ids, frame.select(problem=problem).to_series()


def _whole(raw: pl.Series, name: str) -> tuple[pl.Series, pl.Series | None]:
    """A position: a whole number from 0."""
    number = _whole_numbers(raw)
    if number.null_count() == 0 and (number.is_empty() or not (number < 0).any()):
        return number, None
    no_integer = pl.when(pl.lit(number).is_null()).then(pl.lit(f"{name} is no integer"))
    problem = no_integer.when(pl.lit(number) < 0).then(pl.lit(f"{name} is negative"))
    return number, pl.select(problem).to_series()


def _whole_numbers(raw: pl.Series) -> pl.Series:
    """The values as Int64, null where they are no integers or do not fit."""
    whole = raw.cast(pl.Int64, strict=False)
    return whole.set(whole.cast(pl.Float64) != raw, None) if raw.dtype.is_float() else whole


def _number(raw: pl.Series) -> tuple[pl.Series, pl.Series | None]:
    """A weight: a finite number, or nothing."""
    number = raw.cast(pl.Float64, strict=False)
    is_bad = ~is_empty(raw) & (number.is_null() | ~number.is_finite().fill_null(value=False))
    if not is_bad.any():
        return number, None
    return number, pl.select(pl.when(is_bad).then(pl.lit("weight is no number"))).to_series()


def refuse_too_many_rejected(rejected: pl.DataFrame, num_lines: int, config: ReadConfig, kept_at: str) -> None:
    """Stop a job whose source holds too many bad lines.

    Args:
        rejected: `file`, `line`, `reason`, `text`.
        num_lines: data lines of the source.
        config: `max_rejected_share`.
        kept_at: where the rejected lines can be seen.

    Raises:
        DataError: more than the share is rejected; names counts and the first three reasons.
    """
    if rejected.height <= config.max_rejected_share * num_lines:
        return
    first = "; ".join(f"{file}:{line}: {reason}" for file, line, reason, _ in rejected.head(3).iter_rows())
    raise DataError(
        f"{rejected.height:,} of {num_lines:,} lines rejected ({rejected.height / num_lines:.1%}), more than "
        f"read.max_rejected_share={config.max_rejected_share}; first: {first}; all of them: {kept_at}; "
        "mend the source, or raise the share"
    )
