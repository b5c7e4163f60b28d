"""The table of `benchmarks.train_quality`."""

from collections.abc import Sequence
from typing import Any

from benchmarks.support.marked_part import markdown

MARK = "train-quality"
_COLUMNS = (
    "data",
    "model",
    "NDCG@10",
    "HR@10",
    "each seed, NDCG@10",
    "tuned floor",
    "difference",
    "ceiling",
    "parameters",
    "best epoch",
    "training, s",
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A markdown table: a line a configuration, from the finished runs of its newest settings and data.

    Args:
        rows: lines of train_quality.jsonl, oldest first.
    """
    if not rows:
        return "Nothing has been trained yet: `make train-quality`."
    newest = {row["name"]: _version(row) for row in rows}
    groups = {
        name: sorted((row for row in rows if (row["name"], _version(row)) == (name, version)), key=_seed)
        for name, version in newest.items()
    }
    return markdown(list(_COLUMNS), [_cells(group) for _, group in sorted(groups.items())])


def _version(row: dict[str, Any]) -> tuple[str, str]:
    return row["config_hash"], row["data_hash"]


def _seed(row: dict[str, Any]) -> int:
    return int(row["seed"])


def _cells(group: Sequence[dict[str, Any]]) -> list[str]:
    first = group[0]
    data, _, model = first["name"].partition("/")
    seeds = ", ".join(f"{row['test']['ndcg@10']['mean']:.4f}" for row in group)
    seconds = sum(row["train_s"] for row in group) / len(group)
    return [
        data,
        model,
        _interval(first["test"]["ndcg@10"]),
        _interval(first["test"]["hr@10"]),
        seeds,
        f"{first['floor']} {_interval(first['floor_test']['ndcg@10'])}",
        _interval(first["difference"]["ndcg@10"], "+"),
        f"{first['reachable']:.1%}",
        f"{first['parameters']:,}",
        f"{'-' if first['best_epoch'] is None else first['best_epoch'] + 1} of {first['epochs']}",
        f"{seconds:,.0f} ({first['machine']['gpu'] or _threads(first['threads'])})",
    ]


def _interval(figure: dict[str, float], sign: str = "") -> str:
    return f"{figure['mean']:{sign}.4f} [{figure['low']:{sign}.4f}, {figure['high']:{sign}.4f}]"


def _threads(number: int) -> str:
    return f"{number} thread{'' if number == 1 else 's'}"
