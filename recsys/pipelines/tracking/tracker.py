"""A run folder sent to MLflow: params, curves, tags, files, and the bundle as a registered model.

The folder is the truth; tracking.json in it says how much of it the server has. `Tracker.send` sends what is new, so it
can be called at any moment and any number of times: a second call with nothing new sends nothing, and a call that was
cut short is repeated without harm (the run is found again by its key, equal points count once).

During training a dead server must not cost more than a moment: `Tracker.observe` gives up after the first failure and
says that `recsys runs sync` delivers the rest.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from recsys.errors import DataError, InputError
from recsys.models.tracking_server import check_uri, connect, without_password
from recsys.pipelines.run_folder import RunFolder, find_runs
from recsys.pipelines.tracking.cursor import TrackingCursor
from recsys.pipelines.tracking.delivery import CURVES, Delivery, Sent

T = TypeVar("T")

DEFAULT_EXPERIMENT = "recsys"
_OBSERVE_EVERY_S = 10.0
_LIVE_TIMEOUT_S = 3


def tracking_uri(option: str | None, run_dir: Path) -> str:
    """Where runs are tracked: the option, else MLFLOW_TRACKING_URI, else mlflow.db beside the run folder.

    Raises:
        InputError: MLflow 3 cannot store runs there.
    """
    chosen = option or os.environ.get("MLFLOW_TRACKING_URI")
    return check_uri(chosen or f"sqlite:///{run_dir.resolve().parent / 'mlflow.db'}")


class Tracker:
    """Sends the run folder `run_dir` to the MLflow store at `uri`.

    Args:
        run_dir: a run folder; run.json may appear later, before the first `send`.
        uri: see `tracking_uri`.
        experiment: is made where it is absent.
        model_name: under which the bundle is registered; the model's own name by default.
        warn: gets the one line that says why `observe` stopped sending.

    Raises:
        InputError: MLflow 3 cannot store runs at `uri`.
    """

    def __init__(
        self,
        run_dir: Path,
        uri: str,
        experiment: str = DEFAULT_EXPERIMENT,
        *,
        model_name: str | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.run_dir, self.uri, self.experiment = Path(run_dir), check_uri(uri), experiment
        self.model_name, self.warn, self.is_alive = model_name, warn, True
        self._last_sent = time.monotonic()

    def observe(self, event: Mapping[str, Any]) -> None:
        """Sends what is new every few seconds; the first failure ends it with one warning."""
        is_due = time.monotonic() - self._last_sent >= _OBSERVE_EVERY_S
        if self.is_alive and event.get("event") in CURVES and is_due:
            self._try(lambda: self.send(status="RUNNING", timeout_s=_LIVE_TIMEOUT_S, retries=0))
            self._last_sent = time.monotonic()

    def close(self, status: str = "FINISHED") -> Sent | None:
        """Sends the rest and ends the run as FINISHED, FAILED or KILLED; None where the server did not take it."""
        if not self.is_alive or not (self.run_dir / "run.json").is_file():
            return None
        return self._try(lambda: self.send(status=status, timeout_s=_LIVE_TIMEOUT_S, retries=0))

    def send(self, *, status: str | None = None, timeout_s: int = 30, retries: int = 2) -> Sent:
        """Sends what the server does not have yet.

        Args:
            status: of the run; by default FINISHED once the log has ended, else as it was.
            timeout_s: of each HTTP request.
            retries: of each HTTP request.

        Raises:
            DataError: the folder holds no run, or a damaged file.
            MissingExtraError: MLflow is not installed.
            TrackingError: the server cannot be reached or refuses.
        """
        run = RunFolder(self.run_dir)
        stored = TrackingCursor.read(self.run_dir)
        cursor = self._cursor(stored)
        cursor.register_as = self.model_name or cursor.register_as
        # A run that is tracked elsewhere moves once this store has taken it, so that a wrong URI loses nothing.
        if stored is None or cursor is stored:
            cursor.save(self.run_dir)
        with connect(self.uri, timeout_s=timeout_s, retries=retries) as client:
            return Delivery(client, self.uri, run, cursor).send(status)

    def _cursor(self, stored: TrackingCursor | None) -> TrackingCursor:
        uri = without_password(self.uri)
        if stored is not None and (stored.uri, stored.experiment) == (uri, self.experiment):
            return stored
        run_key, name = (stored.run_key, stored.register_as) if stored is not None else (uuid.uuid4().hex, None)
        return TrackingCursor(run_key=run_key, uri=uri, experiment=self.experiment, register_as=name)

    def _try(self, action: Callable[[], T]) -> T | None:
        try:
            return action()
        # Whatever a tracking server answers must not end a training run.
        except Exception as error:
            self.is_alive = False
            if self.warn is not None:
                reason = str(error) or type(error).__name__
                remedy = f"deliver later with: recsys runs sync {self.run_dir}"
                self.warn(f"tracking stopped, the run goes on: {reason}; {remedy}")
            return None


def sync(
    runs: Sequence[Path],
    *,
    uri: str | None = None,
    experiment: str | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Sent]:
    """Sends what is unsent of each run.

    Args:
        runs: run folders, or folders of run folders.
        uri: by default the one each run was tracked to, else as `tracking_uri` chooses.
        experiment: by default the one each run was tracked to.
        say: gets one line a run.

    Raises:
        DataError: a folder holds no run.
        InputError: the run was tracked to a URI whose password is not kept; it must be given again.
        TrackingError: the server cannot be reached or refuses; what was sent before stays marked as sent.
    """
    results = []
    for run in _each_run(runs):
        cursor = TrackingCursor.read(run.path)
        chosen = tracking_uri(uri or (cursor.uri if cursor and cursor.uri else None), run.path)
        if "***" in chosen:
            raise InputError(f"{run.path}: tracked to {chosen}, whose password is not kept; give it by --tracking")
        group = experiment or (cursor.experiment if cursor and cursor.experiment else DEFAULT_EXPERIMENT)
        sent = Tracker(run.path, chosen, group).send()
        if say:
            say(f"{run.path}: {sent.num_points} points, {len(sent.files)} files to {sent.uri}, run {sent.run_id}")
        results.append(sent)
    return results


def _each_run(folders: Sequence[Path]) -> Iterator[RunFolder]:
    for folder in folders:
        found = find_runs(folder)
        if not found:
            raise DataError(f"{folder}: no run there; name a run folder, or a folder of them")
        yield from found
