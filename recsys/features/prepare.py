"""Logs into a prepared dataset: read, set bad rows aside, filter, order, split, write whole or not at all.

The same source and configuration give the same `.npy` and `.json` bytes, whatever the number of threads.
"""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from recsys import config as configuration
from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset, Protocol
from recsys.features.formats.quarantine import refuse_too_many_rejected
from recsys.features.formats.source import hash_file
from recsys.features.manifest import FORMAT
from recsys.features.preparation.assemble import Say, assemble
from recsys.features.preparation.filters import FilterConfig
from recsys.features.prepare_config import PrepareConfig
from recsys.features.readers import ReadResult, read_interactions
from recsys.features.schema import ReadConfig
from recsys.features.splits import SplitConfig
from recsys.files import replace_folder, storage_errors

__all__ = ["FilterConfig", "PrepareConfig", "ReadConfig", "SplitConfig", "prepare"]

OWN_NAMES = {"manifest.json", "vocabulary", "shards", "rejected.parquet", "items.parquet"}


def prepare(source: Path, out: Path, config: PrepareConfig, say: Say | None = None) -> PreparedDataset:
    """The dataset prepared from this source, written to `out`.

    A dataset that stands there and was made from the same bytes by the same configuration is left as it is. Any other
    prepared dataset is replaced at the end; anything else at `out` is refused and kept.

    Args:
        source: a log; see `read_interactions`.
        out: the folder to write.
        config: how.
        say: called with one line a step.

    Raises:
        DataError: the source cannot be used as asked, too many of its lines are bad (all of them are left in
            `OUT.rejected.parquet`), something else stands at `out`, or it cannot be written.
        StorageError: the disk is full or failed; an older dataset at `out` is kept.
    """
    source, out, tell = Path(source), Path(out).absolute(), say or _silent
    _refuse_foreign(out)
    inputs = _inputs(source, config)
    if _is_up_to_date(out, inputs):
        tell(f"{out}: up to date")
        return PreparedDataset.open(out)
    started = time.perf_counter()
    result = read_interactions(source, config.read)
    _say_read(result, time.perf_counter() - started, tell)
    _refuse_bad_source(result, config, out)
    protocol = _protocol(result, config, source)
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with storage_errors(out, "free space or name another folder"):
            assemble(work, result, protocol, config, inputs, tell)
            replace_folder(out, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    dataset = PreparedDataset.open(out)
    num_events, seconds = dataset.num_events, time.perf_counter() - started
    tell(f"{out}: {num_events:,} events prepared in {seconds:.2f} s ({num_events / seconds:,.0f} a second)")
    return dataset


def _silent(line: str) -> None:
    del line


def _inputs(source: Path, config: PrepareConfig) -> dict[str, Any]:
    """What the dataset is a function of, as it stands in the manifest."""
    plain = configuration.dump(config)
    plain["items"] = None if config.items is None else _described(config.items)
    return {"sources": [_described(source)], "config": plain}


def _described(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name one file")
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a CSV, TSV, Parquet, JSONL or MovieLens file")
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": hash_file(path)}


def _is_up_to_date(out: Path, inputs: dict[str, Any]) -> bool:
    if not (out / "manifest.json").is_file():
        return False
    try:
        manifest = PreparedDataset.open(out).manifest
    except DataError:
        return False
    return all(manifest[key] == value for key, value in inputs.items())


def _refuse_foreign(out: Path) -> None:
    """Only what `prepare` wrote may be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out}: is a file; name a folder")
    names = {path.name for path in out.iterdir()}
    if not names:
        return
    foreign = sorted(names - OWN_NAMES)
    if foreign or not _is_own(out):
        what = f"holds {foreign[0]}" if foreign else "holds no dataset of ours"
        raise DataError(f"{out}: {what} and will not be replaced; name an empty or new folder")


def _is_own(out: Path) -> bool:
    try:
        return json.loads((out / "manifest.json").read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _say_read(result: ReadResult, seconds: float, tell: Say) -> None:
    counts, name = result.counts, result.sources[0]["name"]
    speed = f"{counts['lines']:,} lines read in {seconds:.2f} s ({counts['lines'] / max(seconds, 1e-9):,.0f} a second)"
    tell(f"{name}: {speed}: {counts['good']:,} good, {counts['rejected']:,} rejected, order: {result.order}")
    for note in result.notes:
        tell(f"{name}: {note}")


def _refuse_bad_source(result: ReadResult, config: PrepareConfig, out: Path) -> None:
    kept_at = out.with_name(f"{out.name}.rejected.parquet")
    try:
        refuse_too_many_rejected(result.rejected, result.counts["lines"], config.read, str(kept_at))
    except DataError:
        with storage_errors(kept_at, "free space or name another folder"):
            kept_at.parent.mkdir(parents=True, exist_ok=True)
            result.rejected.write_parquet(kept_at)
        raise


def _protocol(result: ReadResult, config: PrepareConfig, source: Path) -> Protocol:
    asked = config.split.protocol
    if asked == "time" and result.order != "time":
        raise DataError(
            f"{source}: split.protocol=time needs real times, but the events are ordered by {result.order}; "
            "use --protocol loo, loo-novalid or ratio, or name the time column: read.columns.timestamp=NAME"
        )
    return asked or ("time" if result.order == "time" else "loo")
