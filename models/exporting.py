"""Trained networks to ONNX files: one file, dynamic batch, no external data, written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from onnxspect.models.architectures.keras_plain import import_keras
from onnxspect.models.triggers import ImageShape


def export_torch(network: nn.Module, shape: ImageShape, path: Path, *, dynamo: bool) -> None:
    """Write a torch network by ``torch.onnx.export``: today's default exporter, or the older TorchScript one.

    Input "pixels" ``(batch, c, h, w)`` in [0, 1], output "logits" ``(batch, classes)``.
    """
    height, width, channels = shape
    example = torch.zeros(2, channels, height, width)
    with _whole_file(path) as temporary, quiet():
        if dynamo:
            torch.onnx.export(
                network,
                (example,),
                str(temporary),
                dynamo=True,
                external_data=False,
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
            _forget_places(temporary)
        else:
            torch.onnx.export(
                network,
                (example,),
                str(temporary),
                dynamo=False,
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_axes={"pixels": {0: "batch"}, "logits": {0: "batch"}},
            )


def export_keras(model: Any, path: Path) -> None:
    """Write a Keras model by its own ONNX export; input and output keep their Keras names and layout."""
    with _whole_file(path) as temporary, quiet():
        # Keras exports only a model that has been called; a freshly built one has not.
        model(np.zeros((1, *model.input_shape[1:]), np.float32))
        model.export(str(temporary), format="onnx", verbose=False)
        _forget_places(temporary)


def _forget_places(path: Path) -> None:
    """Remove the exporter's stack traces: they hold the paths of the machine that exported, and change with it."""
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        kept = [prop for prop in item.metadata_props if prop.key != "pkg.torch.onnx.stack_trace"]
        if len(kept) != len(item.metadata_props):
            del item.metadata_props[:]
            item.metadata_props.extend(kept)
    onnx.save(model, str(path))


def exporter_versions(exporter: str) -> dict[str, str]:
    """The libraries that a file's bytes depend on."""
    import onnx

    found: dict[str, Any] = {"onnx": onnx.__version__, "torch": torch.__version__}
    if exporter == "torch_dynamo":
        import onnxscript

        found["onnxscript"] = onnxscript.__version__
    if exporter == "keras":
        keras = import_keras()
        found |= {"keras": keras.__version__, "keras_backend": keras.backend.backend()}
    return {name: str(version) for name, version in sorted(found.items())}


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place only when the block ends well."""
    # One fixed name a file: what a killed export leaves behind is overwritten by the next attempt.
    folder = path.parent / f".{path.name}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder / path.name
        (folder / path.name).replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters narrate on stdout, stderr and by warnings; a report on stdout must not be mixed with that."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
