"""`manifest.json` of a prepared dataset: what it was made from, how, and which files it has.

Needs the standard library alone.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from recsys.errors import DataError
from recsys.files import sha256_of

FORMAT = "recsys-dataset"
FORMAT_VERSION = 1
SIDE_COLUMNS = ("event_types.npy", "item_categories.npy", "item_vectors.npy")
MANIFEST_KEYS = ("files", "num_shards", "counts", "order", "protocol", "target", "cuts_us", "data_hash", "split_hash")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared dataset.

    Raises:
        DataError: no folder, no manifest, damaged, or an unknown format version.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        what = "no prepared dataset (manifest.json is missing)" if folder.is_dir() else "no such folder"
        raise DataError(f"{folder}: {what}; make one with: recsys prepare --source FILE --out {folder}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: damaged, not valid JSON ({error}); prepare the dataset again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path}: not the manifest of a prepared dataset; wanted format={FORMAT!r}")
    if manifest.get("format_version") != FORMAT_VERSION:
        version = manifest.get("format_version")
        raise DataError(f"{path}: format_version={version!r}, this version reads {FORMAT_VERSION}; prepare it again")
    missing = [key for key in MANIFEST_KEYS if key not in manifest]
    if missing:
        raise DataError(f"{path}: damaged, {missing[0]!r} is missing; prepare the dataset again")
    return manifest


def is_prepared(folder: Path) -> bool:
    """Whether a prepared dataset of any version lies there."""
    try:
        return bool(json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_side_column(name: str) -> bool:
    """Whether the file holds a side column: what a model may read beside users, items, times and cuts.

    `data_hash` leaves them out: it says which questions a figure answers, and these are the same whether or not a table
    of items describes the log. `side.hash` covers them.
    """
    return name.rpartition("/")[2] in SIDE_COLUMNS


def hash_arrays(folder: Path, names: list[str]) -> str:
    """First 12 hex digits of the sha256 over the bytes of these `.npy` files, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(name for name in names if name.endswith(".npy")):
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]


def hash_tables(folder: Path) -> dict[str, str]:
    """The sha256 of every table of the dataset, `.parquet`, by its path in the folder."""
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
    return {name: sha256_of(folder / name) for name in found}


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise DataError unless every array stands there in its full size."""
    for name, wanted in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path}: missing; prepare the dataset again")
        if path.stat().st_size != wanted:
            size = path.stat().st_size
            raise DataError(f"{path}: damaged, {size} bytes instead of {wanted}; prepare the dataset again")
