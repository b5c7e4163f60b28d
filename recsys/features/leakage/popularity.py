"""Counts that a model, a floor or a bundle holds: do they count the training part alone?"""

from pathlib import Path

import numpy as np

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.features.leakage.blocks import blocks
from recsys.features.leakage.leak import Leak
from recsys.features.slices import Int64s
from recsys.features.vocabulary import Vocabulary


def part_counts(dataset: PreparedDataset, since_us: int | None = None) -> Int64s:
    """Events of each item in training, validation and test part, (3, V+1) int64; `since_us`: from that time on.

    Raises:
        ValueError: `since_us` without times.
    """
    width = dataset.num_items + 1
    counts = np.zeros(3 * width, np.int64)
    for block in blocks(dataset):
        keys = block.parts() * np.int64(width) + block.items
        if since_us is not None:
            if block.times is None:
                raise ValueError(f"since_us={since_us}: the dataset has no times")
            keys = keys[block.times >= since_us]
        counts += np.bincount(keys, minlength=3 * width)
    return counts.reshape(3, width)


def check_counts(
    dataset: PreparedDataset, counts: np.ndarray, where: str, *, since_us: int | None = None
) -> list[Leak]:
    """Counts of events by item that are not those of the training part: `popularity from test`.

    Args:
        dataset: whose training part they must count.
        counts: (V+1,) of any number type.
        where: what holds them, such as `popularity.npy`.
        since_us: they count the training events from this time on alone (recent popularity).

    Raises:
        ValueError: `since_us` without times.
    """
    if counts.shape != (dataset.num_items + 1,):
        example = f"shape {counts.shape}, wanted ({dataset.num_items + 1},)"
        return [Leak("vocabulary from test", f"{where} counts other items than the dataset has", 1, example)]
    parts = part_counts(dataset, since_us)
    is_wrong = counts != parts[0]  # what is not finite is wrong too
    if not is_wrong.any():
        return []
    item = int(np.flatnonzero(is_wrong)[0])
    example = f"item index {item}: {counts[item]} instead of {parts[0, item]}"
    what = _what(counts, parts)
    is_less = since_us is None and bool((np.isfinite(counts) & (counts <= parts[0])).all())
    name = "another popularity" if is_less else "popularity from test"
    return [Leak(name, f"{where} counts {what}", int(is_wrong.sum()), example)]


def check_bundle(dataset: PreparedDataset, folder: Path) -> list[Leak]:
    """What a bundle folder knows of the dataset's future: its counts, its items, and the data it was trained on.

    Names: `popularity from test`, `vocabulary from test` where its items are not the dataset's. numpy alone: the
    weights are not read.

    Raises:
        DataError: a file of the bundle is missing or damaged.
    """
    path = folder / "popularity.npy"
    try:
        counts = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: missing or damaged ({error}); export the bundle again") from error
    return check_counts(dataset, counts, path.name) + check_vocabulary(
        dataset, Vocabulary.load(folder / "vocabulary", "items")
    )


def check_vocabulary(dataset: PreparedDataset, items: Vocabulary) -> list[Leak]:
    """Items of a bundle that are not the dataset's, index by index: `vocabulary from test`."""
    mine, theirs = dataset.items, items
    is_same = len(mine) == len(theirs) and mine.kind == theirs.kind
    is_same = is_same and np.array_equal(mine.offsets, theirs.offsets) and np.array_equal(mine.data, theirs.data)
    if is_same:
        return []
    shorter = min(len(mine), len(theirs))
    pairs = zip(mine.decode(np.arange(1, shorter + 1)), theirs.decode(np.arange(1, shorter + 1)), strict=True)
    differing = [n for n, (ours, other) in enumerate(pairs, start=1) if ours != other]
    count = len(differing) + abs(len(mine) - len(theirs))
    place = differing[0] if differing else shorter + 1
    where = f"the bundle's {len(theirs):,} items are not the {len(mine):,} of the dataset"
    return [Leak("vocabulary from test", where, max(count, 1), f"item index {place}")]


def _what(counts: np.ndarray, parts: Int64s) -> str:
    known = {"training and validation part": parts[0] + parts[1], "all events": parts.sum(0)}
    known["the training and test part"] = parts[0] + parts[2]
    known["the test part"] = parts[2]
    return next(
        (f"{name}, not the training part" for name, one in known.items() if np.array_equal(counts, one)),
        "other events than the training part",
    )
