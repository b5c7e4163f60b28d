"""Training on a bare machine, from plain JSON: `recsys train --resolve run.json` writes it where YAML can be read.

python -m recsys.pipelines.training run.json [OUT] [--data DIR] [--warm-start BUNDLE]
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from recsys import config as configs
from recsys.errors import ConfigError, RecsysError
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.training.result import Stopped
from recsys.pipelines.training.train import train

INTERRUPTED = 130


def main(arguments: list[str]) -> int:
    """Train as run.json says; events go to stderr, one JSON object with the bundle and its figures to stdout.

    Args:
        arguments: run.json, the run folder, and where the dataset and the bundle to begin with lie on this machine.

    Returns:
        The exit code: 0, 2 where the caller erred, 130 where it was asked to stop, 1 for anything else.
    """
    given = _parser().parse_args(arguments)
    try:
        mapping = configs.read(given.file)
        mapping = mapping.get("config", mapping)
        if not isinstance(mapping, dict):
            raise ConfigError(f"{given.file}: config is of type {type(mapping).__name__}, wanted an object")
        if given.data is not None:
            mapping["data"] = str(given.data)
        if given.warm_start is not None:
            mapping["warm_start"] = str(given.warm_start)
        result = train(configs.load(TrainConfig, mapping, f"{given.file}: "), given.out, _show)
    except Stopped as stopped:
        sys.stderr.write(f"{stopped}\n")
        return INTERRUPTED
    except RecsysError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ValueError) else 1
    figures = {"bundle": str(result.bundle), "weights_sha256": result.weights_sha256, **result.validation}
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recsys.pipelines.training", description="Trains from plain JSON.")
    parser.add_argument("file", type=Path, metavar="run.json", help="written by recsys train --resolve, or of a run")
    parser.add_argument("out", type=Path, nargs="?", default=Path("run"), help="run folder; `run` by default")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared dataset; by default what run.json names")
    parser.add_argument("--warm-start", type=Path, metavar="BUNDLE", help="folder; by default what run.json names")
    return parser


def _show(event: dict[str, Any]) -> None:
    sys.stderr.write(json.dumps(event) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
