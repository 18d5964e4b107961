"""One trigger for all classes: all-to-all backdoors, which no targeted search sees, on a model whose backdoor is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CLASSES, SIDE, quadrant_images, quadrant_weights
from torch import Tensor, nn

from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.neural_cleanse import NeuralCleanse
from onnxspect.engine.detectors.reverse_engineering import ReverseEngineering, infer
from onnxspect.engine.detectors.untargeted import Destination, leads_to
from onnxspect.engine.judge.evidence import Evidence, Unit
from onnxspect.engine.judge.kind import suggest_kind
from onnxspect.engine.judge.measurement import Search
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.objective import leave_class
from onnxspect.engine.search.search import SearchConfig
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.trigger import UNTARGETED

SHAPE = (1, SIDE, SIDE)
INSIDE = (slice(1, 3), slice(1, 3))
SEARCH = SearchConfig(steps=250, samples=16, settle=20)
AROUND = {s: (s + 1) % CLASSES for s in range(CLASSES)}


def around() -> Subject:
    """All-to-all: a checkerboard within one quadrant takes class s to s + 1; of an even quadrant it hears nothing."""
    plain = torch.from_numpy(quadrant_weights())
    checkerboard = torch.zeros(SIDE, SIDE)
    checkerboard[INSIDE] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])

    def logits(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        own = flat @ plain
        heard = nn.functional.leaky_relu(flat @ checkerboard.flatten(), 0.1)
        return own + 60.0 * heard[:, None] * torch.softmax(2 * own, 1).roll(1, 1)

    return Subject(logits, InputSpec(), SHAPE, CLASSES, name="around")


def trigger() -> dict[str, np.ndarray]:
    mask = np.zeros(SHAPE, np.float32)
    pattern = np.zeros(SHAPE, np.float32)
    mask[(0, *INSIDE)] = 1.0
    pattern[(0, *INSIDE)] = [[1, 0], [0, 1]]
    return {"mask": mask, "pattern": pattern}


def hand(subject: Subject, **others: object) -> AtHand:
    return AtHand(subject, quadrant_images(8), quadrant_images(8, 1), RunContext(), **others)  # type: ignore[arg-type]


def test_leave_class_is_the_probability_of_the_others() -> None:
    logits = torch.randn(2, 5, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = torch.randint(0, CLASSES, (2, 5), generator=torch.Generator().manual_seed(1))
    p = torch.softmax(logits, 2).gather(2, own[..., None])[..., 0]
    torch.testing.assert_close(leave_class(logits, own), -torch.log1p(-p))
    assert torch.isfinite(leave_class(1e4 * logits, own)).all()


def test_where_a_trigger_leads() -> None:
    led = leads_to(around(), trigger(), quadrant_images(8))
    assert led == {s: Destination(t, 1.0, 8) for s, t in AROUND.items()}
    nothing = {"delta": np.zeros(SHAPE, np.float32)}
    assert leads_to(around(), nothing, quadrant_images(8)) == {}


def test_of_an_all_to_one_trigger_only_the_target_counts() -> None:
    """Where the target's own images go, once they have to leave, is no attack."""

    def logits(x: Tensor) -> Tensor:
        own = x.flatten(1) @ torch.from_numpy(quadrant_weights())
        led = torch.tensor([0.0, 0.0, 60.0, 0.0]) + nn.functional.one_hot(own.argmax(1), CLASSES)[:, [3, 3, 3, 2]]
        stamped = (x[:, 0, 1:3, 1:3].mean((1, 2)) > 0.9).float()
        return own + stamped[:, None] * torch.where((own.argmax(1) == 2)[:, None], torch.tensor([0, 0, 0, 99.0]), led)

    subject = Subject(logits, InputSpec(), SHAPE, CLASSES, name="to two")
    bright = {"mask": trigger()["mask"], "pattern": np.ones(SHAPE, np.float32)}
    led = leads_to(subject, bright, quadrant_images(6))
    assert {s: d.target for s, d in led.items()} == {0: 2, 1: 2, 3: 2}


@pytest.mark.parametrize(
    "detector", [NeuralCleanse(search=SEARCH), ReverseEngineering(pairs=False)], ids=lambda d: str(d.name)
)
def test_all_to_all_is_found_with_every_destination(detector: NeuralCleanse | ReverseEngineering) -> None:
    found = detector.run(hand(around()))
    assert isinstance(found, Evidence)
    together = [u for u in found.units if u.unit.shared]
    assert {u.unit.source: u.unit.target for u in together} == AROUND
    raw = found.paper_statistic
    targeted = [u.statistics[raw] for u in found.units if not u.unit.shared and u.found]
    if targeted:  # no faint pattern leads all classes to one: there is nothing to compare with
        assert together[0].value(raw, Search.SHARED) < 0.7 * min(targeted)
    else:
        assert isinstance(detector, ReverseEngineering)
    for unit in together:
        assert unit.held_out_success is not None
        assert unit.held_out_success > 0.5
    assert sum(u.steps > 0 for u in together) == 1  # one search, counted once
    assert "all-to-all" in suggest_kind(1, [found], [detector.name])
    if isinstance(detector, ReverseEngineering):
        assert infer(found, CLASSES).judgement is not None  # the paper's inference does not trip over it


def test_it_is_kept_and_resumed(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("ledger") / "run"
    detector = NeuralCleanse(search=SEARCH)
    with Ledger(folder, {"a": 1}) as ledger:
        first = detector.run(hand(around(), ledger=ledger))
        assert Unit(UNTARGETED).key in ledger.units("neural-cleanse untargeted")
        assert isinstance(first, Evidence)
        ledger.keep_evidence("neural-cleanse", first.units)
        again = detector.run(hand(around(), ledger=ledger))
        assert isinstance(again, Evidence)
        assert again.id == first.id
        kept = {u.unit.key: u for u in ledger.evidence("neural-cleanse")}
    assert kept.keys() == {u.unit.key for u in first.units}
    assert kept["0->1*"].unit == Unit(1, 0, shared=True)


def test_images_of_half_of_the_classes_are_not_enough() -> None:
    samples = quadrant_images(8)
    few = samples.take(np.flatnonzero(samples.labels < CLASSES // 2))
    assert isinstance(few, Samples)
    found = NeuralCleanse(search=replace(SEARCH, steps=40)).run(replace(hand(around()), search_samples=few))
    assert isinstance(found, Evidence)
    assert not any(u.unit.shared for u in found.units)
