"""What a run folder holds: run.json, log.jsonl, evaluation*.json, bundle/. Reads only."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.errors import DataError

SPLITS, SEEN_RULES = ("test", "valid"), ("exclude", "keep")


@dataclass(frozen=True)
class LogPart:
    """The whole lines of a log from one byte on."""

    events: list[dict[str, Any]]
    end: int  # the byte behind the last whole line
    num_damaged: int  # lines that are no JSON object, such as one torn by a crash


class RunFolder:
    """A run folder.

    Raises:
        DataError: `path` holds no run.json, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not (self.path / "run.json").is_file():
            raise DataError(
                f"{self.path}: no run there (run.json is missing); name a folder written by recsys train --out"
            )
        self.record: dict[str, Any] = read_json(self.path / "run.json")

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def model(self) -> str:
        """The registered name of the model."""
        return str(self.record.get("config", {}).get("model", {}).get("name", "unknown"))

    @property
    def evaluations(self) -> dict[str, tuple[Path, dict[str, Any]]]:
        """What `recsys evaluate` has written: label -> file and figures; the file tells its split and seen rule."""
        found = {}
        for label in (evaluation_label(split, seen) for split in SPLITS for seen in SEEN_RULES):
            file = self.path / evaluation_file(label)
            if file.is_file():
                figures = read_json(file)
                # Older versions wrote every split into evaluation.json.
                told = evaluation_label(figures.get("split", "test"), figures.get("seen", "exclude"))
                found[told] = (file, figures)
        return found

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The figures of the test part without items of the history, where `recsys evaluate` has written them."""
        found = self.evaluations.get("test")
        return None if found is None else found[1]

    @property
    def bundle_version(self) -> str | None:
        """The version of bundle/, where the run has ended."""
        file = self.path / "bundle" / "manifest.json"
        return str(read_json(file)["version"]) if file.is_file() else None

    def log(self, start: int = 0) -> LogPart:
        """The events of log.jsonl from byte `start` on; a line still being written is left for the next time."""
        file = self.path / "log.jsonl"
        if not file.is_file():
            return LogPart([], 0, 0)
        with file.open("rb") as stream:
            stream.seek(start)
            whole = stream.read().rpartition(b"\n")[0]
        lines = whole.split(b"\n") if whole else []
        events = [event for event in map(event_of, lines) if event is not None]
        return LogPart(events, start + (len(whole) + 1 if whole else 0), len(lines) - len(events))


def evaluation_label(split: str, seen: str) -> str:
    """What an evaluation is told apart by: `test`, `valid`, and `test.keep`, `valid.keep` with items of the history."""
    return split if seen == "exclude" else f"{split}.{seen}"


def evaluation_file(label: str) -> str:
    """The name of the file for a label: `evaluation.json` for `test`, else with the label in it."""
    return "evaluation.json" if label == "test" else f"evaluation.{label}.json"


def find_runs(folder: Path) -> list[RunFolder]:
    """The runs directly in `folder`, by name; `folder` itself where it is one."""
    if (folder / "run.json").is_file():
        return [RunFolder(folder)]
    return [RunFolder(file.parent) for file in sorted(folder.glob("*/run.json"))]


def read_json(file: Path, remedy: str = "restore it, or train again into another folder") -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: it is damaged; the message ends with `remedy`.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: damaged ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise DataError(f"{file}: holds a {type(value).__name__}, wanted an object; {remedy}")
    return value


def event_of(line: bytes) -> dict[str, Any] | None:
    """The event in a line of log.jsonl; None of a damaged one."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
