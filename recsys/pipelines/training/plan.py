"""What is due when: how many steps the epochs have, and when a run validates, saves and ends."""

import math

from recsys.features.batches import TrainBatches
from recsys.pipelines.optimization import OptimizationConfig
from recsys.pipelines.training.state import RunState

# Of a run with a time budget: it is validated and saved this often at most, however short its epochs.
VALIDATIONS_IN_BUDGET = 12


class Plan:
    """The run's length in steps, and what its settings ask for at a given state.

    With a time budget most steps are never taken: `total` is then an estimate by the first epoch.
    """

    def __init__(self, batches: TrainBatches, config: OptimizationConfig) -> None:
        self.batches, self.config = batches, config
        self._counts: dict[int, int] = {}
        known = 1 if config.max_seconds is not None else config.epochs
        self.total = sum(self.steps_of(epoch) for epoch in range(known)) * config.epochs // known

    def steps_of(self, epoch: int) -> int:
        """Optimizer steps of one epoch."""
        if epoch not in self._counts:
            self._counts[epoch] = math.ceil(self.batches.num_batches(epoch) / self.config.accumulate)
        return self._counts[epoch]

    def is_over(self, state: RunState) -> bool:
        """All epochs done, the time spent, or the patience."""
        patience = self.config.patience
        is_patience_spent = patience is not None and state.bad >= patience
        return state.epoch >= self.config.epochs or self.is_time_spent(state) or is_patience_spent

    def is_time_spent(self, state: RunState) -> bool:
        budget = self.config.max_seconds
        return budget is not None and state.seconds >= budget

    def is_validation_due(self, state: RunState, epoch: int) -> bool:
        """At the end of every n-th epoch and of the run; with a time budget also not too soon after the one before."""
        if epoch + 1 == self.config.epochs or self.is_time_spent(state):
            return True
        budget = self.config.max_seconds
        is_soon = budget is not None and state.seconds - state.validated_at_s < budget / VALIDATIONS_IN_BUDGET
        return (epoch + 1) % self.config.validate_every == 0 and not is_soon

    def is_checkpoint_due(self, state: RunState) -> bool:
        """After every n-th step; the end of an epoch saves by itself."""
        every = self.config.checkpoint_every
        return every is not None and state.step % every == 0

    def seconds_left(self, state: RunState, seconds_per_step: float) -> float:
        """How long the rest will take, at most what is left of the budget."""
        left = (self.total - state.step) * seconds_per_step
        budget = self.config.max_seconds
        return left if budget is None else min(left, max(0.0, budget - state.seconds))
