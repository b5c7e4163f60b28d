import json
from pathlib import Path
from typing import Any

from recsys.pipelines.run_log import RunLog


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_event_is_logged_once_and_observed_each_time(tmp_path: Path) -> None:
    observed: list[dict[str, Any]] = []
    for _ in range(2):
        log = RunLog(tmp_path / "log.jsonl", observed.append)
        log.write("step", 3, loss=1.5)
    assert [(line["event"], line["step"], line["loss"]) for line in lines_of(tmp_path / "log.jsonl")] == [
        ("step", 3, 1.5)
    ]
    assert len(observed) == 2


def test_damaged_lines_are_passed_over_and_told(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    RunLog(path, lambda event: None).write("step", 1, loss=2.0)  # noqa: ARG005  # nobody watches
    with path.open("ab") as file:
        file.write(b'garbage\n[]\n{}\n{"event": "step"}\n\xff\n')
    observed: list[dict[str, Any]] = []
    log = RunLog(path, observed.append)
    log.write("step", 1, loss=2.0)
    log.write("step", 2, loss=1.0)
    assert [event["event"] for event in observed] == ["warning", "step", "step"]
    assert observed[0]["message"] == f"{path}: 5 damaged lines are passed over"
    assert path.read_bytes().count(b'"event": "step", "step"') == 2


def test_warnings_are_written_down_every_time(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl", lambda event: None)  # noqa: ARG005  # nobody watches
    log.warn("one")
    log.warn("two")
    assert [line["message"] for line in lines_of(tmp_path / "log.jsonl")] == ["one", "two"]


def test_a_warning_that_comes_once_is_not_told_again_by_a_resumed_run(tmp_path: Path) -> None:
    observed: list[dict[str, Any]] = []
    for step in (3, 9):
        log = RunLog(tmp_path / "log.jsonl", observed.append)
        for message in ("one", "two", "one"):
            log.warn_once(message, step)
    assert [(line["message"], line["step"]) for line in observed] == [("one", 3), ("two", 3)]
    assert lines_of(tmp_path / "log.jsonl") == observed


def test_a_line_torn_by_a_kill_is_taken_away_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = RunLog(path, lambda event: None)  # noqa: ARG005  # nobody watches
    log.write("step", 1, loss=2.0)
    log.write("checkpoint", 1, nested={"a": {"b": 1}})
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first + 1, len(whole)):
        path.write_bytes(whole[:end])
        resumed = RunLog(path, lambda event: None)  # noqa: ARG005  # nobody watches
        resumed.write("checkpoint", 1, nested={"a": {"b": 1}})
        resumed.write("step", 2, loss=1.0)
        assert [(line["event"], line["step"]) for line in lines_of(path)] == [
            ("step", 1),
            ("checkpoint", 1),
            ("step", 2),
        ]
