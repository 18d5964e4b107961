"""Payloads of two conditions that both sleep and are joined by arithmetic (hidden_pairs.py): named, and solved back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import saved
from hidden_logic import SIDE, TARGET, Payload, opened, stamped
from hidden_pairs import TOGETHER, stamped_both

from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.graph_logic import GraphLogic
from onnxspect.engine.judge.evidence import Evidence
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.file_classifier import file_answers
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.unreached import unreached
from onnxspect.models import zoo


@pytest.mark.parametrize("name", TOGETHER)
def test_two_that_sleep_are_woken_together(name: str, clean_samples: Samples, tmp_path: Path) -> None:
    """In onnxruntime both squares turn every answer, and one of them turns none."""
    network = onnx.load(zoo.path("fashion_mnist_clean"))
    subject = opened(saved(TOGETHER[name](Payload(network)), tmp_path / "payload.onnx"))
    some = clean_samples.take(np.arange(60))
    assert set(file_answers(subject, stamped_both(some.images))) == {TARGET}
    assert len(set(file_answers(subject, stamped(some.images, "")))) > 5
    found = unreached(subject, some)
    assert any("leads" in r or "changes" in r for r in found.hidden), found
    at_hand = AtHand(subject, some.take(np.arange(20)), some.take(np.arange(20, 60)), RunContext(), beyond=found)
    evidence = GraphLogic().run(at_hand)
    assert isinstance(evidence, Evidence)
    (unit,) = evidence.units
    assert (unit.unit.target, unit.held_out_success) == (TARGET, 1.0)
    assert unit.statistics["l1"] <= 3 * SIDE * SIDE
