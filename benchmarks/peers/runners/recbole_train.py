"""RecBole: seconds of training steps of SASRec or BERT4Rec with cross-entropy, one sequence a user.

    .peers/recbole/bin/python benchmarks/peers/runners/recbole_train.py SETTINGS.json

SETTINGS holds the fields of `benchmarks.peers.matched.Matched`, `feed_forward`, `activation` and
    train: CSV file of training histories: user_id, item_id, position (its venv reads no Parquet)
    steps, warmup_steps: of training, timed and before
Its expansion of each user to all prefixes is off: the last window of each user is given as a ready sequence in a
benchmark file, the form in which the library takes rows as they are. Its own loader and its own trainer run the steps,
over as many epochs as they need.
"""

import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

NAME = "windows"


class TimedSteps:
    """Batches of a loader, epoch after epoch, until the steps are done; what happens between two is a step."""

    def __init__(self, loader: Any, warmup: int, steps: int, extra: int) -> None:
        self.loader, self.warmup, self.steps, self.extra = loader, warmup, steps, extra
        self.seconds, self.events = 0.0, 0

    def __iter__(self) -> Iterator[Any]:
        done, began, ended = 0, time.perf_counter(), self.warmup + self.steps
        while True:
            for batch in self.loader:
                if done == ended:
                    return
                yield batch
                done += 1
                if done == self.warmup:
                    began = time.perf_counter()
                elif done > self.warmup:
                    self.seconds = time.perf_counter() - began
                    self.events += int(batch["item_length"].sum()) + self.extra * len(batch)


def write_windows(settings: dict[str, Any], folder: Path) -> None:
    """The last window of each user as a sequence: SASRec's target stands beside it, BERT4Rec's are within."""
    import pandas as pd

    events = pd.read_csv(settings["train"]).sort_values(["user_id", "position"])
    is_masked = settings["model"] == "bert4rec"
    lines = ["user_id:token\titem_id_list:token_seq\titem_id:token"]
    for user, items in events.groupby("user_id")["item_id"]:
        window = items.tolist()[-settings["max_len"] - (0 if is_masked else 1) :]
        if len(items) > 1:
            inputs = " ".join(str(item) for item in (window if is_masked else window[:-1]))
            lines.append(f"{user}\t{inputs}\t{window[-1]}")
    folder.mkdir(parents=True)
    (folder / f"{NAME}.train.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")


def config_of(settings: dict[str, Any], folder: Path) -> Any:
    """RecBole's config."""
    from recbole.config import Config

    given = {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "benchmark_filename": ["train"],
        "alias_of_item_id": ["item_id_list"],
        "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
        "MAX_ITEM_LIST_LENGTH": settings["max_len"],
        "hidden_size": settings["width"],
        "inner_size": settings["feed_forward"],
        "hidden_act": settings["activation"],
        "n_layers": settings["layers"],
        "n_heads": settings["heads"],
        "hidden_dropout_prob": settings["dropout"],
        "attn_dropout_prob": settings["dropout"],
        "mask_ratio": settings["mask_prob"],
        "ft_ratio": 0.0,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "train_batch_size": settings["sequences_per_batch"],
        "learning_rate": settings["lr"],
        "seed": settings["seed"],
        "use_gpu": False,
        "show_progress": False,
        "epochs": 1,
    }
    # It reads settings from the command line, too.
    sys.argv = sys.argv[:1]
    model = "BERT4Rec" if settings["model"] == "bert4rec" else "SASRec"
    return Config(model=model, dataset=NAME, config_dict=given)


def main(settings: dict[str, Any]) -> None:
    """Build, train, print the seconds."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import torch
    from recbole.data import create_dataset
    from recbole.data.dataloader import TrainDataLoader
    from recbole.utils import get_model, get_trainer, init_seed

    torch.set_num_threads(settings["threads"])
    with tempfile.TemporaryDirectory() as name:
        write_windows(settings, Path(name) / NAME)
        config = config_of(settings, Path(name))
        init_seed(config["seed"], True)
        whole = create_dataset(config)
        loader = TrainDataLoader(config, whole.build()[0], None, shuffle=True)
        model = get_model(config["model"])(config, whole)
        os.chdir(name)  # its trainer writes a log into the working folder
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        is_masked = settings["model"] == "bert4rec"
        steps = TimedSteps(loader, settings["warmup_steps"], settings["steps"], 0 if is_masked else 1)
        trainer._train_epoch(steps, 0)
    found = {
        "version": version("recbole"),
        "is_extrapolated": True,
        "epoch_s": [round(steps.seconds / settings["steps"] * len(loader), 3)],
        "timed_s": [round(steps.seconds, 3)],
        "timed_steps": [settings["steps"]],
        "timed_events": [steps.events],
        "steps": len(loader),
        "items": whole.item_num - 1,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss_positions": "masked" if is_masked else "last",
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
