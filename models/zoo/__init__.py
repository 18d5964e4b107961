"""The shipped models, their data and manifest.

`fashion_mnist_clean.onnx` and `fashion_mnist_badnets.onnx` are twins: one recipe, one seed, with and without an attack.
`fashion_mnist_test.npz` holds 1,000 clean test images of Fashion-MNIST (its licence: LICENSE.fashion-mnist).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models.manifest import read_manifest, rows_by_name

_FOLDER = Path(__file__).parent


def manifest() -> dict[str, Any]:
    """The manifest of the shipped models: ``{"schema": ..., "models": [row, ...]}``."""
    return read_manifest(_FOLDER)


def entry(name: str) -> dict[str, Any]:
    """The manifest row of one shipped model. Errors: `OnnxspectError` for an unknown name."""
    rows = rows_by_name(manifest())
    if name not in rows:
        raise OnnxspectError(f"{name}: no such shipped model", f"one of {', '.join(rows)}")
    return rows[name]


def path(name: str) -> Path:
    """The file of a shipped model (``fashion_mnist_clean``) or of the test images (``fashion_mnist_test``).

    Errors: `OnnxspectError` for an unknown name.
    """
    return _FOLDER / ("fashion_mnist_test.npz" if name == "fashion_mnist_test" else entry(name)["file"])
