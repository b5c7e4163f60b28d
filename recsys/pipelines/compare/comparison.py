"""What a comparison found, as values, as a table and as words."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from recsys.pipelines.compare.cost import Cost
from recsys.pipelines.evaluation.bootstrap import Interval

Kind = Literal["floor", "model", "oracle"]


@dataclass(frozen=True)
class Contender:
    """One scorer.

    ndcg, hr: at 10, on the test part, 95 %. to_best: paired difference of NDCG@10 to the best scorer, to_floor: to the
    best floor; None for itself, and for the oracle against the best. training_s: of one run; of a floor its counting.
    """

    name: str
    kind: Kind
    ndcg: Interval
    hr: Interval
    to_best: Interval | None
    to_floor: Interval | None
    cost: Cost | None
    training_s: float | None
    runs: int = 1
    bundle: str | None = None


@dataclass(frozen=True)
class Advice:
    """take: the simplest scorer that is not worse than the best beyond the noise. text: why, a sentence each."""

    take: str
    text: tuple[str, ...]
    is_telling: bool  # False: the data is too small to tell the scorers apart


@dataclass(frozen=True)
class Comparison:
    """All contenders, the best first; floors and models by NDCG@10, then the oracle."""

    protocol: str
    num_questions: int
    reachable: float
    contenders: tuple[Contender, ...]
    best: str
    best_floor: str
    advice: Advice
    minutes: float
    floors_tuned_s: float
    floors_note: str
    settings: dict[str, Any]

    def of(self, name: str) -> Contender:
        """The contender of this name."""
        return next(contender for contender in self.contenders if contender.name == name)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: dicts, lists, strings and numbers."""
        return asdict(self)

    def table(self) -> list[dict[str, str]]:
        """One row a contender, as text."""
        return [self._row(contender) for contender in self.contenders]

    def _row(self, one: Contender) -> dict[str, str]:
        cost = one.cost
        row = {
            "scorer": one.name if one.runs == 1 else f"{one.name} ({one.runs} runs)",
            "NDCG@10": interval_text(one.ndcg),
            "HR@10": f"{one.hr.mean:.4f}",
            f"- {self.best}": difference_text(one.to_best),
        }
        if self.best_floor != self.best:
            row[f"- {self.best_floor}"] = difference_text(one.to_floor)
        return row | {
            "parameters": "" if cost is None else f"{cost.parameters:,}",
            "size": "" if cost is None else size_text(cost.size_bytes),
            "ms (p99)": "" if cost is None else f"{cost.median_ms:.2f} ({cost.p99_ms:.2f})",
            "training": "" if one.training_s is None else seconds_text(one.training_s),
        }


def seconds_text(seconds: float) -> str:
    """0.13 s, 90.6 s"""
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:,.1f} s"


def interval_text(interval: Interval) -> str:
    """0.1578 [0.1155, 0.2064]"""
    return f"{interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def difference_text(interval: Interval | None) -> str:
    """-0.0150 [-0.0566, +0.0245]; nothing for None."""
    return "" if interval is None else f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def size_text(size: float) -> str:
    """Bytes for people: 3.2 MB."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
