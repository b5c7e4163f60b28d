"""recsys demo"""

from pathlib import Path
from typing import Annotated

import typer

from recsys.commands.output import Output


def demo(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option(help="Folder of everything it writes; what stands there is not done again.")
    ] = Path("runs/demo"),
    source: Annotated[
        Path | None, typer.Option(help="Interactions of your own, in place of the simulated shop.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting: world.…, prepare.…, or a training key; repeatable."
        ),
    ] = None,
    tracking: Annotated[
        str | None,
        typer.Option(metavar="URI", help="MLflow; by default $MLFLOW_TRACKING_URI, else a database in --out."),
    ] = None,
) -> None:
    """The whole path in one command: logs, sequences, a model, figures, a server that learns of a click."""
    output: Output = context.obj
    from recsys.demo import run

    output.resume_hint = "the same command goes on from there"
    console = output.err if output.is_json else output.out
    found = run(out, source, assignments or [], console, tracking)
    if output.is_json:
        output.result(found)
