"""Other ways from ids to rows on a CPU, beside which the hash table is measured."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class DictTable:
    """A Python dict."""

    def __init__(self, ids: Tensor) -> None:
        self._rows = {id_: row for row, id_ in enumerate(ids.tolist())}

    def find(self, ids: Tensor) -> Tensor:
        get = self._rows.get
        return torch.tensor([get(id_, -1) for id_ in ids.tolist()])


class SortedTable:
    """Sorted ids and torch.searchsorted, on all threads."""

    def __init__(self, ids: Tensor) -> None:
        self._ids, self._rows = ids.sort()

    def find(self, ids: Tensor) -> Tensor:
        places = torch.searchsorted(self._ids, ids).clamp_(max=len(self._ids) - 1)
        return torch.where(self._ids[places] == ids, self._rows[places], -1)


def torchrec_sorted(ids: Tensor) -> Callable[[Tensor], Tensor]:
    """The look-up of torchrec's MCHManagedCollisionModule, which holds these ids."""
    module = new_torchrec_sorted(len(ids), interval=1)
    order = ids.argsort()
    module._mch_sorted_raw_ids[: len(ids)] = ids[order]
    module._mch_remapped_ids_mapping[: len(ids)] = order
    module.eval()
    return lambda wanted: remapped(module, wanted)


def new_torchrec_sorted(num_ids: int, interval: int) -> Any:
    """An empty MCHManagedCollisionModule with room for these ids, which takes in new ones every `interval` calls."""
    from torchrec.modules.mc_modules import LFU_EvictionPolicy, MCHManagedCollisionModule

    return MCHManagedCollisionModule(
        zch_size=num_ids + 1,  # the last row is for all ids that are unknown
        device=torch.device("cpu"),
        eviction_policy=LFU_EvictionPolicy(),
        eviction_interval=interval,
    )


def torchrec_hashed(num_slots: int) -> Callable[[Tensor], Tensor]:
    """The look-up of torchrec's HashZchManagedCollisionModule. On a CPU it takes in no ids: the table is empty."""
    from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule

    module = HashZchManagedCollisionModule(zch_size=num_slots, device=torch.device("cpu"), total_num_buckets=1)
    module.eval()
    return lambda wanted: remapped(module, wanted)


def remapped(module: Any, ids: Tensor) -> Tensor:
    """What a module of torchrec makes of ids."""
    from torchrec.sparse.jagged_tensor import JaggedTensor

    features = {"ids": JaggedTensor(values=ids, lengths=torch.ones(len(ids), dtype=torch.int64))}
    values: Tensor = module(features)["ids"].values()
    return values
