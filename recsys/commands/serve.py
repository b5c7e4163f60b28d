"""recsys serve"""

from pathlib import Path
from typing import Annotated

import typer

from recsys.commands.output import Output
from recsys.errors import missing_extra


def serve(
    context: typer.Context,
    bundle: Annotated[str, typer.Option(metavar="B", help="A bundle, a run folder or models:/name@alias.")],
    journal: Annotated[Path, typer.Option(help="Folder of the journal; made where it is absent.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    tracking: Annotated[str | None, typer.Option(metavar="URI", help="MLflow registry, for models:/….")] = None,
) -> None:
    """Serves a bundle over HTTP until Ctrl-C; a posted event is in the next answer."""
    output: Output = context.obj
    try:
        from recsys.serving.app import serve as run
    except ImportError as error:
        missing_extra(str(error.name), "serve", error)
    output.resume_hint = "the journal holds every event that was answered; the same command serves on"
    run(_local(bundle, tracking), journal, host, port)


def _local(bundle: str, tracking: str | None) -> str:
    """The server looks registered models up itself, but only in the default registry."""
    if tracking is None:
        return bundle
    from recsys.models.bundle import resolve

    return str(resolve(bundle, tracking))
