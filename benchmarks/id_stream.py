"""A stream of ever new ids: what expiry, admission and eviction cost in AUC and save in memory, beside hashed tables.

    python -m benchmarks.id_stream [--seeds 3] [--out runs/id_stream] [--picture docs/id-stream.svg]

A simulated world (benchmarks/support/id_world.py) of 40 days, 2,000 impressions an hour. DeepFM of user, item and topic
scores the impressions of an hour as it then stands, and is trained on them afterwards (progressive validation). AUC of
each day, bytes of the tables of users and items at its end, share of look-ups in scoring that found no row. Rows of a
hashed table are as many as fit the bytes that another variant had in the end. The ceiling is the world's own
probability, the floor the item's click rate so far.

Runs that stand in --out are not done again. Figures are of the second half of the days; intervals of a day are
DeLong's, those over days and seeds are bootstrapped over their pairs, each day's AUC less that of the unbounded table.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.support.done_runs import DoneRuns
from benchmarks.support.id_world import Floats, IdStream, IdWorldConfig, simulate
from benchmarks.support.number_arguments import MOST_THREADS, real, refuse_beyond_memory, whole
from benchmarks.support.record import RESULTS, append
from recsys.kernels.row_pages import RowOptimizer
from recsys.models.deepfm import DeepFM, DeepFMConfig, Field
from recsys.models.embedding_table import AdmissionConfig, CollisionlessEmbedding, TableConfig
from recsys.models.hashed_embedding import HashedEmbedding
from recsys.pipelines.evaluation.bootstrap import mean_interval
from recsys.pipelines.evaluation.click_metrics import auc_interval

FILE = "id_stream"
BASE = "unbounded"
SPACES = ("user", "item")  # those whose ids are ever new; there are 40 topics
MODEL = DeepFMConfig(fields=tuple(Field(name=name) for name in (*SPACES, "topic")), width=16, hidden=(64, 32))
OPTIMIZER = RowOptimizer("adagrad")
INIT_STD = 0.01
PAGE_ROWS = 1024
SETTINGS = {"table_lr": 0.1, "dense_lr": 1e-3, "ttl_days": 3.0, "threshold": 3}
RANGES = {
    "table_lr": real(1e-9, 1e3),
    "dense_lr": real(1e-9, 1e3),
    "ttl_days": real(1 / 24, 1e5),  # an hour: else a day may end without a row
    "threshold": whole(1, 1000),
}
EVENT_BYTES = 400  # of a simulated event
COUNTED = 20_000  # ids whose sightings are counted at a time, of each space


@dataclass(frozen=True)
class Variant:
    """How tables keep ids."""

    expires: bool = False
    admits: bool = False  # those that were seen `threshold` times
    lru_of: str | None = None  # as many rows as this variant had in the end
    hashed_of: str | None = None  # hashed, in as many bytes as this variant had in the end


VARIANTS = {
    BASE: Variant(),
    "expiry": Variant(expires=True),
    "admission": Variant(admits=True),
    "expiry and admission": Variant(expires=True, admits=True),
    "LRU, rows of expiry": Variant(lru_of="expiry"),
    "hashed, bytes of unbounded": Variant(hashed_of=BASE),
    "hashed, bytes of expiry": Variant(hashed_of="expiry"),
}
REFERENCES = ("ceiling: the world's probability", "floor: the item's click rate so far")


def measure(key: Mapping[str, Any], done: DoneRuns) -> dict[str, Any]:
    """A variant over one stream: AUC with interval, bytes, rows and unknown share of each day."""
    stream, began = world(IdWorldConfig(seed=key["seed"], **key["world"])), time.perf_counter()
    if key["variant"] in REFERENCES:
        scores = stream.truth if key["variant"] == REFERENCES[0] else click_rates(stream)
        return {"auc": by_day(scores, stream), "seconds": round(time.perf_counter() - began, 1)}
    variant = VARIANTS[key["variant"]]
    other = variant.lru_of or variant.hashed_of
    found = done.find({**key, "variant": other}) if other else None
    tables = {name: table(variant, key, name, number, found) for number, name in enumerate(MODEL.spaces)}
    scores, days = followed(DeepFM(MODEL, tables, seed=key["seed"]), stream, key)
    return {
        "auc": by_day(scores, stream),
        **days,
        "ids": {"user": stream.num_users, "item": stream.num_items},
        "seconds": round(time.perf_counter() - began, 1),
    }


@lru_cache(maxsize=1)
def world(config: IdWorldConfig) -> IdStream:
    """The stream, kept for the variants that follow."""
    return simulate(config)


def table(
    variant: Variant, key: Mapping[str, Any], space: str, number: int, other: Mapping[str, Any] | None
) -> nn.Module:
    """The table of a space; `other` is the row of the variant that it is as large as."""
    seed = 1000 * key["seed"] + number
    config = TableConfig(width=MODEL.row_width, optimizer=OPTIMIZER, init_std=INIT_STD, seed=seed)
    if space not in SPACES:
        return CollisionlessEmbedding(config, page_rows=64)
    if variant.hashed_of is not None:
        assert other is not None
        row_bytes = 4 * (MODEL.row_width + OPTIMIZER.state_width(MODEL.row_width))
        rows = other["bytes"][space][-1] // row_bytes
        return HashedEmbedding(MODEL.row_width, rows, OPTIMIZER, init_std=INIT_STD, seed=seed)
    if variant.lru_of is not None:
        assert other is not None
        config = replace(config, capacity=other["rows"][space][-1], eviction="lru")
    if variant.expires:
        config = replace(config, ttl_s=86_400 * key["ttl_days"])
    if variant.admits:
        config = replace(config, admission=AdmissionConfig("threshold", key["threshold"], capacity=COUNTED))
    return CollisionlessEmbedding(config, page_rows=PAGE_ROWS)


def followed(model: DeepFM, stream: IdStream, key: Mapping[str, Any]) -> tuple[Floats, dict[str, Any]]:
    """(E,) the probability that each impression was scored with, and bytes, rows and unknown share of each day."""
    adam = torch.optim.Adam(model.dense_parameters(), lr=key["dense_lr"])
    scores, unknown = np.empty(len(stream.truth)), 0.0
    days: dict[str, Any] = {"bytes": {s: [] for s in SPACES}, "rows": {s: [] for s in SPACES}, "unknown": []}
    for hour, (start, stop) in enumerate(zip(stream.hours, stream.hours[1:], strict=False), 1):
        batch = stream.batch[int(start) : int(stop)]
        model.eval()
        scores[start:stop] = model.predict(batch).numpy()
        model.train()
        adam.zero_grad()
        torch.autograd.backward(model.loss(batch))
        adam.step()
        model.step_tables(key["table_lr"])
        model.expire()
        if hour % 24 == 0:
            gauges = model.gauges()
            for space in SPACES:
                days["bytes"][space].append(int(gauges[space]["bytes"]))
                days["rows"][space].append(int(gauges[space]["size"]))
            so_far = sum(gauges[space].get("unknown", 0) for space in SPACES)
            days["unknown"].append((so_far - unknown) / (len(SPACES) * (stop - stream.hours[hour - 24])))
            unknown = so_far
    return scores, days


def click_rates(stream: IdStream, weight: float = 5.0) -> Floats:
    """(E,) each item's clicks by impressions before the hour, `weight` impressions at the mean rate added."""
    assert stream.batch.labels is not None
    _, items = np.unique(stream.batch.ids[:, 1].numpy(), return_inverse=True)
    labels = stream.batch.labels.numpy()
    shown, clicked = np.zeros(items.max() + 1), np.zeros(items.max() + 1)
    rates = np.empty(len(items))
    mean = labels.mean()
    for start, stop in zip(stream.hours, stream.hours[1:], strict=False):
        part = items[start:stop]
        rates[start:stop] = (clicked[part] + weight * mean) / (shown[part] + weight)
        np.add.at(shown, part, 1)
        np.add.at(clicked, part, labels[start:stop])
    return rates


def by_day(scores: Floats, stream: IdStream) -> list[dict[str, float]]:
    """AUC of each day with its interval."""
    assert stream.batch.labels is not None
    labels, starts = stream.batch.labels.numpy(), stream.hours[::24]
    return [asdict(auc_interval(scores[a:b], labels[a:b])) for a, b in zip(starts, starts[1:], strict=False)]


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each variant, over seeds and the second half of the days."""
    names = list(dict.fromkeys(row["key"]["variant"] for row in rows))
    late = {
        name: np.array([[day["mean"] for day in _late(row["auc"])] for row in rows if row["key"]["variant"] == name])
        for name in names
    }
    found = []
    for name in names:
        own = [row for row in rows if row["key"]["variant"] == name]
        line: dict[str, Any] = {"variant": name, "auc": float(late[name].mean())}
        if BASE in late and name != BASE:
            line["difference"] = asdict(mean_interval((late[name] - late[BASE]).ravel()))
        if "bytes" in own[0]:
            series = np.array([np.sum([row["bytes"][s] for s in SPACES], axis=0) for row in own]).mean(0)
            line |= {
                "mb": (series[[len(series) // 4 - 1, len(series) // 2 - 1, -1]] / 1e6).tolist(),
                "rows": float(np.mean([sum(row["rows"][s][-1] for s in SPACES) for row in own])),
                "unknown": float(np.mean([_late(row["unknown"]) for row in own])),
            }
        found.append(line)
    return found


def markdown(found: Sequence[Mapping[str, Any]], days: int) -> str:
    """The table of docs/results.md."""
    ends = ", ".join(str(day) for day in (days // 4, days // 2, days))
    lines = [
        f"| tables of users and items | AUC | less unbounded | MB after days {ends} | rows | look-ups unknown |",
        "|---|---|---|---|---|---|",
    ]
    for line in found:
        cells = [line["variant"], f"{line['auc']:.4f}", "", "", "", ""]
        if "difference" in line:
            cells[2] = "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**line["difference"])
        if "mb" in line:
            cells[3:] = [", ".join(f"{mb:.1f}" for mb in line["mb"]), f"{line['rows']:,.0f}", f"{line['unknown']:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], picture: Path) -> None:
    """AUC and bytes by day, of the first seed, in the format that the picture's name ends with."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5.2), constrained_layout=True)
    for row in rows:
        name = row["key"]["variant"]
        if row["key"]["seed"] != rows[0]["key"]["seed"]:
            continue
        days = np.arange(1, len(row["auc"]) + 1)
        style = {"color": "black"} if name in REFERENCES else {}
        style["linestyle"] = "--" if name.startswith(("floor", "hashed")) else "-"
        (curve,) = left.plot(days, [day["mean"] for day in row["auc"]], label=name, linewidth=1.2, **style)
        low, high = ([day[end] for day in row["auc"]] for end in ("low", "high"))
        left.fill_between(days, low, high, color=curve.get_color(), alpha=0.12, linewidth=0)
        if "bytes" in row:
            total = np.sum([row["bytes"][space] for space in SPACES], axis=0) / 1e6
            right.plot(days, total, linewidth=1.2, color=curve.get_color(), linestyle=curve.get_linestyle())
    left.set(xlabel="day", ylabel="AUC of the day")
    right.set(xlabel="day", ylabel="MB of users and items")
    figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    for ax in (left, right):
        ax.grid(visible=True, linewidth=0.3)
    figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)
    pyplot.close(figure)


def _late(values: Sequence[Any]) -> Sequence[Any]:
    return values[len(values) // 2 :]


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the runs that are missing, print the table, append it to results/, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=whole(1, 1000), default=3, help="worlds")
    parser.add_argument("--days", type=whole(4, 1000), default=IdWorldConfig.days)
    parser.add_argument("--events-an-hour", type=whole(10), default=IdWorldConfig.events_an_hour)
    parser.add_argument(
        "--threads", type=whole(1, MOST_THREADS), default=1, help="of torch; more wait for each other on a busy machine"
    )
    parser.add_argument("--out", type=Path, default=Path("runs") / FILE)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, help="where to draw; needs the extra tracking")
    for name, value in SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=RANGES[name], default=value)
    options = parser.parse_args(arguments)
    num_events = 24 * options.days * options.events_an_hour
    refuse_beyond_memory(parser, EVENT_BYTES * num_events, "--days and --events-an-hour")
    torch.set_num_threads(options.threads)
    settings = {name: getattr(options, name) for name in SETTINGS} | {"threads": options.threads}
    size = {"days": options.days, "events_an_hour": options.events_an_hour}
    keys = [
        {"variant": name, "seed": seed, "world": size, **settings}
        for seed in range(options.seeds)
        for name in (*REFERENCES, *VARIANTS)
    ]
    done = DoneRuns(options.out / "runs.jsonl")
    rows = done.all_of(keys, lambda key: measure(key, done))
    found = summary(rows)
    print(markdown(found, options.days))
    if options.picture is not None:
        draw(rows, options.picture)
    figures = {
        "settings": settings | size | {"seeds": options.seeds, "width": MODEL.width, "hidden": list(MODEL.hidden)},
        "protocol": "progressive/hourly: scored as the model stood, then trained on; the second half of the days",
        "labels": MODEL.labels,
        "ids": [row["ids"] for row in rows if row["key"]["variant"] == BASE],
        "variants": found,
        "seconds": round(sum(row["seconds"] for row in rows)),
        "runs_of_commits": sorted({row["commit"] for row in rows}),
    }
    append(FILE, figures, options.results)


if __name__ == "__main__":
    main()
