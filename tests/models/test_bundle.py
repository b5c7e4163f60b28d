import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from recsys.errors import BundleError
from recsys.features.vocabulary import Vocabulary
from recsys.models import registry
from recsys.models.bundle import attach_metrics, check_golden, load_bundle, resolve, save_bundle

CONFIG = {"d_model": 8, "num_layers": 1, "num_heads": 1, "d_ff": 8, "max_len": 6}
ITEMS = ["red", "green", "blue", "unsold"]


def write(path: Path, name: str = "sasrec", seed: int = 0) -> Path:
    torch.manual_seed(seed)
    return save_bundle(
        path,
        model=registry.build(name, CONFIG, len(ITEMS)),
        name=name,
        config=CONFIG,
        items=Vocabulary.from_ids(ITEMS),
        popularity=np.array([0, 5, 3, 2, 0]),
        metrics={"validation": {"ndcg@10": 0.5}},
        data={"data_hash": "abc"},
        golden_histories=[["red"], ["green", "blue"], []],
        history_lengths=np.array([1, 2, 2, 9]),
    )


@pytest.mark.parametrize("name", registry.names())
def test_a_bundle_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    bundle = load_bundle(write(tmp_path / "b", name))
    torch.manual_seed(0)
    fresh = registry.build(name, CONFIG, len(ITEMS))
    assert isinstance(fresh, nn.Module)
    assert isinstance(bundle.model, nn.Module)
    assert not bundle.model.training
    for key, value in fresh.state_dict().items():
        assert torch.equal(bundle.model.state_dict()[key], value), key
    assert bundle.items.decode(np.array([1, 2, 3, 4])) == ITEMS
    assert bundle.popularity.tolist() == [0, 5, 3, 2, 0]
    assert bundle.metrics == {"validation": {"ndcg@10": 0.5}}
    assert check_golden(bundle) == []
    inputs = json.loads((bundle.path / "inputs.json").read_text())
    assert sum(inputs["history_length"]["counts"]) == 4


def test_no_file_of_a_bundle_is_a_pickle(tmp_path: Path) -> None:
    names = {str(file.relative_to(tmp_path / "b")) for file in write(tmp_path / "b").rglob("*") if file.is_file()}
    assert {Path(name).suffix for name in names} == {".json", ".npy", ".safetensors"}
    for name in names:
        if name.endswith(".npy"):
            np.load(tmp_path / "b" / name, allow_pickle=False)


def test_any_flipped_byte_is_found_and_its_file_named(tmp_path: Path) -> None:
    original = write(tmp_path / "b")
    for file in [file for file in original.rglob("*") if file.is_file() and file.name != "manifest.json"]:
        copy = Path(shutil.copytree(original, tmp_path / "copy"))
        target = copy / file.relative_to(original)
        data = bytearray(target.read_bytes())
        data[len(data) // 2] ^= 1
        target.write_bytes(data)
        with pytest.raises(BundleError, match=f"{file.name}: its bytes differ from manifest.json"):
            load_bundle(copy)
        shutil.rmtree(copy)


def test_a_missing_file_and_another_format_version_are_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "b")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(BundleError, match="format version 99, wanted 1"):
        load_bundle(path)
    (path / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(path)
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "popularity.npy").unlink()
    with pytest.raises(BundleError, match=r"popularity.npy: missing"):
        load_bundle(path)
    with pytest.raises(BundleError, match=r"manifest.json is missing"):
        load_bundle(tmp_path)


def test_the_version_names_the_weights_not_the_figures(tmp_path: Path) -> None:
    first, again, other = write(tmp_path / "a"), write(tmp_path / "b"), write(tmp_path / "c", seed=1)
    assert load_bundle(first).version == load_bundle(again).version != load_bundle(other).version
    attach_metrics(first, {"test": {"ndcg@10": 0.25}})
    bundle = load_bundle(first)
    assert bundle.metrics == {"test": {"ndcg@10": 0.25}}
    assert bundle.version == load_bundle(again).version


def test_golden_answers_notice_other_weights(tmp_path: Path) -> None:
    bundle = load_bundle(write(tmp_path / "b"))
    assert isinstance(bundle.model, nn.Module)
    with torch.no_grad():
        next(bundle.model.parameters())[1, 0] += 1e-2
    assert any("golden request" in difference for difference in check_golden(bundle))


@pytest.mark.parametrize("change", ["intruder", "reversed", "shorter"])
def test_golden_answers_notice_an_intruder_another_order_and_a_missing_item(tmp_path: Path, change: str) -> None:
    bundle = load_bundle(write(tmp_path / "b"))
    file = bundle.path / "golden.json"
    cases = json.loads(file.read_text())
    case = cases[0]  # history red: green and blue are left
    assert sorted(case["item_ids"]) == ["blue", "green"]
    if change == "intruder":
        case["item_ids"][0] = "unsold"
    elif change == "reversed":
        case["item_ids"].reverse()
    else:
        case["item_ids"].pop()
        case["scores"].pop()
    file.write_text(json.dumps(cases))
    (difference,) = check_golden(bundle)
    assert difference.startswith("golden request 0: ")


def test_a_bundle_is_found_in_its_folder_and_in_a_run(tmp_path: Path) -> None:
    write(tmp_path / "run" / "bundle")
    assert resolve(tmp_path / "run") == resolve(tmp_path / "run" / "bundle") == tmp_path / "run" / "bundle"
    with pytest.raises(BundleError, match="no bundle there; name a bundle folder, a run folder or models:/name@alias"):
        resolve(tmp_path)


def test_saving_replaces_a_bundle_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "b")
    write(tmp_path / "b", seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    with pytest.raises(BundleError, match="exists and is no bundle"):
        write(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").is_file()
