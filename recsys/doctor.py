"""What this machine has, and whether the platform works on it."""

import importlib
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

NEEDED = ("torch", "numpy", "safetensors", "polars", "pyarrow", "pyyaml", "typer", "rich")
EXTRAS = {
    "fastapi": "serve",
    "uvicorn": "serve",
    "mlflow": "tracking",
    "matplotlib": "tracking",
    "torchrec": "torchrec",
    "triton": "triton",
    "numba": "table",
}
# Imported in a process of their own: slow, or noisy.
APART = ("mlflow", "torchrec")
MODULES = {"pyyaml": "yaml"}
DISTRIBUTIONS = {"mlflow": "mlflow-skinny"}
IMPORT_TIMEOUT_S = 60
# Older ones can lose a page where two connections write or checkpoint one WAL database; our journal has one.
SQLITE_WAL_MENDED = (3, 51, 3)
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
LEAST_MEMORY_GIB, LEAST_DISK_GIB = 2.0, 1.0
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Check:
    """One line of the doctor."""

    name: str
    found: str
    is_well: bool = True
    is_needed: bool = True
    remedy: str = ""

    @property
    def mark(self) -> str:
        """ok, BROKEN where it is needed, absent where it is not."""
        return "ok" if self.is_well else "BROKEN" if self.is_needed else "absent"


def examine(folder: Path = Path()) -> list[Check]:
    """Every check, in the order of printing.

    Args:
        folder: in which runs would be written.
    """
    names: dict[str, str | None] = {**dict.fromkeys(NEEDED), **EXTRAS}
    with ThreadPoolExecutor() as pool:
        packages = list(pool.map(_package, names, names.values()))
    machine = [_python(), *packages, _cpu(), _memory(), _disk(folder), _sqlite(), _data()]
    return [
        *machine,
        *(_guarded(name, check) for name, check in (("GPU", _gpu), ("kernels", _kernels), ("model", _model))),
    ]


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """A check that runs our own code: whatever goes wrong there is a finding."""
    try:
        return check()
    except Exception as error:
        return Check(name, _one_line(error), False, remedy="run with torch installed as in the README; else report it")


def _python() -> Check:
    found = sys.version_info[:2]
    is_well = OLDEST_PYTHON <= found <= NEWEST_PYTHON
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("python", text, is_well, remedy="" if is_well else "use Python 3.11 to 3.13: make PYTHON=python3.12")


def _package(name: str, extra: str | None) -> Check:
    is_needed = extra is None
    remedy = f"pip install -e '.[{extra}]'" if extra else "make setup"
    module = MODULES.get(name, name)
    try:
        found = version(DISTRIBUTIONS.get(name, name))
        _import_apart(module) if name in APART else importlib.import_module(module)
    except PackageNotFoundError:
        return Check(name, "not installed", False, is_needed, remedy)
    except Exception as error:
        return Check(name, f"{found} does not import: {_one_line(error)}", False, is_needed, f"reinstall: {remedy}")
    return Check(name, found, is_needed=is_needed)


def _import_apart(module: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", f"import {module}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ImportError(f"no answer within {IMPORT_TIMEOUT_S} s") from error
    if done.returncode:
        raise ImportError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")


def _cpu() -> Check:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Check("CPU", f"{count} cores")


def _memory() -> Check:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    is_well = gib >= LEAST_MEMORY_GIB
    return Check("memory", f"{gib:.1f} GiB", is_well, False, "" if is_well else "the demo wants 2 GiB")


def _disk(folder: Path) -> Check:
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"recsys")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Check(
            "disk", f"{folder.resolve()}: {_one_line(error)}", False, remedy="work in a folder you may write to"
        )
    gib = shutil.disk_usage(folder).free / 2**30
    is_well = gib >= LEAST_DISK_GIB
    return Check("disk", f"writable, {gib:.1f} GiB free", is_well, remedy="" if is_well else "free 1 GiB")


def _sqlite() -> Check:
    caveat = ""
    if sqlite3.sqlite_version_info < SQLITE_WAL_MENDED:
        caveat = "; let one process at a time open a journal (WAL-reset bug before 3.51.3)"
    return Check("sqlite", sqlite3.sqlite_version + caveat)


def _data() -> Check:
    named = os.environ.get("RECSYS_DATA")
    if not named:
        return Check(
            "RECSYS_DATA", "not set", False, False, "name a folder of datasets; tests on real data are skipped"
        )
    if not Path(named).is_dir():
        return Check("RECSYS_DATA", f"{named}: no such folder", False, False, "name an existing folder, or unset it")
    return Check(
        "RECSYS_DATA", f"{named}: {sum(path.is_dir() for path in Path(named).iterdir())} datasets", is_needed=False
    )


def _gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("GPU", "none; everything runs on the CPU", is_needed=False)
    return Check("GPU", f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}", is_needed=False)


def _kernels() -> Check:
    """The path of the kernels on the GPU if there is one, else on the CPU."""
    import torch

    from recsys.kernels.backend import BACKENDS, choose_backend

    named = os.environ.get("RECSYS_KERNELS")
    if named and named not in BACKENDS:
        return Check("kernels", f"RECSYS_KERNELS={named}", False, remedy=f"one of {', '.join(BACKENDS)}, or unset it")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        path = choose_backend("doctor", torch.zeros(1, device=device))
    except RuntimeError as error:
        return Check("kernels", str(error), False, remedy="unset RECSYS_KERNELS")
    reason = "RECSYS_KERNELS says so" if named and named != "auto" else "RECSYS_KERNELS is not set"
    return Check("kernels", f"{path} on {device}: {reason}")


def _model() -> Check:
    """A small model on a jagged batch, by the kernels in use and by their definition."""
    import torch

    from recsys.features.batches import JaggedBatch
    from recsys.models import registry

    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        model = registry.build("sasrec", {"d_model": 16, "num_layers": 1, "num_heads": 2, "max_len": 8}, 20)
        assert isinstance(model, torch.nn.Module)
        model.eval()
        batch = JaggedBatch.from_sequences([[1, 2, 3], [4], list(range(1, 9))])
        states = model.encode(batch)
        with _environment("RECSYS_KERNELS", "reference"):
            expected = model.encode(batch)
    gap = float((states - expected).abs().max())
    is_well = gap <= TOLERANCE
    remedy = "" if is_well else "set RECSYS_KERNELS=reference and report this machine"
    return Check("model", f"sasrec forward, {gap:.0e} from the definition", is_well, remedy=remedy)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
