"""Archives unpacked so that nothing leaves the folder and nothing fills the disk unasked.

A member that would lie outside the folder, a link, an encrypted member and an archive that grows more than 200-fold are
refused before anything is kept.
"""

import gzip
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, cast

from recsys.errors import DataError, StorageError
from recsys.files import storage_errors

MAX_GROWTH = 200  # unpacked bytes a packed one; logs as text stay below 30
ALWAYS_ALLOWED_BYTES = 16 * 2**20
_CHUNK_BYTES = 1 << 20
_REMEDY = "free some disk space and run the same command again"


def unpack_zip(archive: Path, out: Path) -> list[Path]:
    """The files of the archive, under `out`; a folder that holds all of them is left out of their paths.

    Raises:
        DataError: no zip file, a damaged one, or one that is not safe to unpack.
        StorageError: the disk is full or failed, or too small for what the archive holds.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            places = _places(archive, members)
            allowed = _allowed(archive, sum(member.file_size for member in members))
            for member, place in zip(members, places, strict=True):
                target = out.joinpath(*place.parts)
                with storage_errors(target, _REMEDY):
                    target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as stream:
                    allowed -= _copy(stream, target, allowed, archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"{archive}: is no zip file or a damaged one ({error}); fetch it again") from error
    return [out.joinpath(*place.parts) for place in places]


def unpack_gz(archive: Path, out: Path) -> list[Path]:
    """The file in the archive, as `out`/NAME without `.gz`.

    Raises:
        DataError: no gzip file, a damaged one, or one that grows too much.
        StorageError: the disk is full or failed.
    """
    target = out / archive.name.removesuffix(".gz")
    with storage_errors(target, _REMEDY):
        out.mkdir(parents=True, exist_ok=True)
    try:
        with gzip.open(archive, "rb") as stream:
            _copy(cast(IO[bytes], stream), target, _allowed(archive, 0), archive)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive}: is no gzip file or a damaged one ({error}); fetch it again") from error
    return [target]


def _places(archive: Path, members: list[zipfile.ZipInfo]) -> list[PurePosixPath]:
    """Where each member goes, checked."""
    if not members:
        raise DataError(f"{archive}: holds no file")
    for member in members:
        name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
        is_outside = name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name or ":" in name
        if is_outside or "\0" in name:
            raise DataError(f"{archive}: member {name!r} would lie outside the folder; not unpacked")
        if kind not in (0, stat.S_IFREG):
            raise DataError(f"{archive}: member {name!r} is a link or a device; not unpacked")
        if member.flag_bits & 0x1:
            raise DataError(f"{archive}: member {name!r} is encrypted; unpack it by hand")
    paths = [PurePosixPath(member.filename) for member in members]
    heads = {path.parts[0] for path in paths}
    if len(heads) == 1 and all(len(path.parts) > 1 for path in paths):
        paths = [PurePosixPath(*path.parts[1:]) for path in paths]
    if len(set(paths)) != len(paths):
        raise DataError(f"{archive}: holds two files of one name; not unpacked")
    return paths


def _allowed(archive: Path, told: int) -> int:
    """The bytes that may be written."""
    packed = archive.stat().st_size
    allowed = max(ALWAYS_ALLOWED_BYTES, packed * MAX_GROWTH)
    if told > allowed:
        raise _too_large(archive, packed)
    free = shutil.disk_usage(archive.parent).free
    if told > free:
        raise StorageError(f"{archive}: holds {told:,} bytes, the disk has {free:,} left; {_REMEDY}")
    return allowed


def _copy(stream: IO[bytes], target: Path, allowed: int, archive: Path) -> int:
    """Bytes written; what the archive tells of itself is not believed."""
    written = 0
    with storage_errors(target, _REMEDY):
        file = target.open("wb")
    with file:
        while chunk := stream.read(_CHUNK_BYTES):
            written += len(chunk)
            if written > allowed:
                raise _too_large(archive, archive.stat().st_size)
            with storage_errors(target, _REMEDY):
                file.write(chunk)
    return written


def _too_large(archive: Path, packed: int) -> DataError:
    return DataError(
        f"{archive}: {packed:,} bytes would grow more than {MAX_GROWTH}-fold; that is no log: not unpacked"
    )
