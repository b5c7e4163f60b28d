"""Files written whole or not at all, and what a failed write means."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recsys.errors import InputError, RecsysError, StorageError

_CALLERS_FAULT = {
    getattr(errno, name)
    for name in ["EACCES", "EEXIST", "EISDIR", "ENAMETOOLONG", "ENOENT", "ENOTDIR", "ENOTEMPTY", "EPERM", "EROFS"]
}
_CALLERS_KINDS = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
# polars and safetensors tell the number of a failed write in their text alone.
_NUMBER_IN_TEXT = re.compile(r"\(os error (\d+)\)")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON with sorted keys, under a temporary name first.

    Raises:
        ValueError: NaN or infinity, which are no JSON.
        OSError: the disk is full or the folder cannot be written; the older file stays.
    """
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have the bytes of a file, or the names in a folder, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(path: Path, draft: Path) -> None:
    """Rename `draft` to `path`; an older folder there is set aside first and deleted last."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        path.rename(aside)
    try:
        draft.rename(path)
    except OSError:
        if aside.exists():
            aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Clear what a killed `replace_folder` left: the older folder comes back where the new one never stood."""
    for aside in path.parent.glob(f".{path.name}.*.old"):
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(path)
    for draft in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def storage_errors(path: Path, remedy: str) -> Iterator[None]:
    """Turns a failed write inside, of whichever library, into one line about `path`.

    Args:
        path: what is written.
        remedy: for a full or failed disk.

    Raises:
        InputError: the caller named a place that cannot be written.
        StorageError: the disk is full or failed.
    """
    try:
        yield
    except RecsysError:
        raise
    except Exception as error:
        told = _NUMBER_IN_TEXT.search(str(error))
        if not isinstance(error, OSError) and told is None:
            raise
        raise _of(error, int(told[1]) if told else None, path, remedy) from error


def _of(error: Exception, told: int | None, path: Path, remedy: str) -> RecsysError:
    number = getattr(error, "errno", None) or told
    # numpy gives a write that fell short no number, and counts its elements in the text.
    reason = os.strerror(number) if number else "disk full or file too large"
    if number in _CALLERS_FAULT or isinstance(error, _CALLERS_KINDS):
        return InputError(f"{path}: cannot be written ({reason}); name another place")
    return StorageError(f"{path}: cannot be written ({reason}); {remedy}")
