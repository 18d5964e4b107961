"""ONNX files as sources: copied, repaired, upgraded; and every file of other exporters ends in a graph or a refusal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sources_support import reference_folder
from tolerances import LOW_PRECISION_32, NETWORK_32, OPERATION_32
from torch.nn import functional

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file.onnx_file import read_onnx
from onnxspect.converters.file.probe import probe
from onnxspect.converters.lowering.logits import logits_of
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.proof.parity import check_parity
from onnxspect.converters.sources.convert import convert, sidecar_path
from onnxspect.converters.sources.from_onnx import broadcast_as_numpy, upgrade

WILD = reference_folder() / "wild"
needs_data = pytest.mark.skipif(not WILD.is_dir(), reason="needs the reference files (ONNXSPECT_DATA)")


def run(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


def dense(path: Path, opset: int = 17) -> onnx.ModelProto:
    """(N, 1, 2, 2) -> (N, 3), written to `path`."""
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(proto.SerializeToString())
    return proto


def test_good_file_is_copied_to_the_byte(tmp_path: Path) -> None:
    source = tmp_path / "a.onnx"
    dense(source)
    made = convert(source, tmp_path / "b.onnx")
    assert made.out.read_bytes() == source.read_bytes()
    assert (made.sha256, made.exporter, made.layout, made.sample_shape) == (
        made.source_sha256,
        "copied",
        "NCHW",
        (1, 2, 2),
    )
    facts = json.loads(sidecar_path(made.out).read_text())
    assert facts["parity"]["max_abs_difference"] is None  # nothing was converted


def test_external_data_moves_inside(tmp_path: Path) -> None:
    source = tmp_path / "in" / "a.onnx"
    source.parent.mkdir()
    proto = dense(source)
    weight = proto.graph.initializer[0]
    (source.parent / "w.bin").write_bytes(weight.raw_data)
    expected = run(source, np.ones((2, 1, 2, 2), np.float32))
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="w.bin")
    source.write_bytes(proto.SerializeToString())
    made = convert(source, tmp_path / "b.onnx")
    np.testing.assert_array_equal(run(made.out, np.ones((2, 1, 2, 2), np.float32)), expected)
    assert made.exporter == "copied, repaired"


def old_model(second: list[int], axis: int | None) -> onnx.ModelProto:
    """Opset 6: image (2, 3, 4, 5) plus a tensor, broadcast in the old way."""
    attributes = {"broadcast": 1, **({} if axis is None else {"axis": axis})}
    graph = helper.make_graph(
        [helper.make_node("Relu", ["image"], ["r"]), helper.make_node("Add", ["r", "b"], ["logits"], **attributes)],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [2, 3, 4, 5])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 3, 4, 5])],
        [numpy_helper.from_array(np.random.default_rng(0).standard_normal(second).astype(np.float32), "b")],
    )
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 6)], ir_version=3)
    made.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, second))  # IR 3 lists initializers
    return made


@pytest.mark.parametrize(
    ("second", "axis", "as_numpy"),
    [
        ([3], 1, (3, 1, 1)),
        ([2], 0, (2, 1, 1, 1)),
        ([3, 4], 1, (3, 4, 1)),
        ([4, 5], 2, (4, 5)),
        ([5], 3, (5,)),
        ([3], -3, (3, 1, 1)),
        ([4, 5], None, (4, 5)),
        ([2, 3, 4, 5], 0, (2, 3, 4, 5)),
    ],
)
def test_broadcasting_of_opset_6(
    tmp_path: Path, second: list[int], axis: int | None, as_numpy: tuple[int, ...]
) -> None:
    """onnx/docs/Changelog.md, Add-6: the second input's axes lie on the first's from `axis` on."""
    model = old_model(second, axis)
    b = numpy_helper.to_array(model.graph.initializer[0]).reshape(as_numpy)
    image = np.random.default_rng(1).standard_normal((2, 3, 4, 5)).astype(np.float32)
    path = tmp_path / "m.onnx"
    path.write_bytes(upgrade(model).SerializeToString())
    np.testing.assert_allclose(run(path, image), np.maximum(image, 0) + b, rtol=OPERATION_32)


def test_broadcasting_where_the_rank_is_unknown() -> None:
    model = old_model([3], 1)
    model.graph.node[0].op_type = "Mystery"
    with pytest.raises(OnnxspectError, match="rank of its inputs is not known"):
        broadcast_as_numpy(model)


@needs_data
def test_file_without_opset_is_upgraded(tmp_path: Path) -> None:
    """Against the same network written in torch by hand: its constants, padding 2 for SAME, the old way of broadcasting."""
    source = WILD / "winml_mnist_old.onnx"
    made = convert(source, tmp_path / "new.onnx")
    assert any("no opset_import" in w for w in made.warnings)
    assert any("opset 1 was upgraded to 17" in w for w in made.warnings)
    nodes = read_onnx(source).proto.graph.node
    constants = {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in nodes if n.op_type == "Constant"}
    weights = {name: torch.from_numpy(value.copy()) for name, value in constants.items()}
    for seed in range(5):
        image = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(seed)) * 255
        hidden = functional.conv2d(image, weights["Parameter5"], padding=2) + weights["Parameter6"].view(-1, 1, 1)
        hidden = functional.max_pool2d(functional.relu(hidden), 2)
        hidden = functional.conv2d(hidden, weights["Parameter87"], padding=2) + weights["Parameter88"].view(-1, 1, 1)
        hidden = functional.max_pool2d(functional.relu(hidden), 3)
        expected = hidden.reshape(1, 256) @ weights["Parameter193"].reshape(256, 10) + weights["Parameter194"]
        np.testing.assert_allclose(
            run(made.out, image.numpy()), expected.numpy(), rtol=NETWORK_32, atol=LOW_PRECISION_32
        )


REFUSED = {
    "winml_pcb_aoi.onnx": "com.microsoft:LegacyPadding",
    "winml_squeezenet_dao_fp16.onnx": "operators that ONNX does not have (Debug)",
}
UPGRADED = {"winml_mnist_old.onnx"}
NAMES = sorted(p.name for p in WILD.glob("*.onnx")) if WILD.is_dir() else []


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_files_of_other_exporters(tmp_path: Path, name: str) -> None:
    """Each of the twelve ends in a torch graph that answers what the file answers, or in a refusal that names the cause."""
    if name in REFUSED:
        with pytest.raises(OnnxspectError) as caught:
            convert(WILD / name, tmp_path / "out.onnx")
        assert REFUSED[name] in caught.value.message
        assert name in caught.value.message
        assert caught.value.hint
        return
    made = convert(WILD / name, tmp_path / "out.onnx")
    found = probe(made.out)
    assert found.run_shapes
    assert found.finite
    if name not in UPGRADED:
        assert made.out.read_bytes() == (WILD / name).read_bytes()
    proto = read_onnx(made.out).proto
    report = check_parity(proto, lower(proto, [logits_of(proto).value]), batch_sizes=(1, 2))
    assert report.worst.scale > 0


@needs_data
def test_old_file_is_explained_by_the_probe() -> None:
    with pytest.raises(OnnxspectError, match="Add"):
        probe(WILD / "winml_mnist_old.onnx")
