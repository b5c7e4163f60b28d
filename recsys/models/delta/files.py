"""The few file operations that a delta log rests on, so that a test can take the place of the disk and crash."""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from recsys.files import sync


class Files(Protocol):
    """What outlives a crash: the bytes of a synced file, under the names that its synced folder has."""

    def make_folder(self, path: Path) -> None:
        """Make a folder and those above it; nothing if it is there."""

    def names(self, folder: Path) -> list[str]:
        """The names of the files in a folder, ascending; none if it is not there."""

    def read(self, path: Path) -> bytes:
        """All bytes of a file."""

    def open(self, path: Path) -> BinaryIO:
        """A file that is read part by part; the caller closes it."""

    def write(self, path: Path, chunks: Iterable[memoryview | bytes]) -> None:
        """Write a file, in place of what has the name."""

    def overwrite(self, path: Path, content: bytes) -> None:
        """Write over the first bytes of a file."""

    def scratch(self, folder: Path, num_bytes: int) -> BinaryIO:
        """A file without a name, of so many bytes that are taken on the disk; it goes when it is closed, or let go."""

    def sync(self, path: Path) -> None:
        """Go on when the bytes of a file, or the names in a folder, are on the disk."""

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file, in place of what has the name."""

    def remove(self, path: Path) -> None:
        """Remove a file; nothing if it is not there."""

    def locked(self, folder: Path) -> AbstractContextManager[None]:
        """Hold the folder against other processes."""


class OsFiles:
    """The machine's."""

    def make_folder(self, path: Path) -> None:
        """Make a folder and those above it; nothing if it is there."""
        if not path.is_dir():
            self.make_folder(path.parent)
            path.mkdir(exist_ok=True)
            sync(path.parent)

    def names(self, folder: Path) -> list[str]:
        """The names of the files in a folder, ascending; none if it is not there."""
        return sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []

    def read(self, path: Path) -> bytes:
        """All bytes of a file."""
        return path.read_bytes()

    def open(self, path: Path) -> BinaryIO:
        """A file that is read part by part; the caller closes it."""
        return path.open("rb")

    def write(self, path: Path, chunks: Iterable[memoryview | bytes]) -> None:
        """Write a file, in place of what has the name."""
        with path.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)

    def overwrite(self, path: Path, content: bytes) -> None:
        """Write over the first bytes of a file."""
        with path.open("r+b") as file:
            file.write(content)

    def scratch(self, folder: Path, num_bytes: int) -> BinaryIO:
        """A file without a name, of so many bytes that are taken on the disk; it goes when it is closed, or let go."""
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # the caller's, for longer than this call
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            else:
                file.truncate(num_bytes)
        except OSError:
            file.close()
            raise
        return file

    def sync(self, path: Path) -> None:
        """Go on when the bytes of a file, or the names in a folder, are on the disk."""
        sync(path)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file, in place of what has the name."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Remove a file; nothing if it is not there."""
        path.unlink(missing_ok=True)

    @contextmanager
    def locked(self, folder: Path) -> Iterator[None]:
        """Hold the folder against other processes; the kernel lets go of it when the process dies."""
        with (folder / ".lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def or_os(files: Files | None) -> Files:
    """The files that were given, or the machine's."""
    return OsFiles() if files is None else files


def write_durably(
    files: Files, path: Path, chunks: Iterable[memoryview | bytes], line: Callable[[], bytes] | None = None
) -> None:
    """Write a file whole or not at all; when this returns, it outlives a crash."""
    draft = drafted(files, path, chunks, line)
    put_in_place(files, draft, path)


def drafted(
    files: Files, path: Path, chunks: Iterable[memoryview | bytes], line: Callable[[], bytes] | None = None
) -> Path:
    """The durable bytes of a file under a temporary name beside it.

    Args:
        files: by which it is written.
        path: of the file.
        chunks: its bytes.
        line: gives what takes the place of the first of them, after all were written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        files.write(draft, chunks)
        if line is not None:
            files.overwrite(draft, line())
        files.sync(draft)
    except Exception:
        files.remove(draft)
        raise
    return draft


def put_in_place(files: Files, draft: Path, path: Path) -> None:
    """Give a durable draft its name, durably."""
    files.rename(draft, path)
    files.sync(path.parent)
