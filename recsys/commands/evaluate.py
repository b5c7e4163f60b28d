"""recsys evaluate"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys.commands.output import Output, table
from recsys.errors import InputError

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


class SampledBy(StrEnum):
    """How negatives are drawn."""

    uniform = "uniform"
    popularity = "popularity"


def evaluate(
    context: typer.Context,
    sources: Annotated[
        list[str], typer.Argument(metavar="RUN|BUNDLE...", help="Run folders, bundle folders or models:/name@alias.")
    ],
    data: Annotated[Path | None, typer.Option(help="Prepared dataset; by default the one of the run.")] = None,
    split: Annotated[Split, typer.Option(help="Which part asks.")] = Split.test,
    seen: Annotated[Seen, typer.Option(help="May items of the history be recommended again?")] = Seen.exclude,
    slices: Annotated[bool, typer.Option("--slices", help="Also prints the figures by slice.")] = False,
    sampled: Annotated[
        int | None, typer.Option(metavar="N", help="Ranks among N sampled negatives: to compare with papers only.")
    ] = None,
    sampled_by: Annotated[SampledBy, typer.Option(help="How the negatives are drawn.")] = SampledBy.uniform,
    sampled_seed: Annotated[int, typer.Option(metavar="N", help="Seed of the negatives.")] = 0,
    world: Annotated[
        Path | None, typer.Option(help="Folder of the simulated world; adds its oracle as the ceiling.")
    ] = None,
    tracking: Annotated[str | None, typer.Option(metavar="URI", help="MLflow registry, for models:/….")] = None,
) -> None:
    """Exact full-ranking figures between the floors and the ceiling; writes evaluation.json."""
    output: Output = context.obj
    chosen: dict[str, Any] = {"split": split.value, "world": world, "tracking_uri": tracking}
    if sampled is not None:
        _refuse_with_sampled(sources, slices, seen, sampled)
        drawn = {"num_negatives": sampled, "by": sampled_by.value, "sample_seed": sampled_seed}
        _sampled(output, sources[0], data, {**chosen, **drawn})
    elif len(sources) > 1:
        _several(output, sources, data, {**chosen, "seen": seen.value}, slices)
    else:
        _one(output, sources[0], data, {**chosen, "seen": seen.value}, slices)


def _one(output: Output, source: str, data: Path | None, chosen: dict[str, Any], slices: bool) -> None:
    from recsys.pipelines.evaluation.report import evaluate_bundle
    from recsys.progress import Progress

    with Progress(output.err) as progress:
        report = evaluate_bundle(source, data, observe=progress.observe, **chosen)
    _send(report, output)
    evaluation = report.evaluation
    tables = [table(evaluation.table()), table(evaluation.list_table()), *_slice_tables(evaluation, slices)]
    values = {**evaluation.to_dict(), "bundle_version": report.bundle.version, "file": str(report.file)}
    output.result(values, *tables, *_notes(evaluation), *report.notes, f"written: {report.file}")


def _sampled(output: Output, source: str, data: Path | None, chosen: dict[str, Any]) -> None:
    from recsys.pipelines.evaluation.report import evaluate_bundle_sampled

    report = evaluate_bundle_sampled(source, data, **chosen)
    evaluation = report.evaluation
    values = {**evaluation.to_dict(), "bundle_version": report.bundle.version, "file": str(report.file)}
    output.result(
        values,
        table(evaluation.table()),
        "sampled figures are far above full-ranking ones: compare them with the same sample alone",
        f"protocol: {evaluation.protocol}",
        *report.notes,
        f"written: {report.file}",
    )


def _several(output: Output, sources: list[str], data: Path | None, chosen: dict[str, Any], slices: bool) -> None:
    if slices:
        raise InputError("--slices with several runs: wanted one run; evaluate each by itself")
    from recsys.pipelines.evaluation.report import evaluate_runs
    from recsys.progress import Progress

    with Progress(output.err) as progress:
        report = evaluate_runs(sources, data, observe=progress.observe, **chosen)
    tables = [table(report.evaluation.table()), table(report.table())]
    output.result(report.to_dict(), *tables, *_notes(report.evaluation), *report.notes)


def _refuse_with_sampled(sources: list[str], slices: bool, seen: Seen, sampled: int) -> None:
    if sampled < 1:
        raise InputError(f"--sampled {sampled}: wanted at least 1 negative")
    for option, is_given in (
        ("several runs", len(sources) > 1),
        ("--slices", slices),
        ("--seen keep", seen == Seen.keep),
    ):
        if is_given:
            raise InputError(f"--sampled with {option}: sampled figures are for one run, without it; leave one out")


def _slice_tables(evaluation: "Evaluation", slices: bool) -> list[Any]:
    if not slices:
        return []
    absent = [f"no slices by {name}: {reason}" for name, reason in evaluation.slices.absent.items()]
    return [f"{evaluation.headline[1]} by slice:", table(evaluation.slice_table()), *absent]


def _notes(evaluation: "Evaluation") -> list[str]:
    several = [] if evaluation.num_targets > evaluation.n else ["one target a question: recall = hr, map = mrr"]
    return [
        *several,
        f"reachable at all: {evaluation.reachable:.1%} of {evaluation.num_targets} targets; "
        f"cold users left out: {evaluation.cold_users}; cold targets: {evaluation.cold_targets}",
        *([f"diversity: by {evaluation.diversity_of}"] if evaluation.diversity_of else []),
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
