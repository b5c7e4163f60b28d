"""tracking.json of a run folder: where the run stands on the server, and how much of the folder is there."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from recsys.errors import DataError
from recsys.files import write_json
from recsys.pipelines.run_folder import read_json

FORMAT_VERSION = 1
FILE = "tracking.json"


@dataclass
class TrackingCursor:
    """What was sent; `run_key` is drawn once, so that the run is found again on any server."""

    run_key: str
    uri: str = ""  # without its password
    experiment: str = ""
    run_id: str | None = None
    register_as: str | None = None  # name of the registered model; the model's own by default
    log_bytes: int = 0  # of log.jsonl
    sent: dict[str, str] = field(default_factory=dict)  # what -> sha256 of what was sent
    model: dict[str, str] = field(default_factory=dict)  # name, version, bundle
    format: int = FORMAT_VERSION

    @classmethod
    def read(cls, run_dir: Path) -> "TrackingCursor | None":
        """The cursor of a run folder; None where the run was never tracked.

        Raises:
            DataError: it is damaged or of an unknown format version.
        """
        file = run_dir / FILE
        if not file.is_file():
            return None
        remedy = "remove it, and recsys runs sync sends the run anew"
        stored = read_json(file, remedy)
        if stored.get("format") != FORMAT_VERSION or not isinstance(stored.get("run_key"), str):
            raise DataError(f"{file}: not of format {FORMAT_VERSION}; {remedy}")
        try:
            return cls(**stored)
        except TypeError as error:
            raise DataError(f"{file}: damaged ({error}); {remedy}") from error

    def save(self, run_dir: Path) -> None:
        """Writes tracking.json whole or not at all."""
        write_json(run_dir / FILE, asdict(self))
