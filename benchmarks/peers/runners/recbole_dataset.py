"""RecBole: seconds of building its dataset and its loaders for a sequential model, leave-one-out, full ranking.

    .peers/recbole/bin/python benchmarks/peers/runners/recbole_dataset.py FOLDER MAX_LEN

FOLDER/NAME.inter is the atomic file, where NAME is the name of FOLDER.
"""

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path


def main(folder: Path, max_len: int) -> None:
    """Build, and print the seconds of each step and what was built."""
    began = time.perf_counter()
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation

    seconds = {"import": time.perf_counter() - began}
    with tempfile.TemporaryDirectory() as checkpoints:
        settings = {
            "data_path": str(folder.parent),
            "checkpoint_dir": checkpoints,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
            "MAX_ITEM_LIST_LENGTH": max_len,
            "loss_type": "CE",
            "train_neg_sample_args": None,
            "use_gpu": False,
            "show_progress": False,
        }
        # It reads settings from the command line, too.
        sys.argv = sys.argv[:1]
        config = Config(model="SASRec", dataset=folder.name, config_dict=settings)
        began = time.perf_counter()
        dataset = create_dataset(config)
        seconds["create_dataset"] = time.perf_counter() - began
        # Its preparation puts a row for each prefix in place of the events.
        num_events = len(dataset.inter_feat)
        began = time.perf_counter()
        train, valid, test = data_preparation(config, dataset)
        seconds["data_preparation"] = time.perf_counter() - began
    found = {
        "version": version("recbole"),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "users": dataset.user_num - 1,
        "items": dataset.item_num - 1,
        "events": num_events,
        "train_sequences": len(train.dataset),
        "valid_sequences": len(valid.dataset),
        "test_sequences": len(test.dataset),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]))
