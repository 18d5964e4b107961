"""A second opinion on what a file computes: onnx2torch, an independent implementation, beside ours and onnxruntime.

Our lowering is compared with onnxruntime whenever a file is opened (parity.py). Where both err alike, only a third
implementation tells. It converts what it can: every node all of whose predecessors it converts too. What it does not
know is said, and the values on the border are compared.

Three things are taken care of:

* An untrusted file. onnx2torch names torch modules after the file's nodes, and torch.fx writes these names into the
  Python source that it then executes: a node's name could run code. So every node gets a name of ours first, and a
  node of a domain that onnx2torch does not register is not handed over.
* torchvision. onnx2torch imports it for two operators of object detection (NonMaxSuppression, RoiAlign), and beside a
  CPU build of torch the wheel of torchvision from PyPI does not load. Where it is not there or does not load, an empty
  module stands in for it while onnx2torch is imported, and these two operators count as unsupported.
* Its gaps that are none. New opsets: it registers an operator by the opset that introduced its version, up to 18 or so. A newer version
  with the same attributes, inputs and outputs (which allows more types, and no more) is converted as the older one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from onnxspect.converters.errors import OnnxspectError, is_memory
from onnxspect.converters.lowering.functions import inline_functions
from onnxspect.converters.lowering.lower import LoweredModel
from onnxspect.converters.lowering.taps import with_outputs
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.converters.proof.parity import precision_of
from onnxspect.converters.proof.tolerances import ABSOLUTE, TOLERANCES
from onnxspect.converters.text import printable

#: Operators for which onnx2torch asks torchvision.
_OF_TORCHVISION = frozenset(("NonMaxSuppression", "RoiAlign"))


@dataclass(frozen=True)
class Compared:
    """One value as three implementations compute it.

    Attributes:
        name: ONNX value name.
        theirs: largest \\|onnx2torch - onnxruntime\\|; NaN where the shapes differ or one of the two is no number.
        ours: largest \\|ours - onnxruntime\\|; None where our graph does not compute the value by itself (fused).
        between: largest \\|onnx2torch - ours\\|; None as above.
        allowed: differences up to this are rounding.
    """

    name: str
    theirs: float
    ours: float | None
    between: float | None
    allowed: float


@dataclass(frozen=True)
class SecondOpinion:
    """What an independent implementation makes of a file.

    Attributes:
        by: its name and version.
        nodes: of the file, functions replaced by their bodies.
        converted: how many of them it converts.
        unsupported: what it does not convert, a line an operator, with its reason.
        values: what was compared: the file's outputs, or what lies before the first unsupported nodes.
        differences: beyond rounding, in sentences.
    """

    by: str
    nodes: int
    converted: int
    unsupported: tuple[str, ...]
    values: tuple[Compared, ...]
    differences: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether something was compared and nothing differs."""
        return bool(self.values) and not self.differences

    def describe(self) -> dict[str, Any]:
        """As `onnxspect info --json` prints it; names from the file are made safe to print."""
        return {
            "by": self.by,
            "nodes": self.nodes,
            "converted": self.converted,
            "unsupported": list(self.unsupported),
            "agrees": self.agrees,
            "compared": [
                {
                    "value": printable(v.name),
                    "theirs": v.theirs if np.isfinite(v.theirs) else None,
                    "ours": v.ours,
                    "between": v.between,
                    "allowed": v.allowed,
                }
                for v in self.values
            ],
            "differences": list(self.differences),
        }


def available() -> bool:
    """Whether onnx2torch is installed."""
    return importlib.util.find_spec("onnx2torch") is not None


def second_opinion(
    model: onnx.ModelProto, lowered: LoweredModel, sizes: Sequence[int] = (), *, batch: int = 2, seed: int = 0
) -> SecondOpinion:
    """Compare onnx2torch's graph of a file with onnxruntime and with ours, on one seeded batch.

    Args:
        model: the file, all tensors inside it; not changed.
        lowered: our graph of it.
        sizes: of one input without the batch axis, where the file leaves them open.
        batch: images, where the file leaves that open; uniform in [0, 1].
        seed: of the images.

    Raises:
        OnnxspectError: onnx2torch is not installed, or onnxruntime does not run the file.
    """
    library = _library()
    proto = onnx.ModelProto()
    proto.CopyFrom(inline_functions(model))
    _prepare(proto)
    kept, unsupported = _convertible(proto, library)
    names = _border(proto, kept)
    by = f"onnx2torch {library.version}"
    if not names:
        return SecondOpinion(by, len(proto.graph.node), 0, unsupported, (), ())
    oracle = Oracle(proto, outputs=names)
    images = _images(oracle, lowered.inputs[0], sizes, batch, seed)
    expected = dict(zip(names, oracle.run({lowered.inputs[0]: images}, names), strict=True))
    precision = precision_of(proto)
    try:
        theirs = _theirs(proto, kept, names, images, library)
    except Exception as error:  # onnx2torch and torch raise many types: this graph does not run
        if is_memory(error):
            raise
        line = printable((str(error).splitlines() or [type(error).__name__])[0], 160)
        return SecondOpinion(by, len(proto.graph.node), 0, (*unsupported, f"its graph does not run: {line}"), (), ())
    rows = tuple(
        _compared(name, theirs[name], _ours(lowered, name, images), expected[name], precision) for name in names
    )
    differences = tuple(said for row in rows for said in _said(row))
    if any(not row.theirs <= row.allowed for row in rows):
        first = _first_difference(proto, kept, lowered.inputs[0], images, precision, library)
        differences += (f"onnx2torch first differs {first}",) if first else ()
    return SecondOpinion(by, len(proto.graph.node), len(kept), unsupported, rows, differences)


@dataclass(frozen=True)
class _Library:
    """onnx2torch, imported; `whole` where torchvision stands behind it."""

    convert: Any
    get_converter: Any
    graph: Any
    shapes: Any
    version: str
    whole: bool


@functools.cache
def _library() -> _Library:
    if not available():
        raise OnnxspectError(
            "onnx2torch, which gives the second opinion, is not installed",
            "pip install 'onnxspect[second-opinion]'; or, without torchvision: pip install --no-deps onnx2torch",
        )
    whole = _torchvision_loads()
    with contextlib.nullcontext() if whole else _stand_in():
        converter = importlib.import_module("onnx2torch.converter")
        graph = importlib.import_module("onnx2torch.onnx_graph").OnnxGraph
        _register_newer(importlib.import_module("onnx2torch.node_converters.registry"))
    return _Library(
        converter.convert,
        converter.get_converter,
        graph,
        converter.safe_shape_inference,
        metadata.version("onnx2torch"),
        whole,
    )


def _torchvision_loads() -> bool:
    try:
        importlib.import_module("torchvision.ops")
    except Exception:  # beside another build of torch it is there and raises RuntimeError
        for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
            del sys.modules[name]
        return False
    return True


@contextlib.contextmanager
def _stand_in() -> Iterator[None]:
    """Empty modules in torchvision's place, for the time of an import; nobody else sees them afterwards."""
    ops = types.ModuleType("torchvision.ops")
    ops.roi_align = None  # type: ignore[attr-defined]
    whole = types.ModuleType("torchvision")
    whole.ops = ops  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": whole, "torchvision.ops": ops}
    try:
        yield
    finally:
        for name in ("torchvision", "torchvision.ops"):
            sys.modules.pop(name, None)


def _register_newer(registry: Any) -> None:
    """Versions of operators that onnx2torch has not, and whose interface is that of an older one that it has."""
    versions: dict[str, list[Any]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == onnx.defs.ONNX_DOMAIN:
            versions.setdefault(schema.name, []).append(schema)
    for name, schemas in versions.items():
        older: tuple[Any, Any] | None = None
        for schema in sorted(schemas, key=lambda s: int(s.since_version)):
            try:
                older = schema, registry.get_converter(name, schema.since_version)
            except NotImplementedError:
                if older is not None and _interface(schema) == _interface(older[0]):
                    registry.add_converter(name, schema.since_version)(older[1])
                else:
                    older = None  # what it does not know has changed what comes after, too


def _interface(schema: Any) -> object:
    """Attributes with types and defaults, and how many inputs and outputs there are, of an operator's version."""
    attributes = {n: (a.type, a.required, a.default_value.SerializeToString()) for n, a in schema.attributes.items()}
    return attributes, schema.min_input, schema.max_input, schema.min_output, schema.max_output


def _prepare(proto: onnx.ModelProto) -> None:
    """Names of ours for all nodes; and `allowzero`, which onnx2torch refuses, taken off shapes that hold no zero."""
    constants = {t.name: t for t in proto.graph.initializer}
    for i, node in enumerate(proto.graph.node):
        node.name = f"n{i}"
        shape = constants.get(node.input[1]) if node.op_type == "Reshape" and len(node.input) == 2 else None
        if shape is not None and numpy_helper.to_array(shape).all():
            kept = [a for a in node.attribute if a.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _convertible(proto: onnx.ModelProto, library: _Library) -> tuple[list[int], tuple[str, ...]]:
    """Indices of the nodes that onnx2torch converts, with all that lies before them; and what it does not, in words."""
    opsets = {o.domain: o.version for o in proto.opset_import}
    inferred = library.shapes(proto)
    graph = library.graph(inferred.graph)
    known = {t.name for t in proto.graph.initializer} | {i.name for i in proto.graph.input} | {""}
    kept: list[int] = []
    refused: dict[str, None] = {}
    for i, (node, theirs) in enumerate(zip(proto.graph.node, graph.nodes.values(), strict=True)):
        reason = ""
        if node.op_type in _OF_TORCHVISION and not library.whole:
            reason = "needs torchvision"
        else:
            try:
                find = library.get_converter(node.op_type, opsets.get(theirs.domain, 0), theirs.domain)
                find(theirs, graph)
            except NotImplementedError as error:
                unknown = str(error).startswith("Converter is not implemented")
                reason = (
                    "unknown to it" if unknown else printable(str(error).splitlines()[0] if str(error) else "", 120)
                )
            except Exception as error:  # what else a converter trips over
                reason = f"{type(error).__name__}: {printable((str(error).splitlines() or [''])[0], 120)}"
        if reason:
            refused[f"{printable(node.op_type)} (opset {opsets.get(node.domain, 0)}): {reason}"] = None
        elif all(name in known for name in node.input):
            kept.append(i)
            known.update(node.output)
    return kept, tuple(refused)


def _border(proto: onnx.ModelProto, kept: Sequence[int]) -> list[str]:
    """Values of kept nodes that are the file's outputs, or that others read."""
    inside = set(kept)
    read = {n for i, node in enumerate(proto.graph.node) if i not in inside for n in node.input}
    read |= {o.name for o in proto.graph.output}
    return [o for i in kept for o in proto.graph.node[i].output if o and o in read]


def _images(oracle: Oracle, name: str, sizes: Sequence[int], batch: int, seed: int) -> np.ndarray:
    shape, dtype = oracle.inputs[name][0], oracle.dtype(name)
    full = [s if isinstance(s, int) and s > 0 else 0 for s in shape]
    full[0] = full[0] or batch
    for axis in range(1, len(full)):
        if not full[axis]:
            if axis > len(sizes) or not sizes[axis - 1]:
                raise OnnxspectError("the model leaves the sizes of its input open, and none were given")
            full[axis] = int(sizes[axis - 1])
    generator = np.random.default_rng(seed)
    if np.issubdtype(dtype, np.floating):
        return generator.random(full).astype(dtype)
    return generator.integers(0, {np.bool_: 2, np.int8: 128}.get(dtype, 256), full).astype(dtype)


def _theirs(
    proto: onnx.ModelProto, kept: Sequence[int], names: Sequence[str], images: np.ndarray, library: _Library
) -> Mapping[str, np.ndarray]:
    """The named values as onnx2torch computes them."""
    part = onnx.ModelProto()
    part.CopyFrom(proto)
    nodes = [proto.graph.node[i] for i in kept]
    del part.graph.node[:], part.graph.output[:]
    part.graph.node.extend(nodes)
    kinds = {v.name: v for v in (*proto.graph.value_info, *proto.graph.output)}
    part.graph.output.extend(kinds.get(n, onnx.ValueInfoProto(name=n)) for n in names)
    module = library.convert(part).eval()
    with torch.no_grad():
        found = module(torch.from_numpy(images))
    makers = {o: node for node in nodes for o in node.output if o}
    order = list(dict.fromkeys(makers[n].name for n in names))
    results = dict(zip(order, [found] if len(order) == 1 else found, strict=True))
    values = {}
    for name in names:
        result = results[makers[name].name]
        one = result[list(makers[name].output).index(name)] if len(makers[name].output) > 1 else result
        values[name] = one.cpu().numpy()
    return values


def _ours(lowered: LoweredModel, name: str, images: np.ndarray) -> np.ndarray | None:
    try:
        module = with_outputs(lowered, [name]).module
    except OnnxspectError:
        return None
    fed = images.astype(np.float32) if images.dtype == np.float16 else images
    with torch.no_grad():
        found = module(torch.from_numpy(fed))
    return np.asarray((found[0] if isinstance(found, tuple) else found).cpu().numpy())


def _compared(name: str, theirs: np.ndarray, ours: np.ndarray | None, expected: np.ndarray, precision: str) -> Compared:
    finite = np.abs(np.asarray(expected, np.float64))[np.isfinite(np.asarray(expected, np.float64))]
    allowed = max(ABSOLUTE[precision], TOLERANCES[precision] * float(finite.max(initial=0.0)))
    return Compared(
        name,
        _distance(theirs, expected),
        None if ours is None else _distance(ours.reshape(np.shape(expected)), expected),
        None if ours is None else _distance(theirs, ours.reshape(np.shape(expected))),
        allowed,
    )


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference; NaN where the shapes differ or only one of the two is a number."""
    if np.shape(found) != np.shape(expected):
        return float("nan")
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        return float(np.where(same, 0.0, np.abs(a - b)).max(initial=0.0))


def _said(row: Compared) -> list[str]:
    shown = printable(row.name)
    said = []
    if not row.theirs <= row.allowed:
        said.append(f"{shown}: onnx2torch is {row.theirs:.3g} from onnxruntime ({row.allowed:.1g} is rounding)")
    if row.ours is not None and not row.ours <= row.allowed:
        said.append(f"{shown}: our graph is {row.ours:.3g} from onnxruntime ({row.allowed:.1g} is rounding)")
    return said


def _first_difference(
    proto: onnx.ModelProto, kept: Sequence[int], name: str, images: np.ndarray, precision: str, library: _Library
) -> str:
    """Where onnx2torch first leaves onnxruntime, in words; "" where that cannot be told."""
    every = [o for i in kept for o in proto.graph.node[i].output if o]
    try:
        found = _theirs(proto, kept, every, images, library)
        expected = Oracle(proto, outputs=every).run({name: images}, every)
    except Exception:  # an inner value that one of the two does not give out: then only the end can be compared
        return ""
    for value, reference in zip(every, expected, strict=True):
        row = _compared(value, found[value], None, reference, precision)
        if not row.theirs <= row.allowed:
            (maker,) = (node for node in proto.graph.node if value in node.output)
            return f"at {printable(value)} ({printable(maker.op_type)})"
    return ""
