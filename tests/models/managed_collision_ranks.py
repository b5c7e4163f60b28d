"""Trainings over sharded tables: what test_managed_collision_sharded.py runs, itself or in processes of their own.

    python -m tests.models.managed_collision_ranks RANK RANKS MEET PHASES

MEET is a file by which the processes find each other, PHASES a JSON list of trainings, one after another.
"""

import datetime
import json
import logging
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, RATE, SEQUENCES = 4, 0.1, 6
FEATURES = ("items", "liked", "users")
ROWS = {"item_table": 48, "user_table": 24}  # the items do not fit: some are thrown out in each step
BUCKETS = 4


def collection() -> Any:
    """Two tables, the first of two features, with weights that are the same in every process."""
    from torchrec import EmbeddingCollection, EmbeddingConfig
    from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection
    from torchrec.modules.mc_modules import ManagedCollisionCollection

    from recsys.models.managed_collision import CollisionlessManagedCollisionModule

    configs = [
        EmbeddingConfig(
            name=name,
            embedding_dim=WIDTH,
            num_embeddings=ROWS[name],
            feature_names=list(features),
            init_fn=partial(nn.init.constant_, val=0.5),
        )
        for name, features in (("item_table", FEATURES[:2]), ("user_table", FEATURES[2:]))
    ]
    modules = {
        name: CollisionlessManagedCollisionModule(rows, buckets=BUCKETS, name=name) for name, rows in ROWS.items()
    }
    embeddings = EmbeddingCollection(tables=configs)
    return ManagedCollisionEmbeddingCollection(
        embeddings, ManagedCollisionCollection(modules, configs), return_remapped_features=True
    )


def sharded(module: Any, ranks: int, optimizer: str) -> Any:
    """The collection over all processes, rows by rank, trained by fbgemm."""
    import torch.distributed as dist
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.mc_embedding import ManagedCollisionEmbeddingCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
    from torchrec.distributed.types import ShardingEnv, ShardingPlan

    kind = {"sgd": EmbOptimType.EXACT_SGD, "adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD}
    sharder = ManagedCollisionEmbeddingCollectionSharder(
        EmbeddingCollectionSharder(fused_params={"optimizer": kind[optimizer], "learning_rate": RATE, "eps": 1e-8})
    )
    plan = construct_module_sharding_plan(
        module,
        {name: row_wise(compute_kernel="fused") for name in ROWS},
        sharder=sharder,
        local_size=ranks,
        world_size=ranks,
        device_type="cpu",
    )
    return DistributedModelParallel(
        nn.ModuleDict({"tables": module}),
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=torch.device("cpu"),
        plan=ShardingPlan({"tables": plan}),
        sharders=[sharder],
    )


def features_of(step: int, rank: int, ranks: int) -> Any:
    """This process's sequences of a step: old and new ids, of all of int64."""
    from torchrec import KeyedJaggedTensor

    generator = torch.Generator().manual_seed(step)
    pool = torch.randint(-(2**63), 2**63 - 1, (60,), generator=torch.Generator().manual_seed(99))
    mine = range(rank * SEQUENCES // ranks, (rank + 1) * SEQUENCES // ranks)
    values, lengths = [], []
    for _ in FEATURES:
        sizes = torch.randint(0, 4, (SEQUENCES,), generator=generator)
        drawn = torch.randint(0, len(pool), (int(sizes.sum()),), generator=generator)
        ids = pool[drawn].split(sizes.tolist())  # type: ignore[no-untyped-call]  # torch has no types for it
        values += [ids[number] for number in mine]
        lengths.append(sizes[list(mine)])
    return KeyedJaggedTensor(list(FEATURES), torch.cat(values), lengths=torch.cat(lengths))


def loss_of(embeddings: dict[str, Tensor], ranks: int) -> Tensor:
    """A sum over this process's share; torchrec takes the mean of the processes, hence `ranks`."""
    return ranks * torch.stack([(vectors * vectors.detach().cos()).sum() for vectors in embeddings.values()]).sum()


def state_of(model: Any) -> dict[str, Any]:
    """What a checkpoint holds; SGD has no state."""
    states = {"model": model.state_dict()}
    if hasattr(model, "fused_optimizer") and model.fused_optimizer.state_dict()["state"]:
        states["optimizer"] = model.fused_optimizer.state_dict()
    return states


@dataclass(frozen=True)
class Phase:
    """A training.

    Attributes:
        folder: `out-RANK.pt` gets the rows and the embeddings of each step, `checkpoint` the state, in torch's
            distributed format.
        optimizer: sgd or adagrad.
        first, steps: which steps.
        load: checkpoint to begin with.
    """

    folder: str
    optimizer: str = "sgd"
    first: int = 0
    steps: int = 6
    load: str | None = None


def train(phase: Phase, rank: int, ranks: int) -> None:
    """Every process takes its share of the sequences of a step; `ranks` 0 is one that does not shard."""
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save

    from recsys.models.managed_collision import reset_evicted_rows

    folder = Path(phase.folder)
    folder.mkdir(exist_ok=True)
    module, sgd = collection(), None
    if ranks:
        model = sharded(module, ranks, phase.optimizer)
        module = model.module["tables"]
    else:
        model = nn.ModuleDict({"tables": module})
        sgd = torch.optim.SGD(model.parameters(), lr=RATE)
    reset_evicted_rows(model, sgd)
    if phase.load:
        state = state_of(model)
        load(state, checkpoint_id=phase.load)
        model.load_state_dict(state["model"])
        if "optimizer" in state:
            model.fused_optimizer.load_state_dict(state["optimizer"])
    out: list[dict[str, Any]] = []
    for step in range(phase.first, phase.first + phase.steps):
        found, rows = module(features_of(step, rank, max(ranks, 1)))
        vectors = {name: part.values() for name, part in found.items()}
        loss_of(vectors, max(ranks, 1)).backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        if sgd is not None:
            sgd.step()
            sgd.zero_grad()
        out.append({name: (rows[name].values(), rows[name].lengths(), vectors[name].detach()) for name in FEATURES})
    collisions = module._managed_collision_collection._managed_collision_modules
    gauges = {name: collisions[name].gauges() for name in ROWS}
    torch.save({"steps": out, "gauges": gauges}, folder / f"out-{rank}.pt")
    save(state_of(model), checkpoint_id=folder / "checkpoint")


def main() -> None:
    rank, ranks, meet, phases = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    import torch.distributed as dist

    dist.init_process_group(
        "gloo",
        init_method=f"file://{meet}",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=50),
    )
    for phase in phases:
        train(Phase(**phase), rank, ranks)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
