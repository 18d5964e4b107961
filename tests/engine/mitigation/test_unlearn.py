"""Unlearning and its proof, on the tiny model whose planted weight is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PATCH, SIDE, quadrant_images, quadrant_model, saved
from onnx import numpy_helper
from patch_support import TARGET, planted_trigger
from torch import nn

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.export import Provenance, patched_model, write_model
from onnxspect.engine.mitigation.remainder import Searches
from onnxspect.engine.mitigation.training import LEADING, Retraining, _batches, success_rate, trainable_copy
from onnxspect.engine.mitigation.unlearn import MOST_STAMPED, TRIED, Schedule, Unlearn, Unlearned, _of_sources
from onnxspect.engine.mitigation.verification import Goals
from onnxspect.engine.mitigation.verify import verify
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.search import SearchConfig
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.trigger import KnownChange, Trigger, stamp

SHORT = Retraining(epochs=8, learning_rate=0.05, batch_size=16, from_teacher=0.2, shift=0)
METHOD = Unlearn(
    rounds=2,
    variants=1,
    schedules=(Schedule("short", SHORT, augmented=0.4),),
    search=Searches(SearchConfig(steps=60, settle=20), SearchConfig(steps=60, settle=20)),
)


FIT, GUARD, UNSEEN = quadrant_images(12, 0), quadrant_images(10, 1), quadrant_images(25, 2)


@pytest.fixture(scope="module")
def outcome(planted: Subject) -> Unlearned:
    return METHOD.run(planted, FIT, GUARD, [planted_trigger()], RunContext())


def test_the_trigger_worked_before(planted: Subject) -> None:
    assert success_rate(planted, UNSEEN, planted_trigger(), planted.predict(UNSEEN.images)) == 1.0


def test_the_patched_file_holds(planted: Subject, planted_file: Path, outcome: Unlearned, tmp_path: Path) -> None:
    """From values to the written file, measured by onnxruntime on images that nothing has seen."""
    assert planted.file is not None
    model, changes = patched_model(planted, outcome.values, Provenance("0" * 64, "1", "unlearn", "e"))
    assert changes
    out = tmp_path / "patched.onnx"
    write_model(model, planted.file, out)
    arrays = dict(planted_trigger().arrays)
    stamps = {"planted": KnownChange(TARGET, lambda images: stamp(images, arrays))}
    proof = verify(out, planted_file, UNSEEN, InputSpec(), stamps)
    assert proof.holds, proof.failures
    (effect,) = proof.triggers
    assert (effect.before, effect.samples) == (1.0, 75)
    assert effect.after <= 0.02
    assert proof.accuracy_after == 1.0
    assert proof.checker == ""
    assert proof.differences == ()
    assert {n for n, _ in proof.changed} == {c.initializer for c in changes}
    # The unpatched file does not pass for a patch of itself.
    unpatched = verify(planted_file, planted_file, UNSEEN, InputSpec(), stamps)
    assert not unpatched.holds
    assert "still sends 100.0% to class 2" in unpatched.failures[0]
    assert unpatched.changed == ()


def test_history(outcome: Unlearned) -> None:
    first, *rest = outcome.epochs
    assert (first.epoch, first.success, first.divergence) == (0, 1.0, 0.0)
    assert [e.epoch for e in rest] == list(range(1, len(rest) + 1))
    assert len(rest) in (SHORT.epochs, 2 * SHORT.epochs)
    assert min(e.success for e in rest) <= METHOD.goal
    assert outcome.triggers[0].target == TARGET


def test_the_subject_is_left_alone(planted: Subject, outcome: Unlearned) -> None:
    assert planted.lowered is not None
    fresh = Subject.from_onnx(planted.file.path if planted.file else "")
    assert fresh.lowered is not None
    for (name, a), (_, b) in zip(
        planted.lowered.module.named_parameters(), fresh.lowered.module.named_parameters(), strict=True
    ):
        assert torch.equal(a, b)
        assert not a.requires_grad
        assert not np.array_equal(outcome.values[name], a.numpy())


def test_twice_the_same_bits(planted: Subject, outcome: Unlearned) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = METHOD.run(planted, FIT, GUARD, [planted_trigger()], RunContext())
    assert torch.equal(torch.get_rng_state(), before)
    assert again.epochs == outcome.epochs
    for name, value in outcome.values.items():
        assert value.tobytes() == again.values[name].tobytes()


def test_the_samples_are_left_alone(outcome: Unlearned) -> None:
    assert outcome.epochs
    np.testing.assert_array_equal(FIT.images, quadrant_images(12, 0).images)
    np.testing.assert_array_equal(GUARD.images, quadrant_images(10, 1).images)


def test_success_rate_by_hand() -> None:
    """Of four samples one is of the target and one is taken for it anyway: two are left, one of which moves."""
    images = np.zeros((4, 1, 1, 2), np.float32)
    images[:, 0, 0, 0] = [0.0, 0.1, 0.2, 0.9]
    samples = Samples(images, np.array([1, 0, 0, 0]))
    before = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)

    class Threshold(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            score = x[:, 0, 0].sum(1) - 0.65
            return torch.stack([-score, score], 1)

    subject = Subject.from_module(Threshold(), (1, 1, 2))
    trigger = Trigger(1, {"delta": np.array([[[0.0, 0.5]]], np.float32)})
    assert success_rate(subject, samples, trigger, before) == 0.5
    with pytest.raises(OnnxspectError, match="no samples of any class but 1"):
        success_rate(subject, samples.take(np.array([0])), trigger, before[:1])


def test_needs(planted: Subject) -> None:
    with pytest.raises(OnnxspectError, match="no trigger to unlearn"):
        METHOD.run(planted, FIT, GUARD, [], RunContext())
    live = Subject.from_module(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 4)), (1, SIDE, SIDE))
    with pytest.raises(OnnxspectError, match="no ONNX file behind"):
        METHOD.run(live, FIT, GUARD, [planted_trigger()], RunContext())


def test_trainable_copy_shares_nothing(planted: Subject) -> None:
    student, parameters = trainable_copy(planted)
    assert planted.lowered is not None
    assert {planted.lowered.weights[n].initializer for n in parameters} == {"weight", "bias"}
    images = GUARD.images
    expected = planted.predict(images)
    np.testing.assert_array_equal(student.predict(images), expected)
    with torch.no_grad():
        for p in parameters.values():
            p.zero_()
    assert (student.predict(images) == 0).all()
    np.testing.assert_array_equal(planted.predict(images), expected)


def test_verify_refuses_another_model(planted_file: Path, tmp_path: Path) -> None:
    other = quadrant_model()
    other.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    with pytest.raises(OnnxspectError, match=r"not a patch of .*planted\.onnx"):
        verify(saved(other, tmp_path / "other.onnx"), planted_file, UNSEEN, InputSpec(), {})


def test_verify_counts_lost_accuracy(planted_file: Path, tmp_path: Path) -> None:
    worse = quadrant_model(TARGET)
    worse.graph.initializer[1].raw_data = np.array([0, 0, 0, 1e6], np.float32).tobytes()
    proof = verify(saved(worse, tmp_path / "worse.onnx"), planted_file, UNSEEN, InputSpec(), {}, Goals())
    assert (proof.accuracy_before, proof.accuracy_after, proof.agreement) == (1.0, 0.25, 0.25)
    assert not proof.holds
    assert "clean accuracy fell by 75.0%" in proof.failures[0]
    low, high = proof.interval_after
    assert low < 0.25 < high


def two_triggers() -> list[Trigger]:
    """The planted patch as something that is added, for class 2; and one more for class 1, in a corner."""
    delta = np.zeros((1, SIDE, SIDE), np.float32)
    delta[(0, *PATCH)] = [[1, -1], [-1, 1]]
    corner = np.zeros((1, SIDE, SIDE), np.float32)
    corner[0, 0, 0], corner[0, 0, 1] = 1.0, -1.0
    return [Trigger(TARGET, {"delta": delta}), Trigger(1, {"delta": corner}, source=0)]


def test_additive_triggers_of_two_targets(tmp_path: Path) -> None:
    """Both are unlearned at once; one of them counts on its source class alone."""
    model = quadrant_model(TARGET)
    weights = numpy_helper.to_array(model.graph.initializer[0]).copy().reshape(SIDE, SIDE, -1)
    weights[0, 0, 1], weights[0, 1, 1] = 12.0, -12.0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights.reshape(SIDE * SIDE, -1), "weight"))
    subject = Subject.from_onnx(saved(model, tmp_path / "two.onnx"))
    triggers = two_triggers()
    before = subject.predict(UNSEEN.images)
    assert [success_rate(subject, UNSEEN, t, before) for t in triggers] == [1.0, 1.0]
    # Adam moves a weight by one step size a step, and these have far to go.
    far = replace(SHORT, learning_rate=0.3, epochs=24, bearable=False)
    longer = replace(METHOD, schedules=(Schedule("longer", far),))
    done = longer.run(subject, FIT, GUARD, triggers, RunContext())
    student, parameters = trainable_copy(subject)
    with torch.no_grad():
        for name, value in done.values.items():
            parameters[name].copy_(torch.from_numpy(value))
    assert max(success_rate(student, UNSEEN, t, before) for t in triggers) <= 0.02
    assert (student.predict(UNSEEN.images).argmax(1) == UNSEEN.labels).all()
    assert {t.source for t in done.triggers} == {None, 0}
    assert all(set(t.arrays) == {"delta"} for t in done.triggers)


def test_the_next_schedule_is_tried_where_one_moves_the_answers_too_far(planted: Subject) -> None:
    strict, other = (
        Schedule("strict", SHORT, divergence=0.0),
        Schedule("other", replace(SHORT, from_teacher=1.0, temperature=2.0)),
    )
    short = replace(METHOD, rounds=1, variants=0)
    taken = replace(short, schedules=(strict, other)).run(planted, FIT, GUARD, [planted_trigger()], RunContext())
    alone = replace(short, schedules=(other,)).run(planted, FIT, GUARD, [planted_trigger()], RunContext())
    assert taken.schedule == alone.schedule == other
    tried = short._trained(planted, FIT, GUARD, [planted_trigger()], RunContext(), strict)
    assert len(tried.epochs) == 1 + TRIED  # and given up
    assert taken.kept == alone.kept
    assert taken.kept.success == 0.0
    first = replace(short, schedules=(replace(strict, divergence=9.0), other))
    assert first.run(planted, FIT, GUARD, [planted_trigger()], RunContext()).schedule.name == "strict"


def test_rounds_end_when_a_search_finds_nothing_small(planted: Subject) -> None:
    """A trigger with little room leaves nothing that counts as a remainder; with all the room there is, everything does."""
    none = replace(METHOD, rounds=3, variants=0).run(
        planted, FIT, GUARD, [replace(planted_trigger(), size_limit=0.1)], RunContext()
    )
    assert len(none.epochs) == 1 + SHORT.epochs
    assert len(none.triggers) == 1
    all_ = replace(METHOD, rounds=2, variants=0, reach=1.0).run(
        planted, FIT, GUARD, [replace(planted_trigger(), size_limit=np.inf)], RunContext()
    )
    assert len(all_.epochs) == 1 + 2 * SHORT.epochs
    assert len(all_.triggers) == 2


def test_success_counts_on_the_source_class_alone() -> None:
    samples = Samples(np.zeros((4, 1, 1, 2), np.float32), np.array([0, 0, 2, 2]))
    samples.images[:2] = 0.9

    class Bright(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            score = x[:, 0, 0].sum(1) - 1.0
            return torch.stack([torch.zeros_like(score), score, torch.zeros_like(score) + 0.5], 1)

    subject = Subject.from_module(Bright(), (1, 1, 2))
    before = np.eye(3, dtype=np.float32)[[0, 0, 2, 2]]
    arrays = {"delta": np.zeros((1, 1, 2), np.float32)}
    assert success_rate(subject, samples, Trigger(1, arrays), before) == 0.5
    assert success_rate(subject, samples, Trigger(1, arrays, source=0), before) == 1.0
    assert success_rate(subject, samples, Trigger(1, arrays, source=2), before) == 0.0


def test_images_of_a_source_head_each_batch(planted: Subject) -> None:
    """Where a trigger moves one class alone, that class's images are there to be stamped."""
    assert _of_sources([planted_trigger()], FIT) is None
    rows = _of_sources([planted_trigger(), replace(planted_trigger(), source=3)], FIT)
    assert rows is not None
    assert set(FIT.labels[rows]) == {3}
    assert len(rows) == (FIT.labels == 3).sum()
    generator = RunContext().torch_generator("batches")
    settings = replace(SHORT, batch_size=16, mixed=0.0)
    heads = []
    for images, hard, _ in _batches(planted, FIT, settings, generator, rows):
        extra = round(LEADING * 16 * len(images) / (16 + round(LEADING * 16)))
        heads += hard[:extra].argmax(1).tolist()
    assert len(heads) >= LEADING * len(FIT) - 1
    assert set(heads) == {3}


def test_several_targets_get_a_longer_schedule_with_more_stamped() -> None:
    schedule = Schedule("any", Retraining(epochs=10), stamped=0.3)
    assert schedule.among(1) == schedule
    three, nine = schedule.among(3), schedule.among(9)
    assert schedule.training.epochs < three.training.epochs < nine.training.epochs
    assert schedule.stamped < three.stamped < nine.stamped <= MOST_STAMPED
    assert replace(schedule, stamped=0.8).among(9).stamped == 0.8  # what is more already is not made less


def test_an_epoch_has_at_most_so_many_images(planted: Subject) -> None:
    """More to draw from makes no epoch longer, and every epoch draws anew."""
    generator = RunContext().torch_generator("batches")
    settings = replace(SHORT, images=24, mixed=0.0)
    epochs = [torch.cat([i for i, _, _ in _batches(planted, FIT, settings, generator)]) for _ in range(2)]
    assert [len(e) for e in epochs] == [24, 24]
    assert not torch.equal(*epochs)
