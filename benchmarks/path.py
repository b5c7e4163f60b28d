"""The whole path on real data, by the command line alone, each step timed: prepare, train, evaluate, recommend, serve.

    RECSYS_DATA=FOLDER python -m benchmarks.path [--only ml-1m] [--models sasrec] [--out runs]

Every step is a process of its own, so its seconds hold the start of Python and the imports. What stands in --out
already is removed first, so that nothing is skipped.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.support.record import append

SETS = {"ml-1m": ["--set", "filters.min_item_events=5"], "amazon-beauty": []}


def recsys(*arguments: str) -> tuple[dict[str, Any], float]:
    """Run one command with --json; its answer and its seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "recsys", "--json", *arguments]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(answer), round(time.perf_counter() - began, 2)


def run_path(name: str, model: str, out: Path, data: Path) -> dict[str, Any]:
    """One model on one set, from the raw file to a served answer."""
    prepared, run, journal = out / name / "data", out / name / model, out / name / "journal"
    for folder in (prepared, run, journal):
        shutil.rmtree(folder, ignore_errors=True)
    source = str(data / name / "sequences.parquet")
    seconds: dict[str, float] = {}
    counts, seconds["prepare"] = recsys(
        "prepare", "--source", source, "--out", str(prepared), "--protocol", "loo", *SETS[name]
    )
    trained, seconds["train"] = recsys(
        "train", f"configs/{name}/{model}.yaml", "--data", str(prepared), "--out", str(run)
    )
    figures, seconds["evaluate"] = recsys("evaluate", str(run))
    users = out / name / "recommendations.parquet"
    _, seconds["recommend_all_users"] = recsys(
        "recommend", "--bundle", str(run), "--data", str(prepared), "-k", "10", "--out", str(users)
    )
    _, seconds["ingest"] = recsys("ingest", "--source", source, "--journal", str(journal))
    seconds["serve_until_ready"], answer = _serve(run, journal)
    return {
        "data": name,
        "model": model,
        "seconds": seconds,
        "prepared": counts,
        "trained": trained,
        "evaluation": figures,
        "served": answer,
    }


def _serve(run: Path, journal: Path) -> tuple[float, dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "recsys", "serve", "--bundle", str(run), "--journal", str(journal)]
    began = time.perf_counter()
    server = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=2).close()
                break
            except OSError:
                time.sleep(0.05)
        seconds = round(time.perf_counter() - began, 2)
        body = json.dumps({"user_id": 1, "k": 5}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/recommend", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return seconds, json.load(response)
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Run the path for each set and model, print a line each, append the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="sets whose name holds this")
    parser.add_argument("--models", default="sasrec,bert4rec", help="names, with commas between")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of runs")
    arguments = parser.parse_args()
    if not os.environ.get("RECSYS_DATA"):
        parser.error("RECSYS_DATA is not set; it names the folder that holds ml-1m/ and amazon-beauty/")
    for name in (name for name in SETS if arguments.only in name):
        for model in arguments.models.split(","):
            row = run_path(name, model, arguments.out, Path(os.environ["RECSYS_DATA"]))
            print(f"{name} {model}: {json.dumps(row['seconds'])}")
            append("path", row)


if __name__ == "__main__":
    main()
