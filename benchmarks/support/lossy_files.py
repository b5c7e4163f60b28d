"""A disk in memory that loses at a crash what was not synced: bytes of files, names in folders, or any of both.

A file's bytes outlive a crash as they stood at its last sync; a name, as it stood at its folder's last sync. What came
later may be there or not, and of a file's later bytes any first part.
"""

import io
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, get_args

Loss = Literal["all", "bytes", "names", "some"]
LOSSES: tuple[Loss, ...] = get_args(Loss)


@dataclass
class _File:
    content: bytes = b""
    durable: bytes = b""


@dataclass
class LossyFiles:
    """Takes the place of `OsFiles`.

    Attributes:
        syncs_files, syncs_folders: False makes that sync do nothing, as if the code had forgotten it.
        before_operation: called before each one, where the machine may go down.
    """

    syncs_files: bool = True
    syncs_folders: bool = True
    before_operation: Callable[[], None] = lambda: None
    _names: dict[Path, _File] = field(default_factory=dict)
    _durable_names: dict[Path, _File] = field(default_factory=dict)

    def after_crash(self, loss: Loss, seed: int = 0) -> "LossyFiles":
        """The disk as the next boot finds it.

        Args:
            loss: what of the unsynced is lost: all; bytes, but no names; names, but no bytes; some of both.
            seed: of some.
        """
        draw = random.Random(seed)
        found: dict[Path, _File] = {}
        for path in sorted({*self._names, *self._durable_names}):
            keeps_late_name = {"all": False, "bytes": True, "names": False, "some": draw.random() < 0.5}[loss]
            file = (self._names if keeps_late_name else self._durable_names).get(path)
            if file is None:
                continue
            content = file.durable
            if loss == "names":
                content = file.content
            elif loss == "some" and file.content != file.durable:
                content = draw.choice(
                    [file.content, file.durable, file.content[: draw.randrange(len(file.content) + 1)]]
                )
            found[path] = _File(content, content)
        return LossyFiles(self.syncs_files, self.syncs_folders, _names=found, _durable_names=dict(found))

    def contents(self) -> dict[Path, bytes]:
        """Of all files."""
        return {path: file.content for path, file in self._names.items()}

    def make_folder(self, path: Path) -> None:
        """Folders are there as soon as they hold a name."""

    def names(self, folder: Path) -> list[str]:
        """The names of the files in a folder, ascending."""
        return sorted(path.name for path in self._names if path.parent == folder)

    def read(self, path: Path) -> bytes:
        """All bytes of a file."""
        if path not in self._names:
            raise FileNotFoundError(path)
        return self._names[path].content

    def open(self, path: Path) -> BinaryIO:
        """A file that is read part by part."""
        return io.BytesIO(self.read(path))

    def write(self, path: Path, chunks: Iterable[memoryview | bytes]) -> None:
        """Write a file, in two operations."""
        content = b"".join(chunks)
        file = self._names[path] = _File()
        self.before_operation()
        file.content = content[: len(content) // 2]
        self.before_operation()
        file.content = content

    def overwrite(self, path: Path, content: bytes) -> None:
        """Write over the first bytes of a file, in two operations."""
        file, half = self._names[path], len(content) // 2
        for part in (content[:half], content):
            self.before_operation()
            file.content = part + file.content[len(part) :]

    def scratch(self, folder: Path, num_bytes: int) -> BinaryIO:  # noqa: ARG002  # a signature of Files
        """A file without a name: no crash leaves anything of it."""
        return io.BytesIO(bytes(num_bytes))

    def sync(self, path: Path) -> None:
        """Make a file's bytes durable, or a folder's names."""
        self.before_operation()
        if path in self._names:
            if self.syncs_files:
                self._names[path].durable = self._names[path].content
        elif self.syncs_folders:
            kept = {name: file for name, file in self._durable_names.items() if name.parent != path}
            self._durable_names = kept | {name: file for name, file in self._names.items() if name.parent == path}

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file."""
        self.before_operation()
        self._names[target] = self._names.pop(source)

    def remove(self, path: Path) -> None:
        """Remove a file; nothing if it is not there."""
        self.before_operation()
        self._names.pop(path, None)

    @contextmanager
    def locked(self, folder: Path) -> Iterator[None]:  # noqa: ARG002  # a signature of Files
        """There is one process."""
        yield
