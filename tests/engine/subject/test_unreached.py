"""What sleeps on clean images, and outputs that none looks at: named, and nothing on ordinary networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import make_model, quadrant_images, quadrant_weights, saved
from hidden_logic import PAYLOADS, TARGET, Payload, among_decoys, opened, stamped, through_if, two_outputs
from lowering_families import SIZE, build, export
from lowering_networks import MATRIX
from onnx import TensorProto, helper, numpy_helper

from onnxspect.converters.lowering.other_outputs import OtherOutput, other_outputs
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.subject import unreached as unreached_module
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.subject.unreached import unreached
from onnxspect.models import zoo

#: Payload -> the operators of the nodes that may be named for it.
NAMED = {
    "comparison": {"Greater", "ReduceMin"},
    "where": {"Greater", "ReduceMin"},
    "where_and_zeros": {"Greater", "ReduceMin"},
    "saturation": {"Relu"},
    "sigmoid": {"Sigmoid", "Mul"},
    "softplus": {"Softplus", "Mul"},
    "product_of_relus": {"Relu", "ReduceProd", "Mul"},
    "pooling_only": {"Relu"},
    "behind_copies": {"Greater", "ReduceMin"},
    "equality": {"Equal"},
    "floor": {"Floor", "Clip"},
    "index": {"Greater", "ReduceMin", "Flatten"},
    "with_a_decoy": {"Greater", "ReduceMin", "MatMul"},
    "sum_with_a_decoy": {"Relu", "MatMul"},
    "one_unit_of_a_layer": {"Relu"},
    "inside": {"Relu"},
    "where_inside": {"Greater", "ReduceMin", "Reshape"},
    "in_a_function": {"Greater", "ReduceMin"},
    "region": {"Greater"},
    "matched_filter": {"Relu"},
    "checksum": {"Equal"},
    "two_regions": {"And", "Greater", "ReduceMin"},
    "negated": {"Not", "LessOrEqual", "ReduceMin"},
    "neighbours": {"Greater", "ReduceMax", "ReduceMin"},
    "brightest": {"Equal"},
    "softmax_gate": {"Softmax"},
}


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    return onnx.load(zoo.path("fashion_mnist_clean"))


@pytest.fixture(scope="module")
def some(clean_samples: Samples) -> Samples:
    return clean_samples.take(np.arange(120))


def test_every_payload_is_listed() -> None:
    assert set(NAMED) == set(PAYLOADS)


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_of_nodes_is_named(name: str, network: onnx.ModelProto, some: Samples, tmp_path: Path) -> None:
    model = PAYLOADS[name](Payload(network))
    path = saved(model, tmp_path / "payload.onnx")
    image = model.graph.input[0].name
    clean, woken = (Oracle(path).run({image: i})[0].argmax(1) for i in (some.images, stamped(some.images, name)))
    # It is one: clean accuracy as before, the trigger leads every image to one class.
    np.testing.assert_array_equal(
        clean, Subject.from_onnx(zoo.path("fashion_mnist_clean")).predict(some.images).argmax(1)
    )
    assert len(np.unique(woken)) == 1
    found = unreached(Subject.from_onnx(path), some)
    assert found.hidden
    assert {d.operator for d in found.dormant} <= NAMED[name]
    assert found.dormant
    for part in found.dormant:
        assert part.moved > 0.5
        assert part.leads_to == int(woken[0])
        assert any(part.node in reason for reason in found.hidden)
        assert any(part.node in line for line in found.limits)


@pytest.mark.parametrize("name", ["comparison", "region"])
def test_a_corner_that_is_dark_on_nearly_all_images_is_looked_at(
    name: str, network: onnx.ModelProto, clean_samples: Samples, tmp_path: Path
) -> None:
    """Whichever images are drawn: what the payload reads is the same on nearly all of them, shifted ones too."""
    subject = Subject.from_onnx(saved(PAYLOADS[name](Payload(network)), tmp_path / "payload.onnx"))
    for seed in range(4):
        found = unreached(subject, clean_samples.take(np.arange(160 + 80 * seed)), seed)
        assert {d.operator for d in found.dormant} == {"Greater"}, seed
        assert found.hidden


def test_two_decisions_that_must_both_be_true_and_both_sleep(
    network: onnx.ModelProto, some: Samples, tmp_path: Path
) -> None:
    """Turning one of them alone does nothing, and what they are joined by is made of values that no image moves."""
    payload = Payload(network)
    ends = [payload.constant(np.array(v, np.int64)) for v in ([0, 25], [3, 28], [2, 3])]
    other = payload.add("Flatten", payload.add("Slice", payload.image, *ends), axis=1)
    white = payload.add("Greater", payload.reduce("ReduceMin", other), payload.constant(np.float32(0.95)))
    gate = payload.add("Cast", payload.add("And", payload.seen(), white), to=TensorProto.FLOAT)
    (part,) = unreached(opened(saved(payload.added(gate), tmp_path / "payload.onnx")), some).dormant
    assert (part.operator, part.kind, part.leads_to) == ("And", "decision", 3)


def test_an_intervention_that_does_not_run_ends_no_look(
    network: onnx.ModelProto, some: Samples, tmp_path: Path
) -> None:
    """A sleeping value is the number of a row: made to be what it could be it points past the table."""
    payload = Payload(network)
    ten = payload.add("Mul", payload.add("Relu", payload.total()), payload.constant(np.float32(10.1)))
    number = payload.add("Cast", ten, to=TensorProto.INT64)
    table = np.zeros((2, 10), np.float32)
    table[1, 3] = 1000
    row = payload.add(
        "Gather", payload.constant(table), payload.add("Squeeze", number, payload.constant(np.array([1])))
    )
    model = payload.done(payload.add("Add", payload.scores, row))
    found = unreached(opened(saved(model, tmp_path / "payload.onnx")), some)
    assert {d.leads_to for d in found.dormant} == {3}


def test_a_payload_through_an_if_is_refused_by_name(network: onnx.ModelProto, tmp_path: Path) -> None:
    path = saved(through_if(Payload(network)), tmp_path / "payload.onnx")
    with pytest.raises(OnnxspectError, match=r"If \(opset 20\).* its condition is only known at run time"):
        Subject.from_onnx(path)


@pytest.mark.parametrize("name", ["fashion_mnist_clean", "fashion_mnist_badnets"])
def test_nothing_on_the_shipped_pair(name: str, some: Samples) -> None:
    """Nor on a backdoor that is in the weights alone: gradients reach it."""
    found = unreached(Subject.from_onnx(zoo.path(name)), some)
    assert (found.hidden, found.limits, found.dormant) == ((), (), ())


@pytest.mark.parametrize(
    ("name", "dynamo"),
    [
        ("residual", False),
        ("transformer", False),
        ("squeezenet", False),
        ("class_attention", False),
        ("pyramid_pooling", False),
    ],
)
def test_nothing_on_ordinary_networks(name: str, dynamo: bool, tmp_path: Path) -> None:
    path = saved(export(build(name, MATRIX), dynamo=dynamo), tmp_path / "ordinary.onnx")
    rng = np.random.default_rng(0)
    coarse = rng.random((24, 3, 4, 4)).repeat(SIZE // 4, 2).repeat(SIZE // 4, 3)
    images = np.clip(coarse + 0.1 * rng.standard_normal(coarse.shape), 0, 1).astype(np.float32)
    found = unreached(Subject.from_onnx(path), Samples.from_arrays(images, np.zeros(len(images), np.int64)))
    assert (found.hidden, found.dormant) == ((), ())


def tiny(*nodes: onnx.NodeProto, **tensors: np.ndarray) -> onnx.ModelProto:
    """The quadrants' classifier with a dead branch, and what makes class scores of `z`."""
    weights = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    head = [helper.make_node("Flatten", ["image"], ["f"]), helper.make_node("MatMul", ["f", "weights"], ["z"])]
    given = {"weights": weights, "no": np.float32(-100), "zero": np.float32(0), **tensors}
    return make_model(
        [*head, *nodes],
        [numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in given.items()]
        + [numpy_helper.from_array(np.array([1], np.int64), "axis")],
    )


def _ordinary() -> dict[str, onnx.ModelProto]:
    """What ordinary files have that is asleep on clean images, or decides."""
    node, rng = helper.make_node, np.random.default_rng(1)
    last = {"mix": rng.normal(size=(4, 4)), "two": np.float32(2)}
    mixed = node("MatMul", ["y", "mix"], ["logits"])
    norm = [node("Mul", ["z", "z"], ["square"]), node("ReduceSum", ["square", "axis"], ["sum"], keepdims=1)]
    norm.append(node("Sqrt", ["sum"], ["n"]))
    wide = {"w1": rng.normal(size=(4, 32)), "w2": rng.normal(size=(32, 4)), **last}
    hidden, out = node("MatMul", ["z", "w1"], ["h"]), node("MatMul", ["y", "w2"], ["logits"])
    bias = np.where(np.arange(32) % 3 == 0, -500, 0)
    return {
        "where n > 0": tiny(
            *norm,
            node("Greater", ["n", "zero"], ["some"]),
            node("Div", ["z", "n"], ["unit"]),
            node("Where", ["some", "unit", "zero"], ["y"]),
            mixed,
            **last,
        ),
        "where n > 0, 1 / n": tiny(
            *norm,
            node("Greater", ["n", "tiny"], ["some"]),
            node("Reciprocal", ["n"], ["inverse"]),
            node("Where", ["some", "inverse", "zero"], ["factor"]),
            node("Mul", ["z", "factor"], ["y"]),
            mixed,
            tiny=np.float32(1e-12),
            **last,
        ),
        "where n == 0, 1": tiny(
            *norm,
            node("Equal", ["n", "zero"], ["none"]),
            node("Where", ["none", "two", "n"], ["safe"]),
            node("Div", ["z", "safe"], ["y"]),
            mixed,
            **last,
        ),
        "no NaN": tiny(
            node("IsNaN", ["z"], ["nan"]),
            node("Not", ["nan"], ["number"]),
            node("Where", ["number", "z", "zero"], ["y"]),
            mixed,
            **last,
        ),
        "dead units": tiny(
            hidden, node("Add", ["h", "bias"], ["low"]), node("Relu", ["low"], ["y"]), out, bias=bias, **wide
        ),
        "dead units, normalised": tiny(
            hidden,
            node("Add", ["h", "bias"], ["low"]),
            node("Relu", ["low"], ["r"]),
            node("BatchNormalization", ["r", "one", "zeros", "zeros", "one"], ["y"]),
            out,
            bias=bias,
            one=np.ones(32),
            zeros=np.zeros(32),
            **wide,
        ),
        "saturated hard-swish": tiny(
            hidden,
            node("Add", ["h", "bias"], ["low"]),
            node("HardSigmoid", ["low"], ["gate"], alpha=1 / 6),
            node("Mul", ["h", "gate"], ["y"]),
            out,
            bias=-bias,
            **wide,
        ),
        "channels made equal": tiny(
            hidden,
            node("Mul", ["h", "loud"], ["uneven"]),
            node("Mul", ["uneven", "soft"], ["y"]),
            out,
            loud=np.where(np.arange(32) == 0, 1e5, 1),
            soft=np.where(np.arange(32) == 0, 1e-5, 1),
            **wide,
        ),
        "clipped": tiny(
            hidden,
            node("Add", ["h", "bias"], ["low"]),
            node("Clip", ["low", "zero", "two"], ["y"]),
            out,
            bias=bias,
            **wide,
        ),
        "signs": tiny(
            hidden,
            node("Add", ["h", "bias"], ["low"]),
            node("Greater", ["low", "zero"], ["on"]),
            node("Where", ["on", "two", "zero"], ["y"]),
            out,
            bias=bias / 50,
            **wide,
        ),
        "bits": tiny(
            hidden,
            node("Add", ["h", "bias"], ["low"]),
            node("GreaterOrEqual", ["low", "zero"], ["on"]),
            node("Cast", ["on"], ["y"], to=TensorProto.FLOAT),
            out,
            bias=bias / 50,
            **wide,
        ),
    }


@pytest.mark.parametrize("name", _ordinary())
def test_ordinary_kinds_are_no_finding(name: str, tmp_path: Path) -> None:
    found = unreached(Subject.from_onnx(saved(_ordinary()[name], tmp_path / "tiny.onnx")), quadrant_images(60))
    assert (found.hidden, found.dormant) == ((), ())


def test_what_further_clean_images_wake_is_awake_unless_it_turns_them(
    network: onnx.ModelProto, some: Samples, tmp_path: Path
) -> None:
    """Found on 40 images, looked at again on more: a payload in clean data stays one, a unit that some pictures hold is none."""
    payload = saved(PAYLOADS["one_unit_of_a_layer"](Payload(network)), tmp_path / "payload.onnx")
    poisoned = some.images.copy()
    poisoned[-2:] = stamped(poisoned[-2:], "one_unit_of_a_layer")
    found = unreached(Subject.from_onnx(payload), Samples.from_arrays(poisoned, some.labels))
    assert [d.kind for d in found.dormant] == ["units"]

    bias, rng = np.zeros(32), np.random.default_rng(1)
    into, out = 0.05 * rng.normal(size=(4, 32)), 0.05 * rng.normal(size=(32, 4))
    bias[3], into[:, 3], out[3] = -14, (1, 0, 0, 0), (0, 5, 0, 0)  # a first quadrant brighter than usual wakes it
    rare = tiny(
        helper.make_node("MatMul", ["z", "into"], ["h"]),
        helper.make_node("Add", ["h", "bias"], ["low"]),
        helper.make_node("Relu", ["low"], ["y"]),
        helper.make_node("MatMul", ["y", "out"], ["m"]),
        helper.make_node("Add", ["z", "m"], ["logits"]),
        weights=(quadrant_weights() > 0),
        bias=bias,
        into=into,
        out=out,
    )
    subject, usual = Subject.from_onnx(saved(rare, tmp_path / "rare.onnx")), quadrant_images(60)
    brighter = usual.images.copy()
    first = np.flatnonzero(usual.labels == 0)[-2:]
    brighter[first, :, :4, :4] = 1.0
    before, after = (unreached(subject, Samples.from_arrays(x, usual.labels)) for x in (usual.images, brighter))
    assert [d.kind for d in before.dormant] == ["units"]
    assert after.dormant == ()


def test_what_looks_like_a_guard_and_can_be_passed_is_named(tmp_path: Path) -> None:
    node = helper.make_node
    for name, passed in {"sum": "ReduceSum", "maximum": "ReduceMax"}.items():
        axes = {"axes": [1]} if passed == "ReduceMax" else {}
        model = tiny(
            node("Abs", ["z"], ["a"]),
            node(passed, ["a", *(["axis"] if not axes else [])], ["n"], keepdims=1, **axes),
            node("Less", ["n", "much"], ["some"], name="some"),
            node("Div", ["z", "n"], ["unit"]),
            node("Where", ["some", "unit", "other"], ["logits"]),
            much=np.float32(1e4),
            other=np.eye(4)[2:3],
        )
        found = unreached(Subject.from_onnx(saved(model, tmp_path / "tiny.onnx")), quadrant_images(20))
        assert [d.node for d in found.dormant] == ["some"], name


def test_a_crowd_of_decoys_is_said(network: onnx.ModelProto, some: Samples, tmp_path: Path) -> None:
    """Sleeping parts that change nothing take the interventions up; what is left untried is no clean bill."""
    few, many = (
        unreached(Subject.from_onnx(saved(among_decoys(Payload(network), n), tmp_path / f"{n}.onnx")), some)
        for n in (3, 60)
    )
    assert [d.node for d in few.dormant] == ["hidden_gate"]
    assert {d.node for d in many.dormant} <= {"hidden_gate"}
    (left,) = [h for h in many.hidden if "more parts" in h]
    assert "hidden_gate" in left


def test_what_cannot_wake_or_changes_nothing_is_harmless(tmp_path: Path) -> None:
    node = helper.make_node
    dead = [node("Add", ["z", "no"], ["low"]), node("Relu", ["low"], ["dead"], name="dead")]
    harmless = {
        # A weight of zero lets nothing through, whatever it is multiplied with; nor does a softmax over one element change.
        "zero": tiny(node("Mul", ["z", "zero"], ["none"]), node("Add", ["z", "none"], ["logits"])),
        "one element": tiny(
            node("ReduceMax", ["z"], ["m"], axes=[1], keepdims=1),
            node("Softmax", ["m"], ["one"], axis=1),
            node("Mul", ["z", "one"], ["logits"]),
        ),
        # A dead branch that no answer hangs on: it moves all classes alike.
        "all classes alike": tiny(
            *dead, node("ReduceMax", ["dead"], ["m"], axes=[1], keepdims=1), node("Add", ["z", "m"], ["logits"])
        ),
        # An activation that is written with a comparison.
        "activation": tiny(
            node("Sub", ["z", "shift"], ["low2"]),
            node("Greater", ["low2", "zero"], ["c"]),
            node("Mul", ["low2", "slope"], ["leak"]),
            node("Where", ["c", "low2", "leak"], ["w"]),
            node("Add", ["w", "shift"], ["logits"]),
            slope=np.float32(0.1),
            shift=np.float32(3),
        ),
    }
    for name, model in harmless.items():
        found = unreached(Subject.from_onnx(saved(model, tmp_path / "tiny.onnx")), quadrant_images(20))
        assert found.hidden == (), name
    harmful = tiny(
        *dead, node("MatMul", ["dead", "mix"], ["m"]), node("Add", ["z", "m"], ["logits"]), mix=np.eye(4)[::-1]
    )
    found = unreached(Subject.from_onnx(saved(harmful, tmp_path / "tiny.onnx")), quadrant_images(20))
    assert [(d.node, d.kind) for d in found.dormant] == [("dead", "value")]


def test_a_second_network_in_the_file_is_named(network: onnx.ModelProto, some: Samples, tmp_path: Path) -> None:
    both = two_outputs(network, onnx.load(zoo.path("fashion_mnist_badnets")))
    found = unreached(Subject.from_onnx(saved(both, tmp_path / "both.onnx")), some)
    assert len(found.hidden) == len(found.limits) == 1
    assert "second/logits" in found.hidden[0]
    assert "second/logits" in found.limits[0]


@pytest.mark.parametrize("kind", ["labels of their own", "label of a sum"])
def test_labels_of_other_scores_are_named(kind: str) -> None:
    node, mix = helper.make_node, np.eye(4, k=1)
    made = [node("MatMul", ["z", "mix"], ["logits"]), node("MatMul", ["f", "weights2"], ["other"])]
    if kind == "labels of their own":
        made.append(node("ArgMax", ["other"], ["label"], axis=1, keepdims=0))
    else:
        made += [node("ArgMax", ["other"], ["first"], axis=1), node("Add", ["first", "first"], ["label"])]
    model = tiny(*made, mix=mix, weights2=np.ones((64, 4)))
    model.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, None))
    assert other_outputs(model, "logits") == (OtherOutput("label", True),)


@pytest.mark.parametrize("made", ["sum", "Relu", "scale"])
def test_a_label_that_the_scores_are_changed_for_first_is_named(made: str) -> None:
    """No image is read but through the scores, and still the label is another than theirs."""
    node = helper.make_node
    nodes = {
        "sum": [node("MatMul", ["logits", "code"], ["c"]), node("Add", ["logits", "c"], ["other"])],
        "Relu": [
            node("Sub", ["logits", "much"], ["s"]),
            node("Relu", ["s"], ["r"]),
            node("Sub", ["logits", "r"], ["other"]),
        ],
        "scale": [node("Mul", ["logits", "each"], ["other"])],
    }[made]
    label = node("ArgMax", ["other"], ["label"], axis=1, keepdims=0)
    model = tiny(
        node("MatMul", ["z", "mix"], ["logits"]),
        *nodes,
        label,
        mix=np.eye(4, k=1),
        code=np.eye(4, k=2),
        much=np.float32(50),
        each=np.array([1, 1, 1, 9]),
    )
    model.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, None))
    assert other_outputs(model, "logits") == (OtherOutput("label", True),)


def test_what_is_said_of_the_same_scores_is_no_other_output() -> None:
    node = helper.make_node
    ends = [
        node("MatMul", ["z", "mix"], ["logits"]),
        node("Softmax", ["logits"], ["probabilities"], axis=1),
        node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
        node("LpNormalization", ["z"], ["embedding"], axis=1),
        node("Div", ["logits", "temperature"], ["cooler"]),
        node("Softmax", ["cooler"], ["calibrated"], axis=1),
        node("Cast", ["label"], ["number"], to=TensorProto.FLOAT),
        node("OneHot", ["label", "four", "off_on"], ["one_hot"]),
        node("ReduceMax", ["probabilities"], ["confidence"], axes=[1], keepdims=0),
    ]
    model = tiny(*ends, mix=np.eye(4, k=1), temperature=np.float32(3), four=np.array([4]), off_on=np.array([0, 1]))
    for name, kind, shape in [
        ("probabilities", TensorProto.FLOAT, ["N", 4]),
        ("label", TensorProto.INT64, ["N"]),
        ("embedding", TensorProto.FLOAT, ["N", 4]),
        ("z", TensorProto.FLOAT, ["N", 4]),
        ("calibrated", TensorProto.FLOAT, ["N", 4]),
        ("number", TensorProto.FLOAT, ["N"]),
        ("one_hot", TensorProto.FLOAT, ["N", 4]),
        ("confidence", TensorProto.FLOAT, ["N"]),
    ]:
        model.graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    assert other_outputs(model, "logits") == ()


def test_a_scan_says_so(network: onnx.ModelProto, clean_samples: Samples, tmp_path: Path) -> None:
    """Searches that find nothing on the clean weights would say clean; the report names the node, and what was not looked at."""
    path = saved(PAYLOADS["saturation"](Payload(network)), tmp_path / "payload.onnx")
    few, data = clean_samples.take(np.arange(160)), tmp_path / "clean.npz"
    np.savez(data, images=(255 * few.images).round().astype(np.uint8).transpose(0, 2, 3, 1), labels=few.labels)
    report = scan(path, data, tmp_path / "run", "quick", detectors=["max-margin"]).report
    assert report["verdict"] == "inconclusive"
    assert "hidden_Relu" in report["reasons"][0]
    assert f"to class {TARGET}" in report["reasons"][0]
    assert any("hidden_Relu" in line for line in report["limits"])


def test_flow_between_the_images_of_a_batch_is_named(network: onnx.ModelProto, some: Samples, tmp_path: Path) -> None:
    """Of one that no clean image shows, and of one that every batch shows; none of a file that looks at each image by itself."""
    hidden = unreached(Subject.from_onnx(saved(PAYLOADS["neighbours"](Payload(network)), tmp_path / "p.onnx")), some)
    assert any("the other images of its batch, first through hidden_ReduceMax" in reason for reason in hidden.hidden)
    mixed = tiny(
        helper.make_node("ReduceMean", ["z"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["z", "m"], ["logits"]),
    )
    seen = unreached(Subject.from_onnx(saved(mixed, tmp_path / "m.onnx")), quadrant_images(20))
    assert any(
        "the other images of its batch, first through" in h and "(ReduceMean), as clean" in h for h in seen.hidden
    )
    alone = unreached(
        Subject.from_onnx(saved(tiny(helper.make_node("Relu", ["z"], ["logits"])), tmp_path / "a.onnx")),
        quadrant_images(20),
    )
    assert not any("batch" in line for line in (*alone.hidden, *alone.limits))


def test_flow_between_large_pictures_is_looked_for_too(
    network: onnx.ModelProto, some: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer runs; where not even that fits into memory, the report says that it was not looked for."""
    monkeypatch.setattr(unreached_module, "_counts", lambda *_: unreached_module.LARGE)
    subject = Subject.from_onnx(saved(PAYLOADS["neighbours"](Payload(network)), tmp_path / "p.onnx"))
    assert any("batch, first through hidden_ReduceMax" in reason for reason in unreached(subject, some).hidden)
    monkeypatch.setattr(Subject, "images_at_once", property(lambda _: 1))
    short = unreached(subject, some)
    assert any("was seen on clean images alone" in line for line in short.limits)
    assert not any("batch, first through" in reason for reason in short.hidden)
