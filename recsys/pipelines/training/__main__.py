"""Training on a bare machine, from plain JSON: `recsys train --resolve run.json` writes it where YAML can be read.

python -m recsys.pipelines.training run.json [OUT]
"""

import json
import sys
from pathlib import Path
from typing import Any

from recsys import config as configs
from recsys.errors import RecsysError
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.training.train import train


def main(arguments: list[str]) -> int:
    """Train as run.json says; events go to stderr, one JSON object with the bundle and its figures to stdout.

    Args:
        arguments: run.json, and the run folder (`run` by default).

    Returns:
        The exit code: 0, 2 where the caller erred, 1 for anything else.
    """
    if not 1 <= len(arguments) <= 2:
        sys.stderr.write("usage: python -m recsys.pipelines.training run.json [OUT]\n")
        return 2
    file = Path(arguments[0])
    try:
        mapping = configs.read(file)
        result = train(
            configs.load(TrainConfig, mapping.get("config", mapping)),
            Path(arguments[1] if arguments[1:] else "run"),
            _show,
        )
    except RecsysError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ValueError) else 1
    figures = {"bundle": str(result.bundle), "weights_sha256": result.weights_sha256, **result.validation}
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


def _show(event: dict[str, Any]) -> None:
    sys.stderr.write(json.dumps(event) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
