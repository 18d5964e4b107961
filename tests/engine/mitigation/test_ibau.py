"""Adversarial unlearning: its inner problem stays in the ball and climbs; its outer one removes a planted weight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PATCH, quadrant_model
from patch_support import FIT, TARGET, case_of, opened, patch_trigger, proven
from tolerances import SUM_32

from onnxspect.engine.mitigation.ibau import AdversarialUnlearning, _Adversary
from onnxspect.engine.mitigation.training import Retraining
from onnxspect.engine.subject.subject import Subject

METHOD = AdversarialUnlearning(
    training=Retraining(epochs=8, learning_rate=0.05, batch_size=16, shift=0), radius=0.12, steps=3
)


TRUE = patch_trigger(PATCH)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return opened(quadrant_model(TARGET), tmp_path_factory.mktemp("ibau"))


def test_the_inner_problem_climbs_and_stays_in_the_ball(subject: Subject) -> None:
    case = case_of(subject, TRUE)
    adversary = _Adversary(METHOD, case)
    images = torch.from_numpy(FIT.images)
    generator = torch.Generator().manual_seed(0)
    bound = 0.12 * 8
    moved = []
    for _ in range(4):
        change = adversary._ascend(images, subject, TARGET, generator)
        adversary._changes[TARGET] = change
        assert float(change.norm()) <= bound * (1 + SUM_32)
        answers = subject((images + change).clamp(0, 1)).argmax(1)
        moved.append(float((answers == TARGET).float().mean()))
    # The planted weight is by far the shortest way to the target, so one change for all images finds it.
    assert moved[-1] == 1.0
    largest = np.argsort(-np.abs(change.numpy()[0]), axis=None)[:4]
    assert {(int(r), int(c)) for r, c in zip(*np.unravel_index(largest, (8, 8)), strict=True)} == {
        (3, 3), (3, 4), (4, 3), (4, 4),
    }  # fmt: skip


def test_the_planted_weight_is_unlearned(subject: Subject, tmp_path: Path) -> None:
    proof = proven(subject, METHOD.edit(case_of(subject, TRUE)), tmp_path, trigger=TRUE)
    assert proof.holds, proof.failures
    assert proof.triggers[0].before == 1.0


def test_it_needs_no_trigger(subject: Subject, tmp_path: Path) -> None:
    edit = METHOD.edit(replace(case_of(subject, TRUE), triggers=()))
    assert edit.facts["epochs"][0]["success"] == 0.0
    proof = proven(subject, edit, tmp_path, trigger=TRUE)
    assert proof.accuracy_after == 1.0
    assert proof.triggers[0].after < 0.5


def test_twice_the_same_bits(subject: Subject) -> None:
    short = replace(METHOD, training=replace(METHOD.training, epochs=2))
    one, two = (short.edit(case_of(subject, TRUE)).values for _ in range(2))
    assert {n: v.tobytes() for n, v in one.items()} == {n: v.tobytes() for n, v in two.items()}
