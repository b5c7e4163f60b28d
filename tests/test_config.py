import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys import config
from recsys.errors import ConfigError
from recsys.models.registry import full_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr}: wanted more than 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    data: Path
    name: str = "sasrec"
    kind: Literal["loo", "time", 1] = "time"
    seed: int = 0
    quick: bool = False
    limit: int | None = None
    windows: list[int] = dataclasses.field(default_factory=lambda: [1, 2])
    weights: tuple[float, ...] = ()
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    other: Optimizer | None = None
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    version: int = dataclasses.field(default=7, init=False)


finite = st.floats(allow_nan=False, allow_infinity=False)
words = st.text("abé ._0E1-:#'\"\\{", max_size=6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
optimizers = st.builds(Optimizer, lr=st.floats(1e-9, 1e3), betas=st.tuples(finite, finite), warmup_steps=st.integers())
jobs = st.builds(
    Job,
    data=st.text("ab/._ ü", min_size=1).map(Path),
    name=words,
    kind=st.sampled_from(["loo", "time", 1]),
    seed=st.integers(),
    quick=st.booleans(),
    limit=st.none() | st.integers(),
    windows=st.lists(st.integers(), max_size=4),
    weights=st.lists(finite, max_size=4).map(tuple),
    optimizer=optimizers,
    other=st.none() | optimizers,
    model=st.dictionaries(words, json_values, max_size=3),
)


@settings(max_examples=50, deadline=None)
@given(job=jobs)
def test_what_is_dumped_loads_as_the_same_dataclass(job: Job) -> None:
    assert config.load(Job, config.dump(job)) == job


@settings(max_examples=25, deadline=None)
@given(job=jobs)
def test_a_json_file_and_a_yaml_file_hold_the_same_job(job: Job, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("config")
    for name in ("job.json", "job.yaml"):
        (folder / name).write_text(json.dumps(config.dump(job)), encoding="utf-8")
        assert config.load(Job, config.read(folder / name)) == job


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1E+5", 1e5), ("-2.5e3", -2500.0), (".5", 0.5), ("1.", 1.0), ("-.inf", -math.inf)],
)
def test_a_yaml_number_with_an_exponent_is_a_float(tmp_path: Path, text: str, value: float) -> None:
    (tmp_path / "job.yaml").write_text(f"lr: {text}\n")
    assert config.read(tmp_path / "job.yaml") == {"lr": value}


def test_yaml_integers_stay_integers_and_dates_stay_text(tmp_path: Path) -> None:
    (tmp_path / "job.yml").write_text("seed: 12\nname: 2024-01-02\nword: e5\n")
    read = config.read(tmp_path / "job.yml")
    assert read == {"seed": 12, "name": "2024-01-02", "word": "e5"}
    assert type(read["seed"]) is int


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"data": "d", "sead": 1}, r"^job\.yaml: sead: unknown key; did you mean 'seed'\?$"),
        ({"data": "d", "optimizer": {"warmup": 1}}, r"optimizer\.warmup: unknown key; did you mean 'warmup_steps'\?"),
        ({"data": "d", "zzz": 1}, "zzz: unknown key; known keys: data, name, kind"),
        ({"data": "d", 5: 1}, "5: unknown key"),
        ({"data": "d", "version": 7}, "version: unknown key"),
        ({}, "data: missing; it has no default"),
        ({"data": "d", "kind": "tme"}, "kind='tme': wanted one of loo, time, 1; did you mean 'time'"),
        ({"data": "d", "kind": True}, "kind=True: wanted one of loo, time, 1"),
        ({"data": "d", "kind": "xls"}, r"kind='xls': wanted one of loo, time, 1$"),
        ({"data": "d", "seed": True}, "seed=True: wanted int, got bool"),
        ({"data": "d", "seed": 1.5}, "seed=1.5: wanted int, got float"),
        ({"data": "d", "quick": 1}, "quick=1: wanted bool, got int"),
        ({"data": 3}, "data=3: wanted Path, got int"),
        ({"data": "d", "limit": "many"}, "limit='many': wanted int, got str"),
        ({"data": "d", "windows": [1, "x"]}, r"windows\[1\]='x': wanted int"),
        ({"data": "d", "windows": 1}, "windows=1: wanted a list"),
        ({"data": "d", "optimizer": {"betas": [1.0]}}, r"optimizer\.betas=\[1\.0\]: wanted 2 values, got 1"),
        ({"data": "d", "optimizer": 3}, "optimizer=3: wanted a group of settings"),
        ({"data": "d", "optimizer": {"lr": 0}}, r"optimizer: lr=0\.0: wanted more than 0"),
        ({"data": "d", "other": {"lr": -1}}, r"other: lr=-1\.0: wanted more than 0"),
        ({"data": "d", "model": []}, r"model=\[\]: wanted a mapping"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_that_names_it(mapping: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(Job, mapping, "job.yaml: ")
    assert "\n" not in str(caught.value)


def test_a_whole_float_is_an_integer_and_an_integer_is_a_float() -> None:
    job = config.load(Job, {"data": "d", "seed": 3.0, "optimizer": {"lr": 1}})
    assert (job.seed, type(job.seed), job.optimizer.lr, type(job.optimizer.lr)) == (3, int, 1.0, float)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.yaml", None, "no such file"),
        ("job.toml", b"a = 1", r"not a configuration; name a \.yaml or \.json file"),
        ("job.json", b"{", "not a valid json file"),
        ("job.json", b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
        ("job.yaml", b"a: [1", "not a valid yaml file"),
        ("job.yaml", b"a: 1\nb: 2\na: 3\n", "the key 'a' stands twice"),
        ("job.yaml", b"", "holds a NoneType, wanted a mapping"),
        ("job.yaml", b"- 1", "holds a list, wanted a mapping"),
        ("job.yaml", b"a: \xff\xfe", "not a valid yaml file"),
        ("job.yaml", b"a: !!python/object:os.system {}", "not a valid yaml file"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        config.read(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_reach_into_groups_and_leave_the_mapping_alone() -> None:
    mapping: dict[str, Any] = {"train": {"lr": 1.0}, "model": None}
    changed = config.override(mapping, ["train.lr=1e-3", "model.name=sasrec", "a.b.c=[1, 2]", "flag=true", "note=a=b"])
    assert changed == {
        "train": {"lr": 0.001},
        "model": {"name": "sasrec"},
        "a": {"b": {"c": [1, 2]}},
        "flag": True,
        "note": "a=b",
    }
    assert mapping == {"train": {"lr": 1.0}, "model": None}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [("train.lr", "wanted key=value"), ("=3", "wanted key=value"), ("train.lr.x=1", "'lr' is a value, not a group")],
)
def test_an_override_that_cannot_be_applied_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.override({"train": {"lr": 1.0}}, [assignment])


def test_the_schema_names_every_setting_its_default_and_what_is_required() -> None:
    schema = config.schema(Job)
    assert list(schema["properties"]) == [field.name for field in dataclasses.fields(Job) if field.init]
    assert schema["required"] == ["data"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["kind"] == {"enum": ["loo", "time", 1], "default": "time"}
    assert schema["properties"]["limit"]["anyOf"] == [{"type": "integer"}, {"type": "null"}]
    assert schema["properties"]["windows"] == {"type": "array", "items": {"type": "integer"}, "default": [1, 2]}
    assert schema["properties"]["optimizer"]["properties"]["lr"] == {"type": "number", "default": 0.001}


def test_a_prefix_that_ends_in_a_colon_stands_before_the_reason_once() -> None:
    with pytest.raises(ConfigError, match=r"^model sasrec: max_len=-3 must be"):
        full_config("sasrec", {"max_len": -3})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    size: int = 1
    share: float = 0.5
    name: str | None = None
    kind: Literal["a", 1] = "a"
    quick: bool = False
    by_number: Mapping[int, float] = dataclasses.field(default_factory=dict)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)

    def __post_init__(self) -> None:
        config.check_types(self, "part ")


def test_fields_of_their_types_are_taken() -> None:
    Checked(size=-3, share=2, name="x", kind=1, quick=True, by_number={1: 2, 3: 0.5}, optimizer=Optimizer(lr=1.0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 1.0}, "part size=1.0; wanted a whole number"),
        ({"size": False}, "part size=False; wanted a whole number"),
        ({"share": True}, "part share=True; wanted a finite number"),
        ({"share": "1"}, "part share='1'; wanted a finite number"),
        ({"share": math.nan}, "part share=nan; wanted a finite number"),
        ({"share": -math.inf}, "part share=-inf; wanted a finite number"),
        ({"share": 10**309}, f"part share={10**309}; wanted a finite number"),
        ({"name": 7}, "part name=7; wanted a text, or null"),
        ({"kind": "b"}, "part kind='b'; wanted a, 1"),
        ({"kind": True}, "part kind=True; wanted a, 1"),
        ({"quick": 1}, "part quick=1; wanted an instance of bool"),
        ({"by_number": {1: "2"}}, "part by_number={1: '2'}; wanted a mapping of a whole number to a finite number"),
        ({"by_number": None}, "part by_number=None; wanted a mapping of a whole number to a finite number"),
        ({"optimizer": {"lr": 1.0}}, "part optimizer={'lr': 1.0}; wanted an instance of Optimizer"),
        ({"size": torch.zeros(2, 1)}, "part size=tensor([[0.], [0.]]); wanted a whole number"),
    ],
)
def test_a_field_of_another_type_is_refused_in_one_line(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Checked(**fields)


@pytest.mark.parametrize("value", [3, 0.25, -1e300, np.float32(0.25), np.int64(7), torch.tensor(0.5)])
def test_a_number_is_the_same_as_a_float(value: Any) -> None:
    assert config.finite(value) == float(value)


@pytest.mark.parametrize("value", ["1", b"1", True, None, [1.0], math.inf, math.nan, 10**400, torch.zeros(2), 1j])
def test_what_is_no_finite_number_is_nan(value: Any) -> None:
    assert math.isnan(config.finite(value))
