"""What collisions cost: a click model on ML-1M, ids hashed into smaller spaces, beside a table without collisions.

    RECSYS_DATA=FOLDER python -m benchmarks.collision_quality [--seeds 10] [--out runs/collision_quality]

DeepFM of user, item and the last five items. Users, items and items of the history are hashed into spaces of ids / x
rows each, x in .06, .17, .76, 2, 10; x = .001 stands beside them as a control, since there next to nothing is lost. Of
each seed all runs have the same network, examples and order; a hashed run is paired with the seed's run without
collisions. AUC on the last tenth of each user's events, one unseen item drawn beside each (labels `sampled`, positional
split).

Settings were chosen on the tenth before (--held-out validation), by the table without collisions. Runs that stand in
--out are not done again. The slope is that of a line through the origin, which is the paired run itself; intervals are
bootstrapped over seeds.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.support.done_runs import DoneRuns
from benchmarks.support.interaction_sets import data_folder
from benchmarks.support.movie_clicks import MovieClicks, in_batches, read_movie_clicks
from benchmarks.support.number_arguments import MOST_THREADS, real, whole
from benchmarks.support.record import RESULTS, append
from recsys.features.click_batch import ClickBatch
from recsys.kernels.row_pages import RowOptimizer
from recsys.models.deepfm import DeepFM, DeepFMConfig, Field
from recsys.models.embedding_table import CollisionlessEmbedding, TableConfig
from recsys.models.hashed_embedding import HashedEmbedding, lost_share, rows_of
from recsys.pipelines.evaluation.bootstrap import Interval, mean_interval
from recsys.pipelines.evaluation.click_metrics import auc, auc_interval

FILE = "collision_quality"
CONTROL = 0.001
DOSES = (0.06, 0.17, 0.76, 2.0, 10.0)
HISTORY = 5
OPTIMIZER = RowOptimizer("adagrad")
INIT_STD = 0.01
MODEL = DeepFMConfig(
    fields=(Field(name="user"), Field(name="item"), Field(name="history", length=HISTORY)),
    width=16,
    hidden=(64, 32),
    labels="sampled",
)
SETTINGS = {"epochs": 2, "batch": 4096, "table_lr": 0.1, "dense_lr": 1e-3}
RANGES = {"epochs": whole(1, 10_000), "batch": whole(), "table_lr": real(1e-9, 1e3), "dense_lr": real(1e-9, 1e3)}


def measure(key: Mapping[str, Any], clicks: MovieClicks) -> dict[str, Any]:
    """One run: trained, then its AUC; of a hashed one the shares of ids without a row of their own."""
    began = time.perf_counter()
    ids = {"user": np.unique(clicks.users), "item": np.unique(clicks.items), "history": np.unique(clicks.items)}
    spaces = {name: max(1, round(len(found) / key["x"])) if key["x"] else None for name, found in ids.items()}
    tables = {name: table(rows, key["seed"], number) for number, (name, rows) in enumerate(spaces.items())}
    model = DeepFM(MODEL, tables, seed=key["seed"])
    fit(model, clicks, key)
    test = clicks.test()
    scores = predicted(model, test)
    assert test.labels is not None
    lost = {
        name: 1 - len(torch.unique(rows_of(torch.from_numpy(found), rows, hash_seed(key["seed"], number)))) / len(found)
        for number, ((name, found), rows) in enumerate(zip(ids.items(), spaces.values(), strict=True))
        if rows is not None
    }
    return {
        "auc": auc(scores, test.labels.numpy()),
        "lost": lost,
        "rows": spaces,
        "bytes": sum(found["bytes"] for found in model.gauges().values()),
        "seconds": round(time.perf_counter() - began, 1),
    }


def table(rows: int | None, seed: int, number: int) -> nn.Module:
    """A table of so many rows, or one without collisions."""
    if rows is None:
        config = TableConfig(
            width=MODEL.row_width, optimizer=OPTIMIZER, init_std=INIT_STD, seed=hash_seed(seed, number)
        )
        return CollisionlessEmbedding(config, page_rows=1024)
    drawn = hash_seed(seed, number)
    return HashedEmbedding(MODEL.row_width, rows, OPTIMIZER, init_std=INIT_STD, seed=drawn)


def hash_seed(seed: int, number: int) -> int:
    """Of a space's hash."""
    return 1000 * seed + number


def fit(model: DeepFM, clicks: MovieClicks, key: Mapping[str, Any]) -> None:
    """Train, by examples and in an order that the seed alone says."""
    model.train()
    adam = torch.optim.Adam(model.dense_parameters(), lr=key["dense_lr"])
    for epoch in range(key["epochs"]):
        for batch in in_batches(clicks.epoch(key["seed"], epoch), key["batch"]):
            adam.zero_grad()
            torch.autograd.backward(model.loss(batch))
            adam.step()
            model.step_tables(key["table_lr"])


def predicted(model: DeepFM, batch: ClickBatch) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """(N,) probabilities."""
    model.eval()
    return torch.cat([model.predict(part) for part in in_batches(batch, 65_536)]).numpy()


def slope(doses: Sequence[float], differences: Sequence[float]) -> float:
    """Of the line through the origin with the least squares."""
    x, y = np.array(doses), np.array(differences)
    return float((x * y).sum() / (x * x).sum())


def summary(rows: Sequence[dict[str, Any]], seeds: int) -> dict[str, Any]:
    """Of each dose AUC, its difference to the paired runs, and lost shares; and the slopes."""
    of = {(row["key"]["x"], row["key"]["seed"]): row for row in rows}
    doses = sorted({x for x, _ in of if x})
    found: dict[str, Any] = {
        "collisionless": asdict(over_seeds([of[None, s]["auc"] for s in range(seeds)])),
        "doses": [],
    }
    differences = {x: [of[x, s]["auc"] - of[None, s]["auc"] for s in range(seeds)] for x in doses}
    for x in doses:
        observed = [[of[x, s]["lost"][name] for s in range(seeds)] for name in ("user", "item")]
        found["doses"].append(
            {
                "x": x,
                "lost": lost_share(x),
                "lost_users": asdict(over_seeds(observed[0])),
                "lost_items": asdict(over_seeds(observed[1])),
                "auc": asdict(over_seeds([of[x, s]["auc"] for s in range(seeds)])),
                "difference": asdict(over_seeds(differences[x])),
                "seeds_below": sum(each < 0 for each in differences[x]),
            }
        )
    fitted = [x for x in doses if x != CONTROL]
    if not fitted:
        return found
    for name, scale in (("slope_by_lost_share", lost_share), ("slope_by_x", float)):
        each = [slope([scale(x) for x in fitted], [differences[x][s] for x in fitted]) for s in range(seeds)]
        found[name] = asdict(over_seeds(each))
    return found


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean, with its interval."""
    return mean_interval(np.array(values))


def markdown(found: Mapping[str, Any]) -> str:
    """The table of docs/results.md."""
    lines = [
        "| ids / rows | ids that lost their row: theory, users, items | AUC | difference, paired | seeds below |",
        "|---|---|---|---|---|",
        f"| no collisions | 0 | {_interval(found['collisionless'])} | | |",
    ]
    for dose in found["doses"]:
        lost = f"{dose['lost']:.2%}, {dose['lost_users']['mean']:.2%}, {dose['lost_items']['mean']:.2%}"
        name = f"{dose['x']:g}" + (" (control)" if dose["x"] == CONTROL else "")
        cells = (name, lost, _interval(dose["auc"]), _interval(dose["difference"], "+"), str(dose["seeds_below"]))
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"| popularity | | {_interval(found['popularity'])} | | |")
    if "slope_by_x" not in found:
        return "\n".join(lines)
    slopes = (_interval(found[name], "+") for name in ("slope_by_lost_share", "slope_by_x"))
    return "\n".join([*lines, "", "Slope of the difference by the lost share {}, by ids / rows {}.".format(*slopes)])


def _interval(figures: Mapping[str, float], sign: str = "") -> str:
    return "{:{s}.4f} [{:{s}.4f}, {:{s}.4f}]".format(*(figures[part] for part in ("mean", "low", "high")), s=sign)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the runs that are missing, print the table, append it to results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=whole(1, 10_000), default=10)
    parser.add_argument("--doses", type=real(CONTROL, 1e6), nargs="*", default=[CONTROL, *DOSES])
    parser.add_argument("--held-out", choices=("test", "validation"), default="test")
    parser.add_argument(
        "--threads", type=whole(1, MOST_THREADS), default=1, help="of torch; more wait for each other on a busy machine"
    )
    parser.add_argument("--users", type=whole(2), help="the first so many alone")
    parser.add_argument("--out", type=Path, default=Path("runs") / FILE)
    parser.add_argument("--results", type=Path, default=RESULTS)
    for name, value in SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=RANGES[name], default=value)
    options = parser.parse_args(arguments)
    settings = {name: getattr(options, name) for name in SETTINGS} | {"held_out": options.held_out}
    settings |= {"users": options.users, "threads": options.threads}
    torch.set_num_threads(options.threads)
    file = data_folder() / "ml-1m" / "sequences.parquet"
    try:
        clicks = read_movie_clicks(file, history=HISTORY, held_out=options.held_out, num_users=options.users)
    except ValueError as error:
        parser.error(f"argument --users: {error}")
    keys = [{"x": x, "seed": seed, **settings} for seed in range(options.seeds) for x in (None, *options.doses)]
    rows = DoneRuns(options.out / "runs.jsonl").all_of(keys, partial(measure, clicks=clicks))
    test = clicks.test()
    assert test.labels is not None
    found = {
        "settings": settings | {"seeds": options.seeds, "width": MODEL.width, "hidden": list(MODEL.hidden)},
        "protocol": f"positional/{options.held_out}: a tenth of each user's events, 1 unseen item drawn beside each",
        "labels": MODEL.labels,
        "n": {"users": clicks.num_users, "items": clicks.num_items, "train": 2 * int(clicks.is_trained.sum())},
        "test": len(test),
        "popularity": asdict(auc_interval(clicks.popularity(test.ids[:, 1].numpy()), test.labels.numpy())),
        **summary(rows, options.seeds),
        "seconds": round(sum(row["seconds"] for row in rows)),
        "runs_of_commits": sorted({row["commit"] for row in rows}),
    }
    print(markdown(found))
    append(FILE, found, options.results)


if __name__ == "__main__":
    main()
