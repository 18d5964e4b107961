"""Subject: pixels to logits, agreeing with torch and with onnxruntime; and what is no image classifier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import (
    CLASSES,
    SIDE,
    make_model,
    quadrant_images,
    quadrant_model,
    quadrant_subject,
    quadrant_weights,
    saved,
)
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tolerances import NETWORK_32, OPERATION_32, SUM_32
from torch import nn

from onnxspect.converters.lowering import knowledge
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject


def small_net(seed: int = 0) -> nn.Module:
    """A convolutional classifier of 8x8 grey images with BatchNorm and dropout, left in training mode."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, CLASSES)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return net.train()


def test_onnx_agrees_with_onnxruntime(clean_subject: Subject, clean_samples: Samples) -> None:
    images = clean_samples.images[:200]
    oracle = clean_subject.oracle()
    (name,), (output,) = oracle.inputs, oracle.outputs
    expected = oracle.map(name, images, output)
    np.testing.assert_allclose(clean_subject.predict(images), expected, rtol=NETWORK_32, atol=NETWORK_32)
    assert clean_subject.classes == 10
    assert clean_subject.image_shape == (1, 28, 28)


def test_module_agrees_with_torch_and_is_not_touched() -> None:
    net = small_net()
    subject = Subject.from_module(net, (1, SIDE, SIDE))
    images = quadrant_images(5).images
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    with torch.no_grad():
        expected = small_net().eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(subject.predict(images), expected, rtol=SUM_32, atol=OPERATION_32)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    np.testing.assert_allclose(subject.predict(images), expected, rtol=SUM_32, atol=OPERATION_32)
    assert subject.classes == CLASSES


def test_module_and_its_export_agree(tmp_path: Path) -> None:
    weights = torch.from_numpy(quadrant_weights(1))
    linear = nn.Linear(SIDE * SIDE, CLASSES, bias=False)
    with torch.no_grad():
        linear.weight.copy_(weights.T)
    live = Subject.from_module(nn.Sequential(nn.Flatten(), linear), (1, SIDE, SIDE))
    file = Subject.from_onnx(saved(quadrant_model(1), tmp_path / "m.onnx"))
    images = quadrant_images(5).images
    np.testing.assert_allclose(live.predict(images), file.predict(images), rtol=SUM_32, atol=SUM_32)


def test_gradients_reach_the_pixels_and_not_the_weights(planted: Subject) -> None:
    pixels = torch.rand(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = planted(pixels)
    assert logits.shape == (3, CLASSES)
    (gradient,) = torch.autograd.grad(logits[:, 2].sum(), [pixels])
    np.testing.assert_allclose(gradient[0].numpy().ravel(), quadrant_weights(2)[:, 2], rtol=SUM_32, atol=OPERATION_32)
    assert planted.lowered is not None
    assert not any(p.requires_grad for p in planted.lowered.module.parameters())


def test_batch_size_of_predict_changes_nothing(planted: Subject) -> None:
    images = quadrant_images(5).images
    whole = planted.predict(images)
    assert whole.shape == (20, CLASSES)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(planted.predict(images, batch_size=7), whole, rtol=SUM_32, atol=OPERATION_32)


@pytest.mark.parametrize("reshape", [False, True])
def test_fixed_batch_of_one(tmp_path: Path, reshape: bool) -> None:
    weight = numpy_helper.from_array(quadrant_weights(0), "weight")
    shape = numpy_helper.from_array(np.array([1, SIDE * SIDE]), "shape")
    first = (
        helper.make_node("Reshape", ["image", "shape"], ["flat"])
        if reshape
        else helper.make_node("Flatten", ["image"], ["flat"])
    )
    nodes = [first, helper.make_node("MatMul", ["flat", "weight"], ["logits"])]
    initializers = [weight, shape] if reshape else [weight]
    model = make_model(nodes, initializers, (1, 1, SIDE, SIDE), (1, CLASSES))
    path = saved(model, tmp_path / "one.onnx")
    subject, images = Subject.from_onnx(path), quadrant_images(2).images
    oracle = Oracle(path)
    one_by_one = np.concatenate([oracle.run({"image": image[None]})[0] for image in images])
    np.testing.assert_allclose(subject.predict(images), one_by_one, rtol=SUM_32, atol=SUM_32)
    np.testing.assert_allclose(oracle.map("image", images, "logits"), one_by_one, rtol=OPERATION_32)


def test_open_image_size_is_the_images(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "weight")
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    model = make_model(nodes, [weight], ("N", 3, "H", "W"), ("N", 2))
    path = saved(model, tmp_path / "open.onnx")
    with pytest.raises(OnnxspectError, match="leaves the size of its images open"):
        Subject.from_onnx(path)
    subject = Subject.from_onnx(path, image_shape=(3, 12, 9))
    assert (subject.image_shape, subject.classes) == ((3, 12, 9), 2)


@pytest.mark.parametrize(("shape", "classes"), [((1, 0, 8), 4), ((1, 8, 8), 0)], ids=["size", "classes"])
def test_there_is_no_half_made_subject(shape: tuple[int, int, int], classes: int) -> None:
    with pytest.raises(OnnxspectError, match=r"tiny: .* not all at least 1"):
        Subject(lambda x: x, InputSpec(), shape, classes, name="tiny")


def two_inputs() -> onnx.ModelProto:
    model = quadrant_model()
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", CLASSES]))
    model.graph.node.append(helper.make_node("Add", ["logits", "other"], ["sum"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["N", CLASSES]))
    return model


def one_class() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((SIDE * SIDE, 1), np.float32), "weight")
    nodes = [helper.make_node("Flatten", ["image"], ["f"]), helper.make_node("MatMul", ["f", "weight"], ["logits"])]
    return make_model(nodes, [weight], out=("N", 1))


def detection() -> onnx.ModelProto:
    """Boxes: (n, 16, 5)."""
    weight = numpy_helper.from_array(np.ones((4, 5), np.float32), "weight")
    shape = numpy_helper.from_array(np.array([-1, 16, 4]), "shape")
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["cells"]),
        helper.make_node("MatMul", ["cells", "weight"], ["logits"]),
    ]
    return make_model(nodes, [weight, shape], out=("N", 16, 5))


def image_to_image() -> onnx.ModelProto:
    return make_model([helper.make_node("Relu", ["image"], ["logits"])], out=("N", 1, SIDE, SIDE))


def five_channels() -> onnx.ModelProto:
    nodes = [helper.make_node("GlobalAveragePool", ["image"], ["m"]), helper.make_node("Flatten", ["m"], ["logits"])]
    return make_model(nodes, shape=("N", 5, SIDE, SIDE), out=("N", 5))


def video() -> onnx.ModelProto:
    nodes = [helper.make_node("GlobalAveragePool", ["image"], ["m"]), helper.make_node("Flatten", ["m"], ["logits"])]
    return make_model(nodes, shape=("N", 3, 4, SIDE, SIDE), out=("N", 3))


def wrong_inside() -> onnx.ModelProto:
    """A file that promises four classes and cannot be run."""
    model = quadrant_model()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((7, CLASSES), np.float32), "weight"))
    return model


def not_a_number() -> onnx.ModelProto:
    """Weights of a training that diverged."""
    weights = np.ones((SIDE * SIDE, CLASSES), np.float32)
    weights[3, 1] = np.nan
    model = quadrant_model()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "weight"))
    return model


def too_many_classes() -> onnx.ModelProto:
    """Two hundred thousand outputs, of 64 weights each."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["f"]),
        helper.make_node("MatMul", ["f", "weight"], ["few"]),
        helper.make_node("Concat", ["few"] * 200, ["logits"], axis=1),
    ]
    weight = numpy_helper.from_array(np.ones((SIDE * SIDE, 1000), np.float32), "weight")
    return make_model(nodes, [weight], out=("N", 200_000))


REFUSED = [
    (not_a_number, r"1 of the 256 values of weight are not a number \(NaN\)"),
    (too_many_classes, "200000 outputs are more than the classes"),
    (two_inputs, r"2 inputs \(image, other\)"),
    (one_class, r"one number for an image, and no sigmoid made it: a regressor"),
    (detection, "object detector|a table of numbers"),
    (image_to_image, "from images to images|answers images|segmenter"),
    (five_channels, "5 channels"),
    (video, "5 axes"),
    (wrong_inside, "onnx"),
]


@pytest.mark.parametrize(("make", "said"), REFUSED, ids=[make.__name__ for make, _ in REFUSED])
def test_no_image_classifier_is_refused_in_one_line(
    make: Callable[[], onnx.ModelProto], said: str, tmp_path: Path
) -> None:
    path = saved(make(), tmp_path / "model.onnx")
    with pytest.raises(OnnxspectError, match=said) as caught:
        Subject.from_onnx(path)
    assert "\n" not in str(caught.value)
    assert "model.onnx" in caught.value.message


def test_modules_that_are_no_classifier() -> None:
    with pytest.raises(OnnxspectError, match="Linear: does not run on 8x8 images"):
        Subject.from_module(nn.Linear(3, 2), (1, SIDE, SIDE))
    with pytest.raises(OnnxspectError, match="at least two classes"):
        Subject.from_module(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 1)), (1, SIDE, SIDE))


def test_no_file_behind_a_live_module() -> None:
    with pytest.raises(OnnxspectError, match="no ONNX file behind"):
        Subject.from_module(small_net(), (1, SIDE, SIDE)).oracle()


def test_what_a_live_module_is_known_by() -> None:
    """Its structure and weights, whoever made it and wherever it lies; of a function, what it answers."""
    one, same = small_net(), small_net()
    same.load_state_dict(one.state_dict())
    digests = [Subject.from_module(net, (1, SIDE, SIDE)).sha256 for net in (one, same)]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 64
    with torch.no_grad():
        next(same.parameters()).view(-1)[0] += 1e-6
    assert Subject.from_module(same, (1, SIDE, SIDE)).sha256 != digests[0]
    plain = [quadrant_subject(target).sha256 for target in (2, 2, 1)]
    assert plain[0] == plain[1] != plain[2]


@given(st.floats(0.5, 300), st.floats(-3, 130), st.floats(0.01, 100), st.sampled_from(["RGB", "BGR"]))
def test_encode_is_scale_mean_std_in_the_models_order(scale: float, mean: float, std: float, order: str) -> None:
    pixels = np.random.default_rng(0).random((2, 3, 4, 5)).astype(np.float32)
    means, stds = np.array([mean, mean + 1, mean + 2]), np.array([std, 2 * std, 3 * std])
    spec = InputSpec("x", "NCHW", order, scale, tuple(means), tuple(stds))
    channels = pixels[:, ::-1] if order == "BGR" else pixels
    expected = (channels.astype(np.float64) * scale - means[:, None, None]) / stds[:, None, None]
    tolerance = OPERATION_32 * (scale + abs(mean) + 2) / std
    np.testing.assert_allclose(spec.encode(torch.from_numpy(pixels)).numpy(), expected, rtol=SUM_32, atol=tolerance)


def test_layouts() -> None:
    pixels = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5).float()
    nhwc = pixels.permute(0, 2, 3, 1)
    assert torch.equal(InputSpec(layout="NHWC").encode(pixels), nhwc)
    assert torch.equal(InputSpec(layout="FLAT").encode(pixels), nhwc.reshape(2, -1))
    assert torch.equal(InputSpec(layout="NHW").encode(pixels[:, :1]), pixels[:, 0])
    assert torch.equal(InputSpec(channel_order="BGR").encode(pixels[:, :1]), pixels[:, :1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"layout": "CHW"}, "unknown layout"),
        ({"channel_order": "GBR"}, "unknown channel order"),
        ({"scale": 0.0}, "positive"),
        ({"scale": float("nan")}, "positive"),
        ({"std": (1.0, 0.0, 1.0)}, "positive"),
    ],
    ids=["layout", "order", "scale", "nan", "std"],
)
def test_impossible_specs(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(OnnxspectError, match=said):
        InputSpec(**arguments)  # type: ignore[arg-type]


def test_flattened_grey_input(tmp_path: Path) -> None:
    """Rows of pixels: the layout of a Keras MLP; the image size comes from the data."""
    weight = numpy_helper.from_array(quadrant_weights(0), "weight")
    model = make_model([helper.make_node("MatMul", ["image", "weight"], ["logits"])], [weight], ("N", SIDE * SIDE))
    subject = Subject.from_onnx(saved(model, tmp_path / "flat.onnx"), image_shape=(1, SIDE, SIDE))
    assert subject.spec.layout == "FLAT"
    images = quadrant_images(2).images
    np.testing.assert_allclose(
        subject.predict(images), images.reshape(8, -1) @ quadrant_weights(0), rtol=NETWORK_32, atol=NETWORK_32
    )


@pytest.mark.parametrize(("copies", "inferences"), [(0, 1), (1, 2)])
def test_shapes_are_inferred_once_for_each_graph(
    copies: int, inferences: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening and the comparison with onnxruntime: once for the file, and once more where it could be simplified."""
    count = 0
    infer = knowledge.shape_inference.infer_shapes

    def counted(*args: object, **kwargs: object) -> onnx.ModelProto:
        nonlocal count
        count += 1
        return infer(*args, **kwargs)

    nodes = [
        *[helper.make_node("Identity", ["image"], ["copy"])] * copies,
        helper.make_node("Flatten", ["copy" if copies else "image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    path = saved(make_model(nodes, [numpy_helper.from_array(quadrant_weights(), "weight")]), tmp_path / "m.onnx")
    monkeypatch.setattr(knowledge.shape_inference, "infer_shapes", counted)
    Subject.from_onnx(path).check(quadrant_images(2).images)
    assert count == inferences
