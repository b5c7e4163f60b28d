"""Runs a command as a process of its own: seconds, peak memory, and how it ended.

The peak is the kernel's maximum resident set of the process and its children. A process inherits the peak of the one
that started it, so the command is started by a launcher that imports nothing: this file, run as a script.
"""

import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One run of a command.

    Attributes:
        seconds: from start to end, the start of the interpreter included.
        peak_gb: maximum resident set, in 10^9 bytes.
        outcome: `done`, `failed: …` or `killed: …`.
        stdout, stderr: what it wrote.
    """

    seconds: float
    peak_gb: float
    outcome: str
    stdout: str
    stderr: str

    @property
    def is_done(self) -> bool:
        """Whether it ended by itself with exit code 0."""
        return self.outcome == "done"

    def answer(self) -> dict[str, Any]:
        """The JSON object of its last line of output.

        Raises:
            SystemExit: it did not end well.
        """
        if not self.is_done:
            raise SystemExit(f"error: {self.outcome}\n{self.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(self.stdout.strip().splitlines()[-1])
        return found

    def figures(self) -> dict[str, Any]:
        """What belongs into a line of results; the end of stderr where it did not end well."""
        figures = {"seconds": self.seconds, "peak_gb": self.peak_gb, "outcome": self.outcome}
        return figures if self.is_done else figures | {"said": self.stderr[-500:]}


def timed(
    command: Sequence[str],
    *,
    limit_s: float = 3600.0,
    limit_gb: float = 1000.0,
    environment: Mapping[str, str] | None = None,
) -> Timed:
    """The run of one command; it and its children are killed at a limit.

    Args:
        command: program and arguments.
        limit_s: most seconds.
        limit_gb: most resident memory of the process itself, 10^9 bytes.
        environment: its variables; by default ours.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err, result = (Path(folder) / name for name in ("out", "err", "result.json"))
        launcher = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(result), str(limit_s), str(limit_gb)]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            # The launcher must not see our variables' effects (PYTHONPATH); it passes them on untouched.
            variables = dict(os.environ if environment is None else environment)
            subprocess.run([*launcher, *command], stdout=stdout, stderr=stderr, env=variables, check=True)
        texts = (path.read_text(encoding="utf-8", errors="replace") for path in (out, err))
        return Timed(**json.loads(result.read_text(encoding="utf-8")), stdout=next(texts), stderr=next(texts))


@dataclass(frozen=True)
class _Ended:
    seconds: float
    peak_gb: float
    outcome: str


def _launch(command: Sequence[str], limit_s: float, limit_gb: float) -> _Ended:
    began, killed = time.perf_counter(), None
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None:
        if time.perf_counter() - began > limit_s:
            killed = f"killed: after {limit_s:g} s"
        elif _resident_gb(process.pid) > limit_gb:
            killed = f"killed: over {limit_gb:g} GB of memory"
        if killed is not None:
            os.killpg(process.pid, signal.SIGKILL)
        _wait(process)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    failed = "done" if process.returncode == 0 else f"failed: exit code {process.returncode}"
    return _Ended(round(seconds, 3), round(peak, 3), killed or failed)


def _wait(process: "subprocess.Popen[bytes]") -> None:
    """Until the process ends, or POLL_S."""
    handle = os.pidfd_open(process.pid)
    try:
        select.select([handle], [], [], POLL_S)
    finally:
        os.close(handle)


def _resident_gb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * resource.getpagesize() / 1e9


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(
        json.dumps(asdict(_launch(sys.argv[4:], float(sys.argv[2]), float(sys.argv[3])))), encoding="utf-8"
    )
