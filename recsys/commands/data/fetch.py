"""recsys data fetch"""

import os
import shlex
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys.commands.output import Output, table
from recsys.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from recsys.features.fetch.fetch import Fetched

LINE_EVERY_S = 5.0


def fetch(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Such as ml-1m, amazon-beauty, amazon-2023-video-games.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the data set; data/NAME by default.")] = None,
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="You have read the terms of the data set and accept them.")
    ] = False,
    url: Annotated[str | None, typer.Option(metavar="URL", help="A mirror of the same file.")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Show every data set, and stop.")] = False,
) -> None:
    """Fetches a public data set: resumed where it was torn, checked, unpacked; looks in $RECSYS_DATA first."""
    output: Output = context.obj
    if list_all:
        _list(output)
        return
    if name is None:
        raise InputError("NAME is missing: name a data set, such as ml-1m; recsys data fetch --list shows all")
    from recsys.features.fetch.fetch import fetch as run

    output.resume_hint = "the same command goes on where the bytes stopped"
    data_folder = os.environ.get("RECSYS_DATA")
    with _Bytes(output.err) as progress:
        found = run(
            name,
            out,
            accept_terms=accept_terms,
            url=url,
            data_folder=Path(data_folder) if data_folder else None,
            say=output.say,
            observe=progress.observe,
        )
    _show(found, output)


def _list(output: Output) -> None:
    from recsys.features.fetch.catalogue import all_sets

    sets = all_sets()
    rows = [
        {"name": one.name, "what": one.about, "checksum": "published" if one.md5 else "first use", "terms": one.terms}
        for one in sets
    ]
    values = {
        "sets": [{**row, "url": one.url, "terms_url": one.terms_url} for row, one in zip(rows, sets, strict=True)]
    }
    output.result(values, table(rows))


def _show(found: "Fetched", output: Output) -> None:
    words = ["recsys", "prepare", "--source", str(found.source), "--out", f"runs/{found.name}/data"]
    command = shlex.join([*words, *(word for setting in found.settings for word in ("--set", setting))])
    values = {
        "name": found.name,
        "folder": str(found.folder),
        "source": str(found.source),
        "settings": list(found.settings),
        "origin": found.origin,
        "trust": found.trust,
        "sha256": found.sha256,
        "next": command,
    }
    output.result(values, f"{found.name} lies in {found.folder}", f"next: {command}")


class _Bytes:
    """Bytes that come: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        self.console = console
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console) if console.is_terminal else None
        self.task: Any = None
        self.last_line = 0.0

    def __enter__(self) -> "_Bytes":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def observe(self, event: dict[str, Any]) -> None:
        import time

        done, total = event["done"], event["total"]
        if self.bar is not None:
            if self.task is None:
                self.task = self.bar.add_task("", total=total)
            self.bar.update(self.task, completed=done, total=total)
        elif done == total or time.monotonic() - self.last_line >= LINE_EVERY_S:
            self.last_line = time.monotonic()
            of = "" if total is None else f" of {total / 1e6:,.1f}"
            left = "" if event["seconds_left"] is None else f", {event['seconds_left']:.0f} s left"
            speed = f"{event['bytes_per_s'] / 1e6:,.1f} MB/s"
            self.console.print(f"{done / 1e6:,.1f}{of} MB, {speed}{left}", markup=False, highlight=False)
