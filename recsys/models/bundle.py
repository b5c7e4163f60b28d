"""A bundle: one folder that holds all a server needs to rank. Tensors and JSON, no pickle.

weights.safetensors   model.json   vocabulary/   popularity.npy   metrics.json   inputs.json   golden.json
items.parquet (where the data has an item table)   manifest.json (sha256 of each file)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from recsys.errors import BundleError, TrackingError
from recsys.features.vocabulary import Vocabulary
from recsys.files import recover_folder, replace_folder, sha256_of, storage_errors, sync, write_json
from recsys.models import registry
from recsys.models.protocols import NextItemModel
from recsys.models.ranking.ranker import History, ItemId, Ranker

FORMAT_VERSION = 1
GOLDEN_TOLERANCE = 1e-5
GOLDEN_K = 10
DEFAULT_TRACKING_URI = "sqlite:///runs/mlflow.db"
# What the version is made of: the same weights, names and items are the same version, whatever was measured later.
_IDENTITY = ("weights.safetensors", "model.json", "popularity.npy", "vocabulary/")


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle; `model` is in evaluation mode."""

    path: Path
    name: str
    config: dict[str, Any]
    model: NextItemModel
    items: Vocabulary
    popularity: np.ndarray  # (V+1,) int64, events of each item in the training part
    metrics: dict[str, Any]
    data: dict[str, Any]  # data hash, protocol, order of the dataset it was trained on
    version: str  # 12 hex digits


def save_bundle(
    path: Path,
    *,
    model: NextItemModel,
    name: str,
    config: Mapping[str, Any],
    items: Vocabulary,
    popularity: np.ndarray,
    metrics: Mapping[str, Any],
    data: Mapping[str, Any],
    golden_histories: Sequence[Sequence[ItemId]],
    history_lengths: np.ndarray | None = None,
    item_table: Path | None = None,
) -> Path:
    """Write the bundle folder `path`, whole or not at all; an older bundle there is replaced.

    Args:
        path: the folder.
        model, name, config: the model, its registered name and its configuration.
        items: vocabulary of V items.
        popularity: (V+1,) int64.
        metrics: figures with their protocol, as JSON values.
        data: where the model comes from: data hash, protocol, order.
        golden_histories: raw ids; their answers are stored and checked whenever the bundle is loaded for serving.
        history_lengths: (users,) training lengths; their histogram is what a later day's inputs are compared with.
        item_table: a parquet file, copied as it is.

    Raises:
        BundleError: `path` exists and is no bundle.
        InputError: `path` cannot be written.
        StorageError: the disk is full or failed; an older bundle there stays.
    """
    path = Path(path)
    if path.exists() and not (path / "model.json").is_file():
        raise BundleError(f"{path}: exists and is no bundle; name another folder")
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path, "free some disk space and run the same command again"):
        recover_folder(path)
        try:
            draft.mkdir(parents=True)
            head = {"name": name, "config": dict(config), "num_items": len(items), "data": dict(data)}
            write_json(draft / "model.json", {"format": FORMAT_VERSION, **head})
            assert isinstance(model, nn.Module)
            tensors = {key: tensor.contiguous().cpu() for key, tensor in model.state_dict().items()}
            (draft / "weights.safetensors").write_bytes(save(tensors))
            items.save(draft / "vocabulary", "items")
            np.save(draft / "popularity.npy", popularity.astype(np.int64))
            write_json(draft / "metrics.json", metrics)
            write_json(draft / "inputs.json", _histogram(history_lengths))
            if item_table is not None:
                shutil.copyfile(item_table, draft / "items.parquet")
            _write_manifest(draft)
            write_json(draft / "golden.json", _answers(load_bundle(draft), golden_histories))
            _write_manifest(draft)
            for written in [*draft.rglob("*"), draft]:
                sync(written)
            replace_folder(path, draft)
            sync(path.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return path


def load_bundle(path: Path) -> Bundle:
    """The bundle in folder `path`, every byte checked.

    Raises:
        BundleError: no bundle there, an unknown format version, a missing file or a byte that differs.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    head = json.loads((path / "model.json").read_text(encoding="utf-8"))
    model = registry.build(head["name"], head["config"], head["num_items"])
    assert isinstance(model, nn.Module)
    try:
        model.load_state_dict(load_file(path / "weights.safetensors"))
    except (RuntimeError, SafetensorError) as error:
        raise BundleError(
            f"{path / 'weights.safetensors'}: the weights do not fit model {head['name']}: "
            f"{str(error).splitlines()[-1].strip()}; save the bundle again with this version"
        ) from error
    model.eval()
    return Bundle(
        path=path,
        name=head["name"],
        config=head["config"],
        model=model,
        items=Vocabulary.load(path / "vocabulary", "items"),
        popularity=np.load(path / "popularity.npy"),
        metrics=json.loads((path / "metrics.json").read_text(encoding="utf-8")),
        data=head["data"],
        version=manifest["version"],
    )


def check_golden(bundle: Bundle) -> list[str]:
    """What differs between the bundle's answers here and those stored in it; empty if nothing does.

    Scores may differ by 1e-5; items whose stored scores lie that close may change places.
    """
    stored = json.loads((bundle.path / "golden.json").read_text(encoding="utf-8"))
    answers = _answers(bundle, [case["history"] for case in stored])
    found = [(number, _difference(*pair)) for number, pair in enumerate(zip(stored, answers, strict=True))]
    return [f"golden request {number}: {difference}" for number, difference in found if difference]


def _difference(stored: dict[str, Any], answer: dict[str, Any]) -> str | None:
    """What differs between two answers, by place: the score, or an item that its score does not excuse."""
    if len(answer["item_ids"]) != len(stored["item_ids"]):
        return f"{len(stored['item_ids'])} items stored, here {len(answer['item_ids'])}"
    wanted = dict(zip(stored["item_ids"], stored["scores"], strict=True))
    last = stored["scores"][-1] if stored["scores"] else 0.0
    for item, score, here in zip(answer["item_ids"], answer["scores"], stored["scores"], strict=True):
        tolerance = GOLDEN_TOLERANCE * max(1.0, abs(here))
        if abs(score - here) > tolerance or abs(wanted.get(item, last) - score) > tolerance:
            return f"item {item!r} scores {score:.6f} where {wanted.get(item, last):.6f} or {here:.6f} was stored"
    return None


def attach_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Replace the figures of the bundle in `path`; its version stays.

    Raises:
        BundleError: the bundle is damaged.
    """
    _read_manifest(path)
    write_json(path / "metrics.json", metrics)
    _write_manifest(path)


def resolve(uri: str | Path, tracking_uri: str | None = None) -> Path:
    """The local folder of a bundle: a bundle, a run folder that holds one, or a model of an MLflow registry.

    Args:
        uri: a path, or `models:/name@alias`, `models:/name/3`, `runs:/…`.
        tracking_uri: of the registry; by default the variable MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db.

    Raises:
        BundleError: nothing is found there.
    """
    if str(uri).startswith(("models:/", "runs:/")):
        return _download(str(uri), tracking_uri)
    for path in (Path(uri), Path(uri) / "bundle"):
        if (path / "model.json").is_file():
            return path
    raise BundleError(f"{uri}: no bundle there; name a bundle folder, a run folder or models:/name@alias")


def _download(uri: str, tracking_uri: str | None) -> Path:
    from recsys.models.tracking_server import check_uri, connect

    store = check_uri(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI)
    try:
        with connect(store):
            import mlflow

            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except TrackingError as error:
        raise BundleError(f"{uri}: not found: {error}; name another one, or another --tracking") from error
    found = sorted(folder.rglob("model.json"))
    if not found:
        raise BundleError(f"{uri}: the registered model holds no bundle; register it with recsys train")
    return found[0].parent


def _answers(bundle: Bundle, histories: Sequence[Sequence[ItemId]]) -> list[dict[str, Any]]:
    ranked = Ranker(bundle).recommend([History(list(history)) for history in histories], GOLDEN_K)
    return [
        {"history": list(history), "item_ids": answer.item_ids, "scores": answer.scores}
        for history, answer in zip(histories, ranked, strict=True)
    ]


def _histogram(lengths: np.ndarray | None) -> dict[str, Any]:
    if lengths is None or not len(lengths):
        return {}
    edges = [0, *(2**i for i in range(int(lengths.max()).bit_length() + 1))]
    return {"history_length": {"edges": edges, "counts": np.histogram(lengths, bins=edges)[0].tolist()}}


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.is_file():
        raise BundleError(f"{path}: no bundle there (manifest.json is missing)")
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version, hashes = manifest["format"], manifest["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{file}: damaged; copy the bundle again") from error
    if version != FORMAT_VERSION:
        raise BundleError(f"{file}: format version {version}, wanted {FORMAT_VERSION}; save the bundle again")
    for name, digest in hashes.items():
        if not (path / name).is_file():
            raise BundleError(f"{path / name}: missing; copy the bundle again")
        if sha256_of(path / name) != digest:
            raise BundleError(f"{path / name}: its bytes differ from manifest.json; copy the bundle again")
    return manifest


def _write_manifest(path: Path) -> None:
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    hashes = {name: sha256_of(path / name) for name in names if name != "manifest.json"}
    identity = "".join(digest for name, digest in hashes.items() if name.startswith(_IDENTITY))
    version = hashlib.sha256(identity.encode()).hexdigest()[:12]
    write_json(path / "manifest.json", {"format": FORMAT_VERSION, "version": version, "sha256": hashes})
