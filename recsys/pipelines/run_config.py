"""What a run is: its config, and the record of it that the run folder begins with (run.json)."""

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from recsys import __version__
from recsys import config as configs
from recsys.errors import CheckpointError, ConfigError, DataError
from recsys.features.dataset import PreparedDataset
from recsys.files import storage_errors, write_json
from recsys.models import registry
from recsys.models.bundle import load_bundle, resolve
from recsys.models.protocols import NextItemModel
from recsys.models.warm_start import warm_start
from recsys.pipelines.optimization import OptimizationConfig
from recsys.pipelines.run_folder import read_json

FORMAT_VERSION = 1
LOCK = "run.lock"
# Settings that say where a run trains, not what: it may go on elsewhere, and says that its last bits may differ.
PLACE = ("device", "threads")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run: data, model, optimisation, seed."""

    data: Path
    model: dict[str, Any]  # name, and the keys of that model's config
    train: OptimizationConfig = field(default_factory=OptimizationConfig)
    seed: int = 0
    warm_start: str | None = (
        None  # a bundle whose weights the run begins with: a folder, a run folder, models:/name@alias
    )

    def __post_init__(self) -> None:
        if "name" not in self.model:
            raise ValueError(f"model.name is missing; known models: {', '.join(registry.names())}")
        if not 0 <= self.seed < configs.MAX_SEED:
            raise ValueError(f"seed={self.seed} must be at least 0 and below 2^64")

    @property
    def model_config(self) -> dict[str, Any]:
        """Every key of the model's own config, defaults filled in.

        Raises:
            ConfigError: the model, or one of its keys, is unknown.
        """
        given = {key: value for key, value in self.model.items() if key != "name"}
        return registry.full_config(self.model["name"], given)


def record_of(config: TrainConfig, dataset: PreparedDataset) -> dict[str, Any]:
    """run.json: the resolved config, and what it meets: data, versions, commit."""
    name = config.model["name"]
    return {
        "format": FORMAT_VERSION,
        "config": {
            **configs.dump(config),
            "data": str(config.data),
            "model": {"name": name, **registry.fitted_config(name, config.model_config, dataset)},
        },
        "data_hash": dataset.data_hash,
        "side_hash": dataset.side_hash,
        "protocol": dataset.protocol_string("valid", "exclude"),
        "order": dataset.order,
        "num_items": dataset.num_items,
        "recsys": __version__,
        "torch": torch.__version__,
        "commit": source_commit(),
    }


def begin_warm(
    model: NextItemModel, config: TrainConfig, model_config: Mapping[str, Any], dataset: PreparedDataset, out: Path
) -> dict[str, Any] | None:
    """Give the fresh model the weights of the bundle that `warm_start` names; gives back what run.json says of it.

    Where the run in `out` has a checkpoint the bundle is not read: all that came of it is there, the bundle may be
    gone, and an alias may name another one by now.

    Raises:
        BundleError, ConfigError: the bundle cannot be used, or does not fit.
        CheckpointError: run.json in `out` is damaged.
    """
    if config.warm_start is None:
        return None
    if (out / "run.json").is_file() and any((out / "checkpoints").glob("step-*")):
        stored = _stored(out / "run.json")
        if stored.get("warm_start") and stored["config"].get("warm_start") == config.warm_start:
            return dict(stored["warm_start"])
    bundle = load_bundle(resolve(config.warm_start))
    shared = warm_start(model, bundle, config.model["name"], model_config, dataset, seed=config.seed)
    return {"version": bundle.version, "shared_items": shared}


def open_run(out: Path, record: dict[str, Any]) -> IO[str]:
    """Create the run folder `out` with its run.json, or check that it holds the same run.

    Returns:
        The lock of the folder, held until it is closed: no second process trains there.

    Raises:
        CheckpointError: it holds another run, another process trains there, or it is a folder of other things.
        InputError: it cannot be written.
        StorageError: the disk is full or failed.
    """
    file = out / "run.json"
    with storage_errors(out, "free some disk space and run the same command again"):
        if out.is_dir() and not file.is_file() and not all(_is_leftover(entry) for entry in out.iterdir()):
            raise CheckpointError(f"{out}: is no run folder and holds other things; name a new --out")
        out.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            _check_same_run(_stored(file), record, out)
        lock = _lock(out / LOCK)
        if not file.is_file():
            for draft in out.glob(".run.json.*.tmp"):
                draft.unlink()
            write_json(file, record)
    return lock


def _is_leftover(entry: Path) -> bool:
    """Whether a start that was killed before run.json stood left this behind."""
    return entry.name == LOCK or (entry.name.startswith(".run.json.") and entry.suffix == ".tmp")


def _stored(file: Path) -> dict[str, Any]:
    remedy = "restore it, or name another --out"
    try:
        found = read_json(file, remedy)
        config = found["config"]
        _ = config["model"]["name"], config["train"].keys(), config["seed"]
    except DataError as error:
        raise CheckpointError(str(error)) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: damaged ({error!r}); {remedy}") from error
    return found


def _lock(path: Path) -> IO[str]:
    file = path.open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise CheckpointError(
            f"{path.parent}: another process trains there; wait for it, or name another --out"
        ) from error
    return file


def _check_same_run(old: dict[str, Any], new: dict[str, Any], out: Path) -> None:
    if old.get("format") != new["format"]:
        raise CheckpointError(f"{out}: run format {old.get('format')}, wanted {new['format']}; name another --out")
    for key in ("data_hash", "num_items"):
        if old.get(key) != new[key]:
            raise CheckpointError(f"{out}: began with {key}={old.get(key)}, now {new[key]}; name another --out")
    inputs = new["config"]["model"].get("inputs") or {}
    reads_sides = any(inputs.get(name) for name in ("event_types", "categories", "frozen_vectors"))
    if reads_sides and old.get("side_hash") != new["side_hash"]:
        raise CheckpointError(f"{out}: began with other side columns of the same events; name another --out")
    if old.get("warm_start") != new.get("warm_start"):
        versions = [(record.get("warm_start") or {}).get("version") for record in (old, new)]
        raise CheckpointError(f"{out}: began with warm_start={versions[0]}, now {versions[1]}; name another --out")
    began, asked = _comparable(old["config"]), _comparable(new["config"])
    differing = [line for key in ("model", "train", "seed") for line in _differences(key, began[key], asked[key])]
    if differing:
        raise CheckpointError(
            f"{out}: began with another config ({', '.join(differing)}); use that one, or name another --out"
        )


def _differences(name: str, began: Any, asked: Any) -> list[str]:
    if isinstance(began, Mapping) and isinstance(asked, Mapping):
        keys = dict.fromkeys([*began, *asked])
        return [line for key in keys for line in _differences(f"{name}.{key}", began.get(key), asked.get(key))]
    return [] if began == asked else [f"{name}={json.dumps(began)}, now {json.dumps(asked)}"]


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """What makes the run; one that began before a setting existed has that setting's default."""
    train = configs.dump(OptimizationConfig()) | config["train"]
    train = {key: value for key, value in train.items() if key not in PLACE}
    return {**config, "model": _with_defaults(config["model"]), "train": train}


def _with_defaults(model: dict[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in model.items() if key != "name"}
    try:
        return {"name": model["name"], **registry.full_config(model["name"], given)}
    except ConfigError:  # of a version that knew other models or settings: no run of this one is the same
        return model


def source_commit() -> str | None:
    """The commit of the source tree: RECSYS_COMMIT, or read from .git without running git; None where there is none."""
    if given := os.environ.get("RECSYS_COMMIT"):
        return given
    git = Path(__file__).resolve().parents[2] / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        reference = head.removeprefix("ref: ")
        if (git / reference).is_file():
            return (git / reference).read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split()[0] for line in packed if line.endswith(" " + reference)), None)
