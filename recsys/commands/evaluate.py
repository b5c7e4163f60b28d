"""recsys evaluate"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.commands.output import Output, table

if TYPE_CHECKING:
    from recsys.pipelines.evaluation.evaluate import Evaluation
    from recsys.pipelines.evaluation.report import EvaluationReport


class Split(StrEnum):
    """Which part of each history is asked for."""

    valid = "valid"
    test = "test"


class Seen(StrEnum):
    """Whether items of the history may be recommended again."""

    exclude = "exclude"
    keep = "keep"


def evaluate(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="RUN|BUNDLE", help="A run folder, a bundle folder or models:/name@alias.")
    ],
    data: Annotated[Path | None, typer.Option(help="Prepared dataset; by default the one of the run.")] = None,
    split: Annotated[Split, typer.Option(help="Which part asks.")] = Split.test,
    seen: Annotated[Seen, typer.Option(help="May items of the history be recommended again?")] = Seen.exclude,
    world: Annotated[
        Path | None, typer.Option(help="Folder of the simulated world; adds its oracle as the ceiling.")
    ] = None,
    tracking: Annotated[str | None, typer.Option(metavar="URI", help="MLflow registry, for models:/….")] = None,
) -> None:
    """Exact full-ranking figures between the floors and the ceiling; writes evaluation.json."""
    output: Output = context.obj
    from recsys.pipelines.evaluation.report import evaluate_bundle
    from recsys.progress import Progress

    with Progress(output.err) as progress:
        report = evaluate_bundle(
            source,
            data,
            split=split.value,
            seen=seen.value,
            world=world,
            tracking_uri=tracking,
            observe=progress.observe,
        )
    _send(report, output)
    rows = report.evaluation.table()
    values = {**report.evaluation.to_dict(), "bundle_version": report.bundle.version, "file": str(report.file)}
    output.result(values, table(rows), *_notes(report.evaluation), f"written: {report.file}")


def _notes(evaluation: "Evaluation") -> list[str]:
    return [
        f"reachable at all: {evaluation.reachable:.1%} of {evaluation.num_targets} targets; "
        f"cold users left out: {evaluation.cold_users}; cold targets: {evaluation.cold_targets}",
        f"protocol: {evaluation.protocol}",
    ]


def _send(report: "EvaluationReport", output: Output) -> None:
    """The figures go where the run is tracked, if it is."""
    run_dir = report.file.parent
    if not (run_dir / "tracking.json").is_file():
        return
    from recsys.errors import RecsysError
    from recsys.pipelines.tracking.tracker import sync

    try:
        sync([run_dir])
    except RecsysError as error:
        output.warn(f"not tracked: {error}; deliver later with: recsys runs sync {run_dir}")
