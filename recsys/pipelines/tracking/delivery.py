"""One delivery of a run folder to MLflow: params, curves, tags, files, and the bundle as a registered model.

Each step leaves the cursor true, so a delivery that is cut short is repeated without harm: the run is found again by
its key, equal points count once on the server, a registered version by its bundle.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from recsys.errors import InputError
from recsys.files import sha256_of
from recsys.models.tracking_server import artifact_location
from recsys.pipelines.run_folder import RunFolder
from recsys.pipelines.tracking.cursor import TrackingCursor

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

ALIAS = "challenger"
KEY_TAG = "recsys.run_key"
# The events that are curves on the server, and the prefix of their names there.
CURVES = {"step": "train", "validation": "valid", "tables": "tables"}
_FILES = ("run.json", "curves.png")
# MLflow's own limits for one request and for one value.
_MAX_METRICS, _MAX_PARAMS, _MAX_VALUE_CHARS = 1000, 100, 5000


@dataclass(frozen=True)
class Sent:
    """What one `send` did."""

    uri: str
    run_id: str
    num_points: int
    files: list[str]
    model: str | None  # models:/name/version where the run has a bundle
    num_damaged: int  # lines of the log that could not be read


class Delivery:
    """From a run folder to the store of `client`, inside `tracking_server.connect(uri)`."""

    def __init__(self, client: "MlflowClient", uri: str, run: RunFolder, cursor: TrackingCursor) -> None:
        self.client, self.uri, self.run, self.cursor = client, uri, run, cursor
        self.files: list[str] = []

    def send(self, status: str | None) -> Sent:
        """Sends what the server does not have; `status` None means FINISHED once the log has ended, else as it was.

        Raises:
            InputError: the experiment is deleted on the server.
        """
        self._find_run()
        self._send_params()
        self._send_tags()
        num_points, num_damaged = self._send_log()
        for label, (file, evaluation) in self.run.evaluations.items():
            self._send_evaluation(label, file, evaluation)
        has_ended = any(event.get("event") == "end" for event in self.run.log().events)
        self._draw_curves(is_final=has_ended)
        self._send_files()
        model = self._register() if has_ended and self.run.bundle_version else None
        if model:
            self._tag_version()
        self._set_status(status or ("FINISHED" if has_ended else None))
        return Sent(self.cursor.uri, self._run_id, num_points, self.files, model, num_damaged)

    @property
    def _run_id(self) -> str:
        assert self.cursor.run_id is not None
        return self.cursor.run_id

    @property
    def _test(self) -> dict[str, Any]:
        return self.run.evaluation or {}

    def _find_run(self) -> None:
        if self.cursor.run_id is not None and self._exists(self.cursor.run_id):
            return
        # A run of this key may be there though tracking.json does not say so: the last call was cut short.
        experiment_id = self._experiment_id()
        found = self.client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{self.cursor.run_key}'", max_results=1)
        tags = {KEY_TAG: self.cursor.run_key, "mlflow.source.name": "recsys train"}
        run = found[0] if found else self.client.create_run(experiment_id, tags=tags, run_name=self.run.name)
        self.cursor.run_id, self.cursor.log_bytes = run.info.run_id, 0
        self.cursor.sent, self.cursor.model = {}, {}
        self._save()

    def _exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return str(self.client.get_run(run_id).info.lifecycle_stage) == "active"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _experiment_id(self) -> str:
        experiment = self.client.get_experiment_by_name(self.cursor.experiment)
        if experiment is None:
            location = artifact_location(self.uri)
            return str(self.client.create_experiment(self.cursor.experiment, artifact_location=location))
        if experiment.lifecycle_stage != "active":
            raise InputError(
                f"experiment {self.cursor.experiment!r} is deleted on the server; name another --experiment"
            )
        return str(experiment.experiment_id)

    def _send_params(self) -> None:
        from mlflow.entities import Param, RunTag

        params = flat(self.run.record.get("config", {}))
        if not self._is_new("params", params):
            return
        there = self.client.get_run(self._run_id).data.params
        values = {_name(key): str(value)[:_MAX_VALUE_CHARS] for key, value in params.items()}
        new = [Param(key, value) for key, value in values.items() if key not in there]
        # MLflow never changes a param: what differs from the first time becomes a tag.
        changed = [RunTag(f"changed.{k}", v) for k, v in values.items() if k in there and there[k] != v]
        for part in _parts(new, _MAX_PARAMS):
            self.client.log_batch(self._run_id, params=part)
        for part in _parts(changed, _MAX_PARAMS):
            self.client.log_batch(self._run_id, tags=part)
        self._mark("params", params)

    def _send_tags(self) -> None:
        from mlflow.entities import RunTag

        record = self.run.record
        tags = {
            "protocol.valid": record.get("protocol"),
            "protocol.test": self._test.get("protocol"),
            "data_hash": record.get("data_hash"),
            "mlflow.source.git.commit": record.get("commit"),
            "git_commit": record.get("commit"),
            "bundle_version": self.run.bundle_version,
            "model": self.run.model,
            "recsys_version": record.get("recsys"),
            "torch_version": record.get("torch"),
        }
        if self._is_new("tags", tags):
            known = [RunTag(key, str(value)[:_MAX_VALUE_CHARS]) for key, value in tags.items() if value is not None]
            self.client.log_batch(self._run_id, tags=known)
            self._mark("tags", tags)

    def _send_log(self) -> tuple[int, int]:
        part = self.run.log(self._log_start())
        points = [point for event in part.events for point in _points(event)]
        for chunk in _parts(points, _MAX_METRICS):
            self.client.log_batch(self._run_id, metrics=chunk)
        self.cursor.log_bytes = max(part.end, self.cursor.log_bytes)
        self._save()
        return len(points), part.num_damaged

    def _log_start(self) -> int:
        """The cursor, or 0 where the log was cut or replaced since: equal points count once on the server."""
        start, file = self.cursor.log_bytes, self.run.path / "log.jsonl"
        if not start or not file.is_file():
            return 0
        with file.open("rb") as stream:
            stream.seek(start - 1)
            is_behind_a_line = stream.read(1) == b"\n"
        self.cursor.log_bytes = start if is_behind_a_line else 0
        return self.cursor.log_bytes

    def _send_evaluation(self, label: str, file: Path, evaluation: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        if not self._is_new(file.stem, evaluation):
            return
        written_ms = int(file.stat().st_mtime * 1000)
        figures = flat(evaluation.get("metrics", {}), "/")
        means = {key.removesuffix("/mean"): value for key, value in figures.items() if key.endswith("/mean")}
        metrics = [Metric(_name(f"{label}/{key}"), float(value), written_ms, 0) for key, value in means.items()]
        for part in _parts(metrics, _MAX_METRICS):
            self.client.log_batch(self._run_id, metrics=part)
        self._mark(file.stem, evaluation)

    def _draw_curves(self, is_final: bool) -> None:
        from recsys.pipelines.tracking.plots import draw_curves

        if is_final and not (self.run.path / "curves.png").is_file():
            draw_curves(self.run)

    def _send_files(self) -> None:
        for name in (*_FILES, *(file.name for file, _ in self.run.evaluations.values())):
            file = self.run.path / name
            if file.is_file() and self.cursor.sent.get(name) != sha256_of(file):
                self.client.log_artifact(self._run_id, str(file))
                self.cursor.sent[name] = sha256_of(file)
                self.files.append(name)
                self._save()

    def _register(self) -> str:
        name, bundle = self.cursor.register_as or self.run.model, str(self.run.bundle_version)
        if self.cursor.model.get("bundle") != bundle or self.cursor.model.get("name") != name:
            version = self._version_there(name, bundle) or self._new_version(name, bundle)
            self._raise_alias(name, version)
            self.cursor.model = {"name": name, "version": version, "bundle": bundle}
            self._save()
        return f"models:/{name}/{self.cursor.model['version']}"

    def _raise_alias(self, name: str, version: str) -> None:
        """The newest version is the challenger: sending an old run again never takes the alias back."""
        holder = self.client.get_registered_model(name).aliases.get(ALIAS)
        if holder is None or int(holder) < int(version):
            self.client.set_registered_model_alias(name, ALIAS, version)

    def _version_there(self, name: str, bundle: str) -> str | None:
        for version in self.client.search_model_versions(f"run_id = '{self._run_id}'"):
            if version.name == name and version.tags.get("bundle_version") == bundle:
                return str(version.version)
        return None

    def _new_version(self, name: str, bundle: str) -> str:
        from mlflow.exceptions import MlflowException

        from recsys.pipelines.tracking.pyfunc import log_bundle

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        info = log_bundle(self.client, self._run_id, self.run.path / "bundle")
        tags = {"bundle_version": bundle, "data_hash": str(self.run.record.get("data_hash"))}
        version = self.client.create_model_version(
            name, info.model_uri, self._run_id, tags=tags, model_id=info.model_id, await_creation_for=30
        )
        return str(version.version)

    def _tag_version(self) -> None:
        """The test figures of this very bundle and of its best floor, so that the registry can compare versions."""
        test, version = self._test, self.cursor.model
        if not test or test.get("bundle_version") != version["bundle"]:
            return
        floor = test.get("best_floor")
        tags = {
            "protocol.test": test.get("protocol"),
            "test.ndcg_at_10": _mean_ndcg(test, test.get("model")),
            "test.floor": floor,
            "test.floor_ndcg_at_10": _mean_ndcg(test, floor),
        }
        # Who deletes a version in the registry wants it gone.
        is_new = self._is_new("version_tags", {**version, **tags})
        if is_new and self._version_there(version["name"], version["bundle"]) == version["version"]:
            for key, value in tags.items():
                if value is not None:
                    self.client.set_model_version_tag(
                        version["name"], version["version"], key, str(value)[:_MAX_VALUE_CHARS]
                    )
            self._mark("version_tags", {**version, **tags})

    def _set_status(self, status: str | None) -> None:
        if status is None or self.client.get_run(self._run_id).info.status == status:
            return
        if status == "RUNNING":
            self.client.update_run(self._run_id, status=status)
        else:
            self.client.set_terminated(self._run_id, status)

    def _is_new(self, what: str, value: Any) -> bool:
        return self.cursor.sent.get(what) != _digest(value)

    def _mark(self, what: str, value: Any) -> None:
        self.cursor.sent[what] = _digest(value)
        self._save()

    def _save(self) -> None:
        self.cursor.save(self.run.path)


def flat(mapping: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}, "c": [2]}` as `{"a.b": 1, "c": [2]}`."""
    result: dict[str, Any] = {}
    for key, value in mapping.items():
        path = f"{prefix}{key}"
        result |= flat(value, separator, path + separator) if isinstance(value, Mapping) else {path: value}
    return result


def _points(event: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import Metric

    prefix = CURVES.get(str(event.get("event")))
    if prefix is None or "step" not in event or "time" not in event:
        return []
    values = {key: value for key, value in event.items() if key not in ("event", "step", "time") and _is_number(value)}
    time_ms = int(event["time"] * 1000)
    return [
        Metric(_name(f"{prefix}/{key}"), float(value), time_ms, int(event["step"])) for key, value in values.items()
    ]


def _mean_ndcg(evaluation: Mapping[str, Any], scorer: str | None) -> float | None:
    mean = evaluation.get("metrics", {}).get(scorer, {}).get("ndcg@10", {}).get("mean")
    return None if mean is None else float(mean)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _name(key: str) -> str:
    """As MLflow allows it: `ndcg@10` is `ndcg_at_10`."""
    allowed = "".join(c if c.isalnum() and c.isascii() or c in "_-. /" else "_" for c in key.replace("@", "_at_"))
    return allowed[:250]


def _parts(values: Sequence[T], size: int) -> Iterator[list[T]]:
    for first in range(0, len(values), size):
        yield list(values[first : first + size])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
