"""A comparison as one picture: every scorer's figure with its interval, and what the quality costs."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.errors import missing_extra
from recsys.files import storage_errors
from recsys.pipelines.compare.comparison import Comparison, Contender, size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"floor": "#8a8f98", "model": "#2060b0", "oracle": "#b07a10"}
TAKEN = "#d1495b"
KINDS = {"floor": "counting", "model": "model", "oracle": "oracle: what can be known at all"}
_LEADER = "#b8bcc4"
# Of the height of the right half: from one name to the next.
_NAME_STEP = 0.075
# Where every figure is 0 the axes still need a width.
_SMALLEST_SPAN = 0.001
_ROW_INCHES, _FRAME_INCHES = 0.42, 2.0


def draw_comparison(found: Comparison, file: Path) -> Path:
    """Draws the comparison into `file` (PNG), whole or not at all, and returns it.

    Left: NDCG@10 with 95 % intervals, the best at the top; lines at the best floor and at the ceiling. Right: quality
    against the milliseconds of an answer, the area of a dot as its bytes on a logarithmic scale; the names stand in one
    column in the order of quality.

    Raises:
        MissingExtraError: matplotlib is not installed.
        StorageError: the disk is full or failed.
    """
    figure = _figure(found)
    draft = file.with_name(f".{file.name}.tmp")
    with storage_errors(file, "free some disk space and run the same command again"):
        figure.savefig(draft, format="png", dpi=130)
        draft.replace(file)
    return file


def _figure(found: Comparison) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        missing_extra("matplotlib", "tracking", error)
    height = max(4.2, _FRAME_INCHES + _ROW_INCHES * len(found.contenders))
    figure = Figure(figsize=(14, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_intervals(left, found)
    _draw_costs(right, found)
    _explain_colours(figure, found)
    figure.suptitle(_title(found), fontsize=11, x=0.01, ha="left")
    return figure


def _explain_colours(figure: "Figure", found: Comparison) -> None:
    from matplotlib.lines import Line2D

    kinds = {one.kind for one in found.contenders}
    named = {text: COLOURS[kind] for kind, text in KINDS.items() if kind in kinds} | {"to take": TAKEN}
    marks = [Line2D([], [], marker="o", color=colour, linewidth=2.2, label=text) for text, colour in named.items()]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=9, frameon=False)


def _draw_intervals(axes: "Axes", found: Comparison) -> None:
    rows = list(reversed(_best_first(found)))
    for place, one in enumerate(rows):
        interval, colour = one.ndcg, _colour(one, found)
        axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
        for end in (interval.low, interval.high):
            axes.plot([end, end], [place - 0.13, place + 0.13], color=colour, linewidth=2.2)
        axes.plot(interval.mean, place, "o", color=colour, markersize=7)
        axes.annotate(
            f"{interval.mean:.4f}",
            (interval.mean, place),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4, "alpha": 0.85},
        )
    axes.set_yticks(range(len(rows)), [_label(one, found) for one in rows])
    axes.set_ylim(-0.6, len(rows) - 0.1)
    floor = found.of(found.best_floor).ndcg.mean
    axes.axvline(floor, color=COLOURS["floor"], linestyle="--", linewidth=1)
    _name_line(axes, floor, "best floor", COLOURS["floor"])
    oracle = next((one for one in found.contenders if one.kind == "oracle"), None)
    if oracle is not None:
        axes.axvline(oracle.ndcg.mean, color=COLOURS["oracle"], linestyle="--", linewidth=1)
        _name_line(axes, oracle.ndcg.mean, "ceiling: oracle", COLOURS["oracle"])
    axes.set_xlim(
        left=min(0.0, *(one.ndcg.low for one in rows)),
        right=1.06 * max(_SMALLEST_SPAN, *(one.ndcg.high for one in rows)),
    )
    axes.set_xlabel(
        f"NDCG@10 on the test part, 95 % intervals\n{found.reachable:.1%} of the targets can be reached at all"
    )
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_costs(axes: "Axes", found: Comparison) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    shown = [one for one in _best_first(found) if one.cost is not None]
    axes.set_xscale("log")
    for one in shown:
        assert one.cost is not None
        colour, ms = _colour(one, found), one.cost.median_ms
        size = 25 + 22 * max(0.0, math.log10(max(1, one.cost.size_bytes)) - 3)
        axes.plot([ms, max(ms, one.cost.p99_ms)], [one.ndcg.mean] * 2, color=colour, linewidth=1.2, alpha=0.6)
        axes.scatter(ms, one.ndcg.mean, s=size, color=colour, zorder=3)
    floor = found.of(found.best_floor).ndcg.mean
    axes.axhline(floor, color=COLOURS["floor"], linestyle="--", linewidth=1)
    means = [one.ndcg.mean for one in shown]
    room = 0.12 * max(_SMALLEST_SPAN, max(means) - min(means))
    axes.set_ylim(bottom=min(means) - room, top=max(means) + room)
    times = [value for one in shown if one.cost is not None for value in (one.cost.median_ms, one.cost.p99_ms)]
    axes.set_xlim(min(times) / 1.6, max(times) * 1.6)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.ticklabel_format(axis="y", useOffset=False)
    _name_dots(axes, shown)
    axes.set_xlabel("ms for the ten items of one user: median (dot) to p99 (line end)\nthe dot grows with the bytes")
    axes.set_ylabel("NDCG@10")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _name_dots(axes: "Axes", shown: list[Contender]) -> None:
    """Names in a column right of the axes, in the order of the dots, each tied to the end of its line."""
    bottom, top = axes.get_ylim()
    least, most = axes.get_xlim()
    ordered = sorted(shown, key=lambda one: one.ndcg.mean)
    heights = [(one.ndcg.mean - bottom) / (top - bottom) for one in ordered]
    for one, height, place in zip(ordered, heights, spread(heights, _NAME_STEP), strict=True):
        assert one.cost is not None
        end = math.log(max(one.cost.median_ms, one.cost.p99_ms) / least) / math.log(most / least)
        # Level as far as the edge, then to the name: lines of different heights never cross.
        axes.plot(
            [end, 1.0, 1.06],
            [height, height, place],
            transform=axes.transAxes,
            color=_LEADER,
            linewidth=0.7,
            linestyle=(0, (1, 1.5)),
            clip_on=False,
            zorder=1,
        )
        axes.text(
            1.07,
            place,
            f"{one.name}, {size_text(one.cost.size_bytes)}",
            transform=axes.transAxes,
            fontsize=8,
            va="center",
        )


def spread(places: list[float], step: float) -> list[float]:
    """Places of 0 to 1, ascending, moved apart by at least `step`, or by what there is room for."""
    step = min(step, 1.0 / max(1, len(places) - 1))
    upward = _pushed_up(places, step)
    downward = [1.0 - place for place in reversed(_pushed_up([1.0 - place for place in reversed(places)], step))]
    return [(one + other) / 2 for one, other in zip(upward, downward, strict=True)]


def _pushed_up(places: list[float], step: float) -> list[float]:
    found: list[float] = []
    for number, place in enumerate(places):
        found.append(max(place, found[-1] + step) if number else place)
    highest = 1.0
    for number in reversed(range(len(found))):
        found[number] = min(found[number], highest)
        highest = found[number] - step
    return found


def _name_line(axes: "Axes", x: float, text: str, colour: str) -> None:
    axes.annotate(
        text,
        (x, 1.0),
        (3, -2),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color=colour,
        fontsize=8,
        va="top",
    )


def _best_first(found: Comparison) -> list[Contender]:
    return sorted(found.contenders, key=lambda one: -one.ndcg.mean)


def _colour(one: Contender, found: Comparison) -> Any:
    return TAKEN if one.name == found.advice.take else COLOURS[one.kind]


def _label(one: Contender, found: Comparison) -> str:
    runs = "" if one.runs == 1 else f"\nmean of {one.runs} runs"
    return f"{one.name}{runs}" + (" \N{LEFTWARDS ARROW} take" if one.name == found.advice.take else "")


def _title(found: Comparison) -> str:
    telling = "" if found.advice.is_telling else " (too little data to tell for sure)"
    why = "the best, and nothing simpler comes within the noise of it"
    if found.advice.take != found.best:
        why = f"the simplest within the noise of the best, {found.best}"
    budget = f"{found.minutes:g} min of training a model, {found.num_questions:,} questions"
    return f"take {found.advice.take}{telling}: {why}; {budget}\n{found.protocol}"
