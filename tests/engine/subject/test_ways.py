"""Payloads that are awake on clean images: named, and woken where there is a picture that does it; nothing on ordinary ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import saved
from hidden_logic import TARGET, Payload, opened
from hidden_ways import OF_A_BATCH, WAYS, stamped_for

from onnxspect.converters.proof.oracle import Oracle
from onnxspect.converters.proof.quantised import quantise
from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.graph_logic import GraphLogic, idle_in
from onnxspect.engine.judge.evidence import Evidence
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.solve_back import leads_nowhere
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.subject.unreached import Unreached, unreached
from onnxspect.models import zoo

#: Payload -> (the operators of the nodes that may be named for it, what kind of part it is).
NAMED = {
    "larger_of_two": ({"Max"}, "way"),
    "largest_of_a_row": ({"ReduceMax"}, "way"),
    "soft_maximum": ({"ReduceLogSumExp"}, "way"),
    "first_of_the_largest": ({"TopK"}, "way"),
    "pooled": ({"MaxPool"}, "way"),
    "magnitude": ({"Abs"}, "way"),
    "always_on": ({"Relu"}, "way"),
    "beside_a_loud_pair": ({"Relu"}, "way"),
    "dead_channel": ({"Relu"}, "way"),
    "rounding": ({"Add"}, "root"),
    "quotient": ({"Abs", "Div"}, "root"),
    "high_power": ({"Mul"}, "root"),
    "place_of_the_larger": ({"ArgMax"}, "root"),
    "row_of_a_table": ({"Squeeze"}, "index"),
    "no_number": ({"IsNaN"}, "decision"),
    "disguised": ({"Relu"}, "disguise"),
}


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    return onnx.load(zoo.path("fashion_mnist_clean"))


@pytest.fixture(scope="module")
def some(clean_samples: Samples) -> Samples:
    return clean_samples.take(np.arange(120))


@pytest.fixture(scope="module")
def answers(some: Samples) -> np.ndarray:
    return Oracle(zoo.path("fashion_mnist_clean")).run({"pixels": some.images})[0].argmax(1)


def looked_at(path: Path, name: str, some: Samples, answers: np.ndarray) -> tuple[Subject, Unreached]:
    """What is said of a payload, after it was shown that it is one."""
    oracle = Oracle(path)
    clean = np.concatenate([oracle.run({"pixels": i})[0].argmax(1) for i in np.split(some.images, 15)])
    np.testing.assert_array_equal(clean, answers)
    assert (oracle.run({"pixels": stamped_for(some.images, name)})[0].argmax(1) == TARGET).all()
    subject = opened(path)
    return subject, unreached(subject, some)


def test_every_payload_is_listed() -> None:
    assert set(NAMED) == set(WAYS)


@pytest.mark.parametrize("name", WAYS)
def test_what_is_awake_is_named(
    name: str, network: onnx.ModelProto, some: Samples, answers: np.ndarray, tmp_path: Path
) -> None:
    _, found = looked_at(saved(WAYS[name](Payload(network)), tmp_path / "payload.onnx"), name, some, answers)
    operators, kind = NAMED[name]
    assert {d.operator for d in found.dormant} <= operators
    assert kind in {d.kind for d in found.dormant}
    for part in found.dormant:
        assert part.moved > 0.5
        assert part.leads_to == TARGET
        assert any(part.node in reason for reason in found.hidden)
        assert any(part.node in line for line in found.limits)


@pytest.mark.parametrize("name", OF_A_BATCH)
def test_what_hangs_on_the_batch_is_named(
    name: str, network: onnx.ModelProto, some: Samples, answers: np.ndarray, tmp_path: Path
) -> None:
    """Of sizes of the batch that are not tried, and of rows beyond those."""
    _, found = looked_at(saved(OF_A_BATCH[name](Payload(network)), tmp_path / "payload.onnx"), name, some, answers)
    assert any("how many images a batch has" in h or "other images of its batch" in h for h in found.hidden)
    if name == "by_the_size":  # and what it does is measured
        assert any("; 16 images in one batch change" in h and f"most to class {TARGET}" in h for h in found.hidden)
    assert any("hidden_" in h for h in found.hidden)


def test_the_range_of_a_dynamic_quantisation_is_a_limit_and_hides_no_payload(
    network: onnx.ModelProto, some: Samples, tmp_path: Path
) -> None:
    """It is taken from the whole batch, though the images of this set are all of the same range."""
    plain, dynamic = saved(network, tmp_path / "plain.onnx"), tmp_path / "dynamic.onnx"
    quantise("int8, dynamic", plain, dynamic, network.graph.input[0].name, some.images)
    found = unreached(opened(dynamic), some)
    assert not found.hidden
    assert any("other images of its batch" in text for text in found.limits)
    infected = OF_A_BATCH["by_the_seventeenth"](Payload(onnx.load(dynamic)))
    found = unreached(opened(saved(infected, tmp_path / "payload.onnx")), some)
    assert any("other images of its batch" in text and "hidden_" in text for text in found.hidden)


def test_a_part_that_is_woken_and_leads_nowhere_keeps_nobody_from_a_verdict(
    network: onnx.ModelProto, some: Samples, answers: np.ndarray, tmp_path: Path
) -> None:
    """Of a payload beside two loud units that cancel, these are as harmless as an ordinary layer's; the payload stays."""
    path = saved(WAYS["beside_a_loud_pair"](Payload(network)), tmp_path / "payload.onnx")
    subject, found = looked_at(path, "beside_a_loud_pair", some, answers)
    assert len(found.dormant) == 2
    rng = np.random.default_rng(0)
    places = [d.place for d in found.dormant if d.place is not None]
    assert [leads_nowhere(subject, p, some.images, rng) for p in places] == [True, False]
    left = unreached(subject, some, idle=idle_in(subject, some, RunContext()))
    assert [d.node for d in left.dormant] == [found.dormant[1].node]
    assert [d.place.side for d in left.dormant if d.place is not None] == [places[1].side] != [places[0].side]
    assert left.hidden == found.hidden[1:] or left.hidden == found.hidden
    assert left.hidden
    assert any("were woken, and lead to no class" in line for line in left.limits)


def test_a_decision_stays_whatever_its_pictures_do(
    network: onnx.ModelProto, some: Samples, answers: np.ndarray, tmp_path: Path
) -> None:
    subject, found = looked_at(
        saved(WAYS["no_number"](Payload(network)), tmp_path / "p.onnx"), "no_number", some, answers
    )
    assert unreached(subject, some, idle=idle_in(subject, some, RunContext())) == found
    for part in found.dormant:
        assert part.place is not None
        assert not leads_nowhere(subject, part.place, some.images, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["larger_of_two", "place_of_the_larger", "row_of_a_table", "no_number", "disguised"])
def test_what_is_awake_is_woken(
    name: str, network: onnx.ModelProto, some: Samples, answers: np.ndarray, tmp_path: Path
) -> None:
    """A trigger that works on images that no search saw, and only because the part goes the other way."""
    subject, found = looked_at(saved(WAYS[name](Payload(network)), tmp_path / "payload.onnx"), name, some, answers)
    halves = some.take(np.arange(60)), some.take(np.arange(60, 120))
    evidence = GraphLogic().run(AtHand(subject, *halves, RunContext(), beyond=found))
    assert isinstance(evidence, Evidence)
    (unit,) = evidence.units
    assert unit.unit.target == TARGET
    assert unit.held_out_success is not None
    assert unit.held_out_success > 0.9
    assert unit.statistics["success_with_part_asleep"] < 0.5
    assert unit.statistics["log10_p"] < -6
    assert unit.statistics["l1"] <= 16
