"""recsys runs list, recsys runs sync"""

from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.commands.output import Output, table

app = typer.Typer(help="Run folders: what is there, and sending it to MLflow.", no_args_is_help=True)

METRIC = "ndcg@10"


@app.command("list")
def list_runs(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A folder of run folders.")] = Path("runs"),
) -> None:
    """Lists the runs in a folder with their figures."""
    output: Output = context.obj
    from recsys.errors import DataError
    from recsys.pipelines.run_folder import find_runs

    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name a folder of run folders")
    rows = [_row(run) for run in find_runs(folder)]
    shown = table(rows) if rows else f"{folder}: no runs; recsys train writes one"
    output.result({"folder": str(folder), "runs": rows}, shown)


@app.command("sync")
def sync_runs(
    context: typer.Context,
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run folders, or folders of them; runs/ by default.")
    ] = None,
    tracking: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="By default where each run was tracked, else $MLFLOW_TRACKING_URI, else mlflow.db beside it.",
        ),
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="MLflow experiment; by default that of the run.")] = None,
) -> None:
    """Sends to MLflow what it does not have yet; sending twice changes nothing."""
    output: Output = context.obj
    from recsys.pipelines.tracking.tracker import sync

    sent = sync(runs or [Path("runs")], uri=tracking, experiment=experiment, say=output.say)
    rows: list[dict[str, Any]] = [
        {"run": each.run_id, "uri": each.uri, "points": each.num_points, "files": each.files, "model": each.model}
        for each in sent
    ]
    for each in sent:
        if each.num_damaged:
            output.warn(f"run {each.run_id}: {each.num_damaged} damaged lines of its log were passed over")
    output.result({"runs": rows}, f"{len(sent)} runs are up to date")


def _row(run: Any) -> dict[str, Any]:
    events = run.log().events
    validations = [event for event in events if event["event"] == "validation" and METRIC in event]
    evaluation = run.evaluation or {}
    tested = evaluation.get("metrics", {}).get(run.model, {}).get(METRIC, {}).get("mean")
    return {
        "run": run.name,
        "model": run.model,
        "state": "finished" if any(event["event"] == "end" for event in events) else "not finished",
        "steps": max((event["step"] for event in events), default=0),
        f"validation {METRIC}": _rounded(max((event[METRIC] for event in validations), default=None)),
        f"test {METRIC}": _rounded(tested),
        "bundle": run.bundle_version,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
