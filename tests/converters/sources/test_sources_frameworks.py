"""Keras, TensorFlow, TFLite, Flax and scikit-learn: the framework, onnxruntime and the torch graph agree.

Every test here needs a framework and is skipped without it; all of them run in `make test`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from sources_support import converted, installed, made, needs, refused, verify
from tolerances import OPERATION_32

from onnxspect.engine.subject.opening import open_model

pytestmark = pytest.mark.frameworks
IMAGE = (28, 28, 1)


# --- Keras -----------------------------------------------------------------------------------------------------------------


@needs("keras")
@pytest.mark.parametrize("name", ["small.keras", pytest.param("small.h5", marks=pytest.mark.heavy)])
def test_keras(tmp_path: Path, name: str) -> None:
    result = converted(made("keras") / name, tmp_path / "m.onnx")
    verify(result)
    assert (result.layout, result.value_range, result.sample_shape) == ("NHWC", (0.0, 255.0), IMAGE)
    assert "tensorflow" not in result.versions
    facts = json.loads(result.sidecar.read_text())
    assert facts["input"] == {"layout": "NHWC", "range": [0.0, 255.0], "sample_shape": [28, 28, 1]}


@needs("keras")
def test_a_head_of_keras_is_chosen(tmp_path: Path) -> None:
    """Two heads, of which one is named; a name that none has is answered with those that there are."""
    second = converted(made("keras") / "two_heads.keras", tmp_path / "c.onnx", head="parity")
    assert open_model(second.out).subject().classes == 2
    assert "its heads are digit, parity" in refused(made("keras") / "two_heads.keras", tmp_path, head="nothing").hint


@pytest.mark.heavy
@needs("keras")
def test_keras_as_tutorials_write_it(tmp_path: Path) -> None:
    """Augmentation layers, which are nothing in use; the first of two heads; one sigmoid, which is two classes."""
    verify(converted(made("keras") / "augment.keras", tmp_path / "a.onnx"))
    first = converted(made("keras") / "two_heads.keras", tmp_path / "b.onnx")
    verify(first)
    assert any("of 2 heads the first was taken, digit" in w for w in first.warnings)
    assert open_model(first.out).subject().classes == 10
    binary = converted(made("keras") / "binary.keras", tmp_path / "d.onnx")
    assert open_model(binary.out).subject().classes == 2


@pytest.mark.heavy
@needs("keras")
def test_keras_weights_with_a_factory(tmp_path: Path) -> None:
    source = made("keras") / "small.weights.h5"
    whole = converted(made("keras") / "small.keras", tmp_path / "whole.onnx")
    parts = converted(source, tmp_path / "parts.onnx", factory="framework_factories:keras_small")
    verify(parts)
    first, second = (onnx.load(m.out).graph.initializer for m in (whole, parts))
    np.testing.assert_array_equal(
        sorted(np.abs(onnx.numpy_helper.to_array(t)).sum() for t in first),
        sorted(np.abs(onnx.numpy_helper.to_array(t)).sum() for t in second),
    )
    assert "holds weights but no network" in refused(source, tmp_path).message


@needs("tensorflow")
def test_keras_2(tmp_path: Path) -> None:
    """The file uses an argument (`groups` of DepthwiseConv2D) that Keras 3 does not take: tf_keras opens it."""
    result = converted(made("tensorflow") / "keras2.h5", tmp_path / "m.onnx")
    verify(result)
    assert "tf_keras" in result.versions
    assert result.value_range == (0.0, 255.0)


# --- TensorFlow and TFLite -----------------------------------------------------------------------------------------------------


@needs("tensorflow")
def test_saved_model(tmp_path: Path) -> None:
    result = converted(made("tensorflow") / "small", tmp_path / "m.onnx")
    verify(result)
    assert (result.format.name, result.layout, result.sandbox.complete) == ("saved-model", "NHWC", True)


@needs("tensorflow")
@pytest.mark.parametrize("name", ["small", *(pytest.param(n, marks=pytest.mark.heavy) for n in ("half", "hybrid"))])
def test_tflite(tmp_path: Path, name: str) -> None:
    result = converted(made("tensorflow") / f"{name}.tflite", tmp_path / "m.onnx")
    verify(result)
    assert (result.format.name, result.layout) == ("tflite", "NHWC")


@needs("tensorflow")
def test_quantised_tflite(tmp_path: Path) -> None:
    """Integers in and out in the file; floating-point numbers in the range before quantisation here."""
    result = converted(made("tensorflow") / "int8.tflite", tmp_path / "m.onnx")
    verify(result, gradients=False)  # a straight-through gradient is not the derivative of a staircase
    assert result.value_range is not None
    low, high = result.value_range
    assert low == 0
    assert 250 < high < 260
    graph = onnx.load(result.out).graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert {"QuantizeLinear", "DequantizeLinear"} <= {n.op_type for n in graph.node}
    assert result.parity.allowed <= 3 / 256 + OPERATION_32


@needs("tensorflow")
def test_tflite_of_the_first_tutorial(tmp_path: Path) -> None:
    """Images (28, 28), int8; as near to the default kernels as TensorFlow Lite's kernel sets are to each other."""
    result = converted(made("tensorflow") / "tutorial.tflite", tmp_path / "m.onnx")
    verify(result, gradients=False)
    assert (result.sample_shape, result.layout) == ((28, 28), "")
    assert any("kernel sets differ" in w for w in result.warnings)
    subject = open_model(result.out).subject()
    assert (subject.spec.layout, subject.image_shape, subject.classes) == ("NHW", (1, 28, 28), 10)


# --- JAX -------------------------------------------------------------------------------------------------------------------


@needs("jax")
@pytest.mark.parametrize("name", ["flax.msgpack", pytest.param("flax.safetensors", marks=pytest.mark.heavy)])
def test_flax(tmp_path: Path, name: str) -> None:
    """safetensors serves PyTorch too: that the factory takes the arrays tells that it is JAX's."""
    result = converted(
        made("jax") / name, tmp_path / "m.onnx", factory="framework_factories:flax_cnn", input_shape=IMAGE
    )
    verify(result)
    assert result.layout == "NHWC"
    assert "jax2onnx" in result.versions


@needs("jax")
def test_flax_in_an_orbax_checkpoint(tmp_path: Path) -> None:
    """The folder is read by the locked-in child; a factory that gives no function is reported."""
    options = {"factory": "framework_factories:takes_and_returns_arrays", "input_shape": IMAGE}
    error = refused(made("jax") / "flax_orbax", tmp_path, **options)
    assert "returned dict with batch_stats, params, not a function" in error.message


@needs("jax")
def test_arrays_are_the_same_from_every_container(tmp_path: Path) -> None:
    import jax

    from onnxspect.converters.sources.exported import Source
    from onnxspect.converters.sources.from_jax import read_params

    trees = []
    for name, kind in (
        ("flax.msgpack", "msgpack"),
        ("flax.safetensors", "safetensors"),
        ("flax.npz", "npz"),
        ("flax_orbax", "orbax"),
    ):
        source = Source(made("jax") / name, kind, "", IMAGE, tmp_path, (), ())
        trees.append(jax.tree_util.tree_leaves_with_path(read_params(source)))
    for tree in trees[1:]:
        assert [path for path, _ in tree] == [path for path, _ in trees[0]]
        for (_, first), (_, second) in zip(trees[0], tree, strict=True):
            np.testing.assert_array_equal(first, second)


@needs("jax")
def test_arrays_without_a_network(tmp_path: Path) -> None:
    assert "holds arrays but no network" in refused(made("jax") / "flax.npz", tmp_path).message


# --- scikit-learn ----------------------------------------------------------------------------------------------------------------


@needs("sklearn")
@pytest.mark.parametrize(
    "name", ["mlp.joblib", "packed.joblib", "mlp.pkl", "mlp.skops", "binary.joblib", "scaled.joblib"]
)
def test_sklearn(tmp_path: Path, name: str) -> None:
    result = converted(made("sklearn") / name, tmp_path / "m.onnx", input_shape=(8, 8))
    verify(result)
    assert (result.layout, result.sample_shape) == ("NCHW", (1, 8, 8))
    assert result.classes == (("0", "1") if name.startswith("binary") else tuple("0123456789"))
    assert {n.domain for n in onnx.load(result.out).graph.node} <= {"", "ai.onnx"}
    assert any("sandbox" in w for w in result.warnings) == (not name.endswith("skops"))


@needs("sklearn")
def test_sklearn_rows_and_words(tmp_path: Path) -> None:
    result = converted(made("sklearn") / "logistic.joblib", tmp_path / "m.onnx")
    verify(result)
    assert (result.layout, result.sample_shape, result.classes[3]) == ("flat", (64,), "digit 3")
    assert any("--input-shape" in w for w in result.warnings)
    channels_last = converted(made("sklearn") / "pipeline.joblib", tmp_path / "n.onnx", input_shape=(8, 8, 1))
    assert channels_last.layout == "NHWC"
    verify(channels_last)


@needs("sklearn")
def test_sklearn_refusals(tmp_path: Path) -> None:
    folder = made("sklearn")
    assert "TreeEnsembleClassifier" in refused(folder / "forest.joblib", tmp_path).message
    assert "has 63" in refused(folder / "mlp.joblib", tmp_path, input_shape=(9, 7)).message


# --- what is not installed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("tensorflow", b"\x1c\x00\x00\x00TFL3" + bytes(100)),
        ("keras", b"\x89HDF\r\n\x1a\n" + bytes(100)),
        ("jax", b"\x82\xa6params\x80\xa5other\x80"),
    ],
)
def test_missing_extra_is_named(tmp_path: Path, kind: str, content: bytes) -> None:
    if installed(kind):
        pytest.skip(f"{kind} is installed")
    source = tmp_path / "model.bin"
    source.write_bytes(content)
    error = refused(source, tmp_path)
    assert "not installed" in error.message
    assert f"onnxspect[{kind}]" in error.hint
