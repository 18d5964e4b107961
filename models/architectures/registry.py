"""Networks by name: how each is built, for which images, in which framework, and what its file will take and give."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from onnxspect.models.fields import bad_field
from onnxspect.models.formats import FileFormat
from onnxspect.models.triggers import ImageShape

Builder = Callable[[ImageShape, int, int], Any]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One network.

    build: (image shape, classes, seed) -> an untrained torch module, or a Keras model whose weights come from `seed`
    (the trainer draws a torch network's weights itself). smallest: least height and width.
    """

    name: str
    framework: Literal["torch", "keras"]
    build: Builder
    smallest: int
    file_format: FileFormat


_ARCHITECTURES: dict[str, Architecture] = {}


def register(
    name: str,
    *,
    smallest: int,
    framework: Literal["torch", "keras"] = "torch",
    file_format: FileFormat | None = None,
) -> Callable[[Builder], Builder]:
    """Decorator: make a builder known by `name`. A duplicate is an error."""

    def add(build: Builder) -> Builder:
        if name in _ARCHITECTURES:
            raise ValueError(f"architecture {name!r} is registered twice")
        _ARCHITECTURES[name] = Architecture(name, framework, build, smallest, file_format or FileFormat())
        return build

    return add


def names() -> tuple[str, ...]:
    """All known networks, sorted."""
    return tuple(sorted(_ARCHITECTURES))


def get(name: str, path: str = "architecture") -> Architecture:
    """The network called `name`; otherwise an `OnnxspectError` at field `path` that lists the known ones."""
    if name not in _ARCHITECTURES:
        raise bad_field(path, f"unknown network {name!r}", f"one of {', '.join(names())}")
    return _ARCHITECTURES[name]


def check(name: str, shape: ImageShape, path: str) -> None:
    """Refuse an unknown network, and images that are too small for its pooling."""
    smallest = get(name, path).smallest
    if min(shape[:2]) < smallest:
        raise bad_field(path, f"{name} needs images of at least {smallest}x{smallest}, these are {shape[0]}x{shape[1]}")
