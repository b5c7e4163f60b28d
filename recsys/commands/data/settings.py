"""Settings of a command: its file, and --set over it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def settings(file: Path | None, assignments: Sequence[str] | None) -> dict[str, Any]:
    """The file's mapping, if any, with each KEY=VALUE put over it."""
    from recsys import config as configs

    return configs.override(configs.read(file) if file else {}, assignments or [])
