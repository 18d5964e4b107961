"""Probe an untrusted ONNX file: does it load, which shapes has it, does it run? All of it in a child process.

`probe` is the gate between `read_onnx` and everything that runs the model in this process: onnx's checker and shape
inference and onnxruntime abort on some damaged files, so they meet the file in a child first (probe_job.py), with
limits on time and memory, where one run on zeros also shows what the model really takes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxspect.converters import npy
from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file.onnx_file import Limits, OnnxFile, parse_onnx, read_onnx
from onnxspect.converters.file.oversized import data_file, oversized, parted, weight_bytes
from onnxspect.converters.sandbox.guard import GuardedRun, GuardLimits, SandboxLevel, guarded
from onnxspect.converters.sandbox.guard_child import PROBE_INFERRED as INFERRED
from onnxspect.converters.sandbox.guard_child import PROBE_MODEL as MODEL
from onnxspect.converters.sandbox.guard_child import PROBE_WEIGHTS as WEIGHTS
from onnxspect.converters.sandbox.pool import WarmPool
from onnxspect.converters.text import printable

_DTYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bfloat16": "bfloat16",
    **{f"{u}int{b}": f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64)},
    "bool": "bool",
    "string": "string",
}


@dataclass(frozen=True)
class ValueType:
    """An input or output of the graph.

    Attributes:
        name: as in the file; not safe to print (use `text.printable`).
        dtype: numpy's name of the element type; for what is no tensor, onnxruntime's, such as
            "seq(map(int64,tensor(float)))".
        shape: an int for a fixed size, a str for a named one, None for an unknown one; None instead of a tuple for
            what is no tensor.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Probe:
    """What a child process found out about a model.

    Attributes:
        inputs: graph inputs that must be fed, in order.
        outputs: graph outputs, in order.
        run_shapes: shapes of the outputs of a run on zeros at batch size 1 (None for what is no tensor); empty if
            there was none.
        run_error: why there was no run; only where sizes had to be guessed (a free height and width).
        finite: whether all outputs of that run were finite.
        guessed: names (printable) of inputs whose free sizes were guessed for the run.
        checker: what onnx's checker complained of, or "".
        largest_value: name of the largest intermediate value with a known size at batch size 1.
        largest_bytes: its size.
        peak_bytes: memory that loading and running took on top of the libraries.
        seconds: time that took.
        value_info: inferred types and shapes of intermediate values.
        unknown_operators: operators that no ONNX operator set has.
        sandbox: how far the child was locked in.
        warnings: one line each, for the user.
    """

    inputs: tuple[ValueType, ...]
    outputs: tuple[ValueType, ...]
    run_shapes: tuple[tuple[int, ...] | None, ...]
    run_error: str
    finite: bool
    guessed: tuple[str, ...]
    checker: str
    largest_value: str
    largest_bytes: int
    peak_bytes: int
    seconds: float
    value_info: tuple[onnx.ValueInfoProto, ...] = field(repr=False)
    unknown_operators: tuple[str, ...]
    sandbox: SandboxLevel
    warnings: tuple[str, ...]


def probe(
    source: OnnxFile | Path,
    limits: Limits | None = None,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    require_sandbox: bool = False,
    pool: WarmPool | None = None,
) -> Probe:
    """Check, load and run a model on zeros, in a child process.

    Args:
        source: what `read_onnx` returned, or a path to read first.
        limits: default `Limits()`; `memory_bytes`, `value_bytes` and `seconds` are the child's.
        input_shapes: sizes for inputs with free ones; batch size 1 and 224 pixels where they are not given.
        require_sandbox: refuse where the system cannot lock the child in.
        pool: ``WarmPool("probe", ...)``, whose time and memory limits then count; a child started for this call if None.

    Raises:
        OnnxspectError: naming the file and why it cannot be used: what onnxruntime says, a crash, a limit.
    """
    limits = limits or Limits()
    file = source if isinstance(source, OnnxFile) else read_onnx(source, limits)
    request, files = probe_request(file.proto, limits, input_shapes)
    shown = printable(str(file.path), 200)
    if pool is not None:
        with pool.run(request, shown=shown, files=files, require_sandbox=require_sandbox) as run:
            return interpret(run, file, limits)
    with guarded(
        "probe",
        request,
        shown=shown,
        limits=_child_limits(file.proto, limits),
        files=files,
        require_sandbox=require_sandbox,
    ) as run:
        return interpret(run, file, limits)


@contextlib.contextmanager
def run_on(
    file: OnnxFile,
    name: str,
    batches: Sequence[np.ndarray],
    limits: Limits | None = None,
    *,
    require_sandbox: bool = False,
) -> Iterator[tuple[list[np.ndarray], Probe]]:
    """Probe a model and run it on given inputs, in a child process.

    Args:
        file: the model.
        name: of its one input.
        batches: float32 arrays, one run each.
        limits: default `Limits()`.
        require_sandbox: as for `probe`.

    Yields:
        the first output of each run, and the probe's findings.

    Raises:
        OnnxspectError: as `probe`.
    """
    limits = limits or Limits()
    request, files = probe_request(file.proto, limits, {name: batches[0].shape})
    files.update((f"feed_{i}.npy", npy_bytes(batch)) for i, batch in enumerate(batches))
    with guarded(
        "probe",
        {**request, "feed": name, "feeds": len(batches)},
        shown=printable(str(file.path), 200),
        limits=_child_limits(file.proto, limits),
        files=files,
        require_sandbox=require_sandbox,
    ) as run:
        yield [read_array(run, f"found_{i}.npy") for i in range(len(batches))], interpret(run, file, limits)


def npy_bytes(array: np.ndarray) -> bytes:
    """A float32 array as the bytes of an .npy file."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array, np.float32), allow_pickle=False)
    return stream.getvalue()


def read_array(run: GuardedRun, name: str) -> np.ndarray:
    """A float32 array that a child wrote; its header is checked and nothing is unpickled.

    Raises:
        OnnxspectError: if it is anything else.
    """
    data = run.read(name, 1 << 30)
    try:
        stream = io.BytesIO(data)
        header = npy.read_header(stream)
        if header.dtype != np.float32 or header.fortran or len(header.shape) > 8:
            raise ValueError("not a plain float32 array")
        return header.array(data[stream.tell() :])
    except ValueError as error:
        raise OnnxspectError(f"{run.shown}: the child left no readable {name} ({type(error).__name__})") from None


def probe_request(
    model: onnx.ModelProto, limits: Limits, input_shapes: Mapping[str, Sequence[int]] | None
) -> tuple[dict[str, Any], dict[str, bytes | Iterable[bytes]]]:
    """The child's request, and the files of the model it is about."""
    shapes = {name: [int(d) for d in shape] for name, shape in (input_shapes or {}).items()}
    request = {"input_shapes": shapes, "value_bytes": limits.value_bytes}
    if not oversized(model):
        return request, {MODEL: model.SerializeToString()}
    light, large, places = parted(model, WEIGHTS)
    return request, {MODEL: light.SerializeToString(), WEIGHTS: data_file(large, places)}


def _child_limits(model: onnx.ModelProto, limits: Limits) -> GuardLimits:
    """The child's: of a model in parts it holds the weights besides, and once more as onnxruntime arranges them."""
    weights = weight_bytes(model) if oversized(model) else 0
    return GuardLimits(limits.seconds, limits.memory_bytes + 2 * weights)


def interpret(run: GuardedRun, file: OnnxFile, limits: Limits) -> Probe:
    """Read the child's result; whatever in it is not of the expected form is an error, since the child may lie."""
    shown = printable(str(file.path), 200)
    found = run.result
    try:
        inferred = parse_onnx(run.read(INFERRED), limits)
        result = Probe(
            inputs=tuple(_value_type(v) for v in found["inputs"]),
            outputs=tuple(_value_type(v) for v in found["outputs"]),
            run_shapes=tuple(None if s is None else tuple(int(d) for d in s) for s in found["run_shapes"]),
            run_error=printable(str(found["run_error"]), 600),
            finite=bool(found.get("finite", True)),
            guessed=tuple(str(g) for g in found["guessed"]),
            checker=printable(str(found["checker"]), 600),
            largest_value=str(found["largest_value"]),
            largest_bytes=int(found["largest_bytes"]),
            peak_bytes=run.peak_bytes,
            seconds=run.seconds,
            value_info=tuple(inferred.graph.value_info),
            unknown_operators=tuple(printable(str(u), 200) for u in found["unknown_operators"]),
            sandbox=run.sandbox,
            warnings=(),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OnnxspectError(f"{shown}: the child left no readable result ({type(error).__name__})") from None
    warnings = list(file.warnings)
    if result.checker:
        warnings.append(f"onnx's checker complains, but onnxruntime runs it: {result.checker}")
    if result.guessed:
        sizes = "224 pixels were tried" + (f", and failed: {result.run_error}" if result.run_error else "")
        warnings.append(f"input {', '.join(result.guessed)} has free sizes: {sizes}")
    if not result.finite:
        warnings.append("on an all-zero image an output is not finite")
    return Probe(**{**result.__dict__, "warnings": tuple(warnings)})


def _value_type(value: Sequence[Any]) -> ValueType:
    name, kind, shape = value
    inner = kind[len("tensor(") : -1] if kind.startswith("tensor(") else None
    if inner is None:
        return ValueType(str(name), str(kind), None)
    dims = tuple(d if isinstance(d, int | str) else None for d in shape)
    return ValueType(str(name), _DTYPES.get(inner, str(inner)), dims)
