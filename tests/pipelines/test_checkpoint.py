import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from recsys.errors import CheckpointError
from recsys.pipelines import checkpoint


def trained(width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, width)).sum().backward()
    optimizer.step()
    return module, optimizer


def save(folder: Path, step: int) -> Path:
    module, optimizer = trained()
    best = {"weight": torch.ones(2, 3)}
    average = {"bias": torch.full((2,), 3.0)}
    return checkpoint.save_checkpoint(
        folder, step, model=module, optimizer=optimizer, best=best, state={"epoch": step}, average=average
    )


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    module, optimizer = trained()
    path = save(tmp_path, 7)
    other = nn.Linear(3, 2)
    other_optimizer = torch.optim.AdamW(other.parameters())
    state, best, average = checkpoint.load_checkpoint(path, model=other, optimizer=other_optimizer)
    assert (state["step"], state["epoch"]) == (7, 7)
    assert torch.equal(best["weight"], torch.ones(2, 3))
    assert torch.equal(average["bias"], torch.full((2,), 3.0))
    for mine, theirs in zip(other.parameters(), module.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        for slot, value in optimizer.state[theirs].items():
            assert torch.equal(other_optimizer.state[mine][slot], value), slot


def test_the_newest_two_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]
    assert [path.name for path in checkpoint.found_in(tmp_path)] == ["step-00000011", "step-00000010"]


def test_what_a_killed_write_left_behind_is_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".step-00000002.99.tmp").mkdir()
    assert checkpoint.found_in(tmp_path) == [tmp_path / "step-00000001"]
    assert len(list(tmp_path.iterdir())) == 1
    assert checkpoint.found_in(tmp_path / "none") == []


def test_a_checkpoint_that_was_set_aside_by_a_killed_write_comes_back(tmp_path: Path) -> None:
    """As where a run is stopped at the last step of an epoch, and saved once more after its validation."""
    save(tmp_path, 1).rename(tmp_path / ".step-00000001.99.old")
    (tmp_path / ".step-00000001.99.tmp").mkdir()
    assert checkpoint.found_in(tmp_path) == [tmp_path / "step-00000001"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000001.99.old")
    assert checkpoint.found_in(tmp_path) == [tmp_path / "step-00000001"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_checkpoint_written_again_is_never_missing_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.suffix == ".tmp":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 1)
    monkeypatch.undo()
    assert checkpoint.found_in(tmp_path) == [tmp_path / "step-00000001"]


def test_other_names_count_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "step-zzz").mkdir()
    for step in (1, 2):
        save(tmp_path, step)
    assert [path.name for path in checkpoint.found_in(tmp_path)] == ["step-00000002", "step-00000001"]


def test_a_checkpoint_is_on_the_disk_before_it_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    path = save(tmp_path, 1)
    assert [Path(name).name.partition(".")[0] for name in synced] == ["tensors", "state", "", tmp_path.name]
    assert path.exists()


def test_a_failed_write_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    module, optimizer = trained()
    with pytest.raises(TypeError):
        checkpoint.save_checkpoint(
            tmp_path, 2, model=module, optimizer=optimizer, best={}, state={"unwritable": object()}
        )
    assert list(tmp_path.iterdir()) == [path]


def test_one_flipped_byte_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    file = path / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    module, optimizer = trained()
    with pytest.raises(CheckpointError, match="its bytes differ"):
        checkpoint.load_checkpoint(path, model=module, optimizer=optimizer)


def test_damage_another_version_and_another_model_are_told_apart(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    module, optimizer = trained(width=4)
    with pytest.raises(CheckpointError, match="belongs to another model"):
        checkpoint.load_checkpoint(path, model=module, optimizer=optimizer)
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text.replace('"format": 1', '"format": 99'))
    with pytest.raises(CheckpointError, match="format version 99, wanted 1"):
        checkpoint.load_checkpoint(path, model=module, optimizer=optimizer)
    (path / "state.json").write_text(text[:20])
    with pytest.raises(CheckpointError, match=r"state.json is missing or damaged"):
        checkpoint.load_checkpoint(path, model=module, optimizer=optimizer)
