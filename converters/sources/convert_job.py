"""The conversion's work, in the child: open the model with its framework, write it as ONNX, compare, report.

The comparison here only chooses between the attempts; the one that counts is made outside, on the written file, by a
process that this one cannot reach (sources.py).
"""

from __future__ import annotations

import importlib
import math
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.proof.tolerances import allowed_difference
from onnxspect.converters.sources.exported import Exported, Source, takes_arrays
from onnxspect.converters.sources.images import test_image
from onnxspect.converters.stages import stage
from onnxspect.converters.text import printable

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # torch.export colours its messages
MODEL = "model.onnx"
BATCHES = (1, 7)  # one alone, and one that is no power of two and not what exporters trace with


def preload(request: dict[str, Any]) -> None:
    """Import the framework, before the process is locked in."""
    importlib.import_module("onnxruntime")
    os.environ.setdefault("USER", "onnxspect")  # torch asks for it, and would look it up in a file out of reach
    _imported(request["module"])


def run(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Convert; see `sources.convert` for what the request holds."""
    source = Source(
        path=Path(request["path"]),
        format=request["format"],
        factory=request["factory"],
        input_shape=tuple(request["input_shape"]),
        folder=folder,
        search_path=tuple(request["search_path"]),
        sandbox_missing=tuple(request["sandbox_missing"]),
        head=request["head"],
    )
    stage(f"opening ({request['title']})")
    name = request["module"]
    library = source.factory.partition(":")[0] in ("timm", "torchvision")  # they make networks of torch
    if source.format == "safetensors" and source.factory and not library and takes_arrays(source):
        name = "jax"  # the same container serves both; the factory tells which
    exported: Exported = _imported(name).export(source)
    pairs = references(exported, int(request["seed"]))
    exporter, model = _first_equal(exported, pairs)
    stage("writing")
    (folder / MODEL).write_bytes(model.SerializeToString())
    for i, (images, logits) in enumerate(pairs):
        np.save(folder / f"input_{i}.npy", np.ascontiguousarray(images), allow_pickle=False)
        np.save(folder / f"output_{i}.npy", np.ascontiguousarray(logits), allow_pickle=False)
    return {
        "exporter": exporter,
        "framework": exported.framework,
        "layout": exported.layout,
        "range": list(exported.value_range) if exported.value_range else None,
        "classes": list(exported.classes),
        "batch": exported.batch,
        "sample_shape": list(exported.sample_shape),
        "precision": exported.precision,
        "tolerance": exported.tolerance,
        "pairs": len(pairs),
        "warnings": list(exported.warnings),
    }


def _imported(name: str) -> ModuleType:
    """The module that opens a format: one of this folder, or, by its whole name, an installed package's."""
    return importlib.import_module(name if "." in name else f"onnxspect.converters.sources.from_{name}")


def references(exported: Exported, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Seeded inputs, and what the framework makes of them.

    Raises:
        OnnxspectError: if its outputs are no logits: not two-dimensional, not finite, or the same for every input.
    """
    stage("running the framework's own model")
    rng = np.random.default_rng(seed)
    low, high = exported.value_range or (0.0, 1.0)
    pairs = []
    for batch in (exported.batch,) * 4 if exported.batch else BATCHES:
        unit = np.stack([test_image(exported.sample_shape, exported.layout, rng) for _ in range(batch)])
        images = (low + (high - low) * unit).astype(np.float32)
        logits = np.asarray(exported.run(images))
        if logits.ndim < 2 or len(logits) != batch or logits.dtype.kind != "f":
            raise OnnxspectError(
                f"gives outputs of shape {list(logits.shape)} ({logits.dtype}) for {batch} images",
                "a classifier gives one row of numbers per image",
            )
        pairs.append((images, logits.astype(np.float32)))
    everything = np.concatenate([logits.reshape(len(logits), -1) for _, logits in pairs])
    if not np.isfinite(everything).all():
        raise OnnxspectError("its outputs on noise are not finite", "its weights may be damaged")
    return pairs


def _first_equal(exported: Exported, pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[str, onnx.ModelProto]:
    """The first attempt whose graph gives the framework's outputs."""
    failures = []
    refusal: OnnxspectError | None = None
    for attempt in exported.attempts:
        stage(attempt.exporter)
        try:
            model = attempt.build()
            worst = _difference(model, exported, pairs)
        except OnnxspectError as error:
            refusal = error
            failures.append(f"{attempt.exporter}: {error}")
            continue
        except MemoryError:
            raise
        except Exception as error:
            text = printable(" ".join(_COLOUR.sub("", str(error)).split()), 300)
            failures.append(f"{attempt.exporter}: {type(error).__name__}: {text}")
            continue
        if worst <= 1:
            return attempt.exporter, model
        failures.append(
            f"{attempt.exporter}: its outputs differ from the framework's, {worst:.3g} times what is allowed"
        )
    if refusal is not None and len(failures) == 1:
        raise refusal
    raise OnnxspectError(f"cannot be exported; {'; '.join(failures)}", "export it with the framework's own tools")


def _difference(model: onnx.ModelProto, exported: Exported, pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The largest difference from the framework's outputs, in units of what is allowed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(printable(i.name, 40) for i in inputs[:5])
        raise OnnxspectError(
            f"the exported graph has {len(inputs)} inputs ({names})",
            "an image classifier takes one image: save a model of the image alone",
        )
    worst = 0.0
    for images, logits in pairs:
        found = session.run(None, {inputs[0].name: images})[0]
        if np.shape(found) != logits.shape:
            raise OnnxspectError(
                f"gives shape {list(np.shape(found))} where the framework gives {list(logits.shape)}",
                "export it with the framework's own tools",
            )
        allowed = exported.tolerance or allowed_difference(logits, exported.precision)
        ratio = float(np.abs(found.astype(np.float64) - logits).max(initial=0.0)) / allowed
        worst = max(worst, math.inf if math.isnan(ratio) else ratio)
    return worst
