"""Results of single steps, kept in a folder and found again where their inputs are the same."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.files import storage_errors, write_json

Floats = npt.NDArray[np.float64]
_REMEDY = "free some disk space and run the same command again: finished steps are not done again"


class KeptSteps:
    """A folder of results: NAME.json, with its inputs, and NAME.npy where there is an array."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """The values of this step, if they were made from these inputs; a damaged file counts as absent."""
        try:
            found = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
            is_same = found["inputs"] == json.loads(json.dumps(inputs))
            return dict(found["values"]) if is_same else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def array(self, name: str) -> Floats | None:
        """The array of this step, or None."""
        try:
            array: Floats = np.load(self.folder / f"{name}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return array

    def keep(
        self, name: str, inputs: Mapping[str, Any], values: Mapping[str, Any], array: Floats | None = None
    ) -> None:
        """Write the step; its JSON comes last, so that a step without it is not done.

        Raises:
            StorageError: the disk is full or failed.
        """
        with storage_errors(self.folder / name, _REMEDY):
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / f"{name}.json"
            file.unlink(missing_ok=True)
            if array is not None:
                np.save(self.folder / f"{name}.npy", array, allow_pickle=False)
            write_json(file, {"inputs": dict(inputs), "values": dict(values)})
