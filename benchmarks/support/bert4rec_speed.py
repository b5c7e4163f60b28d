"""Training steps of BERT4Rec on batches of MovieLens-1M's shape: events a second by each path of the kernels.

The speed follows from lengths, catalogue and model, not from which items they are, so both are drawn: 3,416 items,
lengths lognormal with a median of 90, cut at 200. `benchmarks.gpu` times the same steps on the real data.
"""

import statistics
import time
from typing import Any

import numpy as np
import torch

from benchmarks.support.op_contests import path
from recsys.features.batches import JaggedBatch
from recsys.models.bert4rec import BERT4Rec, BERT4RecConfig
from recsys.pipelines.optimization import OptimizationConfig, build_optimizer

NUM_ITEMS, MAX_LEN, WIDTH = 3_416, 200, 128
WARM_UP_STEPS = 5


def drawn_batch(tokens: int, seed: int) -> JaggedBatch:
    """A batch of at most `tokens` events."""
    generator = np.random.default_rng(seed)
    lengths = np.exp(generator.normal(4.5, 0.8, max(2, tokens // 20))).clip(5, MAX_LEN).astype(int)
    lengths = lengths[: max(1, int(np.searchsorted(np.cumsum(lengths), tokens, side="right")))]
    return JaggedBatch.from_sequences([generator.integers(1, NUM_ITEMS + 1, length) for length in lengths])


def bert4rec_speed(device: torch.device, steps: int, tokens: int) -> dict[str, Any]:
    """Median events per second of training steps, the two paths in turn."""
    batches = [drawn_batch(tokens, seed) for seed in range(WARM_UP_STEPS + steps)]
    trainers = {name: _Trainer(device) for name in ("auto", "torch")}
    speeds: dict[str, list[float]] = {name: [] for name in trainers}
    for number, batch in enumerate(batches):
        for name, trainer in trainers.items():
            with path(name):
                seconds = trainer.step(batch, number)
            if number >= WARM_UP_STEPS:
                speeds[name].append(len(batch.values) / seconds)
    found = {f"{name} path": round(statistics.median(values)) for name, values in speeds.items()}
    ratio = found["auto path"] / found["torch path"]
    return {"events_per_s": found, "ratio": round(ratio, 3), "tokens_per_batch": tokens, "steps": steps}


class _Trainer:
    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model = BERT4Rec(BERT4RecConfig(d_model=WIDTH, max_len=MAX_LEN), NUM_ITEMS).to(device).train()
        self.optimizer = build_optimizer(self.model, OptimizationConfig())

    def step(self, batch: JaggedBatch, number: int) -> float:
        """One step, in seconds to its end."""
        began = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.model.loss(batch.to(self.device), torch.Generator().manual_seed(number)))
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began
