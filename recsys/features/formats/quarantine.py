"""Raw values into typed interactions; every row that cannot be used is set aside with its reason."""

import dataclasses
from typing import Literal

import polars as pl

from recsys.errors import DataError
from recsys.features.formats.raw import LINE, REJECTED_SCHEMA, TEXT, RawTable
from recsys.features.formats.times import Times, parse_times
from recsys.features.schema import IdRule, ReadConfig
from recsys.features.vocabulary import IdKind

INTEGER = r"^-?[0-9]+$"
# Quoted fields and JSON may hold tabs and line ends.
CONTROL = r"[\p{Cc}--[\t\n\r]]"


@dataclasses.dataclass(frozen=True)
class Judged:
    """Rows after judgement.

    Attributes:
        good: `line`, `user_id`, `item_id`, `timestamp` (Int64 us) or `position` (Int64) unless the order is the rows',
            `is_clamped` with times, and the optional columns `weight`, `event_type`, `session_id` that the source has.
        rejected: `line`, `reason`, `text`.
        user_kind, item_kind: how ids are kept.
        time_unit: what numbers of the time column counted, or None.
    """

    good: pl.DataFrame
    rejected: pl.DataFrame
    user_kind: IdKind
    item_kind: IdKind
    time_unit: str | None


def judge(
    table: RawTable,
    resolved: dict[str, str],
    order: Literal["time", "position", "rows"],
    config: ReadConfig,
    latest_us: int,
    where: str,
) -> Judged:
    """The usable rows, typed, and the others with the first reason against each.

    Args:
        table: as the format's reader gave it.
        resolved: our column names and the source's.
        order: which column, if any, must hold an order key.
        config: id kinds and time unit.
        latest_us: later times are clamped.
        where: the source's name, for messages.

    Raises:
        DataError: no time is credible.
    """
    rows = table.rows
    users, user_problem, user_kind = _ids(rows[resolved["user_id"]], "user_id", config.user_ids, table)
    items, item_problem, item_kind = _ids(rows[resolved["item_id"]], "item_id", config.item_ids, table)
    columns = {"line": rows[LINE], "user_id": users, "item_id": items}
    problems, times = [user_problem, item_problem], None
    if order == "time":
        times = parse_times(rows[resolved["timestamp"]], config.time_unit, latest_us, where)
        columns |= {"timestamp": times.us, "is_clamped": times.is_clamped}
        problems.append(times.problem)
    elif order == "position":
        name = "position" if "position" in resolved else "timestamp"
        columns["position"], problem = _whole(rows[resolved[name]], name)
        problems.append(problem)
    if "weight" in resolved:
        columns["weight"], problem = _number(rows[resolved["weight"]])
        problems.append(problem)
    for name in ("event_type", "session_id"):
        if name in resolved:
            columns[name] = rows[resolved[name]].cast(pl.String)
    reason = pl.DataFrame([p.alias(str(n)) for n, p in enumerate(problems)]).select(pl.coalesce(pl.all())).to_series()
    good = pl.DataFrame([column.alias(name) for name, column in columns.items()])
    return _parted(good, reason, rows, table, user_kind, item_kind, times)


def _parted(
    good: pl.DataFrame,
    reason: pl.Series,
    rows: pl.DataFrame,
    table: RawTable,
    user_kind: IdKind,
    item_kind: IdKind,
    times: Times | None,
) -> Judged:
    is_bad = reason.is_not_null()
    rejected = table.rejected
    if is_bad.any():
        lines = good["line"].filter(is_bad)
        texts = _texts(rows.filter(is_bad))
        refused = pl.DataFrame([lines, reason.filter(is_bad).alias("reason"), texts.alias("text")], REJECTED_SCHEMA)
        rejected = pl.concat([rejected, refused]).sort("line")
        good = good.filter(~is_bad)
    return Judged(good, rejected, user_kind, item_kind, None if times is None else times.unit)


def _texts(rows: pl.DataFrame) -> pl.Series:
    """The rows as a reader would want to see them: the line, or `column=value` where the format has no lines."""
    if TEXT in rows.columns:
        return rows[TEXT]
    names = [name for name in rows.columns if name != LINE]
    return pl.Series(
        [", ".join(f"{n}={v}" for n, v in zip(names, row, strict=True)) for row in rows.select(names).rows()]
    )


def _ids(raw: pl.Series, name: str, rule: IdRule, table: RawTable) -> tuple[pl.Series, pl.Series, IdKind]:
    """Ids of one kind, and why a row has none."""
    if raw.dtype != pl.String:
        return _numeric_ids(raw, name, rule)
    frame = raw.to_frame("raw").with_columns(number=pl.col("raw").cast(pl.Int64, strict=False))
    if frame["number"].null_count():
        is_control = pl.col("raw").str.contains(CONTROL).fill_null(value=False)
    else:
        is_control = pl.lit(value=False)
    frame = frame.with_columns(is_control=is_control)
    is_text = name in table.typed_ids
    is_int = rule == "int" or (rule == "auto" and not is_text and _all_integers(frame.filter(~pl.col("is_control"))))
    is_empty = pl.col("raw").is_null() | (pl.col("raw") == "")
    empty = pl.when(is_empty).then(pl.lit(f"{name} is empty"))
    unusable = empty.when("is_control").then(pl.lit(f"{name} holds a control character"))
    if not is_int:
        return raw, frame.select(problem=unusable).to_series(), "str"
    is_beyond = pl.col("number").is_null() & pl.col("raw").str.contains(INTEGER)
    problem = unusable.when(is_beyond).then(pl.lit(f"{name} is beyond int64"))
    problem = problem.when(pl.col("number").is_null()).then(pl.lit(f"{name} is no integer"))
    return frame["number"], frame.select(problem=problem).to_series(), "int"


def _all_integers(frame: pl.DataFrame) -> bool:
    """Whether every text that is not empty is an integer as Python writes it: `012` and `+5` are texts."""
    changed = pl.col("number").is_not_null() & (pl.col("number").cast(pl.String) != pl.col("raw"))
    other = pl.col("number").is_null() & (pl.col("raw") != "") & ~pl.col("raw").str.contains(r"^-?[1-9][0-9]*$")
    if frame["number"].null_count() == 0:
        return not frame.select(changed.any()).item()
    has_number = frame["number"].count() > 0
    return has_number and not frame.select((changed | other).any()).item()


def _numeric_ids(raw: pl.Series, name: str, rule: IdRule) -> tuple[pl.Series, pl.Series, IdKind]:
    whole = _whole_numbers(raw)
    beyond = pl.lit(f"{name} is no integer" if raw.dtype.is_float() else f"{name} is beyond int64")
    is_null = raw.is_null() | raw.is_nan() if raw.dtype.is_float() else raw.is_null()
    frame = pl.DataFrame({"whole": whole, "is_null": is_null})
    problem = pl.when("is_null").then(pl.lit(f"{name} is empty")).when(pl.col("whole").is_null()).then(beyond)
    ids = whole.cast(pl.String) if rule == "str" else whole
    return ids, frame.select(problem=problem).to_series(), "str" if rule == "str" else "int"


def _whole(raw: pl.Series, name: str) -> tuple[pl.Series, pl.Series]:
    """A position: a whole number from 0."""
    number = _whole_numbers(raw)
    no_integer = pl.when(pl.lit(number).is_null()).then(pl.lit(f"{name} is no integer"))
    problem = no_integer.when(pl.lit(number) < 0).then(pl.lit(f"{name} is negative"))
    return number, pl.select(problem).to_series()


def _whole_numbers(raw: pl.Series) -> pl.Series:
    """The values as Int64, null where they are no integers or do not fit."""
    whole = raw.cast(pl.Int64, strict=False)
    return whole.set(whole.cast(pl.Float64) != raw, None) if raw.dtype.is_float() else whole


def _number(raw: pl.Series) -> tuple[pl.Series, pl.Series]:
    """A weight: a finite number, or nothing."""
    number = raw.cast(pl.Float64, strict=False)
    is_empty = raw.is_null() | (raw == "") if raw.dtype == pl.String else raw.is_null()
    is_bad = ~is_empty & (number.is_null() | ~number.is_finite().fill_null(value=False))
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
