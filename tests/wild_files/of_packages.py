"""Models that installed packages carry for their own tests and examples."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from wild_files.wild_file import Wild

HEADING = "Models inside packages"


def _of(package: str, place: str) -> Callable[[Path], Path]:
    def make(_: Path) -> Path:
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise ModuleNotFoundError(package)
        return Path(found.origin).parent / place

    return make


_LIGHT = "backend/test/data/light/light_{}.onnx"
_SIMPLE = "backend/test/data/simple/{}/model.onnx"

FILES: tuple[Wild, ...] = (
    *(
        Wild(f"onnx: light_{n}", _of("onnx", _LIGHT.format(n)), image=(3, 224, 224))
        for n in ("squeezenet", "shufflenet", "bvlc_alexnet")
    ),
    Wild("onnx: test_single_relu_model", _of("onnx", _SIMPLE.format("test_single_relu_model")), works=False),
    Wild("onnx: test_sequence_model1", _of("onnx", _SIMPLE.format("test_sequence_model1")), works=False),
    Wild(
        "onnx: test_strnorm_model_monday_casesensintive_lower",
        _of("onnx", _SIMPLE.format("test_strnorm_model_monday_casesensintive_lower")),
        works=False,
    ),
    Wild("onnxruntime: logreg_iris", _of("onnxruntime", "datasets/logreg_iris.onnx"), works=False),
    Wild("onnxruntime: mul_1", _of("onnxruntime", "datasets/mul_1.onnx"), works=False),
    Wild("onnxruntime: sigmoid", _of("onnxruntime", "datasets/sigmoid.onnx"), works=False),
)
