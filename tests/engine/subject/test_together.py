"""Payloads of two conditions that both sleep and are joined by arithmetic: neither does anything alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import saved
from hidden_logic import SIDE, Payload, opened, stamped
from onnx import TensorProto

from onnxspect.engine.subject.file_classifier import file_answers
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.unreached import unreached
from onnxspect.models import zoo


def beside(p: Payload) -> str:
    """The corner's right neighbour."""
    ends = [p.constant(np.array(v, np.int64)) for v in ([0, SIDE], [SIDE, 2 * SIDE], [2, 3])]
    return p.add("Flatten", p.add("Slice", p.image, *ends), axis=1)


def _white(p: Payload) -> str:
    """A ReLU that is 0.1 where the corner is white, and sleeps else."""
    return p.add("Relu", p.total())


def _too(p: Payload) -> str:
    """The same of its neighbour."""
    total = p.add("MatMul", beside(p), p.constant(np.ones((p.pixels, 1), np.float32)))
    return p.add("Relu", p.add("Sub", total, p.constant(np.float32(p.pixels - 0.1))))


def _decisions(p: Payload) -> tuple[str, str]:
    bright = p.add("Greater", p.reduce("ReduceMin", beside(p)), p.constant(np.float32(0.95)))
    return tuple(p.add("Cast", d, to=TensorProto.FLOAT) for d in (p.seen(), bright))  # type: ignore[return-value]


def product(p: Payload) -> onnx.ModelProto:
    return p.added(p.add("Mul", _white(p), _too(p)), 1e6)


def least(p: Payload) -> onnx.ModelProto:
    return p.added(p.add("Min", _white(p), _too(p)), 1e5)


def of_decisions(p: Payload) -> onnx.ModelProto:
    return p.added(p.add("Mul", *_decisions(p)))


def chosen(p: Payload) -> onnx.ModelProto:
    return p.added(p.add("Where", p.seen(), _too(p), p.constant(np.float32(0))), 1e5)


def behind_copies(p: Payload) -> onnx.ModelProto:
    """Identity, a scale and a power lie between."""
    one = p.add("Mul", p.add("Identity", _white(p)), p.constant(np.float32(10)))
    other = p.add("Mul", _too(p), p.constant(np.float32(10)))
    return p.added(p.add("Mul", one, p.add("Mul", other, other)))


def of_three(p: Payload) -> onnx.ModelProto:
    """Two ReLUs, and a decision on both squares."""
    either = p.add("Cast", p.add("Greater", p.add("Add", p.total(), _too(p)), p.constant(np.float32(0.15))), to=1)
    return p.added(p.add("Mul", p.add("Mul", _white(p), _too(p)), either), 1e6)


def of_a_row(p: Payload) -> onnx.ModelProto:
    """Side by side first."""
    return p.added(p.reduce("ReduceProd", p.add("Concat", _white(p), _too(p), axis=1)), 1e6)


def sum_beyond_one(p: Payload) -> onnx.ModelProto:
    """Neither reaches the bound alone, however far it goes: both are clipped."""
    ends = [p.constant(np.float32(v)) for v in (0, 1)]
    large = [p.add("Clip", p.add("Mul", r, p.constant(np.float32(100))), *ends) for r in (_white(p), _too(p))]
    return p.added(p.add("Relu", p.add("Sub", p.add("Add", *large), p.constant(np.float32(1.5)))))


@pytest.mark.parametrize(
    "payload", [product, least, of_decisions, chosen, behind_copies, of_three, of_a_row, sum_beyond_one]
)
def test_two_that_sleep_are_woken_together(
    payload: Callable[[Payload], onnx.ModelProto], clean_samples: Samples, tmp_path: Path
) -> None:
    """In onnxruntime both squares turn every answer, and one of them turns none."""
    network = onnx.load(zoo.path("fashion_mnist_clean"))
    subject = opened(saved(payload(Payload(network)), tmp_path / "payload.onnx"))
    some = clean_samples.take(np.arange(60))
    one = stamped(some.images, "")
    two = one.copy()
    two[:, :, :SIDE, SIDE : 2 * SIDE] = 1.0
    assert len(set(file_answers(subject, two))) == 1
    assert len(set(file_answers(subject, one))) > 5
    found = unreached(subject, some)
    assert any("leads" in r or "changes" in r for r in found.hidden), found
