"""recsys compare"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys.commands.output import Output, table
from recsys.errors import InputError

if TYPE_CHECKING:
    from recsys.features.dataset import PreparedDataset
    from recsys.pipelines.compare.comparison import Comparison

LINE_EVERY_S = 10.0


def compare(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of everything; a comparison interrupted there goes on.")],
    source: Annotated[Path | None, typer.Option(help="The log, as for recsys prepare.")] = None,
    data: Annotated[Path | None, typer.Option(help="A prepared dataset, in place of --source.")] = None,
    models: Annotated[str, typer.Option(metavar="NAMES", help="Models, with commas between.")] = "sasrec,bert4rec",
    minutes: Annotated[float, typer.Option(help="Minutes of training for each model and seed.")] = 5.0,
    trials: Annotated[int, typer.Option(help="Random settings tried for the floors, on the validation part.")] = 60,
    seeds: Annotated[int, typer.Option(help="Runs of each model.")] = 1,
    items: Annotated[Path | None, typer.Option(help="A table of items: item_id, title, category, ….")] = None,
    world: Annotated[
        Path | None, typer.Option(help="Folder of the simulated world; adds its oracle, and asks for the next item.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="prepare.…, MODEL.… (sasrec.dropout=.5, sasrec.train.lr=2e-3), or train.… for all; repeatable.",
        ),
    ] = None,
) -> None:
    """Floors and models on your log at equal budget: paired intervals, costs, a picture, and which one to take."""
    output: Output = context.obj
    if (source is None) == (data is None):
        raise InputError("name either --source LOG or --data DATASET")
    from recsys import config as configs
    from recsys.pipelines.compare.compare import compare as run
    from recsys.pipelines.compare.config import CompareConfig
    from recsys.pipelines.pictures.compare import draw_comparison
    from recsys.pipelines.training import Stopped

    settings = configs.override({}, assignments or [])
    own = settings.pop("prepare", {})
    names = [name.strip() for name in models.split(",") if name.strip()]
    budget = {"models": names, "minutes": minutes, "trials": trials, "seeds": seeds, "settings": settings}
    config = configs.load(CompareConfig, budget)
    output.resume_hint = f"the same command goes on from there: finished steps lie in {out}"
    dataset = _dataset(source, data, out, own, items, world, output)
    lines = _Lines(output)
    try:
        found = run(dataset, out, config, world=world, observe=lines.observe)
    except Stopped as stopped:
        raise typer.Exit(130) from stopped
    picture = draw_comparison(found, out / "compare.png")
    _show(found, out, picture, output)


def _dataset(
    source: Path | None,
    data: Path | None,
    out: Path,
    own: Any,
    items: Path | None,
    world: Path | None,
    output: Output,
) -> "PreparedDataset":
    from recsys import config as configs
    from recsys.features.leakage import open_without_leaks
    from recsys.features.prepare import PrepareConfig, prepare

    if data is not None:
        if own or items is not None:
            raise InputError(
                "--items and --set prepare.… belong to --source; the dataset of --data is prepared already"
            )
        return open_without_leaks(data)
    assert source is not None
    mapping: dict[str, Any] = {} if world is None else {"split": {"protocol": "time", "target": "next"}}
    if items is not None:
        mapping["items"] = str(items)
    if not isinstance(own, Mapping):
        raise InputError(f"--set prepare={own}: wanted a setting of it, such as prepare.filters.min_item_events=5")
    config = configs.load(PrepareConfig, _merged(mapping, own), "prepare: ")
    # It may have stood there before.
    return open_without_leaks(prepare(source, out / "data", config, output.say).path)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of two mappings, those of the second first."""
    result = dict(below)
    for key, value in above.items():
        is_group = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if is_group else value
    return result


def _show(found: "Comparison", out: Path, picture: Path, output: Output) -> None:
    file = out / "compare.json"
    rows = found.table()
    notes = [
        *(f"- {line}" for line in found.advice.text),
        f"floors: {found.floors_note}, {found.floors_tuned_s:,.1f} s of tuning; each model: {found.minutes:g} min",
        f"reachable at all: {found.reachable:.1%} of the targets; brackets are 95 % intervals, differences are paired",
        f"protocol: {found.protocol}",
        f"written: {file}, {picture}",
    ]
    values = {**found.to_dict(), "file": str(file), "picture": str(picture)}
    output.result(values, table(rows), *notes)


class _Lines:
    """What happens, as plain lines: each step when it begins, and inside it every few seconds."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.last = 0.0
        self.after_s = 0.0  # what is left of later steps
        self.best = ""

    def observe(self, event: Mapping[str, Any]) -> None:
        kind = event.get("event")
        if kind == "compare":
            self.best, self.last = "", time.monotonic()
            left = float(event["seconds_left"])
            self.after_s = left
            told = f"; at most {_time(left)} of training left" if left else ""
            self.output.say(f"[{event['step']}/{event['steps']}] {event['name']}{told}")
        elif kind == "start":
            self.after_s = max(0.0, self.after_s - float(event["max_seconds"]))
        elif kind == "validation":
            self.best = f", validation NDCG@10 {event['ndcg@10']:.4f}"
        elif kind == "warning":
            self.output.warn(event["message"])
        elif kind == "step" and self._is_time():
            left = float(event["seconds_left"])
            self.output.say(
                f"    {event['run']}: step {event['step']:,}, loss {event['loss']:.4f}{self.best}; {_time(left)} left, "
                f"{_time(left + self.after_s)} of training in all"
            )
        elif "scorer" in event and event["done"] < event["total"] and self._is_time():
            self.output.say(f"    {event['scorer']}: {event['done']:,} of {event['total']:,} questions ranked")
        elif kind == "trial" and self._is_time():
            self.output.say(
                f"    {event['done']:,} of {event['total']:,} settings of floors tried; "
                f"{_time(float(event['seconds_left']))} left"
            )

    def _is_time(self) -> bool:
        if time.monotonic() - self.last < LINE_EVERY_S:
            return False
        self.last = time.monotonic()
        return True


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
