"""The whole path in one command: logs, sequences, a trained model, honest figures, a server that learns of a click."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from recsys import config as configs
from recsys.errors import RecsysError
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, prepare
from recsys.features.simulate.shop import ShopConfig, simulate
from recsys.pipelines.evaluation.report import EvaluationReport, evaluate_bundle
from recsys.pipelines.ingest import ingest
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.tracking.tracker import Tracker, tracking_uri
from recsys.pipelines.training import train
from recsys.progress import Progress

SHOWN = 8
CLICKED_RANK = 3
READY_SECONDS = 60
CONFIG = Path(__file__).resolve().parent.parent / "configs" / "shop" / "sasrec.yaml"


@dataclass(frozen=True)
class Answer:
    """One answer of the server: items with titles, best first."""

    item_ids: list[int | str]
    scores: list[float]
    query_time: int  # us


def run(
    out: Path = Path("runs/demo"),
    source: Path | None = None,
    assignments: Sequence[str] = (),
    console: Console | None = None,
    tracking: str | None = None,
) -> dict[str, Any]:
    """Run the demo and return what it found, as JSON values.

    Args:
        out: folder of everything it writes; what stands there already is not done again.
        source: interactions of your own, in place of the simulated shop.
        assignments: `key=value`: world.… and prepare.…; all others go over configs/shop/sasrec.yaml (train.epochs=3).
        console: where it prints.
        tracking: MLflow URI; a database in `out` by default.

    Raises:
        InputError: the source or a setting cannot be used.
    """
    console = console or Console()
    began = time.perf_counter()
    settings = _split(assignments)
    world = out / "world" if source is None else None
    with _step(console, 1, "behaviour logs"):
        defaults: dict[str, Any] = {}
        if world is not None:
            simulate(configs.load(ShopConfig, configs.override({}, settings["world"]), "world"), world, console.print)
            source = world / "interactions.parquet"
            defaults = {"split": {"protocol": "time", "target": "next"}, "items": str(world / "items.parquet")}
        assert source is not None
        console.print(f"{source}", soft_wrap=True)
    with _step(console, 2, "sequences, filters, splits"):
        config = configs.load(PrepareConfig, configs.override(defaults, settings["prepare"]), "prepare")
        dataset = prepare(source, out / "data", config, console.print)
    with _step(console, 3, "a model"):
        run_dir, tracked = _train(dataset, out, settings["train"], console, tracking)
    with _step(console, 4, "honest figures: the model between counting and the oracle"):
        with Progress(console) as progress:
            report = evaluate_bundle(run_dir, dataset.path, world=world, observe=progress.observe)
        _show_figures(report, console)
        tracked.close()
        console.print(f"tracked and registered: models:/{report.bundle.name}@challenger in {tracked.uri}")
    with _step(console, 5, "a server that learns of a click"):
        journal = out / "journal"
        shutil.rmtree(journal, ignore_errors=True)
        ingest(source, journal, say=console.print)
        change = _serve_and_click(dataset, report, journal, console)
    seconds = time.perf_counter() - began
    _show_places(out, dataset, run_dir, journal, tracked.uri, seconds, console)
    return {
        "seconds": round(seconds, 1),
        "metrics": {name: row["ndcg@10"].mean for name, row in report.evaluation.metrics.items()},
        "protocol": report.evaluation.protocol,
        "bundle": str(run_dir / "bundle"),
        "change": change,
    }


@contextmanager
def _step(console: Console, number: int, title: str) -> Iterator[None]:
    console.rule(f"[bold]{number}  {title}", align="left")
    began = time.perf_counter()
    yield
    console.print(f"[dim]{time.perf_counter() - began:.1f} s")


def _train(
    dataset: PreparedDataset, out: Path, assignments: Sequence[str], console: Console, tracking: str | None
) -> tuple[Path, Tracker]:
    mapping = configs.override({**configs.read(CONFIG), "data": str(dataset.path)}, assignments)
    run_dir = out / "train"
    tracker = Tracker(run_dir, tracking_uri(tracking, run_dir), "demo", warn=console.print)
    with Progress(console) as progress:

        def observe(event: dict[str, Any]) -> None:
            progress.observe(event)
            tracker.observe(event)

        train(configs.load(TrainConfig, mapping, f"{CONFIG.name}: "), run_dir, observe)
    return run_dir, tracker


def _split(assignments: Sequence[str]) -> dict[str, list[str]]:
    """The assignments of each part, without its name; what names neither world nor prepare is of the training."""
    parts: dict[str, list[str]] = {"world": [], "prepare": [], "train": []}
    for assignment in assignments:
        part, dot, rest = assignment.partition(".")
        if dot and part in ("world", "prepare"):
            parts[part].append(rest)
        else:
            parts["train"].append(assignment)
    return parts


def _show_figures(report: EvaluationReport, console: Console) -> None:
    rows = report.evaluation.table()
    table = Table(*rows[0], title=None)
    for row in rows:
        table.add_row(*row.values(), style="bold" if row["kind"] == "model" else None)
    console.print(table)
    evaluation = report.evaluation
    console.print(
        f"reachable at all: {evaluation.reachable:.1%} of {evaluation.num_targets} targets; "
        f"cold users apart: {evaluation.cold_users}; cold targets: {evaluation.cold_targets}"
    )
    console.print(f"[dim]{evaluation.protocol}")


def _serve_and_click(
    dataset: PreparedDataset, report: EvaluationReport, journal: Path, console: Console
) -> dict[str, Any]:
    user = _a_user(dataset)
    titles = _titles(report.bundle.path)
    with _server(report.bundle.path, journal) as url:
        console.print(f"serving bundle {report.bundle.version} at {url} (its API: {url}/docs)")
        before = _ask(url, user)
        clicked = before.item_ids[CLICKED_RANK - 1]
        event = {"user_id": user, "item_id": clicked, "event_type": "click"}
        asked = time.perf_counter()
        stored = _post(f"{url}/v1/feedback", event)
        after = _ask(url, user)
        milliseconds = (time.perf_counter() - asked) * 1000
        old_scores = _scores_as_of(url, user, after.item_ids[:SHOWN], before.query_time)
    console.print(f"POST /v1/feedback {json.dumps(event)} -> {json.dumps(stored)}")
    return _show_change(before, after, old_scores, clicked, user, titles, milliseconds, console)


def _show_change(
    before: Answer,
    after: Answer,
    old_scores: dict[int | str, float],
    clicked: int | str,
    user: int | str,
    titles: dict[int | str, str],
    milliseconds: float,
    console: Console,
) -> dict[str, Any]:
    old_rank = {item: rank for rank, item in enumerate(before.item_ids, 1)}
    old_score = {**dict(zip(before.item_ids, before.scores, strict=True)), **old_scores}
    table = Table("rank", "was", "item", "score before", "score now", "moved", title=f"user {user}, after the click")
    for rank, (item, score) in enumerate(zip(after.item_ids[:SHOWN], after.scores, strict=False), 1):
        was = old_score[item]
        name = f"{item}  {titles.get(item, '')}"
        rank_before = str(old_rank.get(item, f">{len(before.item_ids)}"))
        table.add_row(str(rank), rank_before, name, f"{was:.3f}", f"{score:.3f}", f"{score - was:+.3f}")
    console.print(table)
    shown = zip(after.item_ids, after.scores, strict=True)
    moves = {item: score - old_score[item] for item, score in shown if item in old_score and item != clicked}
    num_moved = sum(move != 0 for move in moves.values())
    largest = max(moves, key=lambda item: abs(moves[item]))
    console.print(
        f"why: the click on [bold]{clicked}[/bold] {titles.get(clicked, '')} was on disk before it was answered, and "
        f"the next answer, {milliseconds:.0f} ms later, knew it. The item left the candidates, and the scores of "
        f"{num_moved} of {len(moves)} other items moved, most of all {largest} {titles.get(largest, '')} "
        f"({moves[largest]:+.3f}).",
        soft_wrap=True,
    )
    return {
        "user": user,
        "clicked": clicked,
        "clicked_is_gone": clicked not in after.item_ids,
        "moved": num_moved,
        "milliseconds": round(milliseconds, 1),
    }


def _show_places(
    out: Path, dataset: PreparedDataset, run_dir: Path, journal: Path, uri: str, seconds: float, console: Console
) -> None:
    console.rule(f"[bold]done in {seconds:.0f} s", align="left")
    places = {
        "dataset": out / "data",
        "run (log, curves, figures)": run_dir,
        "bundle": run_dir / "bundle",
        "journal": journal,
        "MLflow": uri,
    }
    for name, place in places.items():
        console.print(f"{name:<27} {place}", soft_wrap=True)
    history = " ".join(map(str, dataset.items.decode(dataset.queries("test").gather(0)[0][-3:])))
    console.print("next:")
    for command in (
        f'recsys recommend --bundle {run_dir} --sequence "{history}" -k 5',
        f"recsys serve --bundle {run_dir} --journal {journal} --port 8080",
        "recsys demo --source YOUR_LOG.csv --out runs/mine",
    ):
        console.print(f"  .venv/bin/{command}", soft_wrap=True)
    console.print(f"[dim]everything lies in {out}")


def _a_user(dataset: PreparedDataset) -> int | str:
    """A user with a history of middling length."""
    queries = dataset.queries("test")
    row = int(np.argsort(queries.lengths, kind="stable")[len(queries) // 2])
    return dataset.users.decode([int(queries.user[row])])[0]


def _titles(bundle: Path) -> dict[int | str, str]:
    file = bundle / "items.parquet"
    if not file.is_file():
        return {}
    import polars as pl

    items = pl.read_parquet(file)
    if not {"item_id", "title"} <= set(items.columns):
        return {}
    return dict(zip(items["item_id"].to_list(), items["title"].to_list(), strict=True))


@contextmanager
def _server(bundle: Path, journal: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "recsys", "serve", "--bundle", str(bundle), "--journal", str(journal)]
    log = journal.parent / "server.log"
    with log.open("wb") as file:
        server = subprocess.Popen([*command, "--port", str(port)], stdout=file, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, server, log)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_until_ready(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RecsysError(f"the server did not get ready in {READY_SECONDS} s; see {log}")


def _ask(url: str, user: int | str) -> Answer:
    body = _post(f"{url}/v1/recommend", {"user_id": user, "k": 100})
    items = body["items"]
    return Answer([item["item_id"] for item in items], [item["score"] for item in items], body["query_time"])


def _scores_as_of(url: str, user: int | str, items: Sequence[int | str], query_time: int) -> dict[int | str, float]:
    """What these items scored for the user at an earlier time; the journal knows the history of then."""
    body = _post(f"{url}/v1/rank", {"user_id": user, "candidates": list(items), "query_time": query_time})
    return {item["item_id"]: item["score"] for item in body["items"]}


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
    return answer
