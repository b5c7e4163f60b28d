"""What a user should do next with what was described: settings of `prepare`, a protocol, the next command."""

import shlex
from collections.abc import Mapping
from typing import Any

from recsys.features.schema import ReadConfig

MANY_TIES, MANY_REPEATS, MANY_CONSECUTIVE, MANY_RARE = 0.05, 0.05, 0.01, 0.3
ENOUGH_LEFT = 0.5  # of the events, after the filters
FEW_EVENTS = 1_000  # fewer are not split by time: a part, or everybody's history, may be empty
SPLIT_EVENTS = 3  # of a user, the fewest that leave one out can split


def advice(values: Mapping[str, Any]) -> list[str]:
    """Lines, the most pressing first; the last one names the next command.

    Args:
        values: what `describe_source` or `describe_dataset` found.
    """
    if values["kind"] == "dataset":
        return _of_dataset(values)
    lines, policies = [], []
    counts = values["counts"]
    if not counts["events"]:
        return ["no usable event: mend what is rejected, or name the columns with --set read.columns.user_id=NAME"]
    if counts["rejected"]:
        reason, number = next(iter(counts["rejected_by_reason"].items()), ("", 0))
        share = counts["rejected"] / counts["lines"]
        lines.append(
            f"{counts['rejected']:,} lines are rejected ({share:.1%}), {number:,} of them: {reason}; "
            "prepare stops above read.max_rejected_share"
        )
    if counts["clamped"]:
        lines.append(f"{counts['clamped']:,} times lie in the future and are set back: check the clocks of the clients")
    lines += _on_order(values)
    for line, setting in (*_on_duplicates(values), *_on_repeats(values)):
        lines.append(line)
        policies += [setting] if setting else []
    rare = _on_rare(values)
    filters = [setting for _, setting in rare]
    dropped = _dropped(values, policies)
    is_enough = _is_enough(values, dropped, filters)
    lines += [line if is_enough else f"{line}; a filter may leave too little" for line, _ in rare]
    if len(values["event_types"]) > 1:
        names = ", ".join(list(values["event_types"])[:4])
        lines.append(
            f'{len(values["event_types"])} event types ({names}): keep those that mean interest, events.types=["…"]'
        )
    lines += _on_bots(values)
    if values["lengths"]["max"] < SPLIT_EVENTS:
        return [*lines, f"no user has {SPLIT_EVENTS} events: nothing can be split yet; gather more"]
    is_split = counts["events"] - dropped > (SPLIT_EVENTS - 1) * counts["users"]  # somebody has enough
    settings = policies if is_split or values["lengths"]["max"] - dropped >= SPLIT_EVENTS else []
    settings += filters if is_enough and settings == policies else []
    return [*lines, _next(values, settings)]


def _next(values: Mapping[str, Any], settings: list[str]) -> str:
    counts = values["counts"]
    protocol = "time" if values["order"] == "time" and counts["events"] >= FEW_EVENTS else "loo"
    words = [f"recsys prepare --source {shlex.quote(values['path'])} --out DATA --protocol {protocol}"]
    words += [f"--set {setting}" for setting in settings]
    is_stopped = counts["rejected"] > ReadConfig().max_rejected_share * counts["lines"]
    return f"next{', once the lines are mended' if is_stopped else ''}: {' '.join(words)}"


def _dropped(values: Mapping[str, Any], policies: list[str]) -> int:
    """The most events that these policies leave out: never the first one of a user with an item."""
    repeats = values["repeats"]
    # What stood around a duplicate may be a repeat once it is gone.
    duplicates = 2 * values["duplicates"]["events"] if "events.duplicates=drop" in policies else 0
    collapsed = repeats["consecutive"] if "events.repeats=collapse" in policies else 0
    return int(min(duplicates + collapsed, repeats["events"]))


def _is_enough(values: Mapping[str, Any], dropped: int, filters: list[str]) -> bool:
    """Whether half of the events, and a user that can be split, are left for certain by these filters.

    Exact counts of what is rare and the histogram bound what goes. An item of 5 events that loses one loses all.
    """
    events, users, short = values["counts"]["events"], values["counts"]["users"], values["lengths"]["users_below_3"]
    lost = dropped
    if "filters.min_item_events=5" in filters:
        ones, twos = _first_bins(values["popularity"]["histogram"], "items")
        rare = values["popularity"]["items_below_5"]
        lost = 5 * dropped + ones + 3 * twos + 4 * max(0, rare - ones - twos)
    single, _ = _first_bins(values["lengths"]["histogram"], "users")
    by_long = events - lost - single - 2 * (short - single)
    return by_long > (SPLIT_EVENTS - 1) * (users - short) and by_long >= ENOUGH_LEFT * events


def _first_bins(histogram: list[Mapping[str, int]], what: str) -> tuple[int, int]:
    """How many have 1 event, and how many 2 or 3."""
    first = [row[what] for row in histogram[:2]]
    return (first + [0, 0])[0], (first + [0, 0])[1]


def _of_dataset(values: Mapping[str, Any]) -> list[str]:
    if values["leaks"]:
        return ["the dataset leaks: prepare it again from its sources; figures measured on it mean nothing"]
    lines = _on_bots(values)
    leakage = values["leakage"]
    if leakage.get("declared_leaky"):
        remedy = "--protocol time sees nothing of it" if leakage.get("times_known") else "nobody can say how much"
        lines.append(f"protocol {values['protocol']} trains on other users' future, as declared: {remedy}")
    tied = leakage.get("test", {}).get("tied_targets", 0) if isinstance(leakage.get("test"), dict) else 0
    if tied > MANY_TIES:
        lines.append(
            f"{tied:.1%} of the test targets share their time with the event before: which of them is the target hangs "
            "on events.ties; compare figures on the very same dataset only"
        )
    test = values["splits"].get("test", {})
    if test.get("targets") and test.get("targets_never_trained", 0) > MANY_TIES * test["targets"]:
        share = test["targets_never_trained"] / test["targets"]
        lines.append(
            f"{share:.1%} of the test targets never occur in training: no model without content can reach them"
        )
    return [*lines, f"next: recsys train CONFIG --data {values['path']} --out RUN"]


def _on_order(values: Mapping[str, Any]) -> list[str]:
    lines = []
    if values["order"] != "time":
        lines.append(
            f"no real times: events stand in the order of the {values['order']}; only leaky protocols are possible"
        )
    ties = values["ties"]["share"] or 0
    if ties > MANY_TIES:
        lines.append(
            f"{ties:.1%} of the events share their {'time' if values['order'] == 'time' else 'position'} with another "
            "of the same user: their order is that of the file unless events.ties says otherwise, and figures of loo "
            "hang on it"
        )
    problems = values["order_problems"]
    if values["order"] == "rows" and not problems["users_in_blocks"]:
        lines.append("users' rows lie scattered over the files: check that the rows are the order of events")
    return lines


def _on_duplicates(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    count = values["duplicates"]["events"]
    if not count:
        return []
    return [(f"{count:,} events occur again with the same user, item and moment", "events.duplicates=drop")]


def _on_repeats(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    repeats, found = values["repeats"], []
    if repeats["consecutive_share"] > MANY_CONSECUTIVE:
        line = f"{repeats['consecutive_share']:.1%} of the events repeat the item just before"
        found.append((line, "events.repeats=collapse"))
    if repeats["share"] > MANY_REPEATS:
        line = f"{repeats['share']:.1%} of the events repeat an item of the user: evaluate with --seen keep too"
        found.append((line, ""))
    return found


def _on_rare(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    counts, found = values["counts"], []
    if values["popularity"]["items_below_5"] > MANY_RARE * counts["items"]:
        share = values["popularity"]["items_below_5"] / counts["items"]
        found.append((f"{share:.0%} of the items have fewer than 5 events", "filters.min_item_events=5"))
    if values["lengths"]["users_below_3"] > MANY_RARE * counts["users"]:
        share = values["lengths"]["users_below_3"] / counts["users"]
        found.append((f"{share:.0%} of the users have fewer than 3 events", "filters.min_user_events=3"))
    return found


def _on_bots(values: Mapping[str, Any]) -> list[str]:
    bots = values.get("bots") or {"users": 0}
    if not bots["users"]:
        return []
    first = bots["longest"][0]
    return [
        f"{bots['users']:,} users have more than {bots['more_events_than']:,} events ({bots['share']:.1%} of all; "
        f"the most: {first['user']} with {first['events']:,}): bots? leave them out of the source"
    ]
