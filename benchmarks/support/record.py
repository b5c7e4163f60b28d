"""Where figures are written down: benchmarks/results/<name>.jsonl, a line a run, with machine, versions and commit."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parents[1] / "results"
_SOURCE = (":(top)", ":(top,exclude)benchmarks/results", ":(top,exclude)docs/results.md")  # all but what a run writes


def machine() -> dict[str, Any]:
    """The machine and the versions, as they belong beside every figure."""
    cpu = [line.split(":")[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    memory = [line.split()[1] for line in _lines(Path("/proc/meminfo")) if line.startswith("MemTotal")]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory[0]) / 2**20) if memory else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def append(name: str, figures: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Append one run's figures and the command that is running; returns the file.

    Paths below the current folder are written relative to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.jsonl"
    line = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "is_modified": bool(_git("status", "--porcelain", "--untracked-files=no", "--", *_SOURCE)),
        "command": _command(),
        "machine": machine(),
        **figures,
    }
    text = json.dumps(line).replace(f"{Path.cwd().as_posix()}/", "")
    with file.open("a", encoding="utf-8") as out:
        out.write(text + "\n")
    return file


def commit() -> str:
    """The commit of the source tree, 12 hex digits."""
    return _git("rev-parse", "--short=12", "HEAD")


def _command() -> str:
    """The command line of this process, as a stranger would type it."""
    spec = sys.modules["__main__"].__spec__
    program = ["-m", spec.name.removesuffix(".__main__")] if spec else sys.argv[:1]
    return shlex.join(["python", *program, *sys.argv[1:]])


def _git(*arguments: str) -> str:
    answer = subprocess.run(["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
