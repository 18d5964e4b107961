"""A trigger without a target: every image leaves its class. How it counts, moves, is unlearned, proven and read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from patch_support import (
    FIT,
    GUARD,
    UNSEEN,
    all_to_all_model,
    case_of,
    neuron_model,
    opened,
    patch_trigger,
    written,
)

from onnxspect.engine.judge.evidence import Unit, UnitEvidence
from onnxspect.engine.judge.measurement import Measurement, Search
from onnxspect.engine.mitigation.adversary import MovingTrigger
from onnxspect.engine.mitigation.recovered import _shared, named
from onnxspect.engine.mitigation.remainder import Searches, search_again
from onnxspect.engine.mitigation.training import Retraining, success_rate
from onnxspect.engine.mitigation.unlearn import Schedule, Unlearn
from onnxspect.engine.mitigation.verify import verify
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.search import SearchConfig
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.trigger import UNTARGETED, Trigger

AWAY = Trigger(UNTARGETED, patch_trigger().arrays)
HOW = Searches(SearchConfig(steps=60, settle=20), SearchConfig(steps=60, settle=20, learning_rate=0.05))


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return opened(all_to_all_model(), tmp_path_factory.mktemp("all-to-all"))


def test_what_counts_by_hand() -> None:
    labels, answers = np.array([0, 1, 2, 1]), np.array([0, 1, 0, 2])
    assert AWAY.counts_on(labels, answers).tolist() == [True, True, False, False]
    assert AWAY.counts_on(labels).all()
    assert AWAY.leads(np.array([1, 1, 0, 1]), labels).tolist() == [True, False, True, False]
    to_one = Trigger(1, {})
    assert to_one.counts_on(labels, answers).tolist() == [True, False, True, False]
    assert to_one.leads(np.array([1, 1, 0, 1]), labels).tolist() == [True, True, False, True]
    assert Trigger(1, {}, source=2).counts_on(labels).tolist() == [False, False, True, False]


def test_it_moves_every_class_to_the_next(subject: Subject) -> None:
    before = subject.predict(UNSEEN.images)
    assert (before.argmax(1) == UNSEEN.labels).all()
    answers = subject.predict(AWAY.apply(UNSEEN.images)).argmax(1)
    assert (answers == (UNSEEN.labels + 1) % 4).all()
    assert success_rate(subject, UNSEEN, AWAY, before) == 1.0
    # No single target sees more than the class before it.
    assert success_rate(subject, UNSEEN, patch_trigger(), before) == pytest.approx(1 / 3)


def test_it_is_unlearned_and_proven_on_the_written_file(subject: Subject, tmp_path: Path) -> None:
    method = Unlearn(
        rounds=1,
        variants=0,
        schedules=(
            Schedule("short", Retraining(epochs=8, learning_rate=0.05, batch_size=16, from_teacher=0.2, shift=0)),
        ),
        search=HOW,
    )
    out = written(subject, method.edit(case_of(subject, AWAY)), tmp_path, "unlearn")
    assert subject.file is not None
    found = named((AWAY,))
    proof = verify(out, subject.file.path, UNSEEN, InputSpec(), found)
    assert list(found) == ["recovered-other"]
    (effect,) = proof.triggers
    assert (effect.before, effect.samples) == (1.0, len(UNSEEN))
    assert proof.holds, proof.failures
    unpatched = verify(subject.file.path, subject.file.path, UNSEEN, InputSpec(), found)
    assert "trigger recovered-other still sends 100.0% out of their class" in unpatched.failures[0]


def test_a_moving_trigger_without_a_target_leads_away(subject: Subject) -> None:
    weak = Trigger(UNTARGETED, {"delta": 0.02 * np.asarray(patch_trigger().arrays["pattern"])})
    before = subject.predict(FIT.images)
    assert success_rate(subject, FIT, weak, before) < 0.2
    moving = MovingTrigger(weak, FIT, reach=30.0, steps=4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        arrays = moving.advance(subject, generator)
    assert success_rate(subject, FIT, Trigger(UNTARGETED, arrays), before) > 0.9


def test_it_is_searched_for_without_a_target(subject: Subject) -> None:
    (find,) = search_again(subject, GUARD, [AWAY], RunContext(), "again", HOW)
    assert find.trigger.target == UNTARGETED
    assert success_rate(subject, UNSEEN, find.trigger, subject.predict(UNSEEN.images)) > 0.9
    assert find.remains


def test_a_shared_trigger_stands_for_the_classes_that_it_leads_to(tmp_path: Path) -> None:
    arrays = {k: np.asarray(v) for k, v in AWAY.arrays.items()}

    def row(source: int, target: int, shared: bool = True) -> UnitEvidence:
        unit = Unit(target, source, shared=shared)
        return UnitEvidence(unit, (Measurement("l1", 4.0, Search.SHARED),), True, True, 10, 1.0, 1.0, 20, arrays)

    every = [row(s, (s + 1) % 4) for s in range(4)]
    (trigger,) = _shared(every, [0, 1, 2, 3])
    assert (trigger.target, trigger.source) == (UNTARGETED, None)
    np.testing.assert_array_equal(trigger.arrays["mask"], arrays["mask"])
    # All to one: that class's own trigger serves; and what was not found as shared says nothing.
    assert _shared([row(s, 2) for s in (0, 1, 3)], [2]) == []
    assert _shared([row(s, (s + 1) % 4, shared=False) for s in range(4)], [0, 1, 2, 3]) == []
    assert _shared(every, [1]) == []
    one = opened(neuron_model(), tmp_path)
    assert success_rate(one, UNSEEN, AWAY, one.predict(UNSEEN.images)) == pytest.approx(0.75)
