"""RecTools: seconds of `recommend` for every user after a few steps of training; what it recommends is not judged.

    .peers/rectools/bin/python benchmarks/peers/runners/rectools_recommend.py FILE MAX_LEN REPEATS THREADS

FILE is a Parquet file of histories: user_id, item_id, position. SASRec with 64 factors, 2 blocks and 2 heads.
"""

import json
import logging
import sys
import time
import warnings
from importlib.metadata import version
from typing import Any

FIT_BATCHES, FIT_BATCH_SIZE = 2, 16


def short_trainer() -> Any:
    """A trainer that stops after a few batches."""
    from pytorch_lightning import Trainer

    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=FIT_BATCHES,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )


def main(file: str, max_len: int, repeats: int, threads: int) -> None:
    """Fit, recommend `repeats` times after a warm-up, print the seconds."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import pandas as pd
    import torch
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    torch.set_num_threads(threads)
    events = pd.read_parquet(file).rename(columns={"position": Columns.Datetime})
    events[Columns.Datetime] = pd.to_datetime(events[Columns.Datetime], unit="s")
    events[Columns.Weight] = 1.0
    dataset = Dataset.construct(events)
    model = SASRecModel(
        n_factors=64,
        n_blocks=2,
        n_heads=2,
        session_max_len=max_len,
        batch_size=FIT_BATCH_SIZE,
        get_trainer_func=short_trainer,
        recommend_torch_device="cpu",
    )
    began = time.perf_counter()
    model.fit(dataset)
    fit_s = time.perf_counter() - began
    users, times = events[Columns.User].unique(), []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        answer = model.recommend(users=users, dataset=dataset, k=10, filter_viewed=True)
        times.append(time.perf_counter() - began)
    found = {
        "version": version("rectools"),
        "fit_s": round(fit_s, 3),
        "fit_batches": FIT_BATCHES,
        "recommend_s": [round(value, 3) for value in times[1:]],
        "users": len(users),
        "rows": len(answer),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], *(int(argument) for argument in sys.argv[2:5]))
