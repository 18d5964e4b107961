"""Torch parameters back into the original file: changed tensors and nothing else, stored the way they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import CLASSES, SIDE, make_model, quadrant_model, quadrant_weights, saved
from onnx import TensorProto, helper, numpy_helper
from tolerances import LOW_PRECISION_32, NETWORK_32, SUM_32

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.lowering.lower import LoweredModel, lower
from onnxspect.converters.proof.compare import compare
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.converters.proof.writeback import TRAINABLE, Change, roles, write_back
from onnxspect.engine.jobs.export import Provenance, patched_model, write_model
from onnxspect.engine.subject.subject import Subject

RNG = np.random.default_rng(0)
PROVENANCE = Provenance("0" * 64, "1.2.3", "unlearn", "abc")


def parameters(lowered: LoweredModel) -> dict[str, np.ndarray]:
    return {n: p.detach().numpy().copy() for n, p in lowered.module.named_parameters()}


def by_initializer(lowered: LoweredModel, name: str) -> str:
    (found,) = [p for p, w in lowered.weights.items() if w.initializer == name]
    return found


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def gemm(weight: onnx.TensorProto, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    nodes = [helper.make_node("Flatten", ["image"], ["f"]), helper.make_node("MatMul", ["f", "weight"], ["logits"])]
    return make_model(nodes, [weight], kind=kind)


def typed(values: np.ndarray, kind: int) -> onnx.TensorProto:
    made: onnx.TensorProto = helper.make_tensor("weight", kind, values.shape, values.flatten())
    assert not made.HasField("raw_data")
    return made


WEIGHTS = quadrant_weights(1)
STORED = {
    "raw": numpy_helper.from_array(WEIGHTS, "weight"),
    "float_data": typed(WEIGHTS, TensorProto.FLOAT),
    "fp16 raw": numpy_helper.from_array(WEIGHTS.astype(np.float16), "weight"),
    "fp16 int32_data": typed(WEIGHTS.astype(np.float16), TensorProto.FLOAT16),
    "double raw": numpy_helper.from_array(WEIGHTS.astype(np.float64), "weight"),
    "double_data": typed(WEIGHTS.astype(np.float64), TensorProto.DOUBLE),
}


@pytest.mark.parametrize("stored", STORED)
def test_a_tensor_is_stored_as_it_was(stored: str) -> None:
    weight = STORED[stored]
    model = gemm(weight, weight.data_type)
    before = model.SerializeToString()
    lowered = lower(model)
    name = by_initializer(lowered, "weight")
    new = parameters(lowered)[name] * 1.25 + 0.01
    patched, changes = write_back(model, lowered.weights, {name: new})
    assert model.SerializeToString() == before
    after = tensor(patched, "weight")
    assert after.data_type == weight.data_type
    assert after.HasField("raw_data") == weight.HasField("raw_data")
    assert [f.name for f, _ in after.ListFields()] == [f.name for f, _ in tensor(model, "weight").ListFields()]
    expected = new.astype(numpy_helper.to_array(weight).dtype)
    np.testing.assert_array_equal(numpy_helper.to_array(after), expected)
    (difference,) = compare(model, patched)
    assert (difference.kind, difference.name) == ("tensor", "weight")
    assert changes == [Change("weight", difference.relative)]
    onnx.checker.check_model(patched, full_check=True)
    # And onnxruntime answers as the torch graph with the new values would.
    image = RNG.random((3, 1, SIDE, SIDE)).astype(expected.dtype)
    (answer,) = Oracle(patched.SerializeToString()).run({"image": image})
    reference = image.reshape(3, -1).astype(np.float64) @ expected.astype(np.float64)
    np.testing.assert_allclose(
        answer, reference, rtol=LOW_PRECISION_32 if expected.dtype == np.float16 else SUM_32, atol=NETWORK_32
    )


def test_unchanged_values_change_nothing() -> None:
    model = quadrant_model(1)
    lowered = lower(model)
    patched, changes = write_back(model, lowered.weights, parameters(lowered))
    assert changes == []
    assert patched.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", ["fashion_mnist_clean"])
def test_shipped_file_round_trips(clean_subject: Subject, name: str) -> None:
    file, lowered = clean_subject.file, clean_subject.lowered
    assert file is not None
    assert lowered is not None
    assert name in file.path.name
    values = parameters(lowered)
    patched, changes = write_back(file.proto, lowered.weights, values)
    assert changes == []
    assert compare(file.proto, patched) == []
    moved = {n: v + np.float32(0.01) for n, v in values.items()}
    patched, changes = write_back(file.proto, lowered.weights, moved)
    assert {c.initializer for c in changes} == {w.initializer for w in lowered.weights.values()}
    assert {d.kind for d in compare(file.proto, patched)} == {"tensor"}


def test_constant_nodes() -> None:
    constant = helper.make_node("Constant", [], ["weight"], value=numpy_helper.from_array(WEIGHTS, "inner"))
    nodes = [helper.make_node("Flatten", ["image"], ["f"]), helper.make_node("MatMul", ["f", "weight"], ["logits"])]
    model = make_model([constant, *nodes])
    lowered = lower(model)
    name = by_initializer(lowered, "weight")
    assert lowered.weights[name].is_constant_node
    assert roles(model, lowered)[name] == "weight"
    patched, changes = write_back(model, lowered.weights, {name: 2 * WEIGHTS})
    assert changes == [Change("weight", 1.0)]
    inner = patched.graph.node[0].attribute[0].t
    assert inner.name == "inner"
    np.testing.assert_array_equal(numpy_helper.to_array(inner), 2 * WEIGHTS)
    assert [d.kind for d in compare(model, patched)] == ["tensor"]


def test_a_shared_initializer_is_one_parameter() -> None:
    square = numpy_helper.from_array(RNG.standard_normal((SIDE, SIDE)).astype(np.float32), "shared")
    nodes = [
        helper.make_node("MatMul", ["image", "shared"], ["once"]),
        helper.make_node("MatMul", ["once", "shared"], ["twice"]),
        helper.make_node("Flatten", ["twice"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
    ]
    model = make_model(nodes, [square, numpy_helper.from_array(WEIGHTS, "head")])
    lowered = lower(model)
    assert sorted(w.initializer for w in lowered.weights.values()) == ["head", "shared"]
    assert len(list(lowered.module.parameters())) == 2
    name = by_initializer(lowered, "shared")
    patched, changes = write_back(model, lowered.weights, {name: np.eye(SIDE, dtype=np.float32)})
    assert [c.initializer for c in changes] == ["shared"]
    image = RNG.random((2, 1, SIDE, SIDE), np.float32)
    (answer,) = Oracle(patched.SerializeToString()).run({"image": image})
    np.testing.assert_allclose(answer, image.reshape(2, -1) @ WEIGHTS, rtol=SUM_32, atol=NETWORK_32)


def network() -> onnx.ModelProto:
    """(image - mean) * gain, Conv, BatchNorm, PRelu, a scalar factor, Flatten, MatMul, Add."""

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        made: onnx.TensorProto = numpy_helper.from_array(RNG.random(shape).astype(np.float32) + 0.5, name)
        return made

    nodes = [
        helper.make_node("Add", ["image", "minus_mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "one_over_std"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "kernel", "kernel_bias"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "running_mean", "running_var"], ["b"]),
        helper.make_node("PRelu", ["b", "slope"], ["p"]),
        helper.make_node("Mul", ["p", "half"], ["h"]),
        helper.make_node("Flatten", ["h"], ["f"]),
        helper.make_node("Transpose", ["head_t"], ["head"], perm=[1, 0]),
        helper.make_node("MatMul", ["f", "head"], ["m"]),
        helper.make_node("Add", ["m", "offset"], ["logits"]),
    ]
    tensors = [
        weight("minus_mean", 2, 1, 1),
        weight("one_over_std", 2, 1, 1),
        weight("kernel", 3, 2, 3, 3),
        weight("kernel_bias", 3),
        *(weight(n, 3) for n in ("gamma", "beta", "running_mean", "running_var")),
        weight("slope", 3, 1, 1),
        weight("half"),
        weight("head_t", CLASSES, 3 * 6 * 6),
        weight("offset", CLASSES),
    ]
    return make_model(nodes, tensors, ("N", 2, SIDE, SIDE))


def test_roles() -> None:
    model = network()
    lowered = lower(model)
    found = {lowered.weights[p].initializer: role for p, role in roles(model, lowered).items()}
    expected = {
        "kernel": "weight",
        "kernel_bias": "bias",
        "gamma": "scale",
        "beta": "bias",
        "running_mean": "statistic",
        "running_var": "statistic",
        "slope": "slope",
        "head_t": "weight",
        "offset": "offset",
    }
    assert {n: r for n, r in found.items() if n in expected} == expected
    # The file's own preprocessing and the scalar are constants of the computation, whether or not they are parameters.
    assert {found.get(n, "constant") for n in ("minus_mean", "one_over_std", "half")} == {"constant"}
    assert "statistic" not in TRAINABLE
    assert "constant" not in TRAINABLE


#: Operator -> (what it gets, the shape of each tensor, attributes, what each tensor does there): after a first layer, whose output is
#: ``c`` ``(n, 4, 8, 8)`` or, for operators of sequences, ``s`` ``(n, 8, 8)``;
#: ``f`` is ``c`` as a vector, ``i`` the image as whole numbers.
PLACES: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, object], str]] = {
    "ConvTranspose": ("c w b", {"w": (4, 4, 3, 3), "b": (4,)}, {}, "w weight, b bias"),
    "InstanceNormalization": ("c w b", {"w": (4,), "b": (4,)}, {}, "w scale, b bias"),
    "LayerNormalization": ("c w b", {"w": (8,), "b": (8,)}, {}, "w scale, b bias"),
    "GroupNormalization": ("c w b", {"w": (4,), "b": (4,)}, {"num_groups": 2}, "w scale, b bias"),
    "RMSNormalization": ("c w", {"w": (8,)}, {}, "w scale"),
    "LSTM": (
        "s w r b",
        {"w": (1, 20, 8), "r": (1, 20, 5), "b": (1, 40)},
        {"hidden_size": 5},
        "w weight, r weight, b bias",
    ),
    "GRU": (
        "s w r b",
        {"w": (1, 15, 8), "r": (1, 15, 5), "b": (1, 30)},
        {"hidden_size": 5},
        "w weight, r weight, b bias",
    ),
    "RNN": (
        "s w r b",
        {"w": (1, 5, 8), "r": (1, 5, 5), "b": (1, 10)},
        {"hidden_size": 5},
        "w weight, r weight, b bias",
    ),
    "Gemm": ("f w b", {"w": (256, 6), "b": (6,)}, {}, "w weight, b bias"),
    "Einsum": ("f w", {"w": (256, 6)}, {"equation": "ni,io->no"}, "w weight"),
    "Gemm left": ("w f", {"w": (6, 256)}, {"transB": 1}, "w weight"),
    "Einsum left": ("w f", {"w": (6, 256)}, {"equation": "oi,ni->no"}, "w weight"),
    "Gather": ("w i", {"w": (10, 4)}, {}, "w embedding"),
    "MatMul": ("w c", {"w": (8, 8)}, {}, "w weight"),
    "Add": ("w c", {"w": (4, 1, 1)}, {}, "w offset"),
    "Sum": ("w c b", {"w": (4, 1, 1), "b": (1, 8)}, {}, "w offset, b constant"),
    "Mul": ("w c", {"w": (4, 1, 1)}, {}, "w gain"),
    "Mul of the second": ("c w", {"w": (4, 1, 1)}, {}, "w gain"),
    "Mul by two numbers": ("c w", {"w": (1, 1, 1, 2)}, {}, "w gain"),
    "Mul by one number": ("c w", {"w": (1, 1, 1)}, {}, "w constant"),
    "Sub": ("c w", {"w": (4, 1, 1)}, {}, "w constant"),
    "Div": ("c w", {"w": (4, 1, 1)}, {}, "w constant"),
}


@pytest.mark.parametrize("case", PLACES)
def test_what_a_tensor_does_follows_from_its_operator_and_its_place(case: str) -> None:
    inputs, shapes, attributes, expected = PLACES[case]
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["c"], kernel_shape=[1, 1]),
        helper.make_node("ReduceMean", ["c", "one"], ["s"], keepdims=0),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Cast", ["image"], ["i"], to=TensorProto.INT64),
        helper.make_node(case.split()[0], inputs.split(), ["o"], **attributes),
        helper.make_node("Flatten", ["o"], ["logits"]),
    ]
    made = {"first": (4, 1, 1, 1), **shapes}
    tensors = [numpy_helper.from_array(RNG.random(shape).astype(np.float32) + 0.5, n) for n, shape in made.items()]
    tensors.append(numpy_helper.from_array(np.array([1]), "one"))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [image], [logits], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    lowered = lower(model)
    found = {lowered.weights[p].initializer: role for p, role in roles(model, lowered).items()}
    assert {n: found.get(n, "constant") for n in shapes} == dict(pair.split() for pair in expected.split(", "))


def test_a_tensor_that_was_all_zeros_changes_by_its_new_length() -> None:
    model = gemm(numpy_helper.from_array(np.zeros_like(WEIGHTS), "weight"))
    lowered = lower(model)
    _, changes = write_back(model, lowered.weights, {by_initializer(lowered, "weight"): np.full_like(WEIGHTS, 0.5)})
    assert changes == [Change("weight", 0.5 * WEIGHTS.size**0.5)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_is_refused(bad: float) -> None:
    model = quadrant_model(1)
    lowered = lower(model)
    name = by_initializer(lowered, "weight")
    new = parameters(lowered)[name]
    new[3, 1] = bad
    with pytest.raises(OnnxspectError, match="weight: the new values are not finite"):
        write_back(model, lowered.weights, {name: new})


def test_overflow_in_the_files_own_type_is_refused() -> None:
    """70,000 is finite as float32 and infinite as the fp16 that is written."""
    model = gemm(STORED["fp16 raw"], TensorProto.FLOAT16)
    lowered = lower(model)
    name = by_initializer(lowered, "weight")
    new = parameters(lowered)[name]
    new[3, 1] = 70_000.0
    with pytest.raises(OnnxspectError, match="not finite"):
        write_back(model, lowered.weights, {name: new})


def test_what_does_not_fit_is_refused() -> None:
    model = quadrant_model(1)
    lowered = lower(model)
    name = by_initializer(lowered, "weight")
    with pytest.raises(OnnxspectError, match=r"shape \(4, 64\) does not fit"):
        write_back(model, lowered.weights, {name: WEIGHTS.T})
    del model.graph.initializer[:]
    with pytest.raises(OnnxspectError, match="no such initializer"):
        write_back(model, lowered.weights, {name: WEIGHTS})


def test_patched_model_carries_its_provenance(planted: Subject) -> None:
    assert planted.file is not None
    assert planted.lowered is not None
    before = planted.file.proto.SerializeToString()
    name = by_initializer(planted.lowered, "weight")
    patched, changes = patched_model(planted, {name: quadrant_weights()}, PROVENANCE)
    assert planted.file.proto.SerializeToString() == before
    assert [c.initializer for c in changes] == ["weight"]
    assert {p.key: p.value for p in patched.metadata_props} == {
        "onnxspect.original_sha256": "0" * 64,
        "onnxspect.tool_version": "1.2.3",
        "onnxspect.method": "unlearn",
        "onnxspect.evidence": "abc",
    }
    assert {d.kind for d in compare(planted.file.proto, patched)} == {"tensor", "metadata"}
    with pytest.raises(OnnxspectError, match="changed nothing"):
        patched_model(planted, parameters(planted.lowered), PROVENANCE)


def test_patching_twice_replaces_the_provenance(planted: Subject, tmp_path: Path) -> None:
    assert planted.lowered is not None
    name = by_initializer(planted.lowered, "weight")
    once, _ = patched_model(planted, {name: quadrant_weights()}, PROVENANCE)
    again = Subject.from_onnx(saved(once, tmp_path / "once.onnx"))
    assert again.lowered is not None
    name = by_initializer(again.lowered, "weight")
    twice, _ = patched_model(again, {name: quadrant_weights(3)}, Provenance("1" * 64, "1.2.4", "prune", "def"))
    entries = {p.key: p.value for p in twice.metadata_props}
    assert len(twice.metadata_props) == len(entries) == 4
    assert entries["onnxspect.method"] == "prune"


def test_write_model(planted: Subject, tmp_path: Path) -> None:
    file = planted.file
    assert file is not None
    out = tmp_path / "out.onnx"
    write_model(quadrant_model(), file, out)
    assert onnx.load(str(out)) == quadrant_model()
    original = file.path.read_bytes()
    link = tmp_path / "link.onnx"
    link.symlink_to(file.path)
    for refused, said in (
        (file.path, "overwrite the original"),
        (link, "overwrite the original"),
        (tmp_path / "no" / "out.onnx", "no such folder"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(OnnxspectError, match=said):
            write_model(quadrant_model(), file, refused)
    assert file.path.read_bytes() == original
