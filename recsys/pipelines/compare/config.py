"""What is compared with what, and for how long each may train."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from recsys import config as configs
from recsys.errors import ConfigError
from recsys.models import registry
from recsys.pipelines.optimization import OptimizationConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """The contenders and their budget.

    settings: overrides of what suits the data: `{"sasrec": {"dropout": 0.5, "train": {"lr": 2e-3}}, "train": {…}}`; a
    group named `train` counts for all models, one inside a model's group for that model.
    """

    models: tuple[str, ...] = ("sasrec", "bert4rec")
    minutes: float = 5.0  # of training, of each model and seed, validations included
    trials: int = 60  # random settings tried for the floors
    seeds: int = 1  # runs of each model
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 < self.minutes <= 60 * 24 * 30:
            raise ConfigError(f"--minutes {self.minutes:g}: wanted a time above 0 and at most 30 days, such as 5")
        for name in ("trials", "seeds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: wanted at least 1")
        _check_models(self.models)
        _check_groups(self.settings, self.models)


def _check_models(models: tuple[str, ...]) -> None:
    known = registry.names()
    if not models:
        raise ConfigError(f"--models: names none; known models: {', '.join(known)}")
    for name in models:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known models: {', '.join(known)}"
            raise ConfigError(f"--models {name}: no such model; {hint}")
    if len(set(models)) != len(models):
        raise ConfigError(f"--models {','.join(models)}: names one model twice; --seeds N trains each N times")


def _check_groups(settings: Mapping[str, Any], models: tuple[str, ...]) -> None:
    """Every group and every key in it, before anything is prepared or trained."""
    known = (*models, "train")
    for name, group in settings.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"wanted prepare, {', '.join(known)}"
            raise ConfigError(f"--set {name}…: neither a compared model nor a group of settings; {hint}")
        if not isinstance(group, Mapping):
            raise ConfigError(f"--set {name}={group}: wanted a setting of it, such as {name}.dropout=0.5")
        training = group if name == "train" else group.get("train", {})
        if not isinstance(training, Mapping):
            raise ConfigError(f"--set {name}.train={training}: wanted a setting of it, such as {name}.train.lr=1e-3")
        if "max_seconds" in training:
            raise ConfigError(f"--set {name}…max_seconds: the budget is the same for all models; set --minutes")
        configs.load(OptimizationConfig, training, f"--set {name}.train" if name != "train" else "--set train")
        if name != "train":
            own = {key: value for key, value in group.items() if key != "train"}
            configs.load(registry.config_class(name), own, f"--set {name}")
