import io
from typing import Any

from rich.console import Console

from recsys.progress import Progress

START = {
    "event": "start",
    "step": 0,
    "model": "sasrec",
    "parameters": 1234,
    "tokens_per_epoch": 5000,
    "steps": 40,
    "device": "cpu",
    "resumed": False,
}
STEP = {"event": "step", "step": 10, "epoch": 0, "loss": 2.5, "tokens_per_s": 12000, "seconds_left": 30.0}
VALIDATION = {"event": "validation", "step": 20, "epoch": 0, "ndcg@10": 0.25, "n": 100}
EVALUATION = {"scorer": "popularity", "done": 50, "total": 50, "queries_per_s": 900.0}


def shown(events: list[dict[str, Any]], is_terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=120, color_system=None)
    with Progress(console) as progress:
        for event in events:
            progress.observe(event)
    return file.getvalue()


def test_without_a_terminal_progress_is_plain_lines() -> None:
    lines = shown([START, STEP, VALIDATION, EVALUATION, {"event": "checkpoint", "step": 1}], False).splitlines()
    assert lines == [
        "sasrec starts: 1,234 parameters, 5,000 tokens an epoch, cpu",
        "training 10/40  loss 2.5000  12,000 tokens/s  30 s left",
        "epoch 1: validation ndcg@10 0.2500 (100 users)",
        "popularity 50/50  900 queries/s",
    ]


def test_plain_lines_come_seconds_apart_but_the_last_one_always() -> None:
    steps = [{**STEP, "step": step} for step in range(1, 41)]
    lines = shown([START, *steps], False).splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["1/40", "40/40"]


def test_on_a_terminal_progress_is_a_bar_with_speed_and_time_left() -> None:
    text = shown([START, STEP, EVALUATION], True)
    assert "10/40" in text
    assert "12,000 tokens/s" in text
    assert "50/50" in text


def test_a_resumed_run_and_a_warning_are_said() -> None:
    text = shown([{**START, "resumed": True, "step": 7}, {"event": "warning", "message": "[2] threads"}], False)
    assert text.startswith("sasrec goes on at step 7: ")
    assert text.endswith("warning: [2] threads\n")
