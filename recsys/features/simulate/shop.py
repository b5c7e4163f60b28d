"""World S, the shop: logs whose truth is known, as files.

    world/interactions.parquet   user_id, item_id, timestamp, event_type
    world/items.parquet          item_id, title, category, price, available_from, available_until
    world/world.yaml             the effective knobs
    world/truth/*.npy            tables, hidden states and true probabilities (docs/shop.md)

The same config gives the same bytes. Dims: U users, E events, V items.
"""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys import config as configuration
from recsys.errors import DataError
from recsys.features.simulate.shop_config import PERIOD_DAYS, ShopConfig
from recsys.features.simulate.shop_truth import event_terms, seen_mass
from recsys.features.simulate.shop_walk import DAY_US, START_US, ShopEvents, walk
from recsys.features.simulate.shop_words import CATEGORIES, PRICES, STYLES
from recsys.features.simulate.shop_world import ShopWorld
from recsys.files import replace_folder, storage_errors

__all__ = ["ShopConfig", "simulate"]

FORMAT, FORMAT_VERSION = "recsys-shop", 1
_MIDDLE_PRICE = 20.0


def simulate(config: ShopConfig, out: Path, say: Callable[[str], None] | None = None) -> Path:
    """Simulate the shop and write it to the folder `out`; an older world there is replaced at the end.

    Args:
        config: the knobs.
        out: the folder to write.
        say: told one line when done.

    Returns:
        `out`.

    Raises:
        DataError: something that is no simulated shop stands at `out`, or it cannot be written.
        StorageError: the disk is full or failed; an older world there is kept.
    """
    out, began = Path(out).absolute(), time.perf_counter()
    _refuse_foreign(out)
    world = ShopWorld.draw(config)
    events = walk(world, np.arange(config.users))
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with storage_errors(out, "free space or name another folder"):
            _write(work, world, events)
            replace_folder(out, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if say is not None:
        seconds = time.perf_counter() - began
        say(f"{out}: {config.users:,} users, {config.items:,} items, {len(events.items):,} events in {seconds:.1f} s")
    return out


def _refuse_foreign(out: Path) -> None:
    """Only a world that `simulate` wrote, or an empty folder, may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    header = out / "world.yaml"
    if not header.is_file() or configuration.read(header).get("format") != FORMAT:
        raise DataError(f"{out}: is no simulated shop and will not be replaced; name an empty or new folder")


def _write(folder: Path, world: ShopWorld, events: ShopEvents) -> None:
    truth = folder / "truth"
    truth.mkdir(parents=True)
    user_ids = np.array([f"user-{number:06d}" for number in range(world.config.users)])
    item_ids = _item_ids(world)
    _write_interactions(folder / "interactions.parquet", events, user_ids, item_ids)
    _write_items(folder / "items.parquet", world, item_ids)
    terms = event_terms(world, events)
    seen = seen_mass(world, events)
    arrays: dict[str, npt.NDArray[Any]] = {
        **{f"world_{name}": getattr(world, name) for name in world.table_names()},
        **{f"events_{name}": getattr(events, name) for name in ("users", "offsets", "times", "items", "recent")},
        "events_intents": events.intents.astype(np.int16),
        "events_terms": terms,
        "events_seen_mass": seen,
        "events_probability": terms.sum(1) / (1.0 - seen),
        "user_ids": user_ids.astype("S"),
        "item_ids": item_ids.astype("S"),
    }
    for name, array in arrays.items():
        np.save(truth / f"{name}.npy", array)
    _write_header(folder / "world.yaml", world.config)


def _item_ids(world: ShopWorld) -> npt.NDArray[np.str_]:
    """Ids that tell nothing: numbered in an order of their own."""
    shuffled = np.random.default_rng([world.config.seed, 1]).permutation(world.config.items)
    return np.array([f"item-{number:06d}" for number in shuffled])


def _write_interactions(
    path: Path, events: ShopEvents, user_ids: npt.NDArray[np.str_], item_ids: npt.NDArray[np.str_]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    order = np.lexsort((events.user_of_event, events.times))
    columns = {
        "user_id": pa.array(user_ids[events.user_of_event[order]]),
        "item_id": pa.array(item_ids[events.items[order]]),
        "timestamp": pa.array(events.times[order], type=pa.timestamp("us", tz="UTC")),
        "event_type": pa.array(np.full(len(order), "click")),
    }
    pq.write_table(pa.table(columns), path)


def _write_items(path: Path, world: ShopWorld, item_ids: npt.NDArray[np.str_]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    first, last = _shelf_life(world)
    rng = np.random.default_rng([world.config.seed, 2])
    spread = np.exp(rng.normal(0, 0.15, world.config.items))
    base = np.exp(rng.normal(0, 0.5, world.config.categories))[world.category]
    time_type = pa.timestamp("us", tz="UTC")
    columns = {
        "item_id": pa.array(item_ids),
        "title": pa.array(_titles(world, rng)),
        "category": pa.array([list(CATEGORIES)[number] for number in world.category]),
        "price": pa.array(np.round(_MIDDLE_PRICE * base * 2.2**world.price * spread, 2)),
        "available_from": pa.array(START_US + first * PERIOD_DAYS * DAY_US, type=time_type),
        "available_until": pa.array(
            START_US + (last + 1) * PERIOD_DAYS * DAY_US, type=time_type, mask=last == world.config.periods - 1
        ),
    }
    pq.write_table(pa.table(columns), path)


def _shelf_life(world: ShopWorld) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First and last period of each item on the shelf, (V,) each."""
    on_shelf = world.is_on_shelf
    return on_shelf.argmax(0), len(on_shelf) - 1 - on_shelf[::-1].argmax(0)


def _titles(world: ShopWorld, rng: np.random.Generator) -> list[str]:
    """Price word, style word and noun, each one of a few that mean the same."""
    groups = ((PRICES, world.price), (STYLES, world.style), (CATEGORIES, world.category))
    words = []
    for vocabulary, values in groups:
        choices = list(vocabulary.values())
        pick = rng.random(len(values))
        words.append([choices[v][int(u * len(choices[v]))] for v, u in zip(values, pick, strict=True)])
    return [" ".join(parts) for parts in zip(*words, strict=True)]


def _write_header(path: Path, config: ShopConfig) -> None:
    import yaml

    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "config": configuration.dump(config)}
    path.write_text(yaml.safe_dump(header, sort_keys=False), encoding="utf-8")
