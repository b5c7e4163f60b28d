"""Users in the shard that the hash of their raw id names."""

import numpy as np

from recsys.features.dataset import PreparedDataset
from recsys.features.leakage.leak import Leak
from recsys.features.leakage.vocabulary import IDS_PER_BLOCK, UInt64s, id_numbers
from recsys.features.preparation.steps.hashing import hash_texts, splitmix64
from recsys.features.vocabulary import Vocabulary


def check_shards(dataset: PreparedDataset) -> list[Leak]:
    """Users in another shard than their raw id's: `misplaced user`."""
    num_shards = len(dataset.shards)
    if num_shards < 2 or len(dataset.users) != dataset.num_users:
        return []
    home = np.zeros(dataset.num_users + 1, np.int64)
    for start in range(0, dataset.num_users, IDS_PER_BLOCK):
        end = min(start + IDS_PER_BLOCK, dataset.num_users)
        home[start + 1 : end + 1] = _hashes(dataset.users, start, end) % np.uint64(num_shards)
    leaks = []
    for number, shard in enumerate(dataset.shards):
        wrong = np.flatnonzero(home[shard.users] != number)
        if len(wrong):
            user = int(shard.users[wrong[0]])
            example = f"user index {user}, whose shard is {home[user]}"
            leaks.append(Leak("misplaced user", f"users of shard {number}", len(wrong), example))
    return leaks


def _hashes(ids: Vocabulary, start: int, end: int) -> UInt64s:
    """As `hash_ids` of the ids [start, end), without a data frame."""
    if ids.kind == "int":
        return splitmix64(id_numbers(ids, start, end))
    offsets = np.asarray(ids.offsets[start : end + 1])
    return hash_texts(np.asarray(ids.data[offsets[0] : offsets[-1]]), offsets - offsets[0])
