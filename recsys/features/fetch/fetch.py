"""A public data set by name, in a folder: fetched, checked, unpacked, with a record of what came (fetch.json)."""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recsys import config as configuration
from recsys.errors import DataError, InputError, MixedIds
from recsys.features.fetch.catalogue import find, is_listed
from recsys.features.fetch.download import Observe, Say, download
from recsys.features.fetch.public_set import PublicSet, plain_name
from recsys.features.fetch.unpack import unpack_gz, unpack_zip
from recsys.features.prepare_config import PrepareConfig
from recsys.features.readers import open_interactions
from recsys.files import sha256_of, storage_errors, write_json

RECORD = "fetch.json"
FORMAT_VERSION = 1
# Under these names a folder of $RECSYS_DATA holds a log that needs no settings.
_OWN_LOGS = ("interactions.parquet", "sequences.parquet")
_HEAD_ROWS = 10_000
_REMEDY = "free some disk space and run the same command again"


@dataclass(frozen=True)
class Fetched:
    """Where a data set lies.

    origin: `data folder` (it lay in $RECSYS_DATA), `kept` (an earlier fetch, its bytes checked) or `fetched`.
    trust: `published` (its checksum is known) or `first use` (its sha256 was recorded at the first fetch); None where
    nothing was fetched. source: the log.
    """

    name: str
    folder: Path
    source: Path
    settings: tuple[str, ...]
    origin: Literal["data folder", "kept", "fetched"]
    trust: Literal["published", "first use"] | None = None
    sha256: str | None = None


def fetch(
    wanted: str | PublicSet,
    out: Path | None = None,
    *,
    accept_terms: bool = False,
    url: str | None = None,
    data_folder: Path | None = None,
    say: Say | None = None,
    observe: Observe | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Fetched:
    """The data set `wanted`; nothing is fetched where it lies in `data_folder` or, whole, in `out`.

    Args:
        wanted: a name as `recsys data fetch --list` shows it, that of a folder in `data_folder`, or a set of your own.
        out: folder of the data set; data/NAME by default.
        accept_terms: its terms have been read and are accepted.
        url: a mirror; its file must be the same.
        data_folder: what $RECSYS_DATA names.
        say: told what happens, a line each.
        observe: told about the bytes that come.
        sleep: between tries.

    Raises:
        DataError: no such set, a wrong or changed file, an address without it.
        InputError: the terms are not accepted, or another process fetches into `out`.
        RecsysError: the server can not be reached; what has come is kept.
        StorageError: the disk is full or failed; what has come is kept.
    """
    tell, show = say or _ignore, observe or _ignore
    own = wanted if isinstance(wanted, str) and not is_listed(wanted) else None
    found = None if own is None else _in_data_folder(own, None, data_folder, tell)
    if found is None:
        chosen = wanted if isinstance(wanted, PublicSet) else find(wanted)
        found = _in_data_folder(chosen.name, chosen, data_folder, tell)
    if found is not None:
        tell(f"{found.name}: lies in {found.folder} ($RECSYS_DATA); nothing is fetched")
        return found
    out = Path("data") / chosen.name if out is None else Path(out)
    _refuse_other_set(chosen, out)
    kept = _kept(chosen, out)
    if kept is not None:
        tell(f"{out}: up to date; its files have the bytes that were fetched")
        return kept
    tell(f"{chosen.name}: {chosen.terms} ({chosen.terms_url})")
    if not accept_terms:
        raise InputError(
            f"{chosen.name}: its terms are not accepted: {chosen.terms}; read {chosen.terms_url} and add --accept-terms"
        )
    is_new = not out.exists()
    with storage_errors(out, _REMEDY):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".fetch.lock").open("w", encoding="utf-8")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{out}: another process fetches there; wait for it, or name another --out") from error
        try:
            return _fetch(chosen, out, url or chosen.url, tell, show, sleep)
        except BaseException:
            _leave_nothing_empty(out, is_new=is_new)
            raise


def _fetch(chosen: PublicSet, out: Path, url: str, tell: Say, show: Observe, sleep: Callable[[float], None]) -> Fetched:
    record = _record(out)
    # The end of an archive is told by the archive.
    is_end_needed = chosen.md5 is None and record is None and chosen.unpack == "none"
    archive = download(url, out / chosen.file_name, say=tell, observe=show, sleep=sleep, is_end_needed=is_end_needed)
    md5, sha256 = _sums(archive)
    if chosen.md5 is not None or record is not None:
        _check(chosen, archive, md5, sha256, record, tell)
    size = archive.stat().st_size
    try:
        files = _unpack(chosen, archive, out)
    except DataError as error:
        raise DataError(f"{error}; kept as {_set_aside(archive)}; name a mirror by --url") from error
    if chosen.md5 is None and record is None:
        tell(f"{archive.name}: no published checksum is known; trusted at this first fetch: sha256 {sha256}")
    written = {
        "format": FORMAT_VERSION,
        "name": chosen.name,
        "url": url,
        "file": {"name": chosen.file_name, "bytes": size, "md5": md5, "sha256": sha256},
        "checksum": "published" if chosen.md5 else "first use",
        "terms": {"text": chosen.terms, "url": chosen.terms_url, "accepted": True},
        "files": files,
    }
    with storage_errors(out / RECORD, _REMEDY):
        write_json(out / RECORD, written)
    trust: Literal["published", "first use"] = "published" if chosen.md5 else "first use"
    return Fetched(chosen.name, out, out / chosen.source, chosen.settings, "fetched", trust, sha256)


def _check(chosen: PublicSet, archive: Path, md5: str, sha256: str, record: dict[str, Any] | None, tell: Say) -> None:
    """The file against its published checksum, or against what came the first time."""
    if chosen.md5 is not None:
        wanted, found, kind = chosen.md5, md5, "md5"
        remedy = "another version, or a damaged one: fetch again, or name a mirror by --url"
    else:
        assert record is not None
        wanted, found, kind = str(record["file"]["sha256"]), sha256, "sha256"
        remedy = (
            f"the publisher has changed it since the first fetch: remove {archive.parent / RECORD} to take the new one"
        )
    if found == wanted:
        tell(f"{archive.name}: {kind} {found} as {'published' if chosen.md5 else 'at the first fetch'}")
        return
    raise DataError(f"{archive.name}: {kind} is {found}, wanted {wanted}; kept as {_set_aside(archive)}; {remedy}")


def _set_aside(archive: Path) -> Path:
    """Rename what has come to NAME.wrong, in place of an earlier one."""
    aside = archive.with_name(f"{archive.name}.wrong")
    with storage_errors(aside, _REMEDY):
        archive.replace(aside)
    return aside


def _unpack(chosen: PublicSet, archive: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Unpack beside, look, then move in; the archive goes. Returns bytes and sha256 of each file by name.

    Raises:
        DataError: it cannot be unpacked, or what it holds is not the set's log; nothing of it is left, but the archive.
        StorageError: the disk is full or failed.
    """
    if chosen.unpack == "none":
        files = {archive.name: archive}
        _refuse_other(chosen, archive, archive.parent, list(files))
    else:
        draft = out / f".unpack.{os.getpid()}.tmp"
        try:
            paths = (unpack_zip if chosen.unpack == "zip" else unpack_gz)(archive, draft)
            _refuse_other(chosen, archive, draft, [path.relative_to(draft).as_posix() for path in paths])
            files = {}
            with storage_errors(out, _REMEDY):
                for path in paths:
                    target = out / path.relative_to(draft)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(target)
                    files[target.relative_to(out).as_posix()] = target
                archive.unlink()
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return {name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in files.items()}


def _refuse_other(chosen: PublicSet, archive: Path, folder: Path, names: list[str]) -> None:
    """Raise DataError unless the log is among the files of the folder, and, where no sum is published, is one."""
    if chosen.source not in names:
        raise DataError(f"{archive}: does not hold {chosen.source}, found {', '.join(sorted(names)[:5]) or 'nothing'}")
    why = _why_no_log(chosen, folder / chosen.source) if chosen.md5 is None else None
    if why is not None:
        if folder != archive.parent:  # it lies there for a moment alone
            why = why.replace(f"{folder}{os.sep}", f"{archive}: ")
        raise DataError(f"{why}; it is not the log of {chosen.name}")


def _why_no_log(chosen: PublicSet, source: Path) -> str | None:
    """Why the settings of the set can not read this file, if so: no sum would tell that it is another one."""
    try:
        log = open_interactions(source, _read_config(chosen))
        first = next(log.chunks(rows=_HEAD_ROWS))
        return None if first.num_good else f"{source}: none of its first {first.num_lines:,} lines is an event"
    except MixedIds:
        return None
    except DataError as error:
        return str(error)


def _read_config(chosen: PublicSet) -> Any:
    return configuration.load(PrepareConfig, configuration.override({}, chosen.settings)).read


def _leave_nothing_empty(out: Path, *, is_new: bool) -> None:
    """Remove the lock where nothing came, and the folder where it was made for this fetch."""
    if [path.name for path in out.iterdir()] == [".fetch.lock"]:
        (out / ".fetch.lock").unlink()
        if is_new:
            out.rmdir()


def _in_data_folder(name: str, chosen: PublicSet | None, data_folder: Path | None, tell: Say) -> Fetched | None:
    """The log in a folder of this name; told where there is such a folder and no log in it."""
    if data_folder is None or not name.strip() or name.strip(".") == "" or Path(name).name != name:
        return None
    folder = next((at for at in (data_folder / name, data_folder / plain_name(name)) if at.is_dir()), None)
    if folder is None or not any(folder.iterdir()):
        return None
    for source in [] if chosen is None else [folder / chosen.source, *sorted(folder.glob(f"*/{chosen.source}"))]:
        if chosen is not None and source.is_file():
            return Fetched(chosen.name, folder, source, chosen.settings, "data folder")
    logs = [folder / own for own in _OWN_LOGS if (folder / own).is_file()]
    if logs:
        return Fetched(folder.name, folder, logs[0], (), "data folder")
    known = " or ".join([*([] if chosen is None else [chosen.source]), *_OWN_LOGS])
    tell(f"{folder}: holds no {known}; passed over")
    return None


def _kept(chosen: PublicSet, out: Path) -> Fetched | None:
    """What an earlier fetch left in `out`, if every byte of it still stands there."""
    record = _record(out)
    if record is None:
        return None
    for name, told in record["files"].items():
        path = out / name
        if not path.is_file() or path.stat().st_size != told["bytes"] or sha256_of(path) != told["sha256"]:
            return None
    return Fetched(
        chosen.name,
        out,
        out / chosen.source,
        chosen.settings,
        "kept",
        record["checksum"],
        str(record["file"]["sha256"]),
    )


def _refuse_other_set(chosen: PublicSet, out: Path) -> None:
    record = _record(out)
    if record is not None and record["name"] != chosen.name:
        raise InputError(f"{out}: holds the data set {record['name']}; name another --out for {chosen.name}")


def _record(out: Path) -> dict[str, Any] | None:
    file = out / RECORD
    if not file.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        is_ours = record["format"] == FORMAT_VERSION and {"name", "file", "files", "checksum"} <= set(record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: damaged ({error}); remove it to trust the next fetch anew") from error
    if not is_ours:
        raise DataError(f"{file}: of another format version; remove it to trust the next fetch anew")
    return record


def _sums(path: Path) -> tuple[str, str]:
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            md5.update(chunk)
            sha256.update(chunk)
    return md5.hexdigest(), sha256.hexdigest()


def _ignore(told: object) -> None:
    del told
