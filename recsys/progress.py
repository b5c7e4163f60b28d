"""Progress of training and evaluation: a bar on a terminal, plain lines elsewhere.

with Progress(console) as progress:
    train(config, out, progress.observe)
"""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

LINE_EVERY_S = 5.0
METRIC = "ndcg@10"


class Progress:
    """Shows the events of `pipelines.training` (event, step, …), of `pipelines.floors` (event, done, total) and of
    `pipelines.evaluation` (scorer, done, total).
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = _bars(console) if console.is_terminal else None
        self._tasks: dict[str, TaskID] = {}
        self._last_line = 0.0
        self._steps = 0

    def __enter__(self) -> "Progress":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def observe(self, event: Mapping[str, Any]) -> None:
        """Shows one event; unknown ones are passed over."""
        if "scorer" in event:
            self._advance(event["scorer"], event["done"], event["total"], f"{event['queries_per_s']:,.0f} queries/s")
        elif event.get("event") == "start":
            self._start(event)
        elif event.get("event") == "step":
            note = f"loss {event['loss']:.4f}  {event['tokens_per_s']:,} tokens/s"
            self._advance("training", event["step"], self._steps, note, event.get("seconds_left"))
        elif event.get("event") == "trial":
            note = f"{event['family']} {METRIC} {event[METRIC]:.4f}"
            self._advance("trials", event["done"], event["total"], note, event["seconds_left"])
        elif event.get("event") == "validation":
            self._say(f"epoch {event['epoch'] + 1}: validation {METRIC} {event[METRIC]:.4f} ({event['n']:,} users)")
        elif event.get("event") == "warning":
            self._say(f"warning: {event['message']}")

    def _start(self, event: Mapping[str, Any]) -> None:
        self._steps = int(event["steps"])
        how = "goes on at step " + str(event["step"]) if event.get("resumed") else "starts"
        self._say(
            f"{event['model']} {how}: {event['parameters']:,} parameters, "
            f"{event['tokens_per_epoch']:,} tokens an epoch, {event['device']}"
        )

    def _advance(self, name: str, done: int, total: int, note: str, seconds_left: float | None = None) -> None:
        if self._bars is not None:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total, note="")
            self._bars.update(self._tasks[name], completed=done, total=total, note=note)
        elif done == total or time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            left = f"  {seconds_left:.0f} s left" if seconds_left else ""
            self._say(f"{name} {done:,}/{total:,}  {note}{left}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _bars(console: Console) -> Bars:
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
    )
