"""What the retraining that several patches share keeps of a student, and by what it is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from patch_support import FIT, GUARD, TARGET, additive_trigger, neuron_model, opened, patch_trigger
from tolerances import NETWORK_32, OPERATION_32

from onnxspect.engine.mitigation.training import (
    HARD,
    NEAR,
    SHORT_EPOCHS,
    STRONGER,
    Epoch,
    Guard,
    Retraining,
    bearable,
    retrain,
    success_rate,
    trainable_copy,
)
from onnxspect.engine.run import Silent
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import Trigger


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """The small model with one backdoor neuron."""
    return opened(neuron_model(), tmp_path)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_what_is_kept_is_the_moving_average(subject: Subject, average: float) -> None:
    student, parameters = trainable_copy(subject)
    mean = {n: p.detach().double().clone() for n, p in parameters.items()}

    def follow() -> None:
        for name, parameter in parameters.items():
            mean[name] = average * mean[name] + (1 - average) * parameter.detach().double()

    measured: list[dict[str, np.ndarray]] = []

    class Watched(Guard):
        """Notes the weights that are measured."""

        def measure(self, epoch: int, student: Subject) -> Epoch:
            measured.append({n: p.detach().numpy().copy() for n, p in parameters.items()})
            return super().measure(epoch, student)

    history = retrain(
        student,
        parameters,
        subject,
        FIT,
        Retraining(epochs=3, batch_size=16, learning_rate=0.01, average=average),
        None,
        Watched(subject, GUARD, []),
        lambda epoch: -epoch.epoch,  # the last one is kept
        torch.Generator().manual_seed(0),
        after_step=follow,
    )
    assert [e.epoch for e in history] == [1, 2, 3]
    original = dict(subject.lowered.module.named_parameters()) if subject.lowered else {}
    for name, parameter in parameters.items():
        np.testing.assert_allclose(parameter.detach().numpy(), mean[name].numpy(), rtol=NETWORK_32, atol=OPERATION_32)
        np.testing.assert_array_equal(parameter.detach().numpy(), measured[-1][name])
        assert not np.array_equal(parameter.detach().numpy(), original[name].numpy())


def test_the_best_epoch_is_kept_and_not_the_last(subject: Subject) -> None:
    kept = {}
    for best in (1, 3):
        student, parameters = trainable_copy(subject)
        retrain(
            student,
            parameters,
            subject,
            FIT,
            Retraining(epochs=3, learning_rate=0.01, average=0.5),
            None,
            Guard(subject, GUARD, []),
            lambda epoch, best=best: abs(epoch.epoch - best),  # type: ignore[misc]
            torch.Generator().manual_seed(0),
        )
        kept[best] = np.concatenate([p.detach().numpy().ravel() for p in parameters.values()])
    assert not np.array_equal(kept[1], kept[3])


def faint(trigger: Trigger, share: float) -> Trigger:
    """As a search may recover it: weaker than the planted one."""
    return trigger.strengthened(share)


@pytest.mark.parametrize(
    ("trigger", "forms"),
    [
        (faint(patch_trigger(), 0.1), ["twice", "hard"]),
        (faint(additive_trigger(), 0.1), ["twice"]),
        (replace(faint(patch_trigger(), 0.1), smallest=False), ["hard"]),
        (replace(faint(additive_trigger(), 0.1), smallest=False), []),
    ],
)
def test_stronger_triggers_are_measured_too(subject: Subject, trigger: Trigger, forms: list[str]) -> None:
    """Those of the smallest size that works at twice that; masks as whole pixels."""
    stronger = {"twice": trigger.strengthened(STRONGER)}
    if trigger.masked:
        stronger["hard"] = trigger.hardened(HARD)
    guard = Guard(subject, GUARD, [trigger])
    rates = [success_rate(subject, GUARD, stronger[f], guard.before) for f in forms]
    now = guard.measure(1, subject)
    assert now.stronger == max(rates, default=0.0)
    if "hard" in forms:
        assert now.stronger == 1.0 > now.success  # the faint one does not work, the planted one does


def test_the_trigger_that_works_best_counts(subject: Subject) -> None:
    nothing = Trigger(TARGET, {"delta": np.zeros((1, 8, 8), np.float32)})
    guard = Guard(subject, GUARD, [nothing, patch_trigger()])
    assert guard.measure(0, subject).success == 1.0
    guard.triggers = [nothing]
    assert guard.measure(0, subject).success == 0.0


def test_a_learning_rate_that_undoes_the_model_is_lowered(subject: Subject) -> None:
    student, parameters = trainable_copy(subject)
    before = {n: p.detach().clone() for n, p in parameters.items()}
    for wanted in (1e-4, 50.0):
        found = bearable(
            student, parameters, subject, FIT, Guard(subject, GUARD, []), Retraining(learning_rate=wanted, average=0.9)
        )
        assert all(torch.equal(p, before[n]) for n, p in parameters.items())
        if wanted == 1e-4:
            assert found == Retraining(learning_rate=wanted, average=0.9)
        else:
            assert found.learning_rate < wanted
            assert (found.epochs, found.average) == (SHORT_EPOCHS, 0.0)
            assert bearable(student, parameters, subject, FIT, Guard(subject, GUARD, []), found) == found


def test_a_student_that_comes_back_to_the_original_is_not_undone(subject: Subject) -> None:
    """Of a pruned student the same steps lead towards the original that lead the original away from itself."""
    student, parameters = trainable_copy(subject)
    with torch.no_grad():
        for p in parameters.values():
            p.zero_()
    wanted = Retraining(learning_rate=1.0)
    assert bearable(student, parameters, subject, FIT, Guard(subject, GUARD, []), wanted) == wanted
    whole, its = trainable_copy(subject)
    assert (
        bearable(whole, its, subject, FIT, Guard(subject, GUARD, []), replace(wanted, learning_rate=50.0)).learning_rate
        < 50.0
    )


def test_a_lowered_rate_is_said_and_a_wanted_one_is_kept(subject: Subject) -> None:
    said: list[str] = []

    class Heard(Silent):
        """Keeps notices."""

        def notice(self, text: str) -> None:
            said.append(text)

    lost = {}
    for kept in (True, False):
        student, parameters = trainable_copy(subject)
        settings = Retraining(epochs=2, learning_rate=50.0, from_teacher=1.0, bearable=kept)
        guard, generator = Guard(subject, GUARD, []), torch.Generator().manual_seed(0)
        rows = retrain(
            student, parameters, subject, FIT, settings, None, guard, lambda e: -e.epoch, generator, observer=Heard()
        )
        lost[kept] = rows[-1].divergence
    assert len(said) == 1
    assert "50" in said[0]
    assert lost[True] < NEAR < lost[False]
