from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recsys.features.batches import JaggedBatch
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.pipelines.evaluation.sampled import sampled_ranks


class Indifferent:
    """A Scorer to whom all items are the same."""

    def __init__(self, num_items: int) -> None:
        self.row = torch.tensor([-torch.inf, *[1.0] * num_items])

    def scores(self, batch: JaggedBatch, candidates: Tensor | None = None) -> Tensor:
        return self.row.expand(len(batch.lengths), -1) if candidates is None else self.row[candidates]


def test_a_target_that_ties_with_all_negatives_ranks_in_their_middle(tmp_path: Path) -> None:
    rows = ["1 1 2 3 4", "2 5 6 7 8", "3 " + " ".join(map(str, range(1, 13)))]
    (tmp_path / "log.txt").write_text("\n".join(rows) + "\n")
    split = SplitConfig(protocol="loo-novalid")
    dataset = prepare(tmp_path / "log.txt", tmp_path / "data", PrepareConfig(split=split))
    queries = dataset.queries("test")
    seen = np.concatenate([queries.gather(0)[0], queries.targets(0)])
    others = np.setdiff1d(np.arange(1, dataset.num_items + 1), seen)[:6]
    negatives = np.repeat(others[None], len(queries), axis=0)
    ranks = sampled_ranks(Indifferent(dataset.num_items), dataset, queries, negatives=negatives)
    assert ranks[0] == 1 + 6 / 2
