"""Recipes are data: frozen dataclasses from plain dicts (TOML, JSON) and back, with the wrong field named.

Every error is an `OnnxspectError` whose message starts with the dotted path of the field, e.g.
``attack.members[0].trigger.height: ...``, so that a bad recipe fails before training and says where.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import types
import typing
import zlib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

import numpy as np

from onnxspect.converters.errors import OnnxspectError

T = TypeVar("T")


def bad_field(path: str, fact: str, hint: str = "") -> OnnxspectError:
    """The error for one wrong field; `path` is its dotted path within the recipe."""
    return OnnxspectError(f"{path}: {fact}", hint or "correct this field of the recipe")


def build(cls: type[T], data: Any, path: str) -> T:
    """Build the frozen dataclass `cls` from the mapping `data`, checking every key and type.

    A class may define ``@classmethod from_plain(cls, data, path)`` (the trigger registry does) to choose its own
    construction.

    Errors: `OnnxspectError` naming the field for an unknown key, a missing key or a value of the wrong type.
    """
    if not isinstance(data, Mapping):
        raise bad_field(path, f"must be a table of fields, is {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise bad_field(f"{path}.{unknown[0]}", "unknown field", f"known fields: {', '.join(fields)}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{path}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise bad_field(f"{path}.{name}", "is missing")
    return cls(**values)


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the annotation `hint` asks, or an error that names `path`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert_to_one_of([arg for arg in args if arg is not type(None)], value, path)
    if origin is Literal:
        if value not in args:
            raise bad_field(path, f"is {value!r}, must be one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise bad_field(path, f"must be a list, is {value!r}")
        return tuple(_convert(args[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    if hasattr(hint, "from_plain"):
        return hint.from_plain(value, path)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path)
    return _convert_scalar(hint, value, path)


def _convert_to_one_of(hints: list[Any], value: Any, path: str) -> Any:
    """The first of several alternative types that takes the value; the last one's error otherwise."""
    for hint in hints[:-1]:
        try:
            return _convert(hint, value, path)
        except OnnxspectError:
            continue
    return _convert(hints[-1], value, path)


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int in Python: a flag given where a number is due is an error, not 0 or 1.
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise bad_field(path, f"must be {hint.__name__}, is {value!r}")
    return value


def to_plain(value: Any) -> Any:
    """The reverse of `build`: dataclasses become dicts (in field order), tuples become lists."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def encode_array(array: np.ndarray) -> str:
    """An array as text for a recipe: base64 of the deflated .npy bytes. Exact: dtype, shape and bits are kept."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return base64.b64encode(zlib.compress(stream.getvalue(), 9)).decode("ascii")


def decode_array(text: str, path: str) -> np.ndarray:
    """The array that `encode_array` wrote; `path` names the field if the text is not one."""
    try:
        return np.load(io.BytesIO(zlib.decompress(base64.b64decode(text, validate=True))), allow_pickle=False)
    except (ValueError, zlib.error, OSError, EOFError) as error:
        raise bad_field(path, "is not an encoded array", "such fields are written by the zoo build") from error
