"""A file of rows in slots of equal size, mapped into memory: what of a table does not lie in memory.

    bytes 0 to 4095   header: magic, CRC-32 of the rest, JSON (format, widths, slot bytes, slots of a chunk, mark)
    slot n            checksum (8 bytes), id (int64), vector and state (float32 each), filled up to whole 8 bytes

The file is derived data: the checkpoint and the deltas since are the truth. It is believed in two cases only: by the
process that wrote it, and when its header bears the mark of a clean end with the version that is asked for. The mark is
taken away, durably, before the first slot is written, and set after the last is durable. So a process that is killed
leaves a file without a mark.

The checksum is sum(k[i] w[i]) + k[0] modulo 2^64 over the slot's other 8-byte words w with odd k: a slot of which one
word is another is always noticed, one of which several are with odds of 1 - 2^-63. The mark holds the sum of all
checksums, so that a whole slot that is out of date is noticed too.

The file grows by chunks whose space is taken on the disk first: a full disk is an error there, and no crash later at a
write to mapped memory. Slots that are not in the machine's memory are asked for side by side: a disk answers many
requests in about the time of one.
"""

import errno
import fcntl
import json
import logging
import mmap
import os
import resource
import struct
import weakref
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.errors import CheckpointError, StorageError
from recsys.kernels.mixing import mixed_bits
from recsys.kernels.row_pages.column import Column

MAGIC = b"RECSCOLD"
FORMAT = 1
HEADER_BYTES = 4096
HEAD_WORDS = 4  # of 4 bytes: checksum and id
CHUNK_BYTES = 1 << 26
MOST_VERSION_BYTES = 1024
MOST_CHUNK_SLOTS = 1 << 31
PART_SLOTS = 1 << 16  # read in one go where all are
PROBED = 16  # slots that are touched to see whether the disk is needed

_log = logging.getLogger("recsys.models")


@dataclass(frozen=True)
class Slots:
    """What slots hold.

    Attributes:
        sums: (N,) int64 checksums.
        vectors: (N, width) float32.
        states: (N, state_width) float32.
    """

    sums: Tensor
    vectors: Tensor
    states: Tensor


@dataclass(frozen=True)
class Mark:
    """Of a clean end.

    Attributes:
        version: what the caller named it.
        sum: of the checksums of all slots, modulo 2^64.
    """

    version: str
    sum: int


class ColdFile:
    """Slots in a file that this process alone has open. One thread writes at a time, any number read.

    A process that is forked shares the file and its lock: there every use is refused.

    Args:
        path: of the file; made if it is not there.
        width, state_width: numbers of a row's vector and of its optimizer's state.
        chunk_slots: by so many the file grows, a power of two; by default as many as 64 MB hold.

    Raises:
        CheckpointError: the file is none of this kind, or of another format or other widths, or its header is damaged,
            or it is open elsewhere.
        StorageError: it cannot be opened.
    """

    def __init__(self, path: str | Path, width: int, state_width: int, chunk_slots: int | None = None) -> None:
        self.path, self.width, self.state_width = Path(path), width, state_width
        words = HEAD_WORDS + width + state_width
        self.slot_bytes = 4 * (words + words % 2)
        if chunk_slots is None:
            chunk_slots = 1 << (max(1, CHUNK_BYTES // self.slot_bytes).bit_length() - 1)
        self._descriptor = _opened(self.path)
        self._process = os.getpid()
        self._close = weakref.finalize(self, _closed, self._descriptor, self._process)
        try:
            header = self._header()
            if header is not None:
                chunk_slots = self._chunk_slots_of(header)
            self.mark = None if header is None else self._mark_of(header)
        except CheckpointError:
            self._close()
            raise
        self.chunk_slots = chunk_slots
        self._chunks = _Chunks(self._descriptor, self.slot_bytes, chunk_slots.bit_length() - 1)
        self._keys = mixed_bits(np.arange(self.slot_bytes // 8, dtype=np.uint64)) | np.uint64(1)
        self.is_taken_up = False  # the slots are of this table
        self._is_blank = False
        self.is_open = True
        self.sum = 0  # of all checksums, modulo 2^64

    @property
    def num_slots(self) -> int:
        """For how many slots there is room."""
        return len(self._chunks.pages) * self.chunk_slots

    @property
    def num_bytes(self) -> int:
        """Of the file."""
        return os.fstat(self._descriptor).st_size if self.is_open else self.path.stat().st_size

    def grow(self, num_slots: int) -> None:
        """Take space for so many slots; all of it or none. What a file held that was not taken up is dropped first.

        Raises:
            StorageError: the disk is full; nothing changed.
        """
        self.check_open()
        if not self.is_taken_up:
            self._begin_anew()
        if num_slots <= self.num_slots:
            return
        chunks, before = -(-num_slots // self.chunk_slots), HEADER_BYTES + self.num_slots * self.slot_bytes
        size = HEADER_BYTES + chunks * self.chunk_slots * self.slot_bytes
        try:
            _take_space(self._descriptor, before, size - before)
        except OSError as error:
            os.ftruncate(self._descriptor, before)
            raise StorageError(
                f"cold file {self.path} cannot grow from {before:,} to {size:,} bytes: {error.strerror}; "
                "nothing was lost: make room on the disk and go on, or set a capacity"
            ) from error
        self._chunks.grow(chunks)

    def write(self, slots: Tensor, ids: Tensor, vectors: Tensor, states: Tensor, old_sums: Tensor) -> None:
        """Fill slots (N,) int64, each once, of ids (N,); `old_sums` (N,) are the checksums of what they held."""
        self.check_open()
        words = torch.zeros(len(slots), self.slot_bytes // 4, dtype=torch.int32)
        head, end = words.view(torch.int64), HEAD_WORDS + self.width
        head[:, 1] = ids
        words[:, HEAD_WORDS:end] = vectors.view(torch.int32)
        words[:, end : end + self.state_width] = states.view(torch.int32)
        head[:, 0] = self._checksums(words)
        self._add(head[:, 0], old_sums)
        self._is_blank = False
        self._ask_for(slots)
        self._chunks.put(slots, words)

    def read(self, slots: Tensor, ids: Tensor) -> Slots:
        """What slots (N,) int64 hold for ids (N,).

        Raises:
            StorageError: a slot does not hold what was written for its id.
        """
        self.check_open()
        self._ask_for(slots)
        words = self._chunks.gather(slots)
        head, end = words.view(torch.int64), HEAD_WORDS + self.width
        wrong = ((head[:, 0] != self._checksums(words)) | (head[:, 1] != ids)).nonzero()
        if len(wrong):
            raise StorageError(
                f"cold file {self.path}: slot {int(slots[wrong[0]])} does not hold what was written for id "
                f"{int(ids[wrong[0]])}; the disk failed, or something else wrote to the file: "
                "load the table from its last checkpoint"
            )
        vectors, states = words[:, HEAD_WORDS:end], words[:, end : end + self.state_width]
        return Slots(head[:, 0], vectors.view(torch.float32), states.view(torch.float32))

    def wipe(self, slots: Tensor) -> None:
        """Make slots (N,) int64, each once, hold nothing."""
        self.check_open()
        self._ask_for(slots)
        self._add(torch.zeros(1, dtype=torch.int64), self._chunks.gather(slots).view(torch.int64)[:, 0])
        self._chunks.put_all(slots, 0)

    def wipe_all(self) -> None:
        """Make all slots hold nothing; what was not taken up stays until the file is written to."""
        self.make_whole()
        if not self.is_taken_up:
            self._chunks.clear()
        elif not self._is_blank:
            for page in self._chunks.pages:
                page.zero_()
        self.sum = 0

    def let_go(self) -> None:
        """Unmap what is in memory: after all slots were gone through they would count as this process's."""
        self._chunks.advise(mmap.MADV_DONTNEED)  # of a shared map: what was written stays, the machine writes it

    def check(self, version: str, slots: Tensor, ids: Tensor) -> None:
        """Whether the file is whole, and of that version, with these slots (N,) int64 of ids (N,); nothing changes.

        Raises:
            CheckpointError: it is not; the message says how.
        """
        remedy = "load the table from its checkpoint, which writes the file anew"
        try:
            self.check_open()
        except StorageError as error:
            raise CheckpointError(str(error)) from error
        if self.mark is None:
            raise CheckpointError(
                f"cold file {self.path} bears no mark of a clean end: its process was killed, or it is empty; {remedy}"
            )
        if self.mark.version != version:
            raise CheckpointError(
                f"cold file {self.path} is of version {self.mark.version!r}, wanted {version!r}; {remedy}"
            )
        size = os.fstat(self._descriptor).st_size - HEADER_BYTES
        chunks = size // (self.chunk_slots * self.slot_bytes)
        self._chunks.grow(chunks)
        if len(slots) and int(slots.max()) >= self.num_slots:
            raise CheckpointError(
                f"cold file {self.path} has {self.num_slots} slots, wanted {int(slots.max()) + 1}; {remedy}"
            )
        total = 0
        self._chunks.advise(mmap.MADV_SEQUENTIAL)
        try:
            for some, their_ids in zip(torch.split(slots, PART_SLOTS), torch.split(ids, PART_SLOTS), strict=True):
                total += int(self.read(some, their_ids).sums.numpy().view(np.uint64).sum())
        except StorageError as error:
            raise CheckpointError(str(error)) from error
        finally:
            self._chunks.advise(mmap.MADV_RANDOM)
        if total % 2**64 != self.mark.sum:
            raise CheckpointError(
                f"cold file {self.path} holds rows that are older than its mark of version {version!r}; {remedy}"
            )

    def check_process(self) -> None:
        """Whether this process opened the file.

        Raises:
            ValueError: it was forked from the one that did.
        """
        if os.getpid() != self._process:
            raise ValueError(
                f"cold file {self.path} was opened by process {self._process}, from which this one ({os.getpid()}) was "
                "forked; use the table there alone, and load its state() here into one of another cold_file, or of none"
            )

    def take_up(self) -> None:
        """Go on with what the file holds, after `check`; the mark is taken away."""
        self.check_open()
        assert self.mark is not None
        self.sum, self.is_taken_up = self.mark.sum, True
        self._write_header(None)

    def close(self, version: str | None = None) -> None:
        """Let go of the file; with a version it is made durable, and marked.

        Raises:
            StorageError: it could not be made durable, and has no mark.
            ValueError: the version is longer than 1024 bytes, or another process opened the file.
        """
        if not self.is_open:
            return
        self.check_process()
        if version is not None:
            if len(json.dumps(version)) > MOST_VERSION_BYTES:
                raise ValueError(f"the version has {len(version)} letters; wanted at most {MOST_VERSION_BYTES} bytes")
            try:
                self._chunks.flush()
                os.fsync(self._descriptor)
            except OSError as error:
                raise StorageError(f"cold file {self.path} cannot be made durable: {error}; it has no mark") from error
            self._write_header(Mark(version, self.sum))
        self._chunks.clear()
        self.is_open = False
        self._close()

    def _ask_for(self, slots: Tensor) -> None:
        """Have the disk bring slots (N,), if one of the first was not in memory."""
        if len(slots) <= PROBED or not hasattr(os, "posix_fadvise"):
            return
        before = _disk_reads()
        self._chunks.gather(slots[:PROBED])
        if _disk_reads() > before:
            for start in (slots[PROBED:] * self.slot_bytes + HEADER_BYTES).tolist():
                os.posix_fadvise(self._descriptor, start, self.slot_bytes, os.POSIX_FADV_WILLNEED)

    def _begin_anew(self) -> None:
        if os.fstat(self._descriptor).st_size > HEADER_BYTES:
            held = "without a mark" if self.mark is None else f"of version {self.mark.version!r}"
            _log.warning("cold file %s %s was not taken up; its rows are dropped, it is written anew", self.path, held)
        self._write_header(None)
        self._chunks.clear()
        os.ftruncate(self._descriptor, HEADER_BYTES)
        self.sum, self.is_taken_up, self._is_blank = 0, True, True

    def _add(self, new: Tensor, old: Tensor) -> None:
        difference = int(new.numpy().view(np.uint64).sum()) - int(old.numpy().view(np.uint64).sum())
        self.sum = (self.sum + difference) % 2**64

    def _checksums(self, words: Tensor) -> Tensor:
        """(N,) int64 of slots (N, slot_bytes / 4) int32."""
        numbers = words.numpy().view(np.uint64)
        sums = np.einsum("ij,j->i", numbers[:, 1:], self._keys[1:])
        return torch.from_numpy((sums + self._keys[0]).view(np.int64))

    def _header(self) -> dict[str, Any] | None:
        """What the header says; None for an empty file, or where the header is torn."""
        found = os.pread(self._descriptor, HEADER_BYTES, 0)
        if found[: len(MAGIC)] != MAGIC[: len(found)]:
            raise CheckpointError(f"{self.path} is no cold file; name another path: nothing was written to it")
        if len(found) < len(MAGIC) + 4:
            return None
        (crc,), text = struct.unpack_from("<I", found, len(MAGIC)), found[len(MAGIC) + 4 :]
        if zlib.crc32(text) != crc:
            return None
        try:
            header = json.loads(text.rstrip(b"\0"))
        except ValueError as error:
            raise self._damaged("no JSON") from error
        if not isinstance(header, dict):
            raise self._damaged(f"{header!r}, no fields by name")
        wanted = {"format": FORMAT, "width": self.width, "state_width": self.state_width, "slot_bytes": self.slot_bytes}
        for name, value in wanted.items():
            if header.get(name) != value:
                raise CheckpointError(
                    f"cold file {self.path} has {name}={header.get(name)}, wanted {value}; it is of another table: "
                    "name another path, or remove the file"
                )
        return header

    def _chunk_slots_of(self, header: dict[str, Any]) -> int:
        given = header.get("chunk_slots")
        if type(given) is not int or not 1 <= given <= MOST_CHUNK_SLOTS or given & (given - 1):
            raise self._damaged(f"chunk_slots={given!r}, no power of two from 1 to {MOST_CHUNK_SLOTS}")
        return given

    def _mark_of(self, header: dict[str, Any]) -> Mark | None:
        given = header.get("mark")
        if given is None:
            return None
        if not isinstance(given, dict) or given.keys() != {"version", "sum"}:
            raise self._damaged(f"mark={given!r}, not a version and a sum")
        version, total = given["version"], given["sum"]
        if not isinstance(version, str) or type(total) is not int or not 0 <= total < 2**64:
            raise self._damaged(f"mark={given!r}, whose version is no text or whose sum is not below 2^64")
        return Mark(version, total)

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"the header of cold file {self.path} holds {what}; this package never writes that: "
            "name another path, or remove the file and load the table from its checkpoint"
        )

    def _write_header(self, mark: Mark | None) -> None:
        header = {
            "format": FORMAT,
            "width": self.width,
            "state_width": self.state_width,
            "slot_bytes": self.slot_bytes,
            "chunk_slots": self.chunk_slots,
            "mark": None if mark is None else vars(mark),
        }
        text = json.dumps(header).encode().ljust(HEADER_BYTES - len(MAGIC) - 4, b"\0")
        try:
            os.pwrite(self._descriptor, MAGIC + struct.pack("<I", zlib.crc32(text)) + text, 0)
            os.fsync(self._descriptor)
        except OSError as error:
            raise StorageError(f"the header of cold file {self.path} cannot be written: {error}") from error
        self.mark = mark

    def check_usable(self) -> None:
        """Whether the file is open, and this process's.

        Raises:
            ValueError: it is closed, or was opened by another process.
        """
        if not self.is_open:
            raise ValueError(f"cold file {self.path} is closed; make a table anew to go on with it")
        self.check_process()

    def check_open(self) -> None:
        """Whether the file is open, this process's, and as long as it was made.

        Raises:
            ValueError: it is closed, or was opened by another process.
            StorageError: something cut it short.
        """
        self.check_usable()
        there, wanted = self._lengths()
        if there < wanted:  # mapped memory behind the file's end would end the process
            raise StorageError(
                f"cold file {self.path} has {there:,} bytes; wanted {wanted:,}: something cut it short; "
                "load the table from its last checkpoint, by load_state"
            )

    def make_whole(self) -> None:
        """Give a file that was cut short its length again; slots that were lost are told as damage until written.

        Raises:
            ValueError: it was opened by another process.
            StorageError: the disk is full.
        """
        self.check_process()
        there, wanted = self._lengths()
        if there < wanted:
            try:
                _take_space(self._descriptor, there, wanted - there)
                if there < HEADER_BYTES:
                    self._write_header(None)
            except OSError as error:
                os.ftruncate(self._descriptor, there)
                raise StorageError(
                    f"cold file {self.path} was cut short and cannot grow from {there:,} to {wanted:,} bytes again: "
                    f"{error.strerror}; make room on the disk, and load the table from its last checkpoint"
                ) from error

    def _lengths(self) -> tuple[int, int]:
        """The file's bytes, and how many are mapped; neither counts before the first slot, or of a closed file."""
        if not self.num_slots or not self.is_open:
            return 0, 0
        return os.fstat(self._descriptor).st_size, HEADER_BYTES + self.num_slots * self.slot_bytes


class _Chunks(Column):
    """Slots as rows of a column whose pages are parts of the file."""

    def __init__(self, descriptor: int, slot_bytes: int, log_page: int) -> None:
        super().__init__(slot_bytes // 4, torch.int32, 0, log_page, torch.device("cpu"))
        self._descriptor = descriptor
        self.maps: list[mmap.mmap] = []

    def clear(self) -> None:
        """Let go of all pages."""
        self.pages.clear()
        self.maps.clear()
        self.read_addresses()

    def advise(self, advice: int) -> None:
        """Say in which order the pages are to be read."""
        for part in self.maps:
            part.madvise(advice)

    def flush(self) -> None:
        """Write all that changed to the disk."""
        for part in self.maps:
            part.flush()

    def _new_page(self, is_given: bool = False) -> Tensor:  # noqa: ARG002  # the file's memory is the machine's
        size = 4 * self.width << self.log_page
        start = HEADER_BYTES + len(self.pages) * size
        before = start % mmap.ALLOCATIONGRANULARITY
        part = mmap.mmap(self._descriptor, size + before, offset=start - before)
        part.madvise(mmap.MADV_RANDOM)  # the neighbours of a row are no more likely to be wanted than any other
        self.maps.append(part)
        words = np.frombuffer(part, dtype=np.int32, offset=before)
        return torch.from_numpy(words).view(1 << self.log_page, self.width)


def _disk_reads() -> int:
    """How often this thread waited for a page of the disk."""
    return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_majflt


def _opened(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(f"cold file {path} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise CheckpointError(f"cold file {path} is in use by another table or process; name another path") from error
    return descriptor


def _closed(descriptor: int, process: int) -> None:
    if os.getpid() == process:  # one that was forked shares the lock, which stays its parent's
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked process, or a mapping, may hold the descriptor still
    os.close(descriptor)


def _take_space(descriptor: int, start: int, size: int) -> None:
    """Bytes of the disk, not of a hole, which a write to mapped memory would have to find room for."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, start, size)
        return
    zeros = bytes(1 << 20)
    while size:
        written = os.pwrite(descriptor, zeros[:size], start)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        start, size = start + written, size - written
