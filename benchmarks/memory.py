"""Peak memory of training with full softmax over 54,542 items, against the same steps without any logit.

    RECSYS_DATA=FOLDER python -m benchmarks.memory [--tokens 4096 16384] [--steps 10] [--repeats 3]

SASRec (D = 64, 2 blocks, length 50) on BERT4Rec's Beauty. Each figure is the maximum resident set of a process of its
own. `softmax` takes the training steps of `SASRec.loss`; `no logits` takes the same steps on the sum of all states and
item rows, so it holds weights, optimizer state, activations and gradients, and nothing else. Their difference is what
the softmax costs: at most 128 MB (10^6 bytes), where all logits of a step would take tokens x 54,542 x 4 bytes. Exit
code 1 where it costs more.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.support.interaction_sets import prepared
from benchmarks.support.record import append
from benchmarks.support.timed import timed
from recsys.features.batches import JaggedBatch, TrainBatches
from recsys.features.dataset import PreparedDataset
from recsys.models.sasrec import SASRec, SASRecConfig
from recsys.pipelines.optimization import OptimizationConfig, build_optimizer

DATA, MAX_LEN = "amazon-beauty-bert4rec", 50
KINDS = ("softmax", "no logits")
LIMIT_MB = 128.0


def everything_but_logits(model: SASRec, batch: JaggedBatch, generator: torch.Generator) -> Tensor:
    """A loss that reaches every weight through every activation of `model.loss`, and forms no logit."""
    ends = np.cumsum(np.array(batch.lengths))
    is_input = np.ones(len(batch.values), dtype=bool)
    is_input[ends - 1] = False
    inputs = batch.values[torch.from_numpy(is_input)]
    states = model.encoder(model.item(inputs), tuple(length - 1 for length in batch.lengths), generator)
    return states.sum() + model.get_parameter("item.weight")[1:].sum()


def run_steps(data: Path, kind: str, tokens: int, steps: int, threads: int) -> None:
    """Train for some steps in this process; prints how many tokens the largest batch held."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    dataset = PreparedDataset.open(data)
    model = SASRec(SASRecConfig(max_len=MAX_LEN), dataset.num_items)
    optimizer = build_optimizer(model, OptimizationConfig())
    batches = TrainBatches(dataset, max_len=model.train_len, tokens_per_batch=tokens, seed=0)
    model.train()
    largest, done = 0, 0
    while done < steps:
        for batch in batches.epoch(done):
            generator = torch.Generator().manual_seed(done)
            optimizer.zero_grad(set_to_none=True)
            loss = model.loss(batch, generator) if kind == "softmax" else everything_but_logits(model, batch, generator)
            torch.autograd.backward(loss)
            optimizer.step()
            largest, done = max(largest, len(batch.values)), done + 1
            if done == steps:
                break
    print(json.dumps({"tokens": largest, "items": dataset.num_items}))


def measure(data: Path, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """Peaks of both kinds in MB, in turn, and the difference of their medians."""
    peaks: dict[str, list[float]] = {kind: [] for kind in KINDS}
    answer: dict[str, Any] = {}
    for _ in range(options.repeats):
        for kind in KINDS:
            arguments = [str(data), kind, str(tokens), str(options.steps), str(options.threads)]
            run = timed([sys.executable, "-m", "benchmarks.memory", "--one", *arguments], limit_s=options.limit_s)
            answer = run.answer()
            peaks[kind].append(run.peak_gb * 1000)
    median = {kind: round(statistics.median(values)) for kind, values in peaks.items()}
    return {
        "data": DATA,
        **answer,
        "peak_mb": median,
        "all_peaks_mb": {kind: [round(value) for value in values] for kind, values in peaks.items()},
        "softmax_mb": median["softmax"] - median["no logits"],
        "all_logits_mb": round(answer["tokens"] * answer["items"] * 4 / 1e6),
        "steps": options.steps,
        "threads": options.threads,
    }


def main() -> None:
    """Print a line a batch size, append the figures; exit code 1 where the softmax costs over 128 MB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384], help="of a batch")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit-s", type=float, default=600.0, help="most seconds of a run")
    parser.add_argument("--scratch", type=Path, default=Path("scratch/memory"), help="folder of the dataset")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        data, kind, *numbers = options.one
        run_steps(Path(data), kind, *(int(number) for number in numbers))
        return
    data, rows = prepared(DATA, options.scratch).path, []
    for tokens in options.tokens:
        row = measure(data, tokens, options)
        rows.append(row)
        peaks = ", ".join(f"{kind} {value:,} MB" for kind, value in row["peak_mb"].items())
        print(f"{row['tokens']:>6} tokens: {peaks}: the softmax costs {row['softmax_mb']} MB", flush=True)
        print(f"{'':>14} (all logits of a step: {row['all_logits_mb']:,} MB)", flush=True)
    print(f"written to {append('memory', {'rows': rows})}")
    if any(row["softmax_mb"] > LIMIT_MB for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
