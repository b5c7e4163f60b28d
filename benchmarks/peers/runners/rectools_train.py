"""RecTools: seconds of training epochs of SASRec or BERT4Rec, and the lists that it recommends afterwards.

    .peers/rectools/bin/python benchmarks/peers/runners/rectools_train.py SETTINGS.json

SETTINGS holds the fields of `benchmarks.peers.matched.Matched` and
    train: Parquet file of training histories: user_id, item_id, position
    epochs: whole epochs to train; with `steps` one epoch of that many batches is timed in place of them
    warmup_steps: batches of a fit before the timed one, which starts anew
    histories, lists: Parquet files: of the test queries, and where their ten best unseen items go (optional)

Building the dataset is not timed. An epoch is what Lightning calls one: it fetches, trains and logs as the library
does.
"""

import json
import logging
import sys
import time
import warnings
from importlib.metadata import version
from typing import Any

K = 10
TIMED: dict[str, Any] = {}


def trainer_of(epochs: int, steps: int | None, targets_alone: int) -> Any:
    """The library's default trainer, with a clock and a bound on the batches.

    Args:
        epochs, steps: to train; of each epoch, all by default.
        targets_alone: events of a sequence that are a target and no input.
    """
    from pytorch_lightning import Callback, Trainer

    class Clock(Callback):  # type: ignore[misc]  # it publishes no types
        """Seconds of each epoch, its batches, and the real events in them."""

        def on_train_epoch_start(self, *_: Any) -> None:
            TIMED.setdefault("epochs", []).append({"began": time.perf_counter(), "batches": 0, "events": 0})

        def on_train_batch_start(self, *given: Any) -> None:
            x = given[2]["x"]  # (trainer, module, batch, number)
            TIMED["epochs"][-1]["events"] += int((x != 0).sum()) + targets_alone * len(x)

        def on_train_batch_end(self, *_: Any) -> None:
            TIMED["epochs"][-1]["batches"] += 1

        def on_train_epoch_end(self, *_: Any) -> None:
            TIMED["epochs"][-1]["seconds"] = time.perf_counter() - TIMED["epochs"][-1].pop("began")

    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        min_epochs=epochs,
        limit_train_batches=steps,
        deterministic=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        callbacks=[Clock()],
    )


def dataset_of(file: str) -> Any:
    """RecTools' dataset of the histories in a Parquet file; their order is that of the positions."""
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset

    events = pd.read_parquet(file).rename(columns={"position": Columns.Datetime})
    events[Columns.Datetime] = pd.to_datetime(events[Columns.Datetime], unit="s")
    events[Columns.Weight] = 1.0
    return Dataset.construct(events)


def model_of(settings: dict[str, Any], epochs: int, steps: int | None) -> Any:
    """An untrained model."""
    from rectools.models import BERT4RecModel, SASRecModel

    is_masked = settings["model"] == "bert4rec"
    return (BERT4RecModel if is_masked else SASRecModel)(
        n_factors=settings["width"],
        n_blocks=settings["layers"],
        n_heads=settings["heads"],
        session_max_len=settings["max_len"],
        batch_size=settings["sequences_per_batch"],
        dropout_rate=settings["dropout"],
        loss="softmax",
        lr=settings["lr"],
        dataloader_num_workers=0,
        deterministic=True,
        get_trainer_func=trainer_of,
        get_trainer_func_kwargs={"epochs": epochs, "steps": steps, "targets_alone": 0 if is_masked else 1},
        recommend_torch_device="cpu",
        **({"mask_prob": settings["mask_prob"]} if is_masked else {}),
    )


def write_lists(model: Any, histories: str, file: str) -> float:
    """The seconds of recommending the K best unseen items of every user; writes them."""
    dataset = dataset_of(histories)
    users = dataset.user_id_map.external_ids
    began = time.perf_counter()
    lists = model.recommend(users=users, dataset=dataset, k=K, filter_viewed=True, on_unsupported_targets="warn")
    seconds = time.perf_counter() - began
    lists[["user_id", "item_id", "rank"]].to_parquet(file, index=False)
    return seconds


def main(settings: dict[str, Any]) -> None:
    """Warm up, fit, recommend where it is wanted; print the seconds."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import torch
    from pytorch_lightning import seed_everything

    torch.set_num_threads(settings["threads"])
    dataset, steps = dataset_of(settings["train"]), settings.get("steps")
    if settings["warmup_steps"]:
        model_of(settings, 1, settings["warmup_steps"]).fit(dataset)
        TIMED.clear()
    seed_everything(settings["seed"], verbose=False)
    model = model_of(settings, 1 if steps else settings["epochs"], steps)
    model.fit(dataset)
    epochs = TIMED["epochs"]
    sequences = model.data_preparator.train_dataset.user_id_map.size
    batches = -(-sequences // settings["sequences_per_batch"])
    found = {
        "version": version("rectools"),
        "is_extrapolated": any(epoch["batches"] < batches for epoch in epochs),
        "epoch_s": [round(epoch["seconds"] * batches / epoch["batches"], 3) for epoch in epochs],
        "timed_s": [round(epoch["seconds"], 3) for epoch in epochs],
        "timed_steps": [epoch["batches"] for epoch in epochs],
        "timed_events": [epoch["events"] for epoch in epochs],
        "steps": batches,
        "items": len(model.data_preparator.get_known_item_ids()),
        "parameters": sum(parameter.numel() for parameter in model.torch_model.parameters()),
        "loss_positions": "every" if settings["model"] == "sasrec" else "masked",
    }
    if settings.get("lists"):
        found["recommend_s"] = round(write_lists(model, settings["histories"], settings["lists"]), 3)
    print(json.dumps(found))


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as text:
        main(json.load(text))
