"""A connection to MLflow that is quiet, sends no telemetry, gives up in time and leaves no trace in the process.

MLflow keeps its URI, timeouts and log levels in environment variables and globals; `connect` sets them for the length
of a `with` block and puts them back. The MLflow 3 file store is refused there, so a local store is `sqlite:///…`.
"""

import contextlib
import logging
import os
import re
import ssl
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from recsys.errors import InputError, TrackingError, missing_extra

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")
_LOGGERS = ("mlflow", "alembic")
_PROBE_TIMEOUT_S = 2
_STORE_ERRORS = ("mlflow.MlflowException", "sqlalchemy.SQLAlchemyError", "alembic.CommandError")


def check_uri(uri: str) -> str:
    """`uri` itself, where MLflow 3 can store runs and models.

    Raises:
        InputError: a plain path, the file store, or an unknown scheme.
    """
    if uri.partition(":")[0].partition("+")[0] not in _SCHEMES:
        raise InputError(f"tracking URI {without_password(uri)}: wanted sqlite:///PATH, http://HOST:PORT or a database")
    return uri


def without_password(uri: str) -> str:
    """`uri` fit for a message or a file: the password is `***`."""
    return re.sub(r"(://[^/:@]*):[^/@]*@", r"\1:***@", uri)


@contextlib.contextmanager
def connect(uri: str, *, timeout_s: int = 30, retries: int = 2) -> "Iterator[MlflowClient]":
    """A client of the store at `uri`, which is MLflow's current one inside the block.

    Args:
        uri: as `check_uri` accepts it.
        timeout_s: of each HTTP request; what the user set in MLFLOW_HTTP_REQUEST_TIMEOUT counts where it is shorter.
        retries: of each HTTP request.

    Raises:
        MissingExtraError: MLflow is not installed.
        TrackingError: the server cannot be reached, does not answer in time, or refuses, also inside the block.
    """
    check_uri(uri)
    _probe(uri)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with _environment(_settings(uri, timeout_s, retries)), _quiet_loggers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow = _import()
        before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        try:
            mlflow.set_tracking_uri(uri)
            yield mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        except Exception as error:
            if not _is_of_the_store(error):
                raise
            raise TrackingError(f"tracking server {without_password(uri)}: {_one_line(error)}") from error
        finally:
            mlflow.set_tracking_uri(before)


def artifact_location(uri: str) -> str | None:
    """A folder beside a local sqlite file; any other store chooses its own."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()


def _settings(uri: str, timeout_s: int, retries: int) -> dict[str, str]:
    users = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "")
    location = artifact_location(uri)
    # MLflow's own name for the folder of its default experiment; without it ./mlruns is made.
    root = {"_MLFLOW_SERVER_ARTIFACT_ROOT": location} if location else {}
    return {
        **root,
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(min(timeout_s, int(users)) if users.isdigit() else timeout_s),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    }


def _import() -> Any:
    try:
        import mlflow
        import mlflow.pyfunc
    except ImportError as error:
        missing_extra("mlflow", "tracking", error)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


def _probe(uri: str) -> None:
    """Ask an HTTP server for a sign of life before the slow import of MLflow; any status is one."""
    if urlsplit(uri).scheme not in ("http", "https"):
        return
    # Nothing secret is sent or read here, so the certificate is left to the real requests.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_PROBE_TIMEOUT_S, context=context):
            pass
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        raise TrackingError(f"tracking server {without_password(uri)}: {_one_line(error)}") from error


def _is_of_the_store(error: Exception) -> bool:
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    # ImportError: the driver of a database.
    return isinstance(error, OSError | ImportError) or not names.isdisjoint(_STORE_ERRORS)


def _one_line(error: BaseException) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else words[:200] + "…"


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in [*values, "MLFLOW_TRACKING_URI"]}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet_loggers() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
