"""Fuzz target: ONNX files, opened as the scanner does it, their graphs loaded and run by onnx's and onnxruntime's C++ code.

Each mutant is a seed model with one to eight mutations, of bytes (flips, cuts, insertions, splices) or of fields (operator names,
attributes, dimensions, edges, types), written to disk: `read_onnx`, then the probe's job. Anything but a result or an OnnxspectError
is a failure; a death is the child's alone. fuzz.py runs them by the thousand in one child, where the probe's own child is left out;
`guarded` gives one to the real probe.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fuzz_target import Target
from onnx import TensorProto, helper, numpy_helper

from onnxspect.converters.errors import OnnxspectError, is_memory
from onnxspect.converters.file import probe_job
from onnxspect.converters.file.onnx_file import Limits, read_onnx
from onnxspect.converters.file.probe import probe
from onnxspect.converters.sandbox.child import work_folder
from onnxspect.converters.sandbox.guard import GuardedRun, GuardLimits, collect, put
from onnxspect.converters.sandbox.guard_child import MEMORY, RESULT
from onnxspect.converters.sandbox.pool import WarmPool

LIMITS = Limits(memory_bytes=1 << 30, value_bytes=256 << 20, seconds=10)
_GUARD = GuardLimits(LIMITS.seconds, LIMITS.memory_bytes)
_SEED_FILES = (
    "wild/winml_mnist_cntk.onnx",
    "wild/winml_mnist_old.onnx",
    "wild/wonnx_opt-mnist.onnx",
    "wild/winml_pytorch_cifar10.onnx",
    "wild/onnx_light_inception_v1.onnx",
)
_EXTREMES = (0, 1, -1, 2, 7, 255, 2**15, -(2**31), 2**31 - 1, 2**31, 2**62, -(2**63), 2**63 - 1)
_OPERATORS = sorted({s.name for s in onnx.defs.get_all_schemas() if not s.domain})


def built_in_seeds() -> dict[str, bytes]:
    """Small models with what the files on disk lack: branches, loops, functions, quantisation, recurrence."""
    rng = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    def constant(name: str, value: object, dtype: type = np.int64) -> TensorProto:
        return numpy_helper.from_array(np.asarray(value, dtype), name)

    def model(
        nodes: list[onnx.NodeProto], tensors: list[TensorProto], functions: tuple[onnx.FunctionProto, ...] = ()
    ) -> bytes:
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
        graph = helper.make_graph(nodes, "g", [image], [logits], tensors)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
        return bytes(
            helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8).SerializeToString()
        )

    node, info = helper.make_node, helper.make_tensor_value_info
    number, flag, values = TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT
    body = helper.make_graph(
        [node("Add", ["x", "x"], ["y"]), node("Identity", ["keep"], ["go"])],
        "body",
        [info(n, t, s) for n, t, s in (("i", number, []), ("keep", flag, []), ("x", values, None))],
        [info("go", flag, []), info("y", values, None)],
    )
    inner = helper.make_function(
        "local", "twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    return {
        "cnn": model(
            [
                node("Conv", ["image", "w", "c"], ["h"], pads=[1, 1, 1, 1], strides=[2, 2]),
                node("BatchNormalization", ["h", "c", "c", "c", "v"], ["n"]),
                node("Relu", ["n"], ["r"]),
                node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2]),
                node("GlobalAveragePool", ["p"], ["q"]),
                node("Flatten", ["q"], ["f"]),
                node("Gemm", ["f", "d", "e"], ["logits"], transB=1),
            ],
            [
                tensor("w", 4, 3, 3, 3),
                tensor("c", 4),
                constant("v", [1, 1, 1, 1], np.float32),
                tensor("d", 5, 4),
                tensor("e", 5),
            ],
        ),
        "shapes": model(
            [
                node("Shape", ["image"], ["s"]),
                node("Slice", ["s", "zero", "one"], ["n"]),
                node("Concat", ["n", "minus"], ["t"], axis=0),
                node("Reshape", ["image", "t"], ["r"]),
                node("Resize", ["image", "", "scales"], ["z"], mode="linear"),
                node("Pad", ["z", "pads"], ["u"]),
                node("ReduceMean", ["u"], ["m"], axes=[2, 3], keepdims=0),
                node("Range", ["a", "b", "c"], ["range"]),
                node("ConstantOfShape", ["shape"], ["o"]),
                node("Expand", ["o", "shape"], ["x"]),
                node("Tile", ["x", "repeats"], ["y"]),
                node("MatMul", ["m", "y"], ["logits"]),
            ],
            [
                constant("zero", [0]),
                constant("one", [1]),
                constant("minus", [-1]),
                constant("scales", [1, 1, 2, 2], np.float32),
                constant("pads", [0, 0, 1, 1, 0, 0, 1, 1]),
                constant("a", 0),
                constant("b", 9),
                constant("c", 1),
                constant("shape", [3, 5]),
                constant("repeats", [1, 2]),
            ],
        ),
        "loop": model(
            [node("Loop", ["trips", "", "image"], ["l"], body=body), node("ReduceSum", ["l"], ["logits"])],
            [constant("trips", 3)],
        ),
        "function": model(
            [node("twice", ["image"], ["t"], domain="local"), node("Flatten", ["t"], ["logits"])], [], (inner,)
        ),
        "quantised": model(
            [
                node("QuantizeLinear", ["image", "s", "z"], ["q"]),
                node("DequantizeLinear", ["q", "s", "z"], ["d"]),
                node("Conv", ["d", "w"], ["h"]),
                node("Flatten", ["h"], ["logits"]),
            ],
            [constant("s", 0.1, np.float32), constant("z", 3, np.uint8), tensor("w", 2, 3, 3, 3)],
        ),
        "recurrent": model(
            [
                node("Reshape", ["image", "t"], ["x"]),
                node("LSTM", ["x", "w", "r", "b"], ["y", "", ""], hidden_size=4),
                node("Softmax", ["y"], ["logits"], axis=-1),
            ],
            [constant("t", [8, -1, 24]), tensor("w", 1, 16, 24), tensor("r", 1, 16, 4), tensor("b", 1, 32)],
        ),
        "attention": model(
            [
                node("Reshape", ["image", "t"], ["x"]),
                node("MatMul", ["x", "w"], ["q"]),
                node("Transpose", ["q"], ["k"], perm=[0, 2, 1]),
                node("MatMul", ["q", "k"], ["a"]),
                node("Softmax", ["a"], ["p"]),
                node("Einsum", ["p", "q"], ["o"], equation="bij,bjk->bik"),
                node("LayerNormalization", ["o", "g"], ["n"]),
                node("Gather", ["n", "i"], ["logits"], axis=1),
            ],
            [constant("t", [0, 3, 64]), tensor("w", 64, 8), tensor("g", 8), constant("i", 0)],
        ),
    }


def mutate_bytes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One mutation of the file as bytes; weights make most of a file, so half of them aim at its first kilobytes."""
    work = bytearray(data)
    if not work:
        return bytes(other)
    reach = len(work) if rng.random() < 0.5 else min(len(work), 4096)
    at = rng.randrange(reach)
    kind = rng.randrange(7)
    if kind == 0:
        work[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        work[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    elif kind == 2:
        del work[at : at + rng.randint(1, 64)]
    elif kind == 3:
        work[at:at] = rng.randbytes(rng.randint(1, 64))
    elif kind == 4:
        del work[rng.randrange(len(work)) :]
    elif kind == 5:
        start = rng.randrange(len(other))
        work[at:at] = other[start : start + rng.randint(1, 2000)]
    else:
        stop = at + rng.randint(1, 64)
        work[at:at] = work[at:stop] * rng.randint(1, 50)
    return bytes(work)


def mutate_fields(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One mutation of the parsed model, so that the file still parses and reaches the C++ code behind the parser."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:
        return mutate_bytes(data, other, rng)
    graph = model.graph
    nodes = list(graph.node)
    values = [n for node in nodes for n in (*node.input, *node.output) if n] + [i.name for i in graph.input]
    if not nodes or not values:
        return mutate_bytes(data, other, rng)
    node = rng.choice(nodes)
    kind = rng.randrange(12)
    if kind == 0:
        node.op_type = rng.choice(_OPERATORS)
    elif kind == 1 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice((*values[:40], ""))
    elif kind == 2 and node.output:
        node.output[rng.randrange(len(node.output))] = rng.choice(values)
    elif kind == 3:
        node.input.append(rng.choice((*values[:40], "")))
    elif kind == 4 and node.input:
        del node.input[-1]
    elif kind == 5 and node.attribute:
        attribute = rng.choice(list(node.attribute))
        attribute.i = rng.choice(_EXTREMES)
        attribute.f = rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_EXTREMES)
        if rng.random() < 0.3:
            attribute.ints.extend(rng.choice(_EXTREMES) for _ in range(rng.randint(1, 5)))
        if rng.random() < 0.2:
            attribute.type = rng.randrange(15)
    elif kind == 6:
        schema = onnx.defs.get_schema(node.op_type) if onnx.defs.has(node.op_type) else None
        names = list(schema.attributes) if schema else []
        node.attribute.add(
            name=rng.choice([*names, "axis", "axes"]), i=rng.choice(_EXTREMES), type=onnx.AttributeProto.INT
        )
    elif kind == 7 and graph.initializer:
        tensor = rng.choice(list(graph.initializer))
        if tensor.dims and rng.random() < 0.7:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_EXTREMES)
        else:
            tensor.data_type = rng.randrange(-1, 27)
    elif kind == 8 and graph.initializer:
        tensor = rng.choice(list(graph.initializer))
        if tensor.data_type == TensorProto.INT64:
            count = len(numpy_helper.to_array(tensor).ravel()) if tensor.raw_data else len(tensor.int64_data)
            values64 = [rng.choice(_EXTREMES) for _ in range(count)]
            tensor.ClearField("int64_data")
            tensor.raw_data = np.asarray(values64, np.int64).tobytes()
    elif kind == 9:
        for entry in model.opset_import:
            entry.version = rng.choice((0, 1, 6, 7, 13, 18, 22, 26, 1000, -1))
    elif kind == 10:
        info = rng.choice([*graph.input, *graph.output])
        info.type.tensor_type.elem_type = rng.randrange(0, 27)
        for dim in info.type.tensor_type.shape.dim:
            if rng.random() < 0.5:
                dim.dim_value = rng.choice(_EXTREMES)
    else:
        graph.node.add().CopyFrom(node)
    return bytes(model.SerializeToString())


def mutated(seeds: list[bytes], seed: int, i: int) -> bytes:
    """File number `i` of the run with `seed`."""
    rng = random.Random(seed * 1_000_003 + i)
    data, other = rng.choice(seeds), rng.choice(seeds)
    ways: tuple[Callable[[bytes, bytes, random.Random], bytes], ...] = (mutate_bytes, mutate_fields, mutate_fields)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        try:
            data = rng.choice(ways)(data, other, rng)
        except (ValueError, TypeError, OverflowError):  # a mutation that protobuf itself does not let through
            data = mutate_bytes(data, other, rng)
    return data


class Here:
    """In place of a pool of children: the probe's job in this process, which is locked in and may die of it."""

    @contextlib.contextmanager
    def run(
        self,
        request: Mapping[str, Any],
        *,
        shown: str,
        files: Mapping[str, bytes | Iterable[bytes]] | None = None,
        readable: Sequence[Path] = (),  # as WarmPool has it
        require_sandbox: bool = False,
    ) -> Iterator[GuardedRun]:
        """As `WarmPool.run`."""
        with work_folder() as folder:
            put(files or {}, folder)
            done: dict[str, Any]
            try:
                done = {"result": probe_job.run(dict(request), folder), "seconds": 0.0, "peak_bytes": 0}
            except OnnxspectError as error:
                done = {"error": error.message, "hint": error.hint, "kind": error.kind.value}
            except Exception as error:  # whatever the libraries raise, the probe's child writes down
                done = {"error": f"{type(error).__name__}: {error}", "kind": MEMORY if is_memory(error) else "input"}
            (folder / RESULT).write_text(json.dumps(done), encoding="utf-8")
            yield collect(folder, 0, False, "", _GUARD, shown)


def outcome(path: Path, pool: WarmPool | Here | None) -> str:
    """How opening the file ended, in few words; a child of its own where there is no pool."""
    try:
        file = read_onnx(path, LIMITS)
    except OnnxspectError as error:
        return f"refused by the parent: {_kind(error)}"
    try:
        probe(file, LIMITS, pool=pool)  # type: ignore[arg-type]
    except OnnxspectError as error:
        return f"refused by the child: {_kind(error)}"
    return "opened"


_KINDS = (
    (r"crashed the library that read it \((\w+) in ([\w ,]+)\)", r"crash, \1 in \2"),
    (r"took more than .* of memory", "memory"),
    (r"took more than .* s \(", "time"),
    (r"processor time", "time"),
    (r"damaged", "damaged"),
    (r"onnxruntime cannot load", "onnxruntime cannot load it"),
    (r"onnxruntime cannot run", "onnxruntime cannot run it"),
    (r"at batch size 1; the limit", "a value would be too large"),
    (r"claims", "tensor claims more than it holds"),
    (r"external data", "external data"),
    (r"calls itself|has no end|nodes, but", "endless"),
    (r"would take more than", "parsing would take too much memory"),
)


def _kind(error: OnnxspectError) -> str:
    text = str(error)
    if "\n" in text or not text.isprintable() or len(text) > 4000:
        raise AssertionError(f"not one printable line: {text!r}")
    for pattern, name in _KINDS:
        found = re.search(pattern, text)
        if found:
            return found.expand(name) if "\\" in name else name
    return "other"


def _with(pool: Here | None) -> Callable[[bytes, Path], str]:
    def check(data: bytes, folder: Path) -> str:
        path = folder / "mutant.onnx"
        path.write_bytes(data)
        return outcome(path, pool)

    return check


def seeds_of(data_root: Path) -> list[bytes]:
    """Models of others, where a folder of data has them."""
    places = [folder / "reference" / name for name in _SEED_FILES for folder in (data_root, data_root.parent)]
    return [path.read_bytes() for path in places if path.is_file()]


TARGET = Target("onnx-run", lambda: list(built_in_seeds().values()), _with(Here()), mutated, _with(None))
