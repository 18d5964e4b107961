"""The probe's work, in the child: the first time that onnx's and onnxruntime's C++ code sees an untrusted model.

Order: checker, shape inference with the run's input sizes, size estimate from it, onnxruntime session, one run on
zeros, shape inference as the file is written. Optimisations are off: onnxruntime's default ones are not exact (they
fuse Pad with 0 into MaxPool, which pads with -inf) and run constant parts of the graph while loading.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, checker, defs, helper, shape_inference

from onnxspect.converters.errors import OnnxspectError, is_memory
from onnxspect.converters.file.external_data import tensor_bytes
from onnxspect.converters.file.runtime_refusal import way_out
from onnxspect.converters.sandbox.guard_child import PROBE_INFERRED, PROBE_MODEL, PROBE_WEIGHTS
from onnxspect.converters.stages import stage
from onnxspect.converters.text import printable, readable_bytes

_GUESSED_SIZE = 224  # of a free height or width: ImageNet's, what most classifiers with free sizes were trained at
_GUESSED_CHANNELS = 3
#: Initializers of more elements are left out of shape inference; no shape, axes or pads have so many.
_SMALL = 512
_ORT_PREFIX = re.compile(r"^(\[ONNXRuntimeError\] : \d+ : \w+ : )+")
_ORT_PLACE = re.compile(r"/\S*onnxruntime_src/\S+ [^()]*\((?:[^()]|\([^()]*\))*\)(?: const)? ?")


def preload(_: dict[str, Any]) -> None:
    """Nothing more: the imports above are all."""


def run(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """See `probe.probe`."""
    data = (folder / PROBE_MODEL).read_bytes()
    model = onnx.ModelProto()
    model.ParseFromString(data)
    # A model in parts: its large tensors lie in a file beside it, which only what is given the path will read.
    parts = (folder / PROBE_WEIGHTS).exists()
    result: dict[str, Any] = {"checker": _checked(str(folder / PROBE_MODEL) if parts else model), "guessed": []}
    result["opset"] = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    feeds = _feeds(model, request["input_shapes"], result["guessed"])

    stage("onnx shape inference")
    light = _without_weights(model)
    value_bytes = int(request["value_bytes"])
    for propagate in (False, True):
        # Data propagation sees through computed shapes, but it holds what it propagates (all elements of a Range), so
        # the pass without it comes first.
        sizes = _inferred_sizes(light, feeds, propagate)
        result["largest_value"], result["largest_bytes"] = max(sizes.items(), key=lambda kv: kv[1], default=("", 0))
        if result["largest_bytes"] > value_bytes:
            raise OnnxspectError(
                f"value {printable(result['largest_value'])} would take {readable_bytes(result['largest_bytes'])} "
                f"at batch size 1; the limit is {readable_bytes(value_bytes)}",
                "no image classifier needs that; raise the limit if you trust the file",
            )
    result["unknown_operators"] = _unknown_operators(model)

    stage("onnxruntime, loading")
    try:
        session = _session(str(folder / PROBE_MODEL) if parts else data)
    except Exception as error:
        raise _refused("onnxruntime cannot load it", error, result) from None
    result["inputs"] = [[i.name, i.type, list(i.shape)] for i in session.get_inputs()]
    result["outputs"] = [[o.name, o.type, list(o.shape)] for o in session.get_outputs()]

    stage("onnxruntime, running")
    result["run_error"], result["run_shapes"] = "", []
    arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in feeds.items()}
    try:
        found = session.run(None, arrays)
        result["run_shapes"] = [list(np.shape(v)) if isinstance(v, np.ndarray) else None for v in found]
        result["finite"] = all(bool(np.isfinite(v).all()) for v in found if _is_float(v))
    except Exception as error:
        if not result["guessed"]:  # with guessed sizes the guess may be at fault, not the file
            raise _refused("onnxruntime cannot run it", error, result) from None
        result["run_error"] = _short(error)

    for i in range(int(request.get("feeds", 0))):
        images = np.load(folder / f"feed_{i}.npy", allow_pickle=False)
        try:
            first = session.run(None, {request["feed"]: images})[0]
        except Exception as error:
            raise _refused(
                f"onnxruntime cannot run it on an input of shape {list(images.shape)}", error, result
            ) from None
        np.save(folder / f"found_{i}.npy", np.ascontiguousarray(first, np.float32), allow_pickle=False)

    stage("onnx shape inference")
    inferred = shape_inference.infer_shapes(light, check_type=False, strict_mode=False, data_prop=True)
    bare = onnx.ModelProto(ir_version=model.ir_version)
    own = {i.name for i in model.graph.input}
    bare.graph.input.extend(i for i in inferred.graph.input if i.name in own)
    bare.graph.output.extend(inferred.graph.output)
    bare.graph.value_info.extend(inferred.graph.value_info)
    (folder / PROBE_INFERRED).write_bytes(bare.SerializeToString())
    result["versions"] = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    return result


def _checked(model: onnx.ModelProto | str) -> str:
    """The checker's complaint, or "". It is no reason to refuse: it rejects files that run everywhere."""
    stage("onnx checker")
    try:
        checker.check_model(model)
    except Exception as error:  # ValidationError, and what its C++ code throws besides
        return printable(" ".join(str(error).split("==> Context")[0].split()), 400)
    return ""


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every large initializer replaced by an input of its type and shape: all that inference asks of weights.

    Each inference serialises the model, hands it to C++ and reads it back: with the weights of a ResNet-18 a quarter of a
    second, three times.
    """
    light = onnx.ModelProto()
    light.CopyFrom(model)
    graph = light.graph
    large = [t for t in graph.initializer if math.prod(t.dims) > _SMALL]
    if not large:
        return light
    light.ir_version = max(light.ir_version, 4)  # before, every initializer had to be an input as well
    declared = {i.name for i in graph.input}
    for tensor in large:
        if tensor.name not in declared:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    kept = [TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if math.prod(t.dims) <= _SMALL]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return light


def _feeds(
    model: onnx.ModelProto, given: dict[str, list[int]], guessed: list[str]
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of every input for one run at batch size 1."""
    initializers = {t.name for t in model.graph.initializer}
    feeds = {}
    for info in model.graph.input:
        if info.name in initializers:
            continue
        shown = printable(info.name)
        if not info.type.HasField("tensor_type"):
            raise OnnxspectError(f"input {shown} is not a tensor, so not an image")
        tensor = info.type.tensor_type
        if tensor.elem_type in (TensorProto.STRING, TensorProto.UNDEFINED):
            kind = "strings" if tensor.elem_type == TensorProto.STRING else "an undefined type"
            raise OnnxspectError(f"input {shown} takes {kind}, so not an image")
        try:
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        except (KeyError, TypeError, ValueError):
            raise OnnxspectError(f"input {shown} has the unknown element type {tensor.elem_type}") from None
        if info.name in given:
            shape = tuple(given[info.name])
        elif tensor.HasField("shape"):
            shape = _shape([d.dim_value for d in tensor.shape.dim], shown, guessed)
        else:
            guessed.append(shown)
            shape = (1, _GUESSED_CHANNELS, _GUESSED_SIZE, _GUESSED_SIZE)
        probe = TensorProto(name=info.name, data_type=tensor.elem_type, dims=shape)
        if (tensor_bytes(probe) or 0) > 1 << 30:
            raise OnnxspectError(f"input {shown} of shape {list(shape)[:8]} is no image: over 1 GiB")
        feeds[info.name] = (shape, dtype)
    return feeds


def _shape(dims: list[int], shown: str, guessed: list[str]) -> tuple[int, ...]:
    if any(d < 0 for d in dims):
        dims = [max(d, 0) for d in dims]  # -1 is how some exporters write "any"
    sizes = [1 if i == 0 and d == 0 else d for i, d in enumerate(dims)]
    if 0 in sizes:
        guessed.append(shown)
    if len(sizes) == 4:
        channels = 3 if sizes[3] in (1, 3) and sizes[1] not in (1, 3) else 1
        if sizes[channels] == 0:
            sizes[channels] = _GUESSED_CHANNELS
    return tuple(d or _GUESSED_SIZE for d in sizes)


def _inferred_sizes(
    model: onnx.ModelProto, feeds: dict[str, tuple[tuple[int, ...], np.dtype[Any]]], propagate: bool
) -> dict[str, int]:
    """Bytes of every intermediate value whose shape is known before anything runs.

    The file's own claims about intermediate values and outputs are dropped first: they may lie.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for info in fixed.graph.output:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")
    for info in fixed.graph.input:
        if info.name in feeds:
            shape = feeds[info.name][0]
            tensor = info.type.tensor_type
            tensor.ClearField("shape")
            for size in shape:
                tensor.shape.dim.add(dim_value=size)
    try:
        inferred = shape_inference.infer_shapes(fixed, check_type=False, strict_mode=False, data_prop=propagate)
    except MemoryError:
        raise
    except Exception:  # a graph that it cannot infer may still run, within the limits of this process
        return {}
    sizes = {}
    for info in (*inferred.graph.value_info, *inferred.graph.output):
        tensor = info.type.tensor_type
        if info.type.HasField("tensor_type") and tensor.HasField("shape"):
            dims = [d.dim_value for d in tensor.shape.dim if d.HasField("dim_value")]
            if len(dims) == len(tensor.shape.dim) and all(d >= 0 for d in dims):
                stand_in = TensorProto(name=info.name, data_type=tensor.elem_type, dims=dims)
                sizes[info.name] = tensor_bytes(stand_in) or 0
    return sizes


def _unknown_operators(model: onnx.ModelProto) -> list[str]:
    """Operators that no ONNX operator set has, by name; those of onnxruntime's own domains are left out."""
    own = {(f.domain, f.name) for f in model.functions}
    unknown = set()
    graphs = [model.graph]
    while graphs:
        for node in graphs.pop().node:
            domain = "" if node.domain == "ai.onnx" else node.domain
            if (node.domain, node.op_type) not in own and not defs.has(node.op_type, domain):
                unknown.add(f"{printable(domain)}:{printable(node.op_type)}" if domain else printable(node.op_type))
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs
    return sorted(unknown)[:20]


def _session(model: str | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _refused(what: str, error: Exception, result: dict[str, Any]) -> Exception:
    if is_memory(error):
        return MemoryError()
    unknown = result["unknown_operators"]
    named = f"it uses operators that ONNX does not have ({', '.join(unknown)}); " if unknown else ""
    hint = "custom operators must be replaced by standard ones before a model can be inspected" if unknown else ""
    return OnnxspectError(f"{named}{what}: {_short(error)}", hint or way_out(str(error), int(result.get("opset", 0))))


def _short(error: Exception) -> str:
    text = _ORT_PREFIX.sub("", " ".join(str(error).split()))
    text = _ORT_PREFIX.sub("", _ORT_PLACE.sub("", text))
    return printable(text, 400)


def _is_float(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"
