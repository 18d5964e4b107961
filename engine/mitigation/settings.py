"""Settings of methods by name: ``method.key=value``, typed by the fields of the method's dataclass.

A key names a field, or a field of a settings class inside it (``fine-tune.training.epochs``). Numbers, words, switches and
sequences of numbers can be set so; what is made of other objects (how unlearning searches, its stages) only from Python.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnxspect.engine.errors import OnnxspectError


def spelled(name: str) -> str:
    """A name as the command line spells it: ``fine-tune``; ``fine_tune`` was its spelling up to 0.1.0."""
    return name.strip().replace("_", "-")


#: Other names of methods that are understood: the field's name of a method -> the name that runs, files and reports keep.
ALIASES = {"suppress-target": "withhold", "target-logit-suppression": "withhold"}


def method_name(name: str) -> str:
    """The one name of a method, from any spelling or alias of it; other texts as `spelled` has them."""
    return ALIASES.get(spelled(name), spelled(name))


@dataclasses.dataclass(frozen=True)
class Setting:
    """One thing that can be set.

    Attributes:
        key: as it is written, such as "training.learning-rate".
        path: the names of the fields that lead to it.
        kind: its type: bool, int, float, str, or a tuple of numbers.
        default: its value where nothing is set.
    """

    key: str
    path: tuple[str, ...]
    kind: Any
    default: Any

    def parse(self, text: str, where: str) -> Any:
        """The value that `text` writes.

        Raises:
            OnnxspectError: it is of another type; `where` names the setting.
        """
        found = _parse(self.kind, text.strip())
        if found is None:
            raise OnnxspectError(f"{where}: {text!r} is not {self.words}", f"the default is {shown(self.default)}")
        return found

    @property
    def words(self) -> str:
        """Its type in words."""
        named = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
        if self.kind in named:
            return named[self.kind]
        one, *more = typing.get_args(self.kind)
        what = "whole numbers" if one is int else "numbers"
        return f"{what} with commas between" if more == [Ellipsis] else f"{1 + len(more)} {what} with a comma between"


def require(holds: bool, message: str) -> None:
    """Refuse settings that make no sense.

    Raises:
        OnnxspectError: with `message`, where `holds` is false.
    """
    if not holds:
        raise OnnxspectError(message)


def settable(make: Any) -> dict[str, Setting]:
    """Everything that can be set of a settings class, by key, in the order of its fields."""
    return {s.key: s for s in _walk(make(), ())}


def shown(value: Any) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(shown, value)) if isinstance(value, tuple) else f"{value:g}" if _is_float(value) else str(value)


def parsed(texts: Sequence[str], methods: Mapping[str, Any]) -> dict[str, Any]:
    """What `--set` options say, as `registry.chosen` takes it: "method.key" -> value.

    Args:
        texts: of the form ``method.key=value``.
        methods: name -> its settings class.

    Raises:
        OnnxspectError: not of that form, no such method or key, a value of another type, or a key given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        method, dot, key = name.partition(".")
        if not (equals and dot and method.strip() and key.strip()):
            raise OnnxspectError(f"--set {text!r}: not of the form method.key=value", "for example unlearn.rounds=2")
        setting = find(method_name(method), key, methods, f"--set {name.strip()}")
        full = f"{method_name(method)}.{setting.key}"
        if full in found:
            raise OnnxspectError(f"--set {full}: given twice", "give it once")
        found[full] = setting.parse(value, f"--set {full}")
    return found


def find(method: str, key: str, methods: Mapping[str, Any], where: str) -> Setting:
    """The setting of that method and key.

    Raises:
        OnnxspectError: there is none; lists those that there are.
    """
    if method not in methods:
        raise OnnxspectError(f"{where}: no method {method!r}", f"one of {', '.join(methods)}")
    known = settable(methods[method])
    if spelled(key) not in known:
        near = difflib.get_close_matches(spelled(key), known, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise OnnxspectError(f"{where}: {method} has no such setting", f"it has {', '.join(known) or 'none'}{meant}")
    return known[spelled(key)]


def with_settings(instance: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
    """A copy of a settings object with the fields at the paths replaced; each class is checked once, whole."""
    inner: dict[str, dict[tuple[str, ...], Any]] = {}
    changed: dict[str, Any] = {}
    for (first, *rest), value in values.items():
        if rest:
            inner.setdefault(first, {})[tuple(rest)] = value
        else:
            changed[first] = value
    for name, deeper in inner.items():
        changed[name] = with_settings(getattr(instance, name), deeper)
    return dataclasses.replace(instance, **changed)


def _walk(instance: Any, path: tuple[str, ...]) -> Iterator[Setting]:
    kinds = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        kind, here, value = kinds[field.name], (*path, field.name), getattr(instance, field.name)
        if dataclasses.is_dataclass(value):
            if path or any(dataclasses.is_dataclass(getattr(value, f.name)) for f in dataclasses.fields(value)):
                continue
            yield from _walk(value, here)
        elif kind in (bool, int, float, str) or _is_numbers(kind):
            yield Setting(spelled(".".join(here)), here, kind, value)


def _is_numbers(kind: Any) -> bool:
    arguments = [a for a in typing.get_args(kind) if a is not Ellipsis]
    return typing.get_origin(kind) is tuple and bool(arguments) and all(a in (int, float) for a in arguments)


def _is_float(value: Any) -> bool:
    return isinstance(value, float)


def _parse(kind: Any, text: str) -> Any:
    """The value, or None where `text` does not write one."""
    if kind is str:
        return text or None
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower())
    if kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            return None
        return number if math.isfinite(number) else None
    wanted = typing.get_args(kind)
    parts = text.split(",")
    one = wanted[0]
    if wanted[1:] != (Ellipsis,) and len(parts) != len(wanted):
        return None
    numbers = [_parse(one, part.strip()) for part in parts]
    return None if any(n is None for n in numbers) else tuple(numbers)
