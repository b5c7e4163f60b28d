"""Every check between two profiles, with its verdict."""

import dataclasses
import datetime
from typing import Literal

import numpy as np
import polars as pl

from recsys.features.difference.config import DiffConfig, DriftLimits, NewLimits, SpanLimits
from recsys.features.difference.drift import drift
from recsys.features.difference.profile import UNTYPED, LogProfile

Verdict = Literal["ok", "warn", "fail", "skipped"]
WEIGHT_BINS = 20
SHOWN = 3
# Another unit is detected and read right; another order or other ids are not the same data any more.
KIND_VERDICTS: dict[str, Verdict] = {"order": "fail", "time_unit": "warn", "user_id": "fail", "item_id": "fail"}
EXACT_UNITS = {"type": "timestamp column", "iso": "ISO 8601"}  # nothing is detected: one for the other is no warning


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: what was compared, `volume.events`, `missing.weight`, …
        old, new: the two values, for a reader.
        value: what is held against the limits; None where the check is yes or no.
        warn, limit: above them the verdict is `warn`, `fail`.
        verdict: of the check; `skipped` where it cannot be made: `new` says why.
    """

    name: str
    old: str
    new: str
    value: float | None
    warn: float | None
    limit: float | None
    verdict: Verdict


def compare_logs(old: LogProfile, new: LogProfile, config: DiffConfig) -> list[Check]:
    """Every check between the two logs, the failed ones too."""
    return [
        _same(old, new),
        *_kinds(old, new),
        *_columns(old, new),
        *_volume(old, new, config),
        *_times(old, new, config),
        *_missing(old, new, config),
        *_new_ids(old, new, config),
        *_types(old, new, config),
        *_drifts(old, new, config),
    ]


def _same(old: LogProfile, new: LogProfile) -> Check:
    """Whether the new log is the old one again."""
    is_again = old.digests == new.digests
    told = "identical bytes" if is_again else "same times and counts" if _is_same_content(old, new) else ""
    return Check("same", told, told, None, None, None, "warn" if told else "ok")


def _is_same_content(old: LogProfile, new: LogProfile) -> bool:
    """Whether all that is known of both is alike: first and last time, counts, events of each user and item."""
    if old.span_us is None or (old.span_us, old.counts) != (new.span_us, new.counts):
        return False
    pairs = ((old.users, new.users, "user_id"), (old.items, new.items, "item_id"))
    return all(one.sort(name).equals(two.sort(name)) for one, two, name in pairs)


def _kinds(old: LogProfile, new: LogProfile) -> list[Check]:
    checks = []
    for name, verdict in KIND_VERDICTS.items():
        before, after = old.kinds[name], new.kinds[name]
        is_same = before == after or (name == "time_unit" and {before, after} <= EXACT_UNITS.keys())
        told = [EXACT_UNITS.get(kind or "", str(kind)) for kind in (before, after)]
        checks.append(Check(f"kind.{name}", told[0], told[1], None, None, None, "ok" if is_same else verdict))
    return checks


def _columns(old: LogProfile, new: LogProfile) -> list[Check]:
    vanished = [name for name in old.columns if name not in new.columns]
    added = [name for name in new.columns if name not in old.columns]
    changed = [name for name, kind in old.columns.items() if _differ(kind, new.columns.get(name, kind))]
    before, after = (_few([f"{name} {side.columns[name]}" for name in changed]) for side in (old, new))
    return [
        Check("columns.vanished", _few(vanished), "", None, None, None, "fail" if vanished else "ok"),
        Check("columns.new", "", _few(added), None, None, None, "warn" if added else "ok"),
        Check("columns.type", before, after, None, None, None, "fail" if changed else "ok"),
    ]


def _differ(old: str, new: str) -> bool:
    """Whether both types are known, and differ: text formats have none."""
    return old != new and UNTYPED not in (old, new)


def _volume(old: LogProfile, new: LogProfile, config: DiffConfig) -> list[Check]:
    limits, checks = config.volume, []
    sizes = {
        "events": (old.counts["events"], new.counts["events"]),
        "users": (old.users.height, new.users.height),
        "items": (old.items.height, new.items.height),
    }
    for name, (before, after) in sizes.items():
        ratio = max(before, after) / min(before, after)
        checks.append(_held(f"volume.{name}", f"{before:,}", f"{after:,}", ratio, limits.warn_ratio, limits.max_ratio))
    shares = [side.counts["rejected"] / max(side.counts["lines"], 1) for side in (old, new)]
    rise = max(0.0, shares[1] - shares[0])
    told = (_percent(shares[0]), _percent(shares[1]))
    return [*checks, _held("rejected", *told, rise, config.rejected.warn_rise, config.rejected.max_rise)]


def _times(old: LogProfile, new: LogProfile, config: DiffConfig) -> list[Check]:
    limits = config.clamped
    if old.kinds["order"] != "time" or new.kinds["order"] != "time":
        why = _absent(old.kinds["order"] == "time", new.kinds["order"] == "time", "times")
        skipped = Check("span", "", why, None, config.span.warn_share, None, "skipped")
        return [_skipped("clamped", why, limits.warn_share, limits.max_share), skipped]
    shares = [side.counts["clamped"] / side.counts["events"] for side in (old, new)]
    told = (_percent(shares[0]), _percent(shares[1]))
    return [_held("clamped", *told, shares[1], limits.warn_share, limits.max_share), _span(old, new, config.span)]


def _span(old: LogProfile, new: LogProfile, limits: SpanLimits) -> Check:
    """A day that was sent again, or logs that were named the wrong way round: the new one ends earlier."""
    if old.span_us is None or new.span_us is None:
        why = _absent(old.span_us is not None, new.span_us is not None, "credible times")
        return Check("span", "", why, None, limits.warn_share, None, "skipped")
    (first, last), (_, end) = old.span_us, new.span_us
    value = max(0, last - end) / max(last - first, 1)
    verdict: Verdict = "warn" if value > limits.warn_share else "ok"
    told = (f"to {_utc(last)}", f"to {_utc(end)}")
    return Check("span", *told, round(value, 6), limits.warn_share, None, verdict)


def _missing(old: LogProfile, new: LogProfile, config: DiffConfig) -> list[Check]:
    checks = []
    for name in (name for name in old.missing if name in new.missing):
        before, after = old.missing[name], new.missing[name]
        limits, change = config.missing, abs(after - before)
        told = (_percent(before), _percent(after))
        checks.append(_held(f"missing.{name}", *told, change, limits.warn_rise, limits.max_rise))
    return checks


def _new_ids(old: LogProfile, new: LogProfile, config: DiffConfig) -> list[Check]:
    return [
        _newness("new_items", old.items, new.items, "item_id", config.new_items),
        _newness("new_users", old.users, new.users, "user_id", config.new_users),
    ]


def _newness(name: str, old: pl.DataFrame, new: pl.DataFrame, column: str, limits: NewLimits) -> Check:
    unknown = new.join(old, on=column, how="anti")
    share = int(unknown["events"].sum()) / max(int(new["events"].sum()), 1)
    told = f"{unknown.height:,} of {new.height:,}, {_percent(share)} of the events"
    return _held(name, "", told, share, limits.warn_share, limits.max_share)


def _types(old: LogProfile, new: LogProfile, config: DiffConfig) -> list[Check]:
    limits, checks = config.event_types, []
    for name, here, there in (("event_types.new", new, old), ("event_types.vanished", old, new)):
        why = _without(old.types, new.types, "event types")
        if why:
            checks.append(_skipped(name, why, limits.warn_share, limits.max_share))
            continue
        unknown = here.types.join(there.types, on="event_type", how="anti").sort("event_type")
        share = int(unknown["events"].sum()) / int(here.types["events"].sum())
        told = _few(unknown["event_type"].to_list())
        both = ("", told) if here is new else (told, "")
        checks.append(_held(name, *both, share, limits.warn_share, limits.max_share))
    return checks


def _drifts(old: LogProfile, new: LogProfile, config: DiffConfig) -> list[Check]:
    return [
        _popularity(old, new, config.popularity),
        _hours(old, new, config.hours),
        _type_mix(old, new, config.type_mix),
        _weights(old, new, config.weights),
    ]


def _popularity(old: LogProfile, new: LogProfile, limits: DriftLimits) -> Check:
    shared = old.items.join(new.items, on="item_id", how="inner").sort("item_id")
    if shared.height < 2:
        why = f"{shared.height} shared {'item' if shared.height == 1 else 'items'}; wanted 2"
        return _skipped("drift.popularity", why, limits.warn_drift, limits.max_drift)
    counts = (shared["events"].to_numpy(), shared["events_right"].to_numpy())
    return _drift("popularity", *counts, limits, f"{shared.height:,} shared items")


def _hours(old: LogProfile, new: LogProfile, limits: DriftLimits) -> Check:
    if old.hours is None or new.hours is None:
        why = _absent(old.hours is not None, new.hours is not None, "times")
        return _skipped("drift.hours", why, limits.warn_drift, limits.max_drift)
    return _drift("hours", old.hours, new.hours, limits, "24 hours")


def _type_mix(old: LogProfile, new: LogProfile, limits: DriftLimits) -> Check:
    why = _without(old.types, new.types, "event types")
    if why:
        return _skipped("drift.type_mix", why, limits.warn_drift, limits.max_drift)
    counts = _aligned(old.types, new.types, "event_type")
    return _drift("type_mix", *counts, limits, f"{len(counts[0]):,} types")


def _weights(old: LogProfile, new: LogProfile, limits: DriftLimits) -> Check:
    why = _without(old.weights, new.weights, "weights")
    if why:
        return _skipped("drift.weights", why, limits.warn_drift, limits.max_drift)
    counts = _binned(*_aligned(old.weights, new.weights, "weight"))
    means = [_mean_weight(side.weights) for side in (old, new)]
    check = _drift("weights", *counts, limits, "")
    return dataclasses.replace(check, old=f"mean {means[0]:.4g}", new=f"mean {means[1]:.4g}")


def _without(old: pl.DataFrame, new: pl.DataFrame, what: str) -> str:
    """Which log has none of it, or an empty text."""
    return "" if old.height and new.height else _absent(bool(old.height), bool(new.height), what)


def _absent(is_in_old: bool, is_in_new: bool, what: str) -> str:
    side = "the new log" if is_in_old else "the old log" if is_in_new else "either log"
    return f"no {what} in {side}"


def _skipped(name: str, why: str, warn: float, limit: float) -> Check:
    return Check(name, "", why, None, warn, limit, "skipped")


def _drift(name: str, old: np.ndarray, new: np.ndarray, limits: DriftLimits, over: str) -> Check:
    return _held(f"drift.{name}", over, over, drift(old, new), limits.warn_drift, limits.max_drift)


def _aligned(old: pl.DataFrame, new: pl.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Events of every value of either side, in the order of the values."""
    joined = old.join(new, on=column, how="full", coalesce=True).sort(column)
    return joined["events"].fill_null(0).to_numpy(), joined["events_right"].fill_null(0).to_numpy()


def _binned(old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Many ordered values as bins of about as many pooled events."""
    if len(old) <= WEIGHT_BINS:
        return old, new
    pooled = np.cumsum(old + new)
    bins = np.minimum((pooled - 1) * WEIGHT_BINS // pooled[-1], WEIGHT_BINS - 1)
    return np.bincount(bins, old, WEIGHT_BINS).astype(np.int64), np.bincount(bins, new, WEIGHT_BINS).astype(np.int64)


def _mean_weight(weights: pl.DataFrame) -> float:
    return float((weights["weight"] * weights["events"]).sum()) / float(weights["events"].sum())


def _held(name: str, old: str, new: str, value: float, warn: float, limit: float) -> Check:
    verdict: Verdict = "fail" if value > limit else "warn" if value > warn else "ok"
    return Check(name, old, new, round(value, 6), warn, limit, verdict)


def _utc(time_us: int) -> str:
    return str(datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=time_us))[:19]


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _few(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
