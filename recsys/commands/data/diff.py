"""recsys data diff"""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from recsys.commands.data.settings import settings
from recsys.commands.output import Output, table

GATE_EXIT_CODE = 3


def diff(
    context: typer.Context,
    old: Annotated[Path, typer.Argument(help="The log to compare with, such as yesterday's.")],
    new: Annotated[Path, typer.Argument(help="The log that is judged, such as today's.")],
    config: Annotated[Path | None, typer.Option(help="Thresholds, .yaml or .json.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Overrides a threshold, such as volume.max_ratio=3; repeatable."
        ),
    ] = None,
) -> None:
    """Compares two logs: volume, columns, ids, event types, drift; exit code 3 where a check fails."""
    output: Output = context.obj
    _refuse_datasets(old, new)
    from rich.markup import escape

    from recsys import config as configs
    from recsys.features.difference.compare import compare_logs
    from recsys.features.difference.config import DiffConfig
    from recsys.features.difference.profile import profile_log

    limits = configs.load(DiffConfig, settings(config, assignments), f"{config}: " if config else "")
    before, after = (profile_log(path, limits.read, output.say) for path in (old, new))
    checks = [dataclasses.asdict(check) for check in compare_logs(before, after, limits)]
    names = ("fail", "warn", "skipped")
    verdicts = {name: [check["name"] for check in checks if check["verdict"] == name] for name in names}
    verdict = "fail" if verdicts["fail"] else "warn" if verdicts["warn"] else "ok"
    rows = [{name: "" if value is None else escape(str(value)) for name, value in check.items()} for check in checks]
    told = "; ".join(f"{name}: {', '.join(found)}" for name, found in verdicts.items() if found)
    told = told if verdict != "ok" else "; ".join(["ok", told] if told else ["ok"])
    values = {"old": str(old), "new": str(new), "verdict": verdict, **verdicts, "checks": checks}
    output.result(values, table(rows), f"{new} against {old}: {told}")
    if verdict == "fail":
        raise typer.Exit(GATE_EXIT_CODE)


def _refuse_datasets(*paths: Path) -> None:
    from recsys.errors import DataError
    from recsys.features.manifest import is_prepared

    for path in paths:
        if is_prepared(path):
            raise DataError(f"{path}: is a prepared dataset; diff compares logs, such as the one that it was made from")
