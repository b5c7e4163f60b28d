"""What a run writes down while it goes on: log.jsonl, and the clock behind its speeds."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys.pipelines.run_folder import event_of

Observer = Callable[[dict[str, Any]], None]
LOG_SECONDS = 0.5


class RunLog:
    """log.jsonl, one event a line; what a stopped run logged already is not logged twice."""

    def __init__(self, path: Path, observe: Observer) -> None:
        self.path, self.observe = path, observe
        self.seen: set[tuple[str, int]] = set()
        self.warned: set[str] = set()
        if path.is_file():
            _cut_torn_line(path)
            lines = path.read_bytes().splitlines()
            events = [
                event for event in map(event_of, lines) if event is not None and {"event", "step"} <= event.keys()
            ]
            self.seen = {(event["event"], event["step"]) for event in events}
            self.warned = {str(event.get("message")) for event in events if event["event"] == "warning"}
            if len(events) < len(lines):
                self.warn(f"{path}: {len(lines) - len(events)} damaged lines are passed over")

    def write(self, event: str, step: int, **values: Any) -> None:
        line = {"event": event, "step": step, "time": round(time.time(), 3), **values}
        self.observe(line)
        if (event, step) in self.seen and event != "start":
            return
        self.seen.add((event, step))
        self._append(line)

    def warn(self, message: str, step: int = 0) -> None:
        """Tell it and write it down, every time."""
        self.warned.add(message)
        line = {"event": "warning", "step": step, "time": round(time.time(), 3), "message": message}
        self.observe(line)
        self._append(line)

    def warn_once(self, message: str, step: int = 0) -> None:
        """Tell it and write it down, unless this run was warned of it already, before a resume too."""
        if message not in self.warned:
            self.warn(message, step)

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class RunClock:
    """Speed of the steps of an epoch, without what is logged and saved between them, and the run's seconds in all."""

    def __init__(self, seconds_before: float) -> None:
        self.seconds_before, self.began = seconds_before, time.perf_counter()
        self.tokens, self.steps, self.busy = 0, 0, 0.0
        self.mark = self.last_log = self.began

    def count(self, tokens: int) -> None:
        """A step has ended."""
        self.tokens, self.steps = self.tokens + tokens, self.steps + 1
        self.busy += time.perf_counter() - self.mark

    def resume(self) -> None:
        """The next step begins."""
        self.mark = time.perf_counter()

    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.began

    def tokens_per_s(self) -> float:
        return self.tokens / max(self.busy, 1e-9)

    def seconds_per_step(self) -> float:
        return self.busy / max(self.steps, 1)

    def is_time_to_log(self) -> bool:
        if time.perf_counter() - self.last_log < LOG_SECONDS:
            return False
        self.last_log = time.perf_counter()
        return True


def _cut_torn_line(path: Path) -> None:
    """A kill in the middle of a line leaves its beginning; it is taken away, for the event will be written again."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
