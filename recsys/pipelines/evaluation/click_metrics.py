"""How good click probabilities are: order (AUC, exact with ties, and its interval) and level (calibration, log loss).

    AUC = P(score of a positive > score of a negative) + P(equal) / 2

Papers: Hanley and McNeil 1982, Radiology 143 (AUC is the Mann-Whitney statistic); DeLong, DeLong and Clarke-Pearson
1988, Biometrics 44 (variance, also of differences over the same examples; each example counts as independent).
Needs numpy alone. Dims: N examples.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from recsys.models.protocols import Labels
from recsys.pipelines.evaluation.bootstrap import Floats, Interval

_LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from what happened.

    Attributes:
        ratio: mean probability / share of positives; 1 is right.
        error: mean of |mean probability - share of positives| over bins of equal size, weighted by their examples.
    """

    ratio: float
    error: float


def auc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The chance that a positive stands above a negative, of scores (N,) and labels (N,) of 0 and 1; ties count half.

    Raises:
        ValueError: shapes differ, a score is NaN, a label is neither, or only one kind of label is there.
    """
    values, is_positive = _checked(scores, labels)
    positives = int(is_positive.sum())
    ranks = _mid_ranks(values)[is_positive].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * (len(values) - positives)))


def auc_interval(scores: npt.ArrayLike, labels: npt.ArrayLike, *, level: float = 0.95) -> Interval:
    """AUC, and its interval by DeLong's variance.

    Raises:
        ValueError: as `auc`, or a level outside (0, 1).
    """
    values, is_positive = _checked(scores, labels)
    of_positives, of_negatives = _placements(values, is_positive)
    return _interval(of_positives, of_negatives, level)


def auc_difference(
    ours: npt.ArrayLike, theirs: npt.ArrayLike, labels: npt.ArrayLike, *, level: float = 0.95
) -> Interval:
    """AUC of ours - theirs over the same examples (N,), and its paired interval by DeLong's variance.

    Raises:
        ValueError: as `auc_interval`.
    """
    of_ours, of_theirs = (_placements(*_checked(scores, labels)) for scores in (ours, theirs))
    return _interval(of_ours[0] - of_theirs[0], of_ours[1] - of_theirs[1], level)


def log_loss(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean of -log of the probability (N,) that was given to what happened.

    Raises:
        ValueError: as `auc`.
    """
    values, is_positive = _checked(probabilities, labels)
    given = np.where(is_positive, values, 1 - values)
    return float(-np.log(np.maximum(given, _LEAST_PROBABILITY)).mean())


def calibration(probabilities: npt.ArrayLike, labels: npt.ArrayLike, kind: Labels, *, bins: int = 20) -> Calibration:
    """Whether probabilities (N,) are those of clicks.

    Raises:
        ValueError: the labels are `sampled`: where negatives were drawn there is no click probability; or as `auc`.
    """
    if kind != "impression":
        raise ValueError(
            f"labels are {kind!r}: negatives were drawn, so there is no click probability to be calibrated; wanted "
            "labels 'impression'. Use auc, or log what was shown"
        )
    values, is_positive = _checked(probabilities, labels)
    order = np.argsort(values, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    error = sum(len(part) * abs(values[part].mean() - is_positive[part].mean()) for part in parts) / len(values)
    return Calibration(ratio=float(values.mean() / is_positive.mean()), error=float(error))


def _checked(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.bool_]]:
    values, given = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if values.ndim != 1 or values.shape != given.shape:
        raise ValueError(f"scores has shape {values.shape}, labels {given.shape}; wanted (N,) both")
    if np.isnan(values).any():
        raise ValueError("scores holds NaN; wanted numbers that can be ordered")
    is_positive = given == 1
    if not (is_positive | (given == 0)).all():
        raise ValueError("labels holds other values than 0 and 1")
    if is_positive.all() or not is_positive.any():
        raise ValueError(f"{len(values)} labels are all of one kind; wanted at least one 0 and one 1")
    return values, is_positive


def _mid_ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def _placements(values: Floats, is_positive: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Of each positive the share of negatives below it, of each negative the share of positives above it."""
    ranks, positives, negatives = _mid_ranks(values), values[is_positive], values[~is_positive]
    below = (ranks[is_positive] - _mid_ranks(positives)) / len(negatives)
    above = 1 - (ranks[~is_positive] - _mid_ranks(negatives)) / len(positives)
    return below, above


def _interval(of_positives: Floats, of_negatives: Floats, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level={level}: wanted a share between 0 and 1")
    variance = sum(_variance_of_mean(part) for part in (of_positives, of_negatives))
    mean, half = float(of_positives.mean()), NormalDist().inv_cdf((1 + level) / 2) * float(np.sqrt(variance))
    return Interval(mean=mean, low=mean - half, high=mean + half)


def _variance_of_mean(values: Floats) -> float:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0
