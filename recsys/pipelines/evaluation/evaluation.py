"""What an evaluation found: figures with intervals, as data, as JSON and as tables.

Dims: N queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.pipelines.evaluation.bootstrap import Interval, MeanAlone
from recsys.pipelines.evaluation.slices import SliceReport

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """What each scorer reached on one split.

    metrics: scorer -> metric ("ndcg@10") -> interval. differences: scorer -> metric -> paired difference against
    `best_floor`, absent where there is no floor. reachable: share of targets that any scorer could have ranked.
    by_user: "known" (users with training events) and "new" -> {"n": queries, scorer: {metric: mean}}. lists: scorer ->
    figures of its lists of `list_k` items, empty where none were asked for. slices: empty where none were asked for.
    ranking: `full-rank`, or the name of the sample. values: scorer -> metric -> (N,), one number a query, in the order
    of the split's queries, for paired comparisons; not in `to_dict`.
    """

    protocol: str
    split: str
    seen: str
    n: int
    num_targets: int
    reachable: float
    cold_users: int
    cold_targets: int
    repeated_targets: int
    metrics: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Interval]]
    floors: list[str]
    best_floor: str | None
    oracle: str | None
    by_user: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    ranking: str = "full-rank"
    lists: dict[str, dict[str, float | None]] = field(default_factory=dict)
    list_k: int = 10
    diversity_of: str | None = None
    slices: SliceReport = field(default_factory=SliceReport)
    values: dict[str, dict[str, Floats]] = field(default_factory=dict, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: dicts, lists, strings and numbers."""
        plain = {name.name: _plain(getattr(self, name.name)) for name in fields(self) if name.name != "values"}
        return {**plain, "slices": plain["slices"]["slices"], "slices_absent": plain["slices"]["absent"]}

    @property
    def headline(self) -> tuple[str, ...]:
        """HR, NDCG and MRR at 10 (at the last k where 10 was not asked for); Recall and MAP where they say more."""
        names = list(next(iter(self.metrics.values())))
        k = "10" if "ndcg@10" in names else names[-1].partition("@")[2]
        more = ("recall", "map") if self.num_targets > self.n else ()
        return tuple(f"{name}@{k}" for name in ("hr", "ndcg", "mrr", *more))

    def table(self, names: Sequence[str] | None = None) -> list[dict[str, str]]:
        """One row a scorer, as text: name, kind, each metric with its interval, the difference to the best floor.

        Sampled figures carry the sample in the name of every column.
        """
        return [self._row(scorer, self.headline if names is None else names) for scorer in self.metrics]

    def list_table(self) -> list[dict[str, str]]:
        """One row a scorer, as text: the figures of its lists."""
        return [
            {"scorer": scorer} | {f"{name}@{self.list_k}": _text(value) for name, value in figures.items()}
            for scorer, figures in self.lists.items()
        ]

    def slice_table(self) -> list[dict[str, str]]:
        """One row a slice, as text: what cuts, the slice, its queries, and NDCG with its interval of every scorer."""
        return self.slices.rows(self.headline[1])

    def _row(self, scorer: str, names: Sequence[str]) -> dict[str, str]:
        kind = "floor" if scorer in self.floors else "oracle" if scorer == self.oracle else "model"
        label = "" if self.ranking == "full-rank" else f"{self.ranking} "
        row = {"scorer": scorer, "kind": kind}
        row |= {f"{label}{name}": str(self.metrics[scorer][name]) for name in names}
        if scorer in self.differences:
            last = next((name for name in names if name.startswith("ndcg@")), names[-1])
            difference = self.differences[scorer][last]
            row[f"{label}{last} - {self.best_floor}"] = (
                f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
            )
        return row


def _plain(value: Any) -> Any:
    if isinstance(value, Interval | MeanAlone | SliceReport):
        return {name.name: _plain(getattr(value, name.name)) for name in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if value < 100 else f"{value:.1f}"
