"""The commands of the README, run as they stand there, on a log made here."""

import json
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from recsys.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks() -> list[list[str]]:
    """The commands of each ```bash block."""
    return [block.strip().splitlines() for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)]


def write_clicks(path: Path) -> None:
    """Users u0.. walk over items i0..i19 in a circle, an hour a step, begun on different days."""
    generator = np.random.default_rng(0)
    lines = ["user_id,item_id,timestamp"]
    for user in range(200):
        start, began = int(generator.integers(20)), 1_700_000_000 + int(generator.integers(30 * 86_400))
        lines += [f"u{user},i{(start + n) % 20},{began + 86_400 * n}" for n in range(int(generator.integers(4, 16)))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextmanager
def served(command: list[str], port: int) -> Iterator[None]:
    server = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < until, "the server did not get ready"
                time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait()


def curl(command: str, port: int) -> dict[str, object]:
    words = shlex.split(command)
    url = next(word for word in words if word.startswith("localhost")).replace("8080", str(port))
    body = words[words.index("-d") + 1].encode()
    request = urllib.request.Request(f"http://{url}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: dict[str, object] = json.load(response)
    return answer


def test_the_path_of_the_readme_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asks, knowing = blocks()
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_clicks(tmp_path / "clicks.csv")
    assert path[0] == ". .venv/bin/activate"
    assert path[-1].startswith("recsys serve")
    for command in path[1:-1]:
        assert main(shlex.split(command)[1:]) == 0, command
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with served(shlex.split(path[-1].replace("8080", str(port))), port):
        before, stored, after = (curl(command, port) for command in asks)
    assert stored == {"accepted": 1, "duplicates": 0, "rejected": [], "durable": True}
    assert before["items"] != after["items"]
    assert (tmp_path / "runs/mine/top10.parquet").is_file()
    for command in knowing:
        # Five minutes a model are the reader's.
        assert main(shlex.split(command.replace("--minutes 5", "--minutes 0.01"), comments=True)[1:]) == 0, command
    assert (tmp_path / "runs/mine/log/describe.png").is_file()
    assert (tmp_path / "runs/mine/compare/compare.png").is_file()


def test_the_tree_names_every_module_and_nothing_else() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    named = set(re.findall(r"([\w.-]+\.py)\b", tree))
    there = {file.name for file in (ROOT / "recsys").rglob("*.py") if file.name != "__init__.py"}
    assert there - named == set(), "missing in the README's tree"
    assert named - there == set(), "named in the README's tree, and gone"


PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("file", PAGES)
def test_every_link_leads_somewhere(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
        assert ((ROOT / file).parent / target).exists(), target
