"""Where a dataset is written: what may be replaced there, and what a killed run left behind."""

import contextlib
import fcntl
import glob
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from recsys.errors import DataError
from recsys.features.manifest import is_prepared
from recsys.files import storage_errors

OWN_NAMES = {
    "manifest.json",
    "vocabulary",
    "shards",
    "rejected.parquet",
    "items.parquet",
    "items_rejected.parquet",
    "item_categories.npy",
    "item_vectors.npy",
    "held_back.parquet",
    "floors.json",
    "floors.partial.json",
}
PARTS = "parts"  # of the work folder: what the steps write for each other


def refuse_foreign(out: Path) -> None:
    """Only what `prepare` wrote may be replaced.

    Raises:
        DataError: a file or a folder of others stands at `out`.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out}: is a file; name a folder")
    names = {path.name for path in out.iterdir()}
    if not names:
        return
    foreign = sorted(names - OWN_NAMES)
    if foreign or not is_prepared(out):
        what = f"holds {foreign[0]}" if foreign else "holds no dataset of ours"
        raise DataError(f"{out}: {what} and will not be replaced; name an empty or new folder")


@contextlib.contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Keeps every other process from writing a dataset at `out`; a killed one keeps nobody out.

    The lock is on `.NAME.lock` beside `out`, which is removed at the end, as are folders made for it that stay empty.
    Where the folder cannot be written there is none: nothing can be lost there.

    Raises:
        DataError: another process writes there.
        StorageError: the disk is full or failed.
        InputError: no lock can be made there.
    """
    path = out.with_name(f".{out.name}.lock")
    made = [folder for folder in out.parents if not folder.exists()]
    with storage_errors(out, "free space or name another folder"):
        for folder in reversed(made):
            folder.mkdir(exist_ok=True)
        file = _locked(path) if os.access(out.parent, os.W_OK) else None
    try:
        yield
    finally:
        if file is not None:
            path.unlink(missing_ok=True)
            os.close(file)
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def _locked(path: Path) -> int:
    """The open, locked file that stands at this path."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the file between our two calls: then it locks nobody out.
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
        except BlockingIOError:
            os.close(file)
            raise DataError(f"{_named(path)}: another process writes there; wait for it") from None
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _named(lock: Path) -> Path:
    return lock.with_name(lock.name.removeprefix(".").removesuffix(".lock"))


@contextlib.contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into; gone at the end, as is what killed runs left there.

    Raises:
        StorageError: the disk is full or failed.
        InputError: `out` cannot be written.
    """
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with storage_errors(out, "free space or name another folder"):
            remove_leftovers(out)
            work.mkdir(parents=True)
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def remove_leftovers(out: Path) -> None:
    """Put back a dataset that a killed run had set aside, and remove what else such runs left beside `out`."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.([0-9]+)\.(tmp|old)$")
    for path in sorted(out.parent.glob(f".{glob.escape(out.name)}.*")):
        match = pattern.fullmatch(path.name)
        if match is None or _is_running(int(match[1])):
            continue
        if match[2] == "old" and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
