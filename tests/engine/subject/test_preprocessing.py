"""Preflight finds how a file wants its pixels, and says so where no usual way fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import make_model, quadrant_images, saved
from onnx import TensorProto, helper, numpy_helper
from tolerances import AMPLIFIED_32, NETWORK_32, SUM_32

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.run import RunContext, Silent
from onnxspect.engine.subject import preprocessing
from onnxspect.engine.subject.class_order import other_order
from onnxspect.engine.subject.preprocessing import accuracy_floor, candidates, preflight
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.models import zoo

RUN = RunContext()


@pytest.fixture(scope="module")
def some_samples(clean_samples: Samples) -> Samples:
    """A third of the shipped images."""
    return clean_samples.take(np.arange(0, len(clean_samples), 3))


def shipped_with(
    nodes: list[onnx.NodeProto], constants: dict[str, float], shape: tuple[int | str, ...], softmax: bool = False
) -> onnx.ModelProto:
    """The shipped clean classifier behind `nodes` from `raw` to its own input; with a softmax at its end if asked."""
    model = onnx.load(str(zoo.path("fashion_mnist_clean")))
    graph = model.graph
    own = graph.input[0].name
    for node in nodes:
        node.output[:] = [own if name == "OWN" else name for name in node.output]
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])
    graph.initializer.extend(numpy_helper.from_array(np.array(v, np.float32), k) for k, v in constants.items())
    if nodes:
        graph.input[0].CopyFrom(helper.make_tensor_value_info("raw", TensorProto.FLOAT, shape))
    if softmax:
        graph.node.append(helper.make_node("Softmax", [graph.output[0].name], ["probabilities"], axis=1))
        graph.output[0].CopyFrom(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10]))
    onnx.checker.check_model(model, full_check=True)
    return model


NCHW = ("batch", 1, 28, 28)
CASES = {
    "0..255": (
        [helper.make_node("Div", ["raw", "c"], ["OWN"])],
        {"c": 255.0},
        NCHW,
        False,
        InputSpec("0..255", scale=255.0),
    ),
    "-1..1": (
        [helper.make_node("Mul", ["raw", "c"], ["half"]), helper.make_node("Add", ["half", "c"], ["OWN"])],
        {"c": 0.5},
        NCHW,
        False,
        InputSpec("-1..1", mean=(0.5,), std=(0.5,)),
    ),
    "mean/std": (
        [helper.make_node("Mul", ["raw", "s"], ["scaled"]), helper.make_node("Add", ["scaled", "m"], ["OWN"])],
        {"s": 0.3530, "m": 0.2860},
        NCHW,
        False,
        InputSpec("fashion-mnist mean/std", mean=(0.2860,), std=(0.3530,)),
    ),
    "NHWC": (
        [helper.make_node("Transpose", ["raw"], ["OWN"], perm=[0, 3, 1, 2])],
        {},
        ("batch", 28, 28, 1),
        False,
        InputSpec("0..1", "NHWC"),
    ),
    "softmax": ([], {}, NCHW, True, InputSpec("0..1")),
    "NHWC, 0..255, softmax": (
        [
            helper.make_node("Transpose", ["raw"], ["moved"], perm=[0, 3, 1, 2]),
            helper.make_node("Div", ["moved", "c"], ["OWN"]),
        ],
        {"c": 255.0},
        ("batch", 28, 28, 1),
        True,
        InputSpec("0..255", "NHWC", scale=255.0),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_finds_what_the_file_wants(case: str, tmp_path: Path, clean_subject: Subject, some_samples: Samples) -> None:
    nodes, constants, shape, softmax, expected = CASES[case]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    path = saved(shipped_with(copies, constants, shape, softmax), tmp_path / "model.onnx")
    subject = Subject.from_onnx(path)
    if softmax:
        assert subject.logits is not None
        assert subject.logits.how == "before_softmax"
    found = preflight(subject, some_samples, RUN)
    assert found.subject.spec == expected
    logits = clean_subject.predict(some_samples.images)
    np.testing.assert_allclose(found.subject.predict(some_samples.images), logits, rtol=NETWORK_32, atol=AMPLIFIED_32)
    assert found.clean_accuracy == (logits.argmax(1) == some_samples.labels).mean()
    best = max(a for _, a in found.tried)
    assert dict(found.tried)[expected.name] >= best - 0.05


def test_shipped_model_wants_plain_pixels(clean_subject: Subject, clean_samples: Samples) -> None:
    found = preflight(clean_subject, clean_samples, RUN)
    assert found.subject.spec == InputSpec()
    assert found.clean_accuracy > 0.85
    described = found.describe()
    assert described["chosen"]["name"] == "0..1"
    assert [t["name"] for t in described["tried"]] == [s.name for s in candidates(1, "NCHW")]
    assert "best of 6 usual preprocessings on 512 clean samples" in found.why


def colours(n: int = 40) -> Samples:
    """Class k: channel k is bright, the others are dark."""
    rng = np.random.default_rng(0)
    labels = np.arange(3 * n) % 3
    images = rng.uniform(0, 0.5, (3 * n, 3, 6, 6)).astype(np.float32)
    images[np.arange(3 * n), labels] += 0.5
    return Samples.from_arrays(images, labels)


def test_finds_bgr(tmp_path: Path) -> None:
    """Channel means as logits, the file's own channels being BGR, and the answers in RGB order."""
    weight = numpy_helper.from_array(10 * np.eye(3, dtype=np.float32)[::-1].copy(), "weight")
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    model = make_model(nodes, [weight], ("N", 3, 6, 6), ("N", 3))
    samples = colours()
    found = preflight(Subject.from_onnx(saved(model, tmp_path / "bgr.onnx")), samples, RUN)
    assert found.subject.spec.channel_order == "BGR"
    assert found.clean_accuracy == 1.0
    plain = InputSpec(channel_order="BGR")
    means = samples.images.mean((2, 3))
    np.testing.assert_allclose(found.subject.with_spec(plain).predict(samples.images), 10 * means, rtol=NETWORK_32)


def listening(notices: list[str]) -> RunContext:
    """A run whose notices are kept."""

    class Listen(Silent):
        def notice(self, text: str) -> None:
            notices.append(text)

    return RunContext(observer=Listen())


def test_shuffled_labels_are_recognised(clean_subject: Subject, some_samples: Samples) -> None:
    order = np.roll(np.arange(10), 3)
    moved = Samples(some_samples.images, order[some_samples.labels], path="moved.npz")
    with pytest.raises(OnnxspectError, match=r"near chance.*follow the labels in another order") as caught:
        preflight(clean_subject, moved, RUN)
    assert "moved.npz" in caught.value.message
    assert f"label 0 is answered as {int(np.flatnonzero(order == 0)[0])}" in caught.value.message
    listed = ",".join(map(str, order))
    assert f"--classes {listed}" in caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("each", [3, 30], ids=["three a class", "thirty a class"])
def test_some_classes_in_another_order_are_asked_for(clean_subject: Subject, clean_samples: Samples, each: int) -> None:
    """As where class folders are taken in alphabetical order: half of it is right, and the other half would be wrong in the report."""
    rows = np.concatenate([np.flatnonzero(clean_samples.labels == k)[:each] for k in range(10)])
    samples = clean_samples.take(rows)
    notices: list[str] = []
    run = listening(notices)
    preflight(clean_subject, samples, run)
    assert not any("another order" in text for text in notices)
    order = np.array([1, 2, 0, 3, 5, 7, 6, 4, 8, 9])
    named = tuple("abcdefghij")
    moved = replace(samples, labels=order[samples.labels], names=named)
    with pytest.raises(OnnxspectError, match=r"in another order of the classes: \d+\.\d% instead of") as caught:
        preflight(clean_subject, moved, run)
    assert f"--classes {','.join(named[k] for k in order)}" in caught.value.hint
    assert preflight(clean_subject, moved, run, order_given=True).clean_accuracy < 0.7
    assert any("the given order was kept" in text for text in notices)


def test_a_subset_of_the_classes_in_another_order(clean_subject: Subject, some_samples: Samples) -> None:
    """Three folders of ten classes, counted from 0."""
    rows = np.flatnonzero(np.isin(some_samples.labels, [9, 1, 8]))
    few = some_samples.take(rows)
    labels = np.searchsorted([1, 8, 9], few.labels)
    moved = replace(few, labels=labels, names=("car", "bag", "boot"), ordered=True)
    with pytest.raises(
        OnnxspectError, match=r"another order.*bag is answered as 8.*3 of the model's 10 classes"
    ) as caught:
        preflight(clean_subject, moved, RUN)
    assert "class-0,car,class-2" in caught.value.hint


def test_labels_that_count_from_one(clean_subject: Subject, some_samples: Samples) -> None:
    with pytest.raises(
        OnnxspectError, match=r"label 10, but .* 10 classes \(0 to 9\): the labels count from 1; read so, 9"
    ) as caught:
        preflight(clean_subject, replace(some_samples, labels=some_samples.labels + 1), RUN)
    assert "--classes 1,2,3,4,5,6,7,8,9,10 reads label 1 as the model's first class" in caught.value.hint


def test_what_answers_without_looking_is_named(clean_subject: Subject, some_samples: Samples) -> None:
    given = InputSpec("mine", mean=(1000.0,))
    with pytest.raises(
        OnnxspectError, match=r"it answers class \d for \d+% of the images, whatever they show"
    ) as caught:
        preflight(clean_subject, some_samples, RUN, given)
    assert "leave out --scale" in caught.value.hint


def test_outputs_that_are_no_numbers_are_named(some_samples: Samples) -> None:
    subject = Subject(lambda x: x.flatten(1)[:, :10] * float("nan"), InputSpec(), (1, 28, 28), 10, name="broken")
    with pytest.raises(OnnxspectError, match="outputs are not finite numbers") as caught:
        preflight(subject, some_samples, RUN)
    assert "near chance" not in caught.value.message


def test_random_labels_are_refused(clean_subject: Subject, some_samples: Samples) -> None:
    labels = np.random.default_rng(0).permutation(some_samples.labels)
    with pytest.raises(OnnxspectError, match="near chance") as caught:
        preflight(clean_subject, Samples(some_samples.images, labels), RUN)
    assert "do not follow the labels in any order" in caught.value.message
    assert "best of 6 usual preprocessings" in caught.value.message


def test_labels_outside_the_classes(clean_subject: Subject, some_samples: Samples) -> None:
    labels = some_samples.labels.copy()
    labels[7] = 10
    with pytest.raises(OnnxspectError, match=r"label 10, but .* has 10 classes \(0 to 9\)"):
        preflight(clean_subject, Samples(some_samples.images, labels), RUN)


def test_one_class_only(clean_subject: Subject, some_samples: Samples) -> None:
    with pytest.raises(OnnxspectError, match="all samples are of one class"):
        preflight(clean_subject, some_samples.take(np.flatnonzero(some_samples.labels == 4)), RUN)


def test_another_image_size(clean_subject: Subject) -> None:
    with pytest.raises(OnnxspectError, match="the model takes"):
        preflight(clean_subject, quadrant_images(2), RUN)


def test_the_users_own_preprocessing_is_not_second_guessed(clean_subject: Subject, some_samples: Samples) -> None:
    found = preflight(clean_subject, some_samples, RUN, InputSpec("mine", mean=(0.01,)))
    assert found.subject.spec.name == "mine"
    assert found.why == "as given by the user"
    assert len(found.tried) == 1
    with pytest.raises(OnnxspectError, match="the given preprocessing"):
        preflight(clean_subject, some_samples, RUN, InputSpec("mine", scale=255.0, mean=(255.0,), std=(0.01,)))


def test_a_model_that_answers_nan_for_one_range(tmp_path: Path) -> None:
    """Overflow at 0..255 (the exponential of the exponential) must not win, nor end the trial."""
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32), "weight")
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Exp", ["flat"], ["large"]),
        helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=1),
        helper.make_node("Div", ["large", "sum"], ["share"]),
        helper.make_node("MatMul", ["share", "weight"], ["logits"]),
    ]
    subject = Subject.from_onnx(saved(make_model(nodes, [weight], ("N", 3, 6, 6), ("N", 3)), tmp_path / "exp.onnx"))
    samples = colours()
    tried = dict(preflight(subject, samples, RUN).tried)
    assert tried["0..255"] == 0.0
    assert tried["0..1"] == 1.0


def test_accuracy_floor_by_hand() -> None:
    assert accuracy_floor(np.arange(100) % 10, 10) == pytest.approx(0.325)
    assert accuracy_floor(np.array([0] * 9 + [1]), 2) == pytest.approx(0.925)
    assert accuracy_floor(np.array([0, 1]), 1000) == pytest.approx(0.625)


@pytest.mark.parametrize("channels", [1, 3])
def test_candidates(channels: int) -> None:
    options = candidates(channels, "NHWC")
    assert options[0] == InputSpec("0..1", "NHWC")
    assert len({o.name for o in options}) == len(options)
    assert {o.layout for o in options} == {"NHWC"}
    assert all(len(o.mean) in (1, channels) and len(o.std) in (1, channels) for o in options)


class Counting(torch.nn.Module):
    """Mean channel values as logits; notes how many images come in a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes.append(len(x))
        return x.mean((2, 3)).exp()


@pytest.mark.parametrize("case", ["-1..1", "NHWC, 0..255, softmax"])
def test_all_ways_in_one_pass_as_on_a_gpu(
    case: str, tmp_path: Path, some_samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, constants, shape, softmax, expected = CASES[case]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    subject = Subject.from_onnx(saved(shipped_with(copies, constants, shape, softmax), tmp_path / "model.onnx"))
    alone = preflight(subject, some_samples, RUN)
    monkeypatch.setattr(preprocessing, "_in_one_pass", lambda _: True)
    together = preflight(subject, some_samples, RUN)
    assert together.subject.spec == alone.subject.spec == expected
    assert together.tried == alone.tried
    assert together.clean_accuracy == alone.clean_accuracy
    options = candidates(1, subject.spec.layout)
    found = preprocessing._tried_together(subject, options, some_samples.images)
    for option, logits in zip(options, found, strict=True):
        one = subject.with_spec(option).predict(some_samples.images)
        np.testing.assert_allclose(logits, one, rtol=NETWORK_32, atol=NETWORK_32 * float(np.abs(one).max()))


@pytest.mark.parametrize("at_once", [1, 7, 15, 100, 10_000])
def test_a_pass_holds_no_more_images_than_fit(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module, samples, options = Counting(), colours(15), candidates(3, "NCHW")
    subject = Subject(module, InputSpec(), (3, 6, 6), 3)
    monkeypatch.setattr(Subject, "images_at_once", at_once)
    found = preprocessing._tried_together(subject, options, samples.images)
    assert max(module.passes) <= at_once
    assert sum(module.passes) == len(options) * len(samples)
    for option, logits in zip(options, found, strict=True):
        np.testing.assert_allclose(logits, subject.with_spec(option).predict(samples.images), rtol=SUM_32)


def test_a_million_classes_ask_for_no_table_of_their_square() -> None:
    """7 TiB, before."""
    few = np.zeros(80, np.int64)
    assert other_order(few, few, 1_000_000, np.random.default_rng(0)) is None
