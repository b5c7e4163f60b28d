"""The sets of interactions in RECSYS_DATA as the literature splits them, prepared where benchmarks need them."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recsys import config as configs
from recsys.errors import RecsysError
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, prepare


@dataclass(frozen=True, kw_only=True)
class InteractionSet:
    """A file of RECSYS_DATA, and the settings of its preparation that differ from the defaults."""

    file: str
    settings: dict[str, Any] = field(default_factory=dict)


LEAVE_ONE_OUT = {"split": {"protocol": "loo"}}

SETS = {
    "ml-1m": InteractionSet(
        file="ml-1m/sequences.parquet", settings={**LEAVE_ONE_OUT, "filters": {"min_item_events": 5}}
    ),
    "amazon-beauty": InteractionSet(file="amazon-beauty/sequences.parquet", settings=LEAVE_ONE_OUT),
    "amazon-beauty-bert4rec": InteractionSet(file="amazon-beauty-bert4rec/sequences.parquet", settings=LEAVE_ONE_OUT),
    "amazon-sports": InteractionSet(file="amazon-sports/sequences.parquet", settings=LEAVE_ONE_OUT),
    "amazon-instruments": InteractionSet(file="amazon-instruments/sequences.parquet", settings=LEAVE_ONE_OUT),
    "yelp-text": InteractionSet(file="yelp-text/sequences.parquet", settings=LEAVE_ONE_OUT),
    "lastfm-s3rec": InteractionSet(file="lastfm-s3rec/sequences.parquet", settings=LEAVE_ONE_OUT),
    "ml-100k": InteractionSet(file="ml-100k/interactions.parquet", settings={"split": {"protocol": "time"}}),
    "ml-100k-loo": InteractionSet(file="ml-100k/interactions.parquet", settings=LEAVE_ONE_OUT),
}


def data_folder() -> Path:
    """RECSYS_DATA.

    Raises:
        SystemExit: it is not set.
    """
    if not os.environ.get("RECSYS_DATA"):
        raise SystemExit(
            "error: RECSYS_DATA is not set; it names the folder that holds ml-1m/, amazon-beauty/ and more"
        )
    return Path(os.environ["RECSYS_DATA"])


def prepared(name: str, parent: Path) -> PreparedDataset:
    """The set below `parent`, prepared unless it stands there already.

    Raises:
        SystemExit: no such set, or it cannot be prepared: its file is missing, the disk is full.
    """
    if name not in SETS:
        raise SystemExit(f"error: {name!r} is no set; there are {', '.join(SETS)}")
    config = configs.load(PrepareConfig, SETS[name].settings)
    try:
        return prepare(data_folder() / SETS[name].file, parent / name, config)
    except RecsysError as error:
        raise SystemExit(f"error: {error}") from error
