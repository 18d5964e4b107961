"""What a from_<framework>.py hands over: the framework's model as a function, and ways to write it as ONNX.

All of this lives in the guarded child. A framework module has one function, ``export(source) -> Exported``; convert_job
tries its attempts in order and takes the first whose ONNX graph computes what the framework computes.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.text import printable

Layout = str  # "NCHW", "NHWC", "flat" or "" where it is not known

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True)
class Source:
    """A model to convert, as the child sees it.

    Attributes:
        path: the file or folder.
        format: a name in `sources.FORMATS`.
        factory: "package.module:function" of the user's own code, or "".
        input_shape: of one sample, without the batch, or ().
        folder: the only place that can be written.
        search_path: folders in which the factory's module is looked for first.
        head: name of the output that is meant, where the model has several; "" for the first.
        sandbox_missing: measures that are not in force in this process; empty where it is locked in completely.
    """

    path: Path
    format: str
    factory: str
    input_shape: tuple[int, ...]
    folder: Path
    search_path: tuple[str, ...]
    sandbox_missing: tuple[str, ...]
    head: str = ""

    def require_sandbox(self, what: str, hint: str) -> None:
        """Refuse to go on where opening the file can run code and this process is not locked in."""
        if self.sandbox_missing:
            missing = ", ".join(self.sandbox_missing)
            raise OnnxspectError(f"{what}, and this system cannot lock a process in ({missing} missing)", hint)


@dataclass(frozen=True)
class Attempt:
    """One way to write the model as ONNX.

    Attributes:
        exporter: its name and what is special about it, for the sidecar and for errors.
        build: makes the model; may raise anything.
    """

    exporter: str
    build: Callable[[], onnx.ModelProto]


@dataclass(frozen=True)
class Exported:
    """A model of a framework, opened.

    Attributes:
        run: the framework's own forward pass, ``(batch, *sample) -> (batch, classes)``, in inference mode.
        sample_shape: of one input, without the batch.
        attempts: ways to write it, best first.
        framework: package name -> version, of what opened and exported it.
        layout: of the input.
        value_range: lowest and highest value that the input is meant to have, or None where the file does not tell.
        dtype: of the input.
        classes: names, in the order of the outputs, or ().
        batch: the only batch size it works for, or 0 for any.
        precision: row of `parity_table.TOLERANCES`.
        tolerance: what the output may differ by, where the file itself says (quantisation steps); None for the table's.
        warnings: one line each, for the user.
    """

    run: Callable[[np.ndarray], np.ndarray]
    sample_shape: tuple[int, ...]
    attempts: Sequence[Attempt]
    framework: dict[str, str]
    layout: Layout = ""
    value_range: tuple[float, float] | None = None
    dtype: str = "float32"
    classes: tuple[str, ...] = ()
    batch: int = 0
    precision: str = "float32"
    tolerance: float | None = None
    warnings: tuple[str, ...] = field(default_factory=tuple)


def find_factory(source: Source) -> Callable[..., Any]:
    """Import the user's factory.

    Raises:
        OnnxspectError: if it is not of the form "package.module:function", or cannot be imported.
    """
    if not _FACTORY.fullmatch(source.factory):
        raise OnnxspectError(
            f"factory {printable(source.factory)!r} is not of the form package.module:function",
            "a module and a function name, with a colon between them",
        )
    module_name, _, function_name = source.factory.partition(":")
    for folder in reversed(source.search_path):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise OnnxspectError(
            f"factory {source.factory} cannot be imported: {printable(str(error), 300)}",
            "run from the folder that holds its module, or install it",
        ) from None
    return function


def takes_arrays(source: Source) -> bool:
    """Whether the factory has a parameter without a default: then it is JAX's kind, ``params -> function``."""
    parameters = inspect.signature(find_factory(source)).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.default is inspect.Parameter.empty and p.kind in positional for p in parameters)


def call_factory(source: Source, *arguments: Any) -> Any:
    """Import the user's factory and call it.

    Raises:
        OnnxspectError: as `find_factory`, or if it raises.
    """
    function = find_factory(source)
    try:
        return function(*arguments)
    except OnnxspectError:
        raise
    except Exception as error:
        raise OnnxspectError(
            f"factory {source.factory} failed: {type(error).__name__}: {printable(str(error), 300)}",
            "call the function yourself, without arguments: it must return the network",
        ) from None


def chosen_head(names: Sequence[str], head: str) -> tuple[int, tuple[str, ...]]:
    """(index of the output that is meant, notes for the user) of a model with these outputs.

    Raises:
        OnnxspectError: there is none of that name.
    """
    if head and head not in names:
        shown = ", ".join(printable(n, 60) for n in names[:10])
        raise OnnxspectError(f"has no head named {printable(head, 60)}", f"its heads are {shown}: --head NAME")
    at = list(names).index(head) if head else 0
    if len(names) < 2 or head:
        return at, ()
    others = ", ".join(printable(n, 60) for n in names[1:10])
    return at, (
        f"of {len(names)} heads the first was taken, {printable(names[0], 60)}; --head takes another ({others})",
    )


def image_layout(shape: Sequence[int | None]) -> Layout:
    """NCHW or NHWC, by where the 1, 3 or 4 channels of a sample are; "" where both or neither fit."""
    if len(shape) == 1:
        return "flat"
    if len(shape) != 3:
        return ""
    first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
    return "NCHW" if first and not last else "NHWC" if last and not first else ""


def missing_extra(package: str, extra: str) -> OnnxspectError:
    """The error for a framework that is not installed."""
    return OnnxspectError(
        f"opening it needs {package}, which is not installed", f"python -m pip install 'onnxspect[{extra}]'"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep an exporter's progress and warnings away from the user's terminal."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
