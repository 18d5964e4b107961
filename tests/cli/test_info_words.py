"""What `info` says of files that are healthy but not plain: flat, of several outputs, with inputs beside the image, of another kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import CLASSES, SIDE, make_model, quadrant_model, quadrant_weights, saved
from onnx import TensorProto, helper, numpy_helper

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.describe import describe
from onnxspect.engine.subject.class_scores import ModelView


def flat(numbers: int) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((numbers, CLASSES), np.float32), "weight")
    return make_model([helper.make_node("MatMul", ["image", "weight"], ["logits"])], [weight], ("N", numbers))


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (SIDE * SIDE, f"FLAT, rows of 64 values: {SIDE}x{SIDE}, 1 channel"),
        (3 * 100, "FLAT, rows of 300 values: 10x10, 3 channels"),
        (77, "FLAT, rows of 77 values"),
    ],
)
def test_flat_rows(numbers: int, said: str, tmp_path: Path) -> None:
    facts = describe(saved(flat(numbers), tmp_path / "m.onnx"))
    assert facts["input"] == f"image: {said}"
    assert facts["logits"] == f"logits (logits), {CLASSES} classes"


def test_every_output_is_named(tmp_path: Path) -> None:
    model = quadrant_model()
    weight = numpy_helper.from_array(quadrant_weights()[:, :3].copy(), "other")
    model.graph.initializer.append(weight)
    model.graph.node.append(helper.make_node("MatMul", ["flat", "other"], ["side"]))
    for name, size in (("side", 3), ("flat", SIDE * SIDE)):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]))
    path = saved(model, tmp_path / "m.onnx")
    assert describe(path)["outputs"] == (
        "logits (looked at), side (class scores of its own: --output side), "
        "flat (not looked at: the class scores are computed from it)"
    )
    assert describe(ModelView(path, "side"))["logits"] == "side (logits), 3 classes"


def test_weights_alone_are_named_and_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}, path)
    with pytest.raises(OnnxspectError, match="PyTorch state dict or pickled module, not an ONNX file") as caught:
        describe(path)
    assert f"onnxspect convert {path}" in caught.value.hint
    assert "damaged" not in str(caught.value)
