"""What a run validates by: a fixed set of questions, and the figures on them."""

from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Queries
from recsys.models.protocols import NextItemModel
from recsys.pipelines.evaluation.full_ranking import rank_targets
from recsys.pipelines.evaluation.metrics import metrics_per_query
from recsys.pipelines.training.state import RunState


class Validation:
    """The validation part of a dataset, or a seeded sample of its users.

    Args:
        dataset: prepared dataset.
        users: size of the sample; None takes all.
        seed: of the sample.
    """

    def __init__(self, dataset: PreparedDataset, users: int | None, seed: int) -> None:
        self.dataset, self.queries = dataset, _sample(dataset.queries("valid"), users, seed)

    def __len__(self) -> int:
        """Number of questions; 0 where the protocol holds out none."""
        return len(self.queries.user)

    def figures(self, model: NextItemModel) -> dict[str, float]:
        """Mean of each metric over the questions, every item ranked."""
        ranks = rank_targets(model, self.dataset, self.queries)
        values = metrics_per_query(ranks, self.queries.target_offsets)
        return {name: float(value.mean()) for name, value in values.items()}

    def record(self, state: RunState) -> dict[str, object]:
        """The best figures with their protocol, for the bundle."""
        if not len(self):
            return {}
        protocol = self.dataset.protocol_string("valid", "exclude")
        return {"protocol": protocol, "n": len(self), "epoch": state.best_epoch, **state.best}


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the module's state on the CPU."""
    return {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}


def _sample(queries: Queries, users: int | None, seed: int) -> Queries:
    if users is None or users >= len(queries.user):
        return queries
    rows = np.sort(np.random.default_rng([seed, 7]).choice(len(queries.user), users, replace=False))
    columns = ("shard", "start", "end", "user", "target_start", "target_end")
    times = None if queries.query_time is None else queries.query_time[rows]
    return replace(queries, query_time=times, **{name: getattr(queries, name)[rows] for name in columns})
