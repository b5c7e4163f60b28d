"""The peers' virtual environments: what is installed for each, and how one is built.

    python -m benchmarks.peers.build [recbole rectools]

They can never share ours: each pins numpy, pandas or ray below what the other needs. A venv that stands and answers is
left as it is; one that was torn, or made from other requirements, is built anew. Every venv goes into .peers/.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / ".peers"
TORCH = "torch==2.13.0"
INSTALLED = "installed.txt"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One library: what to install beside torch, what must import, and the variables that it needs."""

    requirements: tuple[str, ...]
    modules: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


PEERS = {
    "recbole": Peer(
        # Its ray imports pkg_resources, which setuptools 81 dropped.
        requirements=("recbole==1.2.1", "numpy<2", "pandas<2.3", "scipy<1.14", "setuptools<81"),
        modules=("recbole.quick_start",),
        # Its evaluation loads a checkpoint that holds more than weights.
        environment={"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
    ),
    "rectools": Peer(
        # pyarrow 26 refuses the numpy that it takes.
        requirements=("rectools[torch]==0.19.0", "pyarrow<23"),
        modules=("rectools.models.nn.transformers.sasrec", "pyarrow"),
    ),
}


def build(name: str) -> Path:
    """Make the venv of one peer where it does not stand already; returns its Python.

    Raises:
        SystemExit: it could not be installed, or does not import after it was.
    """
    peer, folder = PEERS[name], FOLDER / name
    python = folder / "bin" / "python"
    wanted = "\n".join((TORCH, *peer.requirements)) + "\n"
    stamp = folder / INSTALLED
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted and _import_failure(python, peer) is None:
        return python
    print(f"{name}: building {folder} (some minutes)", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)], f"{name}: the venv could not be made")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # torch by itself first: what follows must not change its build.
    _run([*pip, TORCH], f"{name}: {TORCH} could not be installed")
    constraints = folder / "constraints.txt"
    constraints.write_text(f"{TORCH}\n", encoding="utf-8")
    _run([*pip, "-c", str(constraints), *peer.requirements], f"{name}: its packages could not be installed")
    failure = _import_failure(python, peer)
    if failure is not None:
        raise SystemExit(f"error: {name}: installed in {folder}, but does not import: {failure}")
    stamp.write_text(wanted, encoding="utf-8")
    return python


def environment_of(name: str) -> dict[str, str]:
    """The variables of a process that runs in this peer's venv: ours, without what points into our own, and its own."""
    ours = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return {**ours, **PEERS[name].environment}


def _import_failure(python: Path, peer: Peer) -> str | None:
    """The last line of what a failing import of the peer's modules says; None where all import."""
    if not python.is_file():
        return "there is no venv"
    code = "; ".join(f"import {module}" for module in peer.modules)
    command = [str(python), "-W", "ignore", "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER, check=False)
    lines = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
    return None if answer.returncode == 0 else lines[-1]


def _run(command: Sequence[str], failure: str) -> None:
    answer = subprocess.run(command, check=False)
    if answer.returncode != 0:
        raise SystemExit(f"error: {failure} (exit code {answer.returncode}; its lines stand above)")


def main() -> None:
    """Build the peers that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(PEERS), help=f"of {', '.join(PEERS)}; by default all")
    for name in parser.parse_args().names:
        if name not in PEERS:
            parser.error(f"{name!r} is no peer; there are {', '.join(PEERS)}")
        print(f"{name}: {build(name)}", flush=True)


if __name__ == "__main__":
    main()
