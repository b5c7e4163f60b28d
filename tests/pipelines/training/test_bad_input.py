"""What training refuses, each by one line that names the remedy, and what it leaves on disk."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys import config as configs
from recsys.errors import CheckpointError, ConfigError, OutOfMemory, TrainingDiverged
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.models import registry
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.training import Stopped, train
from tests.pipelines.training.small import SMALL, config_of

MODULE = '''
from pathlib import Path

from recsys.models.registry import ModelEntry
from recsys.models.sasrec import SASRec

ENTRY = ModelEntry("recsys.models.sasrec:SASRecConfig", "fragile_model:Fragile")


class Fragile(SASRec):
    """Its loss, or the gradient alone, is NaN at one call, as long as a file beside it says so."""

    calls = 0

    def loss(self, batch, generator):
        loss = super().loss(batch, generator)
        self.calls += 1
        file = Path(__file__).with_name("poison")
        what, _, at = file.read_text().partition(" ") if file.is_file() else ("", "", "")
        if str(self.calls) != at:
            return loss
        return loss * float("nan") if what == "loss" else loss + (self.item.weight.sum() * 0).sqrt()
'''


@pytest.fixture
def fragile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of a third party with the model `fragile`; returns the file that poisons it."""
    place = tmp_path / "third"
    info = place / "fragile_model-1.0.dist-info"
    info.mkdir(parents=True)
    (place / "fragile_model.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile-model\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[recsys.models]\nfragile = fragile_model:ENTRY\n")
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.delitem(sys.modules, "fragile_model", raising=False)
    return place / "poison"


def fragile_run(circle: PreparedDataset, checkpoint_every: int) -> TrainConfig:
    config = config_of(circle, "sasrec", checkpoint_every=checkpoint_every, warmup_steps=10)
    return TrainConfig(data=config.data, model={"name": "fragile", **SMALL}, train=config.train, seed=config.seed)


@pytest.fixture
def other(tmp_path: Path) -> PreparedDataset:
    """Data with another vocabulary."""
    lines = ["user_id,item_id,timestamp", *(f"u{n % 9},i{n % 13},{n}" for n in range(200))]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    return prepare(tmp_path / "log.csv", tmp_path / "data", PrepareConfig(split=SplitConfig(protocol="loo")))


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"format": 1}', '{"format": 1, "config": {"model": 3}}'])
def test_a_damaged_run_json_ends_in_one_line(circle: PreparedDataset, tmp_path: Path, text: str) -> None:
    train(config_of(circle, epochs=1), tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(
        CheckpointError, match=r"run.json: (damaged|holds a) .*; restore it, or name another --out$"
    ) as caught:
        train(config_of(circle, epochs=1), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_start_that_was_killed_before_run_json_stood_is_begun_anew(circle: PreparedDataset, tmp_path: Path) -> None:
    for name in ("run.lock", ".run.json.99.tmp"):
        (tmp_path / name).write_text("{")
    train(config_of(circle, epochs=1), tmp_path)
    assert not (tmp_path / ".run.json.99.tmp").exists()


def test_settings_that_differ_are_named_with_both_values(circle: PreparedDataset, tmp_path: Path) -> None:
    train(config_of(circle, epochs=1), tmp_path / "run")
    config = config_of(circle, epochs=4, ema=0.9)
    changed = TrainConfig(
        data=config.data,
        model={**config.model, "loss": {"kind": "bce", "num_negatives": 9}},
        train=config.train,
        seed=5,
    )
    loss = r'model.loss.kind="ce", now "bce", model.loss.num_negatives=256, now 9'
    message = rf"another config \({loss}, train.epochs=1, now 4, train.ema=null, now 0.9\)"
    with pytest.raises(CheckpointError, match=message):
        train(changed, tmp_path / "run")


def test_a_run_folder_of_another_dataset_is_refused(
    circle: PreparedDataset, other: PreparedDataset, tmp_path: Path
) -> None:
    train(config_of(circle, epochs=1), tmp_path / "run")
    message = f"began with data_hash={circle.data_hash}, now {other.data_hash}; name another --out"
    with pytest.raises(CheckpointError, match=message) as caught:
        train(config_of(other, epochs=1), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_checkpoints_of_another_vocabulary_are_refused(
    circle: PreparedDataset, other: PreparedDataset, tmp_path: Path
) -> None:
    """Copied from a run on other data: the record fits, the table of items does not."""
    train(config_of(other, epochs=1), tmp_path / "other")
    train(config_of(circle, epochs=1), tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    (newest,) = (tmp_path / "other" / "checkpoints").iterdir()
    newest.rename(tmp_path / "run" / "checkpoints" / newest.name)
    message = "belongs to another model: size mismatch.*; name another --out"
    with pytest.raises(CheckpointError, match=message) as caught:
        train(config_of(circle, epochs=1), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_checkpoints_of_another_version_end_in_one_line_and_stay(circle: PreparedDataset, tmp_path: Path) -> None:
    config = config_of(circle, checkpoint_every=2)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint" and event["step"] >= 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        train(config, tmp_path / "run", stop)
    states = sorted((tmp_path / "run" / "checkpoints").glob("*/state.json"))
    assert len(states) == 2
    for state in states:
        state.write_text(json.dumps(json.loads(state.read_text()) | {"format": 99}))
    before = [state.read_bytes() for state in states]
    wanted = r"step-0*4: format version 99, wanted 1; finish the run with the version that began it"
    events: list[dict[str, Any]] = []
    with pytest.raises(CheckpointError, match=wanted) as caught:
        train(config, tmp_path / "run", events.append)
    assert events == [], "nothing goes on, and nothing says that it does"
    assert "\n" not in str(caught.value)
    assert [state.read_bytes() for state in states] == before


@pytest.mark.parametrize(("key", "value"), [("seed", -1), ("seed", 2**64), ("mask_seed", -1), ("mask_seed", 2**64)])
def test_a_seed_of_more_than_64_bits_is_refused(circle: PreparedDataset, key: str, value: int) -> None:
    model = {"name": "bert4rec", **SMALL} | ({key: value} if key == "mask_seed" else {})
    given = {"data": str(circle.path), "model": model, "seed": value if key == "seed" else 0}
    with pytest.raises(ConfigError, match=f"{key}={value} must be at least 0 and below 2\\^64"):
        registry.build("bert4rec", configs.load(TrainConfig, given).model_config, 9)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory\nframe"),
    ],
)
def test_memory_that_is_spent_ends_in_one_line_and_the_run_can_go_on(
    circle: PreparedDataset, tmp_path: Path, error: Exception
) -> None:
    config = config_of(circle, epochs=1, checkpoint_every=3)
    whole = train(config, tmp_path / "whole")

    def spend(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint":
            raise error

    message = r"run: out of memory \(.+\); what was saved is kept; lower train.tokens_per_batch .* another --out$"
    with pytest.raises(OutOfMemory, match=message) as caught:
        train(config, tmp_path / "run", spend)
    assert "\n" not in str(caught.value)
    assert train(config, tmp_path / "run").weights_sha256 == whole.weights_sha256


def test_a_model_that_no_memory_holds_ends_in_one_line(circle: PreparedDataset, tmp_path: Path) -> None:
    config = config_of(circle, epochs=1)
    config = replace(config, model={**config.model, "d_model": 1 << 40, "num_heads": 1})
    with pytest.raises(OutOfMemory, match="out of memory .*can't allocate memory"):
        train(config, tmp_path / "run")


def test_another_error_of_torch_stays_what_it_is(circle: PreparedDataset, tmp_path: Path) -> None:
    def fail(event: dict[str, Any]) -> None:
        raise RuntimeError(f"the size of tensor a must match, at {event['step']}")

    with pytest.raises(RuntimeError, match="the size of tensor a must match"):
        train(config_of(circle, epochs=1), tmp_path / "run", fail)


def test_a_loss_that_is_nan_names_step_rate_and_remedy_and_the_run_can_go_on(
    circle: PreparedDataset, tmp_path: Path, fragile: Path
) -> None:
    config = fragile_run(circle, checkpoint_every=3)
    whole = train(config, tmp_path / "whole")
    fragile.write_text("loss 8")
    # The rate of step 8 in a warm-up of 10 to lr=1e-2.
    message = (
        r"^the loss is nan at step 8 \(lr=0.008\); the last checkpoint is kept; "
        r"lower train.lr or set train.clip_norm=1.0, and name another --out$"
    )
    with pytest.raises(TrainingDiverged, match=message):
        train(config, tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept[-1] == "step-00000006"
    assert not (tmp_path / "run" / "bundle").exists()
    fragile.unlink()
    assert train(config, tmp_path / "run").weights_sha256 == whole.weights_sha256


def test_weights_that_a_gradient_destroyed_are_never_saved(
    circle: PreparedDataset, tmp_path: Path, fragile: Path
) -> None:
    """The loss of step 8 is finite and its gradient is not: the checkpoint due after step 8 would hold NaN."""
    config = fragile_run(circle, checkpoint_every=4)
    whole = train(config, tmp_path / "whole")
    fragile.write_text("gradient 8")
    with pytest.raises(TrainingDiverged, match=r"item.weight is not finite at step 8 \(lr=0.008\)"):
        train(config, tmp_path / "run")
    assert max(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) < "step-00000008"
    fragile.unlink()
    assert train(config, tmp_path / "run").weights_sha256 == whole.weights_sha256
