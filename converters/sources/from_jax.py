"""JAX and Flax to ONNX, by jax2onnx.

A JAX model is a Python function and a tree of arrays, so there is no file that holds both without code. The user
hands over a factory, `package.module:function`, of their own, and the file holds only arrays:

* ``function(params)`` returns a function ``image -> logits``; `params` is the tree in the file, as nested dicts of numpy
  arrays: Flax' msgpack, safetensors or npz with ``/`` or ``.`` in the names, or an Orbax checkpoint folder.

No format here can run code: msgpack is read by flax.serialization's restorer of plain trees, npz without pickles.

jax2onnx writes wrong shapes of intermediate values for some graphs (channels-last ones after it moved the Transposes),
which makes onnxruntime refuse them; they are dropped, since onnxruntime infers its own.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.sources.exported import (
    Attempt,
    Exported,
    Source,
    call_factory,
    image_layout,
    missing_extra,
    quiet,
)
from onnxspect.converters.text import printable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

try:
    import jax
    import jax.numpy as jnp
    import jax2onnx
except ImportError as error:
    raise missing_extra(error.name or "jax", "jax") from None

_OPSETS = (17, 21)  # 21 knows Gelu; jax2onnx's own default, 23, is newer than many runtimes


def export(source: Source) -> Exported:
    """Read the arrays, call the factory, and say how to export the function."""
    if not source.factory:
        raise OnnxspectError(
            "holds arrays but no network",
            "give the function that takes them and returns image -> logits: --factory package.module:function",
        )
    if not source.input_shape:
        raise OnnxspectError(
            "a JAX model does not say how large its images are",
            "give the shape of one sample: --input-shape 224,224,3",
        )
    function = call_factory(source, read_params(source))
    if not callable(function):
        what = type(function).__name__
        if isinstance(function, dict):
            what += f" with {', '.join(printable(str(k), 40) for k in sorted(function)[:5])}"
        raise OnnxspectError(
            f"factory {source.factory} returned {what}, not a function",
            "it takes the tree of arrays and returns a function image -> logits",
        )
    return _exported(function, source)


def _exported(function: Callable[[Any], Any], source: Source) -> Exported:
    shape = source.input_shape

    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(function(jnp.asarray(images)), dtype=np.float32)

    try:
        run(np.zeros((2, *shape), np.float32))
    except Exception as error:
        raise OnnxspectError(
            f"the function does not run on an input of shape {[2, *shape]}: {_line(error)}",
            "check --input-shape; Flax wants channels last, such as 224,224,3",
        ) from None

    def builder(opset: int, batch: int | str) -> Callable[[], onnx.ModelProto]:
        def build() -> onnx.ModelProto:
            try:
                with quiet():
                    model: onnx.ModelProto = jax2onnx.to_onnx(function, [(batch, *shape)], opset=opset)
            except TypeError as error:
                if "patched()" in str(error):
                    raise OnnxspectError(
                        f"jax2onnx wants this pooling function called with names: {_line(error)}",
                        "write nn.avg_pool(x, window_shape=..., strides=...)",
                    ) from None
                raise
            model.graph.ClearField("value_info")
            return model

        return build

    version = getattr(jax2onnx, "__version__", None) or _installed("jax2onnx")
    attempts = tuple(Attempt(f"jax2onnx {version}, opset {o}", builder(o, "batch")) for o in _OPSETS)
    versions = {"jax": jax.__version__, "jax2onnx": version}
    return Exported(run, shape, attempts, versions, image_layout(shape) or "NHWC")


def read_params(source: Source) -> Any:
    """The tree of arrays in the file."""
    path = source.path
    try:
        if source.format == "orbax":
            return _orbax(source)
        if source.format == "safetensors":
            from safetensors.numpy import load_file

            return nested(dict(load_file(path)))
        if source.format == "npz":
            with np.load(path, allow_pickle=False) as archive:
                return nested({name: archive[name] for name in archive.files})
        import flax.serialization

        return flax.serialization.msgpack_restore(path.read_bytes())
    except ImportError as error:
        raise missing_extra(error.name or "flax", "jax") from None
    except OnnxspectError:
        raise
    except Exception as error:
        raise OnnxspectError(
            f"cannot be read as a tree of arrays: {_line(error)}",
            "save it with flax.serialization, orbax or safetensors",
        ) from None


def _orbax(source: Source) -> Any:
    try:
        checkpoint: Any = importlib.import_module("orbax.checkpoint")
    except ImportError:
        raise missing_extra("orbax-checkpoint", "jax") from None
    restored = checkpoint.PyTreeCheckpointer().restore(source.path)
    return jax.tree_util.tree_map(np.asarray, restored)


def nested(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    """``{"a/b": x}`` as ``{"a": {"b": x}}``; the separator is ``/``, or ``.`` where no name has a ``/``."""
    separator = "/" if any("/" in name for name in flat) else "."
    tree: dict[str, Any] = {}
    for name, array in flat.items():
        *path, leaf = name.split(separator)
        here = tree
        for part in path:
            here = here.setdefault(part, {})
            if not isinstance(here, dict):
                raise OnnxspectError(
                    f"{printable(name)} lies under a name that is an array itself", "save the tree of parameters anew"
                )
        here[leaf] = array
    return tree


def _installed(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {printable(' '.join(str(error).split()), 300)}"
