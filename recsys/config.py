"""Mappings into frozen dataclasses, and back. Generic: it knows no part of the platform by name.

`load(cls, mapping)` checks every key and type on the way down; an unknown key is refused with the nearest known one.
Only the standard library is needed, but for `.yaml` files (PyYAML).
"""

import copy
import dataclasses
import difflib
import functools
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from recsys.errors import ConfigError, MissingExtraError, missing_extra

T = TypeVar("T")
MAX_SEED = 2**64  # torch and numpy seed a generator with 64 bits
_NUMBER = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$")


def read(path: Path) -> dict[str, Any]:
    """The mapping in a `.json` or `.yaml` file.

    Raises:
        ConfigError: the file is missing, is not valid JSON or YAML, holds no mapping, or names a key twice.
        MissingExtraError: a YAML file without PyYAML.
    """
    if not path.is_file() or path.suffix not in (".json", ".yaml", ".yml"):
        what = "not a configuration" if path.is_file() else "no such file"
        raise ConfigError(f"{path}: {what}; name a .yaml or .json file")
    try:
        text = path.read_text(encoding="utf-8")
        mapping = json.loads(text, object_pairs_hook=_distinct) if path.suffix == ".json" else _yaml(text)
    except MissingExtraError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"{path}: not a valid {path.suffix.lstrip('.')} file: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path}: holds a {type(mapping).__name__}, wanted a mapping of keys to values")
    return mapping


def override(mapping: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of `mapping` with each `a.b=value` applied; values that are JSON or numbers count as such.

    Raises:
        ConfigError: an assignment has no `=`, or its path runs through a value that is no mapping.
    """
    result: dict[str, Any] = copy.deepcopy(dict(mapping))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {assignment}: wanted key=value, for example train.lr=1e-3")
        *parents, last = path.split(".")
        node = result
        for parent in parents:
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
            if not isinstance(node, dict):
                raise ConfigError(f"--set {assignment}: {parent!r} is a value, not a group of settings")
        node[last] = _scalar(text)
    return result


def load(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """An instance of the dataclass `cls` from a mapping.

    Args:
        cls: a dataclass; its fields may be scalars, `X | None`, `Literal`, lists, tuples, dicts and dataclasses.
        mapping: keys are field names.
        where: prefix for messages, such as the file's name.

    Raises:
        ConfigError: an unknown key (the nearest known one is named), a missing one, a wrong type, or a value that
            the class itself refuses.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]  # T is a dataclass
    for key in mapping:
        if key not in fields:
            raise ConfigError(f"{_at(where, str(key))}: unknown key; {_nearest(str(key), list(fields))}")
    hints = typing.get_type_hints(cls)
    values = {key: _convert(hints[key], value, _at(where, key)) for key, value in mapping.items()}
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_at(where, name)}: missing; it has no default")
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        head = where.rstrip(" :")
        raise ConfigError(f"{head + ': ' if head else ''}{error}") from error


def dump(config: Any) -> dict[str, Any]:
    """The dataclass as plain JSON values; `load(type(config), dump(config)) == config`."""
    fields = [field.name for field in dataclasses.fields(config) if field.init]
    return {name: _plain(getattr(config, name)) for name in fields}


def schema(cls: type) -> dict[str, Any]:
    """A JSON schema of the dataclass `cls`: names, types, defaults and what is required."""
    hints = typing.get_type_hints(cls)
    properties: dict[str, Any] = {}
    required = []
    for field in (f for f in dataclasses.fields(cls) if f.init):
        properties[field.name] = _schema_of(hints[field.name])
        if field.default is not dataclasses.MISSING:
            properties[field.name]["default"] = _plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            properties[field.name]["default"] = _plain(field.default_factory())
        else:
            required.append(field.name)
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": required}


def check_types(config: Any, where: str = "") -> None:
    """Nothing, for a dataclass whose fields hold what their annotations say; `load` checks the same on its way.

    A whole number stands for a float, a bool for neither, and a float is finite. Annotations may be scalars,
    `X | None`, `Literal`, mappings and dataclasses.

    Args:
        config: an instance; to be called first in its `__post_init__`.
        where: prefix of the field's name in the message.

    Raises:
        ValueError: a field holds something else; it, its value and what was wanted are named in one line.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not _fits(hints[field.name], value):
            told = " ".join(repr(value).split())
            raise ValueError(f"{where}{field.name}={told}; wanted {_wanted(hints[field.name])}")


def finite(value: object) -> float:
    """The number as a float; NaN for all that is no finite number: texts, bools, None, infinities, more than fits."""
    if isinstance(value, str | bytes | bool):
        return math.nan
    try:
        number = float(value)  # type: ignore[arg-type]  # numbers of numpy and torch are none of Python's
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _fits(hint: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(argument, value) for argument in arguments)
    if origin is typing.Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if origin is not None:
        assert issubclass(origin, Mapping), hint
        key_hint, value_hint = arguments
        return isinstance(value, Mapping) and all(_fits(key_hint, k) and _fits(value_hint, v) for k, v in value.items())
    if hint is float:
        return isinstance(value, int | float) and not math.isnan(finite(value))
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _wanted(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(map(_wanted, arguments))
    if origin is typing.Literal:
        return ", ".join(map(str, arguments))
    if origin is not None:
        return f"a mapping of {_wanted(arguments[0])} to {_wanted(arguments[1])}"
    names = {int: "a whole number", float: "a finite number", str: "a text", type(None): "null"}
    return names.get(hint) or f"an instance of {hint.__name__}"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return dump(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return mapping


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        missing_extra("pyyaml", "all", error)
    try:
        return yaml.load(text, Loader=_yaml_loader())
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


@functools.cache
def _yaml_loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """As in JSON: `1e-3` is a number, a date is text, and a key stands once."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in (k for k in keys if keys.count(k) > 1):
                raise yaml.YAMLError(f"the key {key!r} stands twice, line {node.start_mark.line + 1} and below")
            mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
            return mapping

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789."))
    return Loader


def _scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return float(text) if _NUMBER.match(text) and "." in text else text  # JSON has no .5


def _at(where: str, key: str) -> str:
    separator = "." if where and not where.endswith((" ", ":")) else ""
    return f"{where}{separator}{key}"


def _nearest(key: str, known: list[str]) -> str:
    close = _close(key, known)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"


def _close(key: str, known: list[str]) -> list[str]:
    return difflib.get_close_matches(key, known, n=1, cutoff=0.5)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is typing.Literal:
        if any(value == a and type(value) is type(a) for a in arguments):
            return value
        choices = [str(argument) for argument in arguments]
        close = _close(str(value), choices)
        told = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{where}={value!r}: wanted one of {', '.join(choices)}{told}")
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}={value!r}: wanted a group of settings")
        return load(typing.cast(type, hint), value, where)
    if origin in (list, tuple):
        return _convert_sequence(origin, arguments, value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}={value!r}: wanted a mapping")
        return {str(k): _convert(arguments[1], v, _at(where, str(k))) for k, v in value.items()}
    return _convert_scalar(hint, value, where)


def _convert_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    errors = []
    for argument in (a for a in arguments if a is not type(None)):
        try:
            return _convert(argument, value, where)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _convert_sequence(origin: type, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where}={value!r}: wanted a list")
    fixed = origin is tuple and arguments[-1] is not Ellipsis
    if fixed and len(value) != len(arguments):
        raise ConfigError(f"{where}={value!r}: wanted {len(arguments)} values, got {len(value)}")
    hints = arguments if fixed else (arguments[0],) * len(value)
    return origin(_convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(hints, value, strict=True)))


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}={value!r}: wanted {hint.__name__}, got {type(value).__name__}")
    return value


def _schema_of(hint: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema_of(argument) for argument in arguments]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if dataclasses.is_dataclass(hint):
        return schema(typing.cast(type, hint))
    if origin in (list, tuple):
        return {"type": "array", "items": _schema_of(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1])}
    names = {int: "integer", float: "number", bool: "boolean", str: "string", Path: "string", type(None): "null"}
    return {"type": names[hint]} if hint in names else {}
