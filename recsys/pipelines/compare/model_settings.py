"""Settings that suit the size of the data, the same for every model and never chosen on the test part.

    max_len           the 95 % quantile of the training lengths, 10 to 200
    dropout           .5 below 50 training events an item, else .2
    d_model           64
    tokens_per_batch  the power of 2 nearest to a 160th of an epoch, 1,024 to 16,384
    lr                .001, 100 steps of warm-up, then linearly to 0 at the end of the time
    best epoch        by NDCG@10 on the validation part

A setting that a model's config does not have is left out; whatever is given by hand goes before.
"""

import dataclasses
from typing import Any

import numpy as np

from recsys import config as configs
from recsys.features.dataset import PreparedDataset
from recsys.models import registry
from recsys.pipelines.compare.config import CompareConfig
from recsys.pipelines.run_config import TrainConfig

LONGEST, SHORTEST = 200, 10
SPARSE_EVENTS_PER_ITEM = 50
STEPS_IN_EPOCH = 160
# Never reached: the time ends first.
EPOCHS = 10_000


def suited_settings(dataset: PreparedDataset) -> dict[str, dict[str, Any]]:
    """`{"model": {…}, "train": {…}}` for this dataset; see the head of this file."""
    lengths = dataset.train_slices().lengths
    lengths = lengths[lengths >= 2]
    quantile = float(np.quantile(lengths, 0.95)) if len(lengths) else 0.0
    max_len = int(min(LONGEST, max(SHORTEST, np.ceil(quantile))))
    tokens = int(np.minimum(lengths, max_len).sum())
    events_per_item = lengths.sum() / max(1, np.count_nonzero(dataset.train_counts()))
    power = round(np.log2(max(1, tokens) / STEPS_IN_EPOCH))
    return {
        "model": {
            "max_len": max_len,
            "dropout": 0.5 if events_per_item < SPARSE_EVENTS_PER_ITEM else 0.2,
            "d_model": 64,
        },
        "train": {
            "epochs": EPOCHS,
            "tokens_per_batch": int(min(16_384, max(1_024, 2.0**power))),
            "lr": 1e-3,
            "warmup_steps": 100,
            "decay": "linear",
            "patience": None,
        },
    }


def training_config(name: str, seed: int, dataset: PreparedDataset, config: CompareConfig) -> TrainConfig:
    """The run of one model: what suits the data, the overrides, and the budget.

    Raises:
        ConfigError: an override names an unknown key or holds a value out of range.
    """
    suited = suited_settings(dataset)
    fields = {field.name for field in dataclasses.fields(registry.config_class(name))}
    given = dict(config.settings.get(name, {}))
    own_training = given.pop("train", {})
    model = {"name": name, **{key: value for key, value in suited["model"].items() if key in fields}, **given}
    train = {**suited["train"], **config.settings.get("train", {}), **own_training}
    train["max_seconds"] = config.minutes * 60
    mapping = {"data": str(dataset.path), "model": model, "train": train, "seed": seed}
    loaded = configs.load(TrainConfig, mapping, f"{name}: ")
    _ = loaded.model_config
    return loaded
