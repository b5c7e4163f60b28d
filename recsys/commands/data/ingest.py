"""recsys ingest"""

from pathlib import Path
from typing import Annotated

import typer

from recsys.commands.output import Output


def ingest(
    context: typer.Context,
    source: Annotated[Path, typer.Option(help="The log, as for prepare.")],
    journal: Annotated[Path, typer.Option(help="Folder of the journal; made where it is absent.")],
) -> None:
    """Appends a log to a journal, from which a server knows its users; an event that is there already counts once."""
    output: Output = context.obj
    from recsys.pipelines.ingest import ingest as run

    output.resume_hint = "what was committed stays; the same command goes on from there"
    output.result(run(source, journal, say=output.say))
