"""Keras' own applications with random weights, through .keras, .h5, SavedModel and TFLite.

One by default; all networks in all formats with ONNXSPECT_FULL=1 (`make test-converters`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from framework_models import APPLICATIONS, SIZE
from sources_support import converted, made, needs, verify

pytestmark = pytest.mark.frameworks

FULL = os.environ.get("ONNXSPECT_FULL") == "1"
FORMATS = {
    "keras": ("keras", ".keras"),
    "h5": ("keras", ".h5"),
    "saved-model": ("tensorflow", ""),
    "tflite": ("tensorflow", ".tflite"),
}
FAST = {("MobileNetV2", "keras")}
CASES = [(name, kind) for name in APPLICATIONS for kind in FORMATS if FULL or (name, kind) in FAST]


@pytest.mark.parametrize(("name", "kind"), CASES)
@needs("keras")
@needs("tensorflow")
def test_application(tmp_path: Path, name: str, kind: str) -> None:
    framework, suffix = FORMATS[kind]
    result = converted(made(framework, name) / f"{name}{suffix}", tmp_path / "m.onnx")
    verify(result)
    assert (result.layout, result.sample_shape, result.batch) == ("NHWC", (SIZE, SIZE, 3), 0)
    assert not any("proves little" in w for w in result.warnings)
