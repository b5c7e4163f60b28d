"""recsys train"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys.commands.output import Output, table
from recsys.errors import InputError

if TYPE_CHECKING:
    from recsys.pipelines.tracking.tracker import Tracker
    from recsys.pipelines.training import TrainResult


def train(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="Configuration, .yaml or .json.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; an interrupted run in it goes on.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Prepared dataset; by default what the configuration names.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Overrides a setting, such as train.lr=1e-3; repeatable."),
    ] = None,
    tracking: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="MLflow; by default $MLFLOW_TRACKING_URI, else mlflow.db beside the run folder."
        ),
    ] = None,
    no_tracking: Annotated[
        bool, typer.Option("--no-tracking", help="Send nothing; recsys runs sync can do it later.")
    ] = False,
    experiment: Annotated[str, typer.Option(help="MLflow experiment.")] = "recsys",
    register: Annotated[
        str | None, typer.Option(metavar="NAME", help="Registered name of the bundle; by default the model's.")
    ] = None,
    resolve: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the effective configuration as plain JSON for a bare machine, and stop."
        ),
    ] = None,
) -> None:
    """Trains a model, or goes on with an interrupted run, and registers its bundle as @challenger."""
    output: Output = context.obj
    plain = effective(config, assignments or [], data)
    if resolve is not None:
        _write_resolved(plain, resolve, output)
        return
    if out is None:
        raise InputError("--out is missing: name the run folder, for example --out runs/first")
    tracker = None if no_tracking else _tracker(out, tracking, experiment, register, output)
    result = _run(plain, out, tracker, output)
    _show(result, out, tracker, output)


def effective(file: Path, assignments: Sequence[str], data: Path | None) -> dict[str, Any]:
    """The configuration in `file` with overrides and defaults filled in, the model's own included; checked."""
    from recsys import config as configs
    from recsys.models import registry
    from recsys.pipelines.run_config import TrainConfig

    mapping = configs.override(configs.read(file), assignments)
    if data is not None:
        mapping["data"] = str(data)
    loaded = configs.load(TrainConfig, mapping, f"{file}: ")
    name = str(loaded.model["name"])
    given = {key: value for key, value in loaded.model.items() if key != "name"}
    own: Any = configs.load(registry.config_class(name), given, f"{file}: model")
    return {**configs.dump(loaded), "model": {"name": name, **configs.dump(own)}}


def _run(plain: dict[str, Any], out: Path, tracker: "Tracker | None", output: Output) -> "TrainResult":
    from recsys import config as configs
    from recsys.pipelines.run_config import TrainConfig
    from recsys.pipelines.run_folder import RunFolder
    from recsys.pipelines.tracking.plots import draw_curves
    from recsys.pipelines.training import Stopped, train
    from recsys.progress import Progress

    status = "FAILED"
    try:
        with Progress(output.err) as progress:

            def observe(event: dict[str, Any]) -> None:
                progress.observe(event)
                if tracker is not None:
                    tracker.observe(event)

            result = train(configs.load(TrainConfig, plain), out, observe)
        draw_curves(RunFolder(out))
        status = "FINISHED"
        return result
    except Stopped as stopped:
        status, output.resume_hint = "KILLED", str(stopped)
        raise typer.Exit(130) from stopped
    finally:
        if tracker is not None:
            tracker.close(status)


def _tracker(
    out: Path, tracking: str | None, experiment: str, register: str | None, output: Output
) -> "Tracker | None":
    from importlib.util import find_spec

    from recsys.pipelines.tracking.tracker import Tracker, tracking_uri

    if find_spec("mlflow") is None:
        output.warn(
            f"mlflow is not installed (pip install -e '.[tracking]'); deliver later with: recsys runs sync {out}"
        )
        return None
    return Tracker(out, tracking_uri(tracking, out), experiment, model_name=register, warn=output.warn)


def _write_resolved(plain: dict[str, Any], file: Path, output: Output) -> None:
    from recsys.files import storage_errors, write_json

    with storage_errors(file, "free some disk space"):
        write_json(file, {"config": plain})
    command = f"python -m recsys.pipelines.training {file} RUN"
    output.result({"file": str(file), "command": command}, f"{file}: train on a bare machine with: {command}")


def _show(result: "TrainResult", out: Path, tracker: "Tracker | None", output: Output) -> None:
    values = {**asdict(result), "run": str(out), "registered": _registered(out) if tracker is not None else None}
    rows = [{"figure": name, "value": f"{value:.4f}"} for name, value in result.validation.items()]
    shown = [f"validation, best epoch {(result.best_epoch or 0) + 1}:", table(rows)] if rows else []
    lines = [f"bundle: {result.bundle}"]
    if values["registered"]:
        lines.append(f"registered: {values['registered']} (@challenger)")
    lines.append(f"next: recsys evaluate {out}")
    output.result(values, *shown, *lines)


def _registered(out: Path) -> str | None:
    from recsys.pipelines.tracking.cursor import TrackingCursor

    cursor = TrackingCursor.read(out)
    return f"models:/{cursor.model['name']}/{cursor.model['version']}" if cursor and cursor.model else None
