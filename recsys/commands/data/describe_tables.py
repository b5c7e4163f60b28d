"""What `recsys data describe` prints: tables of what was found."""

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from recsys.commands.output import table

if TYPE_CHECKING:
    from rich.table import Table


def describe_tables(values: Mapping[str, Any]) -> list["Table"]:
    """The tables, most general first.

    Args:
        values: what `describe_source` or `describe_dataset` found.
    """
    from rich.markup import escape

    rows = [*_counts(values), *_shapes(values), *_order(values)]
    tables = [table([{"what": name, "found": escape(text)} for name, text in rows if text])]
    if values.get("rejected_by_reason") or values["counts"].get("rejected_by_reason"):
        reasons = values["counts"]["rejected_by_reason"]
        tables.append(table([{"rejected because": reason, "lines": f"{n:,}"} for reason, n in reasons.items()]))
    if values.get("event_types"):
        tables.append(
            table([{"event type": escape(name), "events": f"{n:,}"} for name, n in values["event_types"].items()])
        )
    if values.get("splits"):
        tables.append(table(_splits(values["splits"], values.get("events_by_part") or {})))
    if values.get("leaks"):
        tables.append(
            table(
                [
                    {
                        "leak": one["name"],
                        "where": one["where"],
                        "count": f"{one['count']:,}",
                        "first": escape(one["example"]),
                    }
                    for one in values["leaks"]
                ]
            )
        )
    return tables


def _counts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    counts = values["counts"]
    lines = f"{counts['lines']:,}, of them {counts['good']:,} good, {counts['rejected']:,} rejected"
    rows = [
        ("events", f"{counts['events']:,}"),
        ("users", f"{counts['users']:,} ({values['ids']['users']} ids)"),
        ("items", f"{counts['items']:,} ({values['ids']['items']} ids)"),
        ("data lines", lines if "lines" in counts else ""),
        ("order", values["order"] + (f", times: {_unit(values['time_unit'])}" if values.get("time_unit") else "")),
    ]
    if values["kind"] == "dataset":
        rows.append(("protocol", f"{values['protocol']}: {_leakage(values['leakage'])}"))
    if values.get("weights"):
        weights = values["weights"]
        rows.append(("weights", f"{weights['min']:g} to {weights['max']:g}, mean {weights['mean']:.4g}"))
    missing = {name: count for name, count in (values.get("missing") or {}).items() if count}
    if missing:
        rows.append(("missing values", ", ".join(f"{name} {count:,}" for name, count in missing.items())))
    return rows


def _unit(unit: str) -> str:
    return {"type": "timestamp column", "iso": "ISO 8601"}.get(unit, f"numbers in {unit}")


def _shapes(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not _has_shapes(values):
        return []
    lengths, items = values["lengths"], values["popularity"]
    return [
        ("events of a user", _spread(lengths) + f"; below 3: {lengths['users_below_3']:,} users"),
        ("events of an item", _spread(items) + f"; below 5: {items['items_below_5']:,} items"),
        ("concentration", f"Gini {items['gini']:.3f}; the top 1 % of items have {items['top_1_percent_share']:.1%}"),
        ("repeats", _share(values["repeats"]) + f"; of the item before: {values['repeats']['consecutive_share']:.1%}"),
        ("duplicates", _share(values["duplicates"])),
        ("suspected bots", _bots(values["bots"])),
    ]


def _has_shapes(values: Mapping[str, Any]) -> bool:
    """Whether there are events whose shapes and order could be told."""
    return "lengths" in values and bool(values["counts"]["events"])


def _order(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not _has_shapes(values):
        return []
    rows, time, ties = [], values.get("time"), values["ties"]
    if time:
        span = f"{_utc(time['first_us'])} to {_utc(time['last_us'])} UTC, {time['span_days']:,} days"
        rows.append(("time", f"{span}, {time['days_with_events']:,} of them with events"))
        if time["gap_s"]["median"] is not None:
            gaps = f"median {time['gap_s']['median']:,} s, 90 % below {time['gap_s']['p90']:,} s"
            rows.append(("gap to the next event", gaps))
    if ties["events"] is not None:
        what = f"{_share(ties)} share the user's {'time' if time else 'position'} with another"
        rows.append(("ties", f"{what}; with the event before: {ties['with_previous_share']:.1%}"))
    problems = values.get("order_problems")
    if problems:
        told = [f"users in blocks: {'yes' if problems['users_in_blocks'] else 'no'}"]
        if problems["rows_out_of_time_order"] is not None:
            told.append(f"rows earlier than the one before: {problems['rows_out_of_time_order']:,}")
        if problems["users_out_of_order"] is not None:
            told.append(f"users whose rows are out of order: {problems['users_out_of_order']:,}")
        rows.append(("order of the rows", "; ".join(told)))
    return rows


def _splits(splits: Mapping[str, Any], events: Mapping[str, int]) -> list[dict[str, str]]:
    """Events add up to those of the dataset; targets are the events that a user with a history is asked for."""
    rows = []
    for part in ("train", "valid", "test"):
        found = splits[part]
        names = {"targets": "targets", "cold users": "cold_users", "never trained": "targets_never_trained"}
        row = {"part": part, "users": f"{found['users']:,}"}
        row["events"] = f"{events[part]:,}" if part in events else ""
        rows.append(row | {head: f"{found[name]:,}" if name in found else "" for head, name in names.items()})
    return rows


def _leakage(leakage: Mapping[str, Any]) -> str:
    if not leakage.get("declared_leaky"):
        return "training sees nothing of the future"
    shares = [leakage[split].get("training_share_after_a_target") for split in ("valid", "test") if split in leakage]
    known = [share for share in shares if share is not None]
    return f"leaky, declared; {known[-1]:.1%} of the training events follow a target" if known else "leaky, declared"


def _spread(shape: Mapping[str, Any]) -> str:
    return f"mean {shape['mean']:,}, median {shape['median']:,}, 99 % below {shape['p99']:,}, most {shape['max']:,}"


def _share(found: Mapping[str, Any]) -> str:
    return "" if found["events"] is None else f"{found['events']:,} events ({found['share']:.1%})"


def _bots(bots: Mapping[str, Any]) -> str:
    return f"{bots['users']:,} users with more than {bots['more_events_than']:,} events"


def _utc(time_us: int) -> str:
    return str(datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=time_us))[:19]
