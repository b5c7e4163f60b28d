"""A described log or dataset as one picture: lengths, popularity, concentration, time, gaps, repeats and ties."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys.errors import missing_extra
from recsys.files import storage_errors

BLUE, ORANGE, GREY, RED, GREEN = "#3b6ea8", "#d9822b", "#8a8f98", "#c0392b", "#3f8f5f"
PANEL_INCHES = (4.4, 3.3)
DAY_S = 86_400
# Where a reader looks for them on an axis of seconds.
GAP_TICKS_S = {1: "1 s", 60: "1 min", 3600: "1 h", DAY_S: "1 d", 30 * DAY_S: "30 d", 365 * DAY_S: "1 y"}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e6ea",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": True,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "none",
}
Panel = Callable[[Any, Mapping[str, Any]], None]


def draw_description(values: Mapping[str, Any], file: Path) -> Path:
    """Draws what `describe_source` or `describe_dataset` found as a PNG, whole or not at all, and returns it.

    Raises:
        MissingExtraError: matplotlib is not installed.
        StorageError: the disk is full or failed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        missing_extra("matplotlib", "tracking", error)
    panels: list[Panel] = [_lengths, _popularity, _concentration, _shares]
    if values.get("time"):
        panels[3:3] = [_days, _gaps]
    columns = 3 if len(panels) > 4 else 2
    rows = -(-len(panels) // columns)
    draft = file.with_name(f".{file.name}.tmp")
    with matplotlib.rc_context(STYLE), storage_errors(file, "free some space"):
        size = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows + 0.6)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        for place, panel in enumerate(panels, start=1):
            panel(figure.add_subplot(rows, columns, place), values)
        figure.suptitle(_title(values), x=0.01, ha="left", fontsize=11)
        figure.savefig(draft, format="png", dpi=150)
        draft.rename(file)
    return file


def _title(values: Mapping[str, Any]) -> str:
    counts, name = values["counts"], Path(values["path"]).name
    sizes = f"{counts['events']:,} events, {counts['users']:,} users, {counts['items']:,} items"
    return f"{name}: {sizes}" + (f", split {values['protocol']}" if "protocol" in values else "")


def _lengths(axes: Any, values: Mapping[str, Any]) -> None:
    shape = values["lengths"]
    _log_bars(axes, shape["histogram"], "users", BLUE)
    axes.axvline(max(shape["median"], 1), ymax=0.8, color=RED, linewidth=1.2, label=f"median {shape['median']:,}")
    axes.axvline(
        max(shape["p99"], 1), ymax=0.8, color=RED, linewidth=1.2, linestyle=":", label=f"99 % below {shape['p99']:,}"
    )
    axes.set(title="Length of histories", xlabel="events of a user", ylabel="users")
    axes.legend(loc="upper right")


def _popularity(axes: Any, values: Mapping[str, Any]) -> None:
    shape = values["popularity"]
    _log_bars(axes, shape["histogram"], "items", ORANGE)
    axes.axvline(max(shape["median"], 1), ymax=0.8, color=RED, linewidth=1.2, label=f"median {shape['median']:,}")
    share = shape["items_below_5"] / max(values["counts"]["items"], 1)
    axes.plot([], [], " ", label=f"{100 * share:.0f} % have fewer than 5")
    axes.set(title="Popularity of items", xlabel="events of an item", ylabel="items")
    axes.legend(loc="upper right")


def _concentration(axes: Any, values: Mapping[str, Any]) -> None:
    shape = values["popularity"]
    percent, shares = lorenz_points(shape["lorenz"], values["counts"]["items"])
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle="--", label="all items alike")
    axes.plot(percent, shares, color=ORANGE, linewidth=2, label="events")
    axes.fill_between(percent, shares, percent, color=ORANGE, alpha=0.12)
    told = f"Gini {shape['gini']:.2f}\ntop 1 % of items\nhave {100 * shape['top_1_percent_share']:.0f} % of events"
    axes.text(5, 76, told, fontsize=8.5, va="top")
    axes.set(title="Concentration", xlabel="items, least popular first (%)", ylabel="share of events (%)")
    axes.set(xlim=(0, 100), ylim=(0, 100))
    axes.legend(loc="upper left")


def lorenz_points(lorenz: Sequence[float], num_items: int) -> tuple[list[float], list[float]]:
    """Percent of the items and of the events along the curve: one point an item where there are few, no steps between.

    Args:
        lorenz: (101,) share of events of the least popular 0, 1, … 100 % of the items, rounded down to whole items.
        num_items: V.
    """
    steps = min(max(num_items, 1), len(lorenz) - 1)
    places = [-(-(len(lorenz) - 1) * step // steps) for step in range(steps + 1)]
    return [100 * step / steps for step in range(steps + 1)], [100 * lorenz[place] for place in places]


def _days(axes: Any, values: Mapping[str, Any]) -> None:
    time = values["time"]
    edges, heights, unit = _periods(time["events_by_day"])
    axes.stairs(heights, edges, fill=True, color=BLUE, alpha=0.85)
    axes.set(title="Events over time", ylabel=f"events per {unit}")
    axes.margins(x=0)
    axes.set_ylim(0, max(heights) * 1.3)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    cuts = values.get("cuts_us") or []
    for cut, name, style in zip(cuts, ("validation", "test"), ("--", "-"), strict=True) if cuts else ():
        axes.axvline(_date(cut / 1e6), color=RED, linewidth=1.2, linestyle=style, label=f"{name} begins")
    if cuts:
        axes.legend(loc="upper left", ncols=2)
    _date_axis(axes)


def _gaps(axes: Any, values: Mapping[str, Any]) -> None:
    gaps = values["time"]["gaps"]
    edges, counts = gaps["edges_s"], gaps["counts"]
    total = max(sum(counts), 1)
    # Five bins are one bar: four bars a decade.
    starts = range(1, len(edges) - 1, 5)
    heights = [100 * sum(counts[start : start + 5]) / total for start in starts]
    lows = [edges[start] for start in starts]
    last = max((n for n, height in enumerate(heights) if height), default=0)
    axes.bar(lows, heights, [low * 0.7 for low in lows], align="edge", color=BLUE, alpha=0.85)
    axes.bar([0.13], [100 * counts[0] / total], [0.2], align="edge", color=RED, alpha=0.85)
    axes.set_xscale("log")
    ticks = {second: name for second, name in GAP_TICKS_S.items() if second <= lows[last] * 10}
    axes.set_xticks([0.2, *ticks], ["0", *ticks.values()])
    axes.set_xticks([], minor=True)
    axes.set_xlim(0.08, max(lows[last], 60) * 3)
    axes.set_ylim(0, 1.35 * max(*heights, 100 * counts[0] / total, 1))
    median, p90 = (_span(values["time"]["gap_s"][name]) for name in ("median", "p90"))
    axes.text(0.97, 0.95, f"median {median}\n90 % below {p90}", transform=axes.transAxes, ha="right", va="top")
    axes.set(title="Gaps within a user", xlabel="time to the user's next event", ylabel="share of gaps (%)")


def _shares(axes: Any, values: Mapping[str, Any]) -> None:
    events = max(values["counts"]["events"], 1)
    rejected = values["counts"].get("rejected", 0) / max(values["counts"].get("lines", 1), 1)
    rows: list[tuple[str, float | None]] = [
        ("repeat an item of the user", values["repeats"]["share"]),
        ("repeat the item before", values["repeats"]["consecutive_share"]),
        (f"share the user's {'time' if values.get('time') else 'position'}", values["ties"]["share"]),
        ("are duplicates", values["duplicates"]["share"]),
        ("of suspected bots", values["bots"]["share"]),
        ("times in the future", values["counts"].get("clamped", 0) / events),
        ("rejected lines", rejected),
    ]
    names = [name for name, share in rows if share is not None][::-1]
    shares = [100 * share for _, share in rows if share is not None][::-1]
    axes.barh(names, shares, color=[RED if share else GREY for share in shares], alpha=0.85, height=0.62)
    limit = max(max(shares) * 1.25, 10)
    for place, share in enumerate(shares):
        axes.text(share + 0.015 * limit, place, _percent(share), va="center", fontsize=8.5)
    axes.set(title="Events that …", xlabel="share of events (%)", xlim=(0, limit))
    axes.grid(visible=False, axis="y")


def _log_bars(axes: Any, histogram: Sequence[Mapping[str, int]], what: str, color: str) -> None:
    lows = [row["from"] for row in histogram]
    axes.bar(
        lows, [row[what] for row in histogram], [low * 0.92 for low in lows], align="edge", color=color, alpha=0.85
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    # Room for the legend above the bars.
    axes.set_ylim(0.7, 30 * max(row[what] for row in histogram) if histogram else 10)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value < 1e6 else f"{value / 1e6:,.0f} M")
        axis.set_minor_formatter("")
    # A bar of its own decade: short axes would have no tick with a number.
    axes.set_xlim(0.8, max(2.2 * max(lows, default=1), 12))


def _periods(by_day: Sequence[Sequence[int]]) -> tuple[list[datetime.datetime], list[int], str]:
    """Edges and heights of at most about 130 bars."""
    first, last = by_day[0][0], by_day[-1][0]
    days, unit = next(
        ((step, name) for step, name in ((1, "day"), (7, "week"), (30, "30 days")) if (last - first) / step <= 130),
        (365, "year"),
    )
    heights = [0] * ((last - first) // days + 1)
    for day, count in by_day:
        heights[(day - first) // days] += count
    edges = [_date((first + n * days) * DAY_S) for n in range(len(heights) + 1)]
    return edges, heights, unit


def _date_axis(axes: Any) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _date(seconds: float) -> datetime.datetime:
    return datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "none"
    for unit, name in ((365 * DAY_S, "y"), (DAY_S, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"


def _percent(share: float) -> str:
    return "0 %" if not share else "< 0.1 %" if share < 0.1 else f"{share:.1f} %"
