"""What the manifest tells beside the arrays: hashes, order, cuts, counts, parts and appends, held against them."""

from typing import Any

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.features.leakage.leak import Leak
from recsys.features.preparation.describe import describe_splits

NAME = "changed manifest"
COUNTED = {"lines", "good", "rejected", "rejected_by_reason", "events_read", "events"}
DECLARED_LEAKY = ("loo", "loo-novalid", "ratio")
FIRST_NEW = ("first_new_user_index", "first_new_item_index")


def check_untouched(dataset: PreparedDataset) -> list[Leak]:
    """Arrays or tables whose bytes are not those that were prepared: `changed bytes`.

    Reads all of them, about 0.3 s for 20 million events. Arrays have one hash in common: which of them has changed is
    not told; a table is named.
    """
    leaks = []
    found = dataset.found_hash()
    if found != dataset.data_hash:
        example = f"data hash {found}, wanted {dataset.data_hash}"
        leaks.append(Leak("changed bytes", "arrays that are not those that were prepared", 1, example))
    sides = dataset.changed_side_columns()
    if sides:
        leaks.append(Leak("changed bytes", "side columns that are not those that were prepared", len(sides), sides[0]))
    tables = dataset.changed_tables()
    if tables:
        leaks.append(Leak("changed bytes", "tables that are not those that were prepared", len(tables), tables[0]))
    return leaks


def check_told_order(dataset: PreparedDataset) -> list[Leak]:
    """An order that does not fit the arrays: `changed manifest`; cuts that no split by time has: `misplaced cut`."""
    leaks = []
    listed = [name for name in dataset.manifest["files"] if name.endswith("/times.npy")]
    times = sorted(dataset.path.glob("shards/*/times.npy"))  # on disk, whatever the manifest lists
    if dataset.order != "time" and times:
        where = f"order is {dataset.order}, and yet there are times"
        leaks.append(Leak(NAME, where, len(times), times[0].relative_to(dataset.path).as_posix()))
    if dataset.order == "time" and len(listed) != len(dataset.shards):
        where = f"order is time, but files lists the times of {len(listed)} shards"
        leaks.append(Leak(NAME, where, abs(len(dataset.shards) - len(listed)), "shards/*/times.npy"))
    cuts = dataset.manifest["cuts_us"]
    if dataset.protocol == "time" and (dataset.order != "time" or not _are_cuts(cuts)):
        example = f"order is {dataset.order}, cuts_us is {cuts}"
        leaks.append(Leak("misplaced cut", "a split by time without times, or without two ascending cuts", 1, example))
    return leaks


def check_told_appends(dataset: PreparedDataset) -> list[Leak]:
    """Appends whose first indices do not ascend, or with more late or superseded events than events.

    The name is `changed manifest`.
    """
    leaks = []
    last = dict.fromkeys(FIRST_NEW, 1)
    ends = dict(zip(FIRST_NEW, (dataset.num_users + 1, dataset.num_items + 1), strict=True))
    for number, append in enumerate(dataset.manifest.get("appends") or []):
        for name in FIRST_NEW:
            value = append.get(name)
            if not isinstance(value, int) or not last[name] <= value <= ends[name]:
                example = f"{name} is {value}, wanted {last[name]} to {ends[name]}"
                leaks.append(Leak(NAME, f"appends[{number}]", 1, example))
            else:
                last[name] = value
        late, events = append.get("late_events", 0), append.get("events", 0)
        if not 0 <= late <= events <= dataset.num_events:
            example = f"{late} late ones of {events} events, in a dataset of {dataset.num_events}"
            leaks.append(Leak(NAME, f"appends[{number}]", 1, example))
        superseded = append.get("superseded_events", 0)
        if not 0 <= superseded <= events:
            example = f"{superseded} events superseded by {events}"
            leaks.append(Leak(NAME, f"appends[{number}]", 1, example))
    return leaks


def check_told_facts(dataset: PreparedDataset) -> list[Leak]:
    """What the manifest tells of itself, of its report and of its ids, and is not so: `changed manifest`.

    Lines are good or rejected, each for a reason, and give at least as many events as are kept; the report declares
    what the protocol and the order declare; ids are of the kind that the vocabularies have. Older datasets tell less.
    """
    counts, report = dataset.manifest["counts"], dataset.manifest.get("leakage", {})
    ids = dataset.manifest.get("ids", {})
    facts: dict[str, tuple[Any, Any]] = {}
    if counts.keys() >= COUNTED:
        facts["counts.good + counts.rejected"] = (counts["good"] + counts["rejected"], counts["lines"])
        facts["counts.rejected"] = (counts["rejected"], sum(counts["rejected_by_reason"].values()))
        facts["counts.events"] = (counts["events"], min(counts["events"], counts["events_read"]))
    facts["leakage.declared_leaky"] = (report.get("declared_leaky"), dataset.protocol in DECLARED_LEAKY)
    facts["leakage.times_known"] = (report.get("times_known"), dataset.order == "time")
    facts["ids.users"], facts["ids.items"] = (
        (ids.get(name), vocabulary.kind) for name, vocabulary in (("users", dataset.users), ("items", dataset.items))
    )
    wrong = {name: pair for name, pair in facts.items() if pair[0] is not None and pair[0] != pair[1]}
    if not wrong:
        return []
    name, (told, found) = next(iter(wrong.items()))
    where = "facts of the manifest that do not agree with each other"
    return [Leak(NAME, where, len(wrong), f"{name} is {told}, the rest gives {found}")]


def check_told_counts(dataset: PreparedDataset) -> list[Leak]:
    """Counts and parts in the manifest other than the arrays give: `changed manifest`; `check_ids` counts items."""
    counts = dataset.manifest["counts"]
    found: dict[str, Any] = {
        "counts.events": sum(len(shard.items) for shard in dataset.shards),
        "counts.users": sum(len(shard.users) for shard in dataset.shards),
    }
    told: dict[str, Any] = {name: counts[name.removeprefix("counts.")] for name in found}
    if "splits" in dataset.manifest:
        found |= _flat(_splits(dataset))
        told |= _flat(dataset.manifest["splits"])
    wrong = [name for name in {**found, **told} if found.get(name) != told.get(name)]
    if not wrong:
        return []
    example = f"{wrong[0]} is {told.get(wrong[0])}, the arrays give {found.get(wrong[0])}"
    return [Leak(NAME, "counts of the manifest that the arrays do not give", len(wrong), example)]


def _are_cuts(cuts: Any) -> bool:
    is_pair = isinstance(cuts, list) and len(cuts) == 2 and all(isinstance(cut, int) for cut in cuts)
    return is_pair and cuts[0] <= cuts[1]


def _splits(dataset: PreparedDataset) -> dict[str, dict[str, Any]]:
    try:
        return describe_splits(dataset)
    except (DataError, IndexError, ValueError):  # nobody is asked, or an item is unknown
        return {}


def _flat(splits: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"splits.{split}.{name}": value for split, counts in splits.items() for name, value in counts.items()}
