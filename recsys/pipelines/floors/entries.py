"""What is wrong with the content of a floors.json or floors.partial.json that is JSON; None where nothing is."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from recsys import config as configs
from recsys.errors import ConfigError
from recsys.models.floors import BlendConfig, EaseConfig, ItemKNNConfig, RecentConfig, TransitionConfig
from recsys.pipelines.floors.families import FAMILIES

_CONFIGS = {
    "recent-popularity": RecentConfig,
    "transition-knn": TransitionConfig,
    "item-knn": ItemKNNConfig,
    "ease": EaseConfig,
    "blend": BlendConfig,
}
_TOLD = ("hr@10", "ndcg@10", "mrr@10")  # what is printed of each family


def fault_of_trials(trials: Any, words: Iterable[str] = ()) -> str | None:
    """The first fault of a list of trials; words: entries that are text, beside those that every trial has."""
    if not isinstance(trials, list):
        return "trials: wanted a list"
    for place, trial in enumerate(trials):
        if not isinstance(trial, dict):
            return f"trials[{place}]: wanted an object"
        right = {
            "family": trial.get("family") in FAMILIES,
            "settings": isinstance(trial.get("settings"), dict),
            "n": isinstance(trial.get("n"), int) and trial["n"] > 0,
            "ndcg@10": _is_share(trial.get("ndcg@10")),
            "seconds": _is_number(trial.get("seconds")) and trial["seconds"] >= 0,
            **{word: isinstance(trial.get(word), str) for word in words},
        }
        wrong = [name for name, is_right in right.items() if not is_right]
        if wrong:
            return f"trials[{place}].{wrong[0]}: {trial.get(wrong[0])!r}"
    return None


def fault_of_families(
    families: list[str], best: Mapping[str, Any], test: Mapping[str, Any], differences: Mapping[str, Any]
) -> str | None:
    """The first fault of the families, of what is best of each, and of their figures."""
    if not families or len(set(families)) != len(families) or not set(families) <= set(FAMILIES):
        return f"families: {families}, wanted some of {', '.join(FAMILIES)}"
    if set(best) != set(families) or set(test) != set(families) or not set(differences) <= set(families):
        return "best, test and differences: wanted an entry for each of families, and no other"
    for family in families:
        if not _is_share(best[family].get("valid")):
            return f"best.{family}.valid: {best[family].get('valid')!r}"
        fault = _fault_of_settings(family, best[family].get("settings")) or _fault_of_figures(test[family])
        fault = fault or _fault_of_figures(differences.get(family, test[family]))
        if fault is not None:
            return f"{family}: {fault}"
    return None


def _fault_of_settings(family: str, settings: Any) -> str | None:
    if not isinstance(settings, dict):
        return f"settings: {settings!r}"
    if family not in _CONFIGS:
        return f"settings: {settings}, wanted none" if settings else None
    try:
        configs.load(_CONFIGS[family], settings)
    except ConfigError as error:
        return str(error)
    return None


def _fault_of_figures(figures: Mapping[str, Any]) -> str | None:
    for metric in (*_TOLD, *figures):
        figure = figures.get(metric)
        if not isinstance(figure, dict) or not all(_is_number(figure.get(name)) for name in ("mean", "low", "high")):
            return f"{metric}: {figure!r}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1
