"""Keras' own applications with random weights, through .keras, .h5, SavedModel and TFLite.

Heavy (`make test-converters`): the kinds of layers that they are made of are in test_sources_frameworks.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from framework_models import APPLICATIONS, SIZE
from sources_support import converted, made, needs, verify

pytestmark = [pytest.mark.frameworks, pytest.mark.heavy]

FORMATS = {
    "keras": ("keras", ".keras"),
    "h5": ("keras", ".h5"),
    "saved-model": ("tensorflow", ""),
    "tflite": ("tensorflow", ".tflite"),
}
CASES = [(name, kind) for name in APPLICATIONS for kind in FORMATS]


@pytest.mark.parametrize(("name", "kind"), CASES)
@needs("keras")
@needs("tensorflow")
def test_application(tmp_path: Path, name: str, kind: str) -> None:
    framework, suffix = FORMATS[kind]
    result = converted(made(framework, name) / f"{name}{suffix}", tmp_path / "m.onnx")
    verify(result)
    assert (result.layout, result.sample_shape, result.batch) == ("NHWC", (SIZE, SIZE, 3), 0)
    assert not any("proves little" in w for w in result.warnings)
