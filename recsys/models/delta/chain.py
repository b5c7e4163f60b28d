"""The deltas in a folder, in order: a base, and those that follow it."""

import warnings
from collections.abc import Iterator
from pathlib import Path

from recsys.errors import DeltaError, GapError
from recsys.models.delta.delta import SUFFIX, Delta, Version, file_name
from recsys.models.delta.files import Files, or_os


def sequences(folder: Path, files: Files, kind: str) -> list[int]:
    """Of the files of a kind (base or delta), ascending; names that no log gives (`base-old.delta`) are passed over."""
    found = [(name.removeprefix(f"{kind}-").removesuffix(SUFFIX), name) for name in files.names(folder)]
    return sorted(
        int(digits)
        for digits, name in found
        if digits.isascii() and digits.isdecimal() and name == file_name(int(digits), is_base=kind == "base")
    )


def chain(folder: Path | str, files: Files | None = None, part_bytes: int | None = None) -> Iterator[Delta]:
    """The newest whole base and the deltas after it.

    A last file that is torn is passed over with a warning: it was being written when the machine went down.

    Args:
        folder: of the log.
        files: by which they are read.
        part_bytes: see `Delta.read`.

    Raises:
        DeltaError: there is no whole base, or a file in the middle is damaged.
        GapError: a file in the middle is missing.
    """
    folder, files = Path(folder), or_os(files)
    base = _newest_base(folder, files, part_bytes)
    yield base
    yield from _after(folder, files, base.version, part_bytes)


def deltas_since(folder: Path | str, version: Version | None, files: Files | None = None) -> Iterator[Delta]:
    """What a follower at `version` is to apply, in order; from a base on where deltas are no longer there, or None.

    Where a cut was abandoned, and the deltas do not follow each other, the newest base after that comes in between.

    Raises:
        DeltaError: a file is damaged, there is no base where one is needed, or `version` is none.
        GapError: a file in the middle is missing, or was removed meanwhile: ask again.
    """
    folder, files = Path(folder), or_os(files)
    if version is not None and not isinstance(version, Version):
        raise DeltaError(f"version={version!r} is {type(version).__name__}; wanted a Version(epoch, sequence), or None")
    if version is not None:
        found = [n for kind in ("base", "delta") for n in sequences(folder, files, kind) if n > version.sequence]
        if not found:
            return
        if version.sequence + 1 in sequences(folder, files, "delta"):
            try:
                for delta in _after(folder, files, version):
                    yield delta
                    version = delta.version
            except GapError:
                if not _is_base_after(version, folder, files):
                    raise
            if not _is_base_after(version, folder, files):
                return
    yield from chain(folder, files)


def _is_base_after(version: Version, folder: Path, files: Files) -> bool:
    return any(number > version.sequence for number in sequences(folder, files, "base"))


def _newest_base(folder: Path, files: Files, part_bytes: int | None) -> Delta:
    found = sequences(folder, files, "base")
    if not found:
        raise DeltaError(f"{folder}: no base here; `DeltaLog.start` writes one")
    for number in reversed(found):
        path = folder / file_name(number, is_base=True)
        try:
            return _read(path, files, part_bytes)
        except GapError:
            raise
        except DeltaError as error:
            if number == found[0]:
                raise
            warnings.warn(f"{error}; an older base is taken", RuntimeWarning, stacklevel=3)
    raise AssertionError("unreachable")


def _after(folder: Path, files: Files, version: Version, part_bytes: int | None = None) -> Iterator[Delta]:
    found = [number for number in sequences(folder, files, "delta") if number > version.sequence]
    for number in found:
        path = folder / file_name(number, is_base=False)
        try:
            delta = _read(path, files, part_bytes)
        except GapError:
            raise
        except DeltaError as error:
            if number != found[-1]:
                raise
            warnings.warn(
                f"{error}; it is the last one, and passed over: {version} holds", RuntimeWarning, stacklevel=3
            )
            return
        if delta.since is not None and delta.since != version:
            raise GapError(
                f"{path}: follows {delta.since}, but the last before it is {version}; "
                "bring back the deltas between, or a later base"
            )
        yield delta
        version = delta.version


def _read(path: Path, files: Files, part_bytes: int | None) -> Delta:
    try:
        return Delta.read(path, files, part_bytes)
    except FileNotFoundError as error:
        raise GapError(f"{path}: was removed meanwhile, by a compaction; ask again") from error
