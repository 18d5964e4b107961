"""The onnx package's light model graphs: nine large classifiers of old exporters, their weights made by ConstantOfShape.

At 224 x 224 they are heavy: `make test` takes the two lightest, ONNXSPECT_FULL=1 (`make test-converters`) all.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tolerances import NETWORK_32

from onnxspect.converters.file.onnx_file import read_onnx
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.lowering.taps import cuts
from onnxspect.converters.proof.parity import check_parity

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
MODELS = sorted(LIGHT.glob("light_*.onnx"))
FULL = os.environ.get("ONNXSPECT_FULL") == "1"
FAST = ("light_squeezenet", "light_shufflenet")


def test_they_are_there() -> None:
    assert len(MODELS) >= 9


@pytest.mark.parametrize("path", [p for p in MODELS if FULL or p.stem in FAST], ids=lambda p: p.stem)
def test_light_model(path: Path) -> None:
    file = read_onnx(path)
    lowered = lower(file.proto)
    (image,) = [i for i in file.proto.graph.input if i.name == lowered.inputs[0]]
    shape = [d.dim_value for d in image.type.tensor_type.shape.dim]
    x = np.random.default_rng(0).random(shape, np.float32)
    taps = [tap.name for tap in cuts(lowered)]
    assert len(taps) >= 5
    # Weights that are all the same make all answers 1/1000: what differs at all differs inside.
    report = check_parity(file.proto, lowered, x, batch_sizes=(), taps=[taps[1], taps[len(taps) // 2], taps[-1]])
    assert max(row.scale for row in report.tensors) > 1e-3
    # The package's own answer, to an image of ones.
    stored = onnx.TensorProto.FromString((LIGHT / f"{path.stem}_output_0.pb").read_bytes())
    with torch.no_grad():
        found = lowered.module(torch.ones(*shape))
    np.testing.assert_allclose(found.numpy(), numpy_helper.to_array(stored), rtol=NETWORK_32)
