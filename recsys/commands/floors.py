"""recsys floors"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys.commands.output import Output, table

if TYPE_CHECKING:
    from recsys.pipelines.floors.tuned import TunedFloors

_SHOWN = ("hr@10", "ndcg@10", "mrr@10")


class Floor(StrEnum):
    """What counting offers."""

    popularity = "popularity"
    recent_popularity = "recent-popularity"
    transition_knn = "transition-knn"
    item_knn = "item-knn"
    ease = "ease"
    blend = "blend"


def floors(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Prepared dataset.")],
    trials: Annotated[int, typer.Option(min=1, metavar="N", help="Random trials over all floors.")] = 60,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of trials, sample and intervals.")] = 0,
    only: Annotated[list[Floor] | None, typer.Option(metavar="NAME", help="Only this floor; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="A copy of floors.json.")] = None,
) -> None:
    """Tunes the counting floors on the validation part; writes floors.json into the dataset, for every later figure."""
    output: Output = context.obj
    from recsys.features.leakage import open_without_leaks
    from recsys.pipelines.floors.tune import tune_floors
    from recsys.pipelines.floors.tuned import FILE, read_floors
    from recsys.progress import Progress

    output.resume_hint = "the same command goes on from there"
    dataset = open_without_leaks(data)
    before = read_floors(dataset)
    with Progress(output.err) as progress:
        tuned = tune_floors(dataset, trials, seed, [name.value for name in only or []], observe=progress.observe)
    if out is not None:
        tuned.save(out)
    for name, why in tuned.left_out.items():
        output.warn(f"{name} is left out: {why}")
    files = [data / FILE, *([out] if out is not None else [])]
    values: dict[str, Any] = {
        "best_floor": tuned.best_family,
        "best": tuned.best,
        "test": tuned.test,
        "differences": tuned.differences,
        "left_out": tuned.left_out,
        "random_trials": tuned.random_trials,
        "trials": len(tuned.trials),
        "seed": tuned.seed,
        "seconds": tuned.seconds,
        "protocol": tuned.test_protocol,
        "files": [str(file) for file in files],
    }
    lines = [
        *(f"{family}: {_settings(best['settings'])}" for family, best in tuned.best.items() if best["settings"]),
        f"{tuned.random_trials} random trials, {len(tuned.trials)} evaluations in all, {tuned.seconds:.0f} s; "
        f"best on the validation part: {tuned.best_family}",
        f"protocol: {tuned.test_protocol}",
        *(["floors.json holds as many trials of these floors already: nothing was tuned"] if tuned == before else []),
        *(f"written: {file}" for file in (files if tuned != before else files[1:])),
    ]
    output.result(values, table(_rows(tuned)), *lines)


def _rows(tuned: "TunedFloors") -> list[dict[str, str]]:
    """One row a floor: its validation figure, its test figures, the difference to popularity."""
    rows = []
    for family, best in tuned.best.items():
        row = {"floor": family, "valid ndcg@10": f"{best['valid']:.4f}"}
        row |= {f"test {metric}": _interval(tuned.test[family][metric]) for metric in _SHOWN}
        if tuned.differences:
            own = tuned.differences.get(family)
            row["ndcg@10 - popularity"] = _interval(own["ndcg@10"], sign="+") if own else ""
        rows.append(row)
    return rows


def _interval(values: dict[str, float], sign: str = "") -> str:
    mean, low, high = (format(values[name], f"{sign}.4f") for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _settings(settings: dict[str, Any], within: str = "") -> str:
    words = [
        _settings(value, f"{name}.")
        if isinstance(value, dict)
        else f"{within}{name}={'all' if value is None else value}"
        for name, value in settings.items()
    ]
    return " ".join(words)
