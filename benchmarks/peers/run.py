"""Runs a script of `runners/` in the venv of its peer."""

from pathlib import Path

from benchmarks.peers.build import build, environment_of
from benchmarks.support.timed import Timed, timed

RUNNERS = Path(__file__).parent / "runners"


def run_peer(name: str, script: str, *arguments: str | Path | int, limit_s: float, limit_gb: float) -> Timed:
    """The run of one script, its venv built first where it is absent.

    Args:
        name: of the peer; see `build.PEERS`.
        script: file name in runners/.
        arguments: of the script.
        limit_s, limit_gb: it is killed at more seconds, or more resident memory in 10^9 bytes.

    Raises:
        SystemExit: the venv cannot be built.
    """
    command = [str(build(name)), str(RUNNERS / script), *(str(argument) for argument in arguments)]
    return timed(command, limit_s=limit_s, limit_gb=limit_gb, environment=environment_of(name))
