"""Payloads behind which the graph does not run where they are forced to be what it does not take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import saved
from hidden_logic import Payload, opened, stamped
from onnx import TensorProto

from onnxspect.engine.search.dormant_part import NO_ANSWER, DormantPart
from onnxspect.engine.search.solve_back import leads_nowhere, solve_back
from onnxspect.engine.subject.file_classifier import file_answers
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.unreached import unreached
from onnxspect.models import zoo


def shifted(p: Payload, by: str) -> onnx.ModelProto:
    """Each class gets the score of one `by` places further, of a row of two copies of the scores: from 11 places on there is none."""
    places = p.add("Add", by, p.constant(np.arange(p.classes)[None]))
    return p.done(p.add("GatherElements", p.add("Concat", p.scores, p.scores, axis=1), places, axis=1))


def whole_number(p: Payload, awake: float, gate: str) -> str:
    """A gate that is 0.1 under the trigger, as a whole number that is `awake` then."""
    return p.add("Cast", p.add("Mul", gate, p.constant(np.float32(10 * awake + 1))), to=TensorProto.INT64)


def by_one(p: Payload) -> onnx.ModelProto:
    """By one under the trigger: every value far beyond is out of range."""
    return shifted(p, whole_number(p, 1, p.add("Relu", p.total())))


def by_one_number(p: Payload) -> onnx.ModelProto:
    """All numbers but 0 and 37, which the trigger makes it, are out of range."""
    number = whole_number(p, 37, p.add("Relu", p.total()))
    away = p.add("Mul", number, p.add("Sub", number, p.constant(np.int64(37))))
    far = p.add("Mul", away, p.constant(np.int64(1000)))
    return shifted(p, p.add("Add", far, p.add("Div", number, p.constant(np.int64(37)))))


def too_far(p: Payload) -> onnx.ModelProto:
    """The whole trigger takes it out of range, a part of it does not."""
    return shifted(p, whole_number(p, 3, p.add("Relu", p.add("Add", p.total(), p.constant(np.float32(0.9))))))


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    return onnx.load(zoo.path("fashion_mnist_clean"))


@pytest.fixture(scope="module")
def some(clean_samples: Samples) -> Samples:
    return clean_samples.take(np.arange(60))


@pytest.mark.parametrize(
    ("payload", "said"),
    [(by_one, "made to differ, it changes"), (by_one_number, "what follows does not run then: hidden_Relu")],
)
def test_what_does_not_run_where_it_is_forced_is_no_clean_bill(
    payload: Callable[[Payload], onnx.ModelProto], said: str, network: onnx.ModelProto, some: Samples, tmp_path: Path
) -> None:
    """Smaller values find what it does, or nothing is known of it; in onnxruntime the trigger turns answers."""
    subject = opened(saved(payload(Payload(network)), tmp_path / "payload.onnx"))
    found = unreached(subject, some)
    assert any(said in reason for reason in found.hidden)
    assert any("hidden_Relu" in limit for limit in found.limits)
    turned = file_answers(subject, stamped(some.images, "")) != file_answers(subject, some.images)
    assert turned.mean() > 0.9


def test_pictures_that_the_graph_does_not_run_on_show_nothing(
    network: onnx.ModelProto, some: Samples, tmp_path: Path
) -> None:
    subject = opened(saved(too_far(Payload(network)), tmp_path / "payload.onnx"))
    part = next(d for d in unreached(subject, some).dormant if d.operator == "Relu")
    assert part.place is not None
    answers = DormantPart(subject, part.place, 1.0).answers(
        np.concatenate([some.images[:2], stamped(some.images[:2], "")])
    )
    assert (answers[:2] >= 0).all()
    assert (answers[2:] == NO_ANSWER).all()
    assert not leads_nowhere(subject, part.place, some.images, np.random.default_rng(0))
    assert solve_back(subject, part.place, some.images, np.random.default_rng(0)) is None
