"""A trainer whose machine goes down before each of its file operations in turn: what does the next boot find?"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from benchmarks.support.lossy_files import LOSSES, LossyFiles
from benchmarks.support.table_stream import TableStream, different
from recsys.errors import DeltaError
from recsys.models.delta import DeltaLog, ServingModel, Version, deltas_since, read_log
from recsys.models.delta.rows import MEMORY_BYTES

LOG, OUT, BUNDLE = Path("log"), Path("out"), "b"
COMPACT_AT, RESTART_AT, STEPS = 20, 30, 35
COPIED_AT = (10, 25)  # there rows are copied before they are written


def run(
    files: LossyFiles, acknowledged: list[int], truth: dict[int, dict[str, Tensor]], memory_bytes: int = MEMORY_BYTES
) -> None:
    """Train, cut, compact, stop and go on; `acknowledged` gets each step whose delta was said to be durable."""
    trainer = TableStream(0)
    log = DeltaLog(LOG, BUNDLE, published=OUT, files=files, memory_bytes=memory_bytes)
    log.start(trainer.tables, trainer.weights, trainer.extra)
    while trainer.step <= STEPS:
        if trainer.is_at_a_cut:
            if trainer.step in COPIED_AT:
                cut = log.cut(trainer.weights, trainer.extra)
                while not cut.copy(3):
                    pass
                log.write(cut.delta())
            elif trainer.step > 0:
                log.append(trainer.weights, trainer.extra)
            acknowledged.append(trainer.step)
            truth[trainer.step] = trainer.state()
        if trainer.step == COMPACT_AT:
            log.compact()
        if trainer.step == RESTART_AT:
            trainer = TableStream(0)
            log = DeltaLog(LOG, BUNDLE, published=OUT, files=files, memory_bytes=memory_bytes)
            restored = log.restore(trainer.tables)
            trainer.resume(restored.dense, restored.extra)
        trainer.train()


def failures(
    *, syncs_files: bool = True, syncs_folders: bool = True, memory_bytes: int = MEMORY_BYTES
) -> Iterator[str]:
    """Every crash after which the log is not what was acknowledged, or later; a line each.

    Args:
        syncs_files, syncs_folders: see `LossyFiles`.
        memory_bytes: of the log; few make that rows are written, put together and loaded one by one.
    """
    truth: dict[int, dict[str, Tensor]] = {}
    acknowledged: list[int] = []
    disks: dict[tuple[int, frozenset[tuple[Path, bytes]]], tuple[str, LossyFiles]] = {}
    files = LossyFiles(syncs_files, syncs_folders)
    operation = 0

    def crash() -> None:
        nonlocal operation
        for loss in LOSSES:
            disk, last = files.after_crash(loss, operation), acknowledged[-1] if acknowledged else -1
            name = f"crash before operation {operation}, {loss} lost"
            disks.setdefault((last, frozenset(disk.contents().items())), (name, disk))
        operation += 1

    files.before_operation = crash
    run(files, acknowledged, truth, memory_bytes)
    for (last, _), (name, disk) in disks.items():
        if found := _found(disk, last, truth, memory_bytes):
            yield f"{name}: {found}"


def _found(disk: LossyFiles, last: int, truth: dict[int, dict[str, Tensor]], memory_bytes: int) -> str:
    """What is wrong on a disk, if anything is. Step `last` was acknowledged; -1: none."""
    log = DeltaLog(LOG, BUNDLE, published=OUT, files=disk, memory_bytes=memory_bytes)
    trainer = TableStream(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a torn last file is passed over, and said so
        try:
            if log.is_empty:
                return f"no log, but step {last} was acknowledged" if last >= 0 else ""
            sent = _sent(disk)
            restored = log.restore(trainer.tables)
            trainer.resume(restored.dense, restored.extra)
            if sent > restored.version:
                return f"servers were sent {sent}, but the log ends at {restored.version}"
            if trainer.step < last:
                return f"at step {trainer.step}, but {last} was acknowledged"
            if wrong := different(trainer.state(), truth[trainer.step]):
                return f"at step {trainer.step}, these differ: {', '.join(wrong)}"
            trainer.train()
            log.append(trainer.weights, trainer.extra)
            if wrong := different(trainer.folded_state(read_log(LOG, disk, memory_bytes)), trainer.state()):
                return f"the next delta after step {trainer.step - 1} brings other {', '.join(wrong)}"
            served = ServingModel(BUNDLE)
            for delta in deltas_since(OUT, None, disk):
                served.apply(delta)
            if served.at != log.version:
                return f"servers are at {served.at}, the trainer at {log.version}"
        except DeltaError as error:
            return f"refused: {error}"
    return ""


def _sent(disk: LossyFiles) -> Version:
    """The last version that a server can have read."""
    sent = Version(0, 0)
    with contextlib.suppress(DeltaError):
        for delta in deltas_since(OUT, None, disk):
            sent = delta.version
    return sent
