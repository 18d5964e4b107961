"""Opening an untrusted ONNX file: what the parent process does itself, and what it refuses.

Nothing of the file is executed here and no C++ code of onnx or onnxruntime sees it, because both abort the process on
some damaged files: those first meet it in the child (probe.py). What happens here, in this order, is

1. open (safe_open.py): a regular file of at least one byte and at most `Limits.file_bytes` (`onnx.load` takes an empty
   file for a model without nodes);
2. bound the memory that parsing takes (wire_scan.py), then parse with protobuf;
3. refuse what two readers would read in two ways (two_readings.py);
4. bring the external data in (external_data.py), from the file's folder and nowhere else;
5. repair what old exporters left out, with a warning each: a missing opset_import is opset 1 (the ONNX IR before
   version 3 had none), and attributes without a type get the type of the field that is filled; put right what onnxruntime
   puts right itself (node_order.py);
6. count nodes after expansion of functions and loops (graph_cost.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file.external_data import ExternalFile, embed, tensor_bytes, tensors
from onnxspect.converters.file.graph_cost import GraphCost, graph_cost
from onnxspect.converters.file.node_order import make_dense, sort_nodes
from onnxspect.converters.file.two_readings import refuse_overlaps, refuse_two_readings
from onnxspect.converters.file.wire_scan import Damaged, parse_bound
from onnxspect.converters.sandbox.safe_open import read_regular
from onnxspect.converters.text import printable, readable_bytes

_GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """What an untrusted file may use.

    Attributes:
        file_bytes: size of one file; protobuf itself ends at 2 GiB.
        external_bytes: external data, all files together; it is read into memory.
        memory_bytes: what parsing, and what the child that runs the model, may take on top of its libraries (and of the
            weights, where they are too large for one message).
        value_bytes: one intermediate value of the graph at batch size 1.
        nodes: nodes after expansion, and node executions of one run; the largest classifiers have some ten thousand, and
            a loop is unrolled when the graph is turned into torch (a millisecond a node).
        seconds: wall time of the child.
    """

    file_bytes: int = 2 * _GIB - 1
    external_bytes: int = 16 * _GIB
    memory_bytes: int = 4 * _GIB
    value_bytes: int = 1 * _GIB
    nodes: int = 50_000
    seconds: float = 60.0


@dataclass(frozen=True)
class OnnxFile:
    """A parsed ONNX file.

    Attributes:
        path: as given.
        proto: the model with its external data inside; repaired where `warnings` says so.
        sha256: digest of the file, in hexadecimal (what ``sha256sum`` prints). External data is not part of it: see
            `identity`.
        size: of the file, in bytes.
        opset: version of the default operator set.
        cost: nodes as written, expanded and executed.
        external: the pieces of external data that were read.
        warnings: one line for each thing that was repaired or is odd.
        bound: inputs beside the image that got a value (bound_inputs.py), by name; they are initializers of `proto`, and none of the
            file on disk.
        faced: `proto` has another input than the file on disk: a batch axis, or a shape (input_face.py); or it `chooses`.
        chooses: nodes that choose by the number of images, and are decided in `proto` as for one (one_image.py).
    """

    path: Path
    proto: onnx.ModelProto = field(repr=False)
    sha256: str
    size: int
    opset: int
    cost: GraphCost
    external: tuple[ExternalFile, ...] = ()
    warnings: tuple[str, ...] = ()
    bound: tuple[tuple[str, float], ...] = ()
    faced: bool = False
    chooses: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """A digest of everything that determines the model: `sha256`, or, with external data, of that and the data."""
        if not self.external:
            return self.sha256
        digest = hashlib.sha256(self.sha256.encode())
        for piece in self.external:
            digest.update(f"\n{piece.offset} {piece.length} {piece.sha256}".encode())
        return digest.hexdigest()


def read_onnx(path: Path, limits: Limits | None = None, *, external: bool = True) -> OnnxFile:
    """Open and parse an ONNX file; run nothing.

    Args:
        path: a symbolic link is followed; external data is looked for in the folder of `path` as given.
        limits: default `Limits()`.
        external: false leaves external data where it is, unread (where only the graph is needed).

    Raises:
        OnnxspectError: one line with the file's name and the fact, and a hint.
    """
    limits = limits or Limits()
    path = Path(path)
    content = read_regular(path, limits.file_bytes)
    return check_onnx(content.data, path, limits, printable(str(path), 200), external=external, sha256=content.sha256)


def check_onnx(
    data: bytes, path: Path, limits: Limits, shown: str, *, external: bool = True, sha256: str = ""
) -> OnnxFile:
    """What `read_onnx` does, for a model whose bytes are already here (a child's output).

    Args:
        data: the file's content.
        path: where it is, or will be; external data is looked for in its folder.
        limits: as for `read_onnx`.
        shown: how errors name it; safe to print.
        external: as for `read_onnx`.
        sha256: digest of `data` in hexadecimal, where it is known.
    """
    try:
        proto = parse_onnx(data, limits)
        refuse_two_readings(proto)
        pieces = embed(proto, path.parent, limits.external_bytes) if external else ()
        refuse_overlaps(pieces)
        warnings = _repair(proto, limits)
        cost = _check(proto, limits, external=external)
    except OnnxspectError as error:
        raise error.at(shown) from None
    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    digest = sha256 or hashlib.sha256(data).hexdigest()
    return OnnxFile(path, proto, digest, len(data), opset, cost, pieces, warnings)


def parse_onnx(data: bytes, limits: Limits) -> onnx.ModelProto:
    """Parse the bytes of a model, within `limits.memory_bytes`.

    Raises:
        OnnxspectError: if they are empty, damaged, not an ONNX model, or would take too much memory.
    """
    if not data:
        raise OnnxspectError("is empty (0 bytes)", "the download or export did not finish")
    not_onnx = "if it is a model of another framework, turn it into ONNX with `onnxspect convert`"
    model = onnx.ModelProto()
    try:
        parse_bound(data, onnx.ModelProto.DESCRIPTOR, limits.memory_bytes)
        model.ParseFromString(data)
    except Damaged as error:
        cut = f"if it is an ONNX file, its download or export did not finish ({len(data):,} bytes are here); {not_onnx}"
        raise OnnxspectError(f"not an ONNX file, or {error.message}", cut) from None
    except DecodeError:
        raise OnnxspectError("not an ONNX file, or damaged: protobuf cannot parse it", not_onnx) from None
    if not model.HasField("graph"):
        raise OnnxspectError("not an ONNX model: it holds no graph", not_onnx)
    return model


def _repair(model: onnx.ModelProto, limits: Limits) -> tuple[str, ...]:
    """Fill in what old exporters left out, and put right what onnxruntime puts right; returns what was done."""
    warnings = []
    sparse = make_dense(model.graph, limits.value_bytes)
    if sparse:
        warnings.append(f"{sparse} sparse tensors were made dense, as onnxruntime does")
    if sort_nodes(model.graph):
        warnings.append("its nodes are not in the order of their use: they were sorted, as onnxruntime does")
    if not any(o.domain in ("", "ai.onnx") for o in model.opset_import):
        model.opset_import.add(domain="", version=1)
        warnings.append(
            "the file does not say which operator set it uses (no opset_import): taken as opset 1, "
            "which is what files from before ONNX 1.0 mean"
        )
    untyped = 0
    graphs: list[onnx.GraphProto] = [model.graph]
    while graphs:
        for node in graphs.pop().node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.UNDEFINED and not attribute.ref_attr_name:
                    attribute.type = _filled(attribute)
                    untyped += 1
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs.extend(attribute.graphs)
    if untyped:
        warnings.append(f"{untyped} attributes have no type (ONNX before 1.0): taken from the field that is filled")
    return tuple(warnings)


_FILLED = (
    ("t", AttributeProto.TENSOR),
    ("g", AttributeProto.GRAPH),
    ("s", AttributeProto.STRING),
    ("f", AttributeProto.FLOAT),
    ("i", AttributeProto.INT),
)
_FILLED_LISTS = (
    ("tensors", AttributeProto.TENSORS),
    ("graphs", AttributeProto.GRAPHS),
    ("strings", AttributeProto.STRINGS),
    ("floats", AttributeProto.FLOATS),
)


def _filled(attribute: AttributeProto) -> AttributeProto.AttributeType:
    for name, kind in _FILLED:
        if attribute.HasField(name):
            return kind
    for name, kind in _FILLED_LISTS:
        if len(getattr(attribute, name)):
            return kind
    return AttributeProto.INTS  # an empty list of integers is the only empty attribute in use (axes, pads)


def _check(model: onnx.ModelProto, limits: Limits, *, external: bool) -> GraphCost:
    graph = model.graph
    if not graph.output:
        raise OnnxspectError("the graph has no outputs", "export the model again, with its logits as output")
    given = {t.name for t in graph.initializer}
    if all(i.name in given for i in graph.input):
        raise OnnxspectError("the graph has no inputs: nothing can be classified")
    if not graph.node:
        raise OnnxspectError("the graph has no nodes: its outputs are its inputs or constants")
    for tensor in tensors(model):
        _check_size(tensor, limits, external=external)
    cost = graph_cost(model)
    for count, what in ((cost.expanded, "when its local functions are expanded"), (cost.executed, "in one run")):
        if count > limits.nodes:
            amount = f"{count}" if count < 10**18 else "10^18 or more"
            raise OnnxspectError(
                f"has {cost.written} nodes, but {amount} {what}; the limit is {limits.nodes}",
                "no image classifier needs that many",
            )
    return cost


def _check_size(tensor: TensorProto, limits: Limits, *, external: bool) -> None:
    """A tensor must hold what its shape promises: 10^12 elements without data are a bomb for who allocates them."""
    needed = tensor_bytes(tensor)
    if needed is None:
        return
    if tensor.data_location == TensorProto.EXTERNAL:
        if external or needed <= limits.external_bytes:
            return
    elif needed <= tensor.ByteSize() * 8 + 64:  # a varint of one byte can stand for eight
        return
    raise OnnxspectError(
        f"tensor {printable(tensor.name)} claims {readable_bytes(needed)} "
        f"(shape {list(tensor.dims)[:8]}), but holds {readable_bytes(tensor.ByteSize())}"
    )
