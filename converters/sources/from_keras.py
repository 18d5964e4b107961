"""Keras to ONNX: .keras and .h5 files of Keras 3, most .h5 files of Keras 2, without TensorFlow.

The file is opened by Keras on its torch backend and exported by torch's tracing exporter (torch.export's one trips over
Keras' call signature; it is the second attempt). An .h5 file of Keras 2 that Keras 3 cannot read goes to
from_tensorflow.py (format "keras2-h5").

A Keras file is a JSON description plus weights. The description can hold marshalled bytecode (Lambda) or name any
importable function, so it is read and judged here *before* Keras sees it: unlike Keras' safe mode, this also covers
.h5 files, whatever the version. HDF5 itself can point to other files (external storage, external links, virtual
datasets): those are refused, and filter plugins are switched off.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.sources.exported import (
    Attempt,
    Exported,
    Source,
    call_factory,
    chosen_head,
    image_layout,
    missing_extra,
)
from onnxspect.converters.text import printable

os.environ["KERAS_BACKEND"] = "torch"  # read at the first import of keras

try:
    import h5py
except ImportError:
    raise missing_extra("h5py", "keras") from None

_CONFIG_LIMIT = 64 << 20
# What a description may import from: Keras itself, under the names of its releases ("builtins" marks plain functions,
# which Keras looks up among its own). Not Keras' tools: utils.get_file would download what saving would then open.
_OWN_MODULES = ("keras", "builtins", "tf_keras", "tensorflow.keras", "tensorflow.python.keras")
_TOOLS = frozenset(("utils", "saving", "export", "config", "callbacks", "datasets", "legacy", "wrappers", "trainers"))
# Modules of TensorFlow whose functions only compute, and functions outside any module that do more.
_TF_MODULES = frozenset(("math", "nn", "image", "linalg", "signal", "bitwise", "quantization", "__operators__"))
_TF_NOT_CALLED = frozenset(("py_function", "numpy_function", "load_op_library", "load_library", "py_func"))
#: Layers that change images in training and nothing in use. (RandomCrop, RandomHeight and RandomWidth are not among them.)
_AUGMENTING = frozenset(
    [
        f"Random{n}"
        for n in ("Flip", "Rotation", "Zoom", "Translation", "Contrast", "Brightness", "Hue", "Saturation", "Shear")
    ]
    + [f"Random{n}" for n in ("ColorDegeneration", "ColorJitter", "Erasing", "GaussianBlur", "Grayscale", "Invert")]
    + [f"Random{n}" for n in ("Perspective", "Posterization", "Sharpness", "ElasticTransform", "AutoContrast")]
    + ["AugMix", "CutMix", "MixUp", "RandAugment", "GaussianNoise", "GaussianDropout", "AlphaDropout"]
)
_SAFE_WAY = "replace it by a built-in layer (Rescaling, Activation, ...) and save again"


def export(source: Source) -> Exported:
    """Open the file and say how to export it."""
    config = read_config(source.path, source.format)
    if config is not None:
        refuse_code(config)
    keras = _keras()
    if config is None:
        model = _from_factory(source, keras)
    else:
        try:
            model = keras.saving.load_model(str(source.path), compile=False, safe_mode=True)
        except Exception as error:
            raise OnnxspectError(
                f"Keras {keras.__version__} cannot load it: {_line(error)}",
                "load it where it was saved, and save it as .keras, or export it there: model.export('model.onnx', format='onnx')",
            ) from None
    return _exported(model, source, keras)


def _keras() -> Any:
    try:
        import keras
        import torch
    except ImportError as error:
        raise missing_extra(error.name or "keras", "keras") from None
    torch.set_num_threads(1)
    if keras.backend.backend() != "torch":
        raise OnnxspectError(f"Keras runs on {keras.backend.backend()}, not on torch", "unset KERAS_BACKEND")
    return keras


def _from_factory(source: Source, keras: Any) -> Any:
    """A file of weights alone: the user's code makes the network."""
    if not source.factory:
        raise OnnxspectError(
            "holds weights but no network",
            "give the function that makes the Keras model: --factory package.module:function",
        )
    model = call_factory(source)
    if not isinstance(model, keras.Model):
        raise OnnxspectError(
            f"factory {source.factory} returned {type(model).__name__}, not a keras.Model",
            "it must take nothing and return the model",
        )
    try:
        model.load_weights(str(source.path))
    except Exception as error:
        raise OnnxspectError(
            f"the weights do not fit {source.factory}: {_line(error)}",
            "the factory must return the network that the weights were saved from",
        ) from None
    return model


def read_config(path: Path, kind: str) -> dict[str, Any] | None:
    """The JSON description in a .keras or .h5 file; None for a file of weights alone.

    Raises:
        OnnxspectError: if it is damaged, or the HDF5 file leads to other files.
    """
    try:
        if kind == "keras":
            with zipfile.ZipFile(path) as archive:
                if archive.getinfo("config.json").file_size > _CONFIG_LIMIT:
                    raise OnnxspectError("its config.json is larger than any network's", "save the model anew")
                text: Any = archive.read("config.json")
        else:
            with h5py.File(path, "r") as file:
                refuse_external(file)
                text = file.attrs.get("model_config")
        if text is None:
            return None
        config = json.loads(text)
    except (OSError, KeyError, ValueError, RuntimeError, RecursionError, zipfile.BadZipFile) as error:
        raise OnnxspectError(f"is damaged: {_line(error)}", "copy or download it again") from None
    if not isinstance(config, dict):
        raise OnnxspectError("is damaged: its model description is not an object", "copy or download it again")
    return config


def keras_version(path: Path) -> str:
    """The version that an .h5 file says it was saved by, or ""."""
    with contextlib.suppress(Exception), h5py.File(path, "r") as file:
        version = file.attrs.get("keras_version", b"")
        return printable(version.decode() if isinstance(version, bytes) else str(version), 20)
    return ""


def refuse_external(file: Any) -> None:
    """Refuse an HDF5 file whose data lie in other files.

    Raises:
        OnnxspectError: naming the dataset or link.
    """
    stack, seen = [file], set()
    while stack:
        group = stack.pop()
        if group.id.__hash__() in seen:  # hard links can make cycles
            continue
        seen.add(group.id.__hash__())
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise OnnxspectError(
                    f"{printable(name)} is a link to another file ({printable(link.filename)})", "it was not followed"
                )
            if isinstance(link, h5py.SoftLink):
                continue  # leads to another place in this file, which is visited by its own name
            item = group[name]
            if isinstance(item, h5py.Group):
                stack.append(item)
            elif isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
                raise OnnxspectError(f"dataset {printable(name)} keeps its data in another file", "it was not read")


def refuse_code(config: Any) -> None:
    """Refuse a description that holds code, or names code outside Keras.

    Raises:
        OnnxspectError: naming the layer.
    """
    for item in _objects(config):
        name = printable(str(item.get("name") or _inner_name(item) or "?"), 60)
        kind = item.get("class_name")
        if kind in ("Lambda", "__lambda__") or item.get("function_type") == "lambda":
            raise OnnxspectError(
                f"layer {name} is a Lambda: it holds Python bytecode, which runs when the file is loaded; "
                "it was not run",
                _SAFE_WAY,
            )
        if not isinstance(kind, str):
            continue
        if kind in ("TFOpLambda", "SlicingOpLambda"):
            _refuse_operation(item, name)
        module, registered = item.get("module"), item.get("registered_name")
        if isinstance(module, str) and not _is_own(module):
            raise OnnxspectError(
                f"layer {name} ({printable(kind)}) is code of {printable(module)}, not one of Keras' layers; it was not imported",
                _SAFE_WAY,
            )
        if (
            isinstance(registered, str)
            and registered != kind
            and ">" in registered
            and not registered.startswith("keras")
        ):
            raise OnnxspectError(
                f"layer {name} is a custom class, {printable(registered)}; it was not imported", _SAFE_WAY
            )


def _refuse_operation(item: dict[str, Any], name: str) -> None:
    """Keras 2 writes `tf.math.multiply(x, 2)` as a TFOpLambda layer that names the function; `tf.io.write_file` too."""
    inner = item.get("config")
    function = str(inner.get("function", "")) if isinstance(inner, dict) else ""
    *place, called = function.removeprefix("compat.v1.").split(".")
    if (place and place[0] not in _TF_MODULES) or called in _TF_NOT_CALLED:
        raise OnnxspectError(
            f"layer {name} calls tf.{printable(function)}, which is no part of a network; it was not run", _SAFE_WAY
        )


def _is_own(module: str) -> bool:
    """Whether a module's name is Keras' own, and none of its tools."""
    for own in _OWN_MODULES:
        if module == own:
            return True
        if module.startswith(f"{own}."):
            parts = module.removeprefix(f"{own}.").removeprefix("src.").split(".")
            return parts[0] not in _TOOLS
    return False


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in `config`; strings are looked into too, because old files nest JSON in JSON."""
    stack = [config]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield item
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _inner_name(item: dict[str, Any]) -> object:
    inner = item.get("config")
    return inner.get("name") if isinstance(inner, dict) else None


def _exported(model: Any, source: Source, keras: Any) -> Exported:
    import torch

    from onnxspect.converters.sources.from_torch import _dynamo, trace

    notes: tuple[str, ...] = ()
    if isinstance(model.outputs, list) and len(model.outputs) > 1:
        at, notes = chosen_head([str(n) for n in model.output_names], source.head)
        model = keras.Model(model.inputs, model.outputs[at])
    inputs = model.inputs
    if inputs is None or len(inputs) != 1:
        count = "no fixed input" if inputs is None else f"{len(inputs)} inputs"
        raise OnnxspectError(
            f"the model has {count}; one image is expected",
            "an image classifier takes one image: save a model of the image alone, its other inputs held at a value",
        )
    declared = tuple(inputs[0].shape[1:])
    shape = source.input_shape or tuple(d for d in declared if d is not None)
    if len(shape) != len(declared):
        raise OnnxspectError(
            f"the model takes images of any size (shape {list(declared)})",
            "give the shape of one sample: --input-shape 224,224,3",
        )
    model.eval()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(model(torch.from_numpy(images), training=False).detach().numpy())

    attempts = (
        Attempt("Keras on torch, torch.onnx (trace)", lambda: trace(_of_one_argument(_in_use(model)), shape, 0)),
        Attempt(
            "Keras on torch, torch.onnx (torch.export)", lambda: _dynamo(_of_one_argument(_in_use(model)), shape, 0)
        ),
    )
    channels_first = any(getattr(layer, "data_format", "") == "channels_first" for layer in model.layers)
    layout = "NCHW" if channels_first else "NHWC" if len(shape) == 3 else image_layout(shape)
    versions = {"keras": keras.__version__, "torch": torch.__version__}
    return Exported(run, shape, attempts, versions, layout, value_range(model.layers), warnings=notes)


def _in_use(model: Any) -> Any:
    """The model with its augmentation layers handing on what they get, as they do in use; they cannot be exported.

    That they do is not believed: what the model answered before is compared with the exported file.
    """
    for layer in model._flatten_layers():
        if type(layer).__name__ in _AUGMENTING and type(layer).__module__.startswith("keras."):
            layer.call = _handed_on
    return model


def _of_one_argument(model: Any) -> Any:
    """The model as a torch module that takes one image and nothing else.

    Keras' own call takes whatever it is given, which torch.export counts as a tuple; and where nobody says otherwise, an image layer
    in front (Resizing, RandomFlip) makes all that follow it behave as in training, which an exporter would write down.
    """
    from torch import nn

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Any) -> Any:
            return self.model(image, training=False)

    return Plain().eval()


def _handed_on(inputs: Any, *_: Any, **__: Any) -> Any:
    return inputs


def value_range(layers: Any) -> tuple[float, float] | None:
    """The input's range, where the first layer that computes rescales pixels: (0, 255) for x / 255 and the like."""
    for layer in layers:
        kind = type(layer).__name__
        if kind == "InputLayer":
            continue
        if kind != "Rescaling" or np.ndim(layer.scale) or np.ndim(layer.offset):
            return None
        low, high = float(layer.offset), 255 * float(layer.scale) + float(layer.offset)
        return (0.0, 255.0) if abs(high - 1) < 0.05 and min(abs(low), abs(low + 1)) < 0.05 else None
    return None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {printable(' '.join(str(error).split()), 300)}"
