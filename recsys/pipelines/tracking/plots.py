"""The curves of a run as one picture: loss of the steps, NDCG@10 of the validations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys.errors import missing_extra
from recsys.pipelines.run_folder import RunFolder

METRIC = "ndcg@10"


def draw_curves(run: RunFolder) -> Path:
    """Draws curves.png into the run folder, whole or not at all, and returns it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        missing_extra("matplotlib", "tracking", error)
    events = run.log().events
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    left = figure.add_subplot()
    left.plot(*_points(events, "step", "loss"), color="tab:blue", marker=".", linewidth=1)
    left.set(title=f"{run.name}: {run.model}", xlabel="step")
    left.set_ylabel("training loss", color="tab:blue")
    steps, values = _points(events, "validation", METRIC)
    if steps:
        right = left.twinx()
        right.plot(steps, values, color="tab:orange", marker="o", linewidth=1)
        right.set_ylabel(f"validation {METRIC}", color="tab:orange")
    out, draft = run.path / "curves.png", run.path / ".curves.png.tmp"
    figure.savefig(draft, format="png", dpi=120)
    draft.rename(out)
    return out


def _points(events: Sequence[Mapping[str, Any]], kind: str, key: str) -> tuple[list[int], list[float]]:
    chosen = [event for event in events if event.get("event") == kind and key in event]
    return [int(event["step"]) for event in chosen], [float(event[key]) for event in chosen]
