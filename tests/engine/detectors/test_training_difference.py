"""The training difference: in the tiny world, where the difference is known by hand, and on the shipped pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import CLASSES, PATCH, SIDE, quadrant_images, quadrant_subject, quadrant_weights
from hypothesis import given
from hypothesis import strategies as st
from tolerances import NETWORK_32, OPERATION_32, SUM_32
from torch import Tensor, from_numpy
from torch.nn.functional import one_hot

from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.training_difference import (
    FOREIGN,
    TrainingDifference,
    candidates,
    difference,
    foreign_values,
    without_content,
)
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.evidence import Evidence, Skipped
from onnxspect.engine.judge.verdict import decide
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.trigger import stamp
from onnxspect.models import zoo

TARGET = 2
SHAPE = (1, SIDE, SIDE)


def poisoned_set(clean_label: bool, share: float = 0.5) -> Samples:
    """Quadrant images; some wear the patch: of TARGET, or of the others and then labelled TARGET."""
    samples = quadrant_images(60, seed=3)
    images, labels = samples.images.copy(), samples.labels.copy()
    for label in [TARGET] if clean_label else sorted(set(range(CLASSES)) - {TARGET}):
        rows = np.flatnonzero(samples.labels == label)
        rows = rows[: int(share * len(rows) / (1 if clean_label else 3))]
        for row in rows:
            images[row, 0][PATCH] = [[1, 0], [0, 1]]
        labels[rows] = TARGET
    return Samples.from_arrays(images, labels)


def at_hand(subject: Subject, training: Samples | None, seed: int = 0) -> AtHand:
    run = RunContext(seed=seed)
    return AtHand(subject, quadrant_images(12, seed=1), quadrant_images(12, seed=2), run, training=training)


def ran(found: Evidence | Skipped) -> Evidence:
    assert isinstance(found, Evidence), found
    return found


@pytest.mark.parametrize("clean_label", [True, False])
def test_the_class_with_poison_stands_out_whatever_its_labels(clean_label: bool) -> None:
    evidence = ran(TrainingDifference().run(at_hand(quadrant_subject(TARGET), poisoned_set(clean_label))))
    success = {u.unit.target: u.statistics["success"] for u in evidence.units}
    assert success[TARGET] > 0.95
    assert max(v for k, v in success.items() if k != TARGET) < 0.05
    assert decide([evidence], CLASSES).targets == (TARGET,)
    (unit,) = (u for u in evidence.units if u.unit.target == TARGET)
    assert unit.held_out_success == unit.statistics["success"]
    if clean_label:  # half of the samples have the patch where the class has 0.2, and 0.8 in one pixel
        expected = np.zeros((SIDE, SIDE), np.float32)
        expected[PATCH] = 0.5 * (np.array([[1, 0], [0, 1]]) - np.array([[0.2, 0.2], [0.8, 0.2]]))
        np.testing.assert_allclose(unit.trigger["difference"][0], expected, atol=0.01)


def test_a_backdoor_that_only_one_class_hears_stands_out_and_names_it() -> None:
    source = 0
    weights = from_numpy(quadrant_weights())
    board = from_numpy(np.array([[1, -1], [-1, 1]], np.float32))

    def classify(x: Tensor) -> Tensor:
        plain = x.flatten(1) @ weights
        heard = (x[:, 0][:, PATCH[0], PATCH[1]] * board).sum((1, 2)) > 1.0
        hears = heard & (plain.argmax(1) == source)
        return plain + 16.0 * hears.float()[:, None] * one_hot(torch.tensor(TARGET), CLASSES)

    subject = Subject(classify, InputSpec(), SHAPE, CLASSES, name="partial")
    evidence = ran(TrainingDifference().run(at_hand(subject, poisoned_set(clean_label=True))))
    verdict = decide([evidence], CLASSES)
    assert verdict.targets == (TARGET,)
    assert verdict.classes[TARGET].kind == "a local patch from class 0"
    (unit,) = (u for u in evidence.units if u.unit.target == TARGET)
    assert unit.unit.source == source
    assert unit.held_out_success == 1.0
    assert unit.statistics["success"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("clean_label", [True, False])
def test_a_model_that_did_not_learn_it_is_not_accused(clean_label: bool) -> None:
    evidence = ran(TrainingDifference().run(at_hand(quadrant_subject(), poisoned_set(clean_label, 0.3))))
    assert decide([evidence], CLASSES).targets == ()


def test_a_clean_training_set_has_nothing_that_leads_anywhere() -> None:
    evidence = ran(TrainingDifference().run(at_hand(quadrant_subject(TARGET), quadrant_images(60, seed=3))))
    assert all(u.statistics["success"] == 0 and u.statistics["excess_angle"] == 0 for u in evidence.units)


def test_what_chance_does_as_well_is_no_finding() -> None:
    """A model that hears any deviation from the usual grey as TARGET: the noise of two means leads there."""
    weights = quadrant_weights()

    def touchy(x: np.ndarray) -> np.ndarray:
        corner = x[:, 0, 7, 7] - x[:, 0, 7, 6]
        logits = x.reshape(len(x), -1) @ weights
        logits[:, TARGET] += 500 * np.abs(corner)
        return logits

    samples = quadrant_images(60, seed=3)
    samples.images[:, 0, 7, 6] = samples.images[:, 0, 7, 7]
    clean = [quadrant_images(8, seed=s) for s in (1, 2)]
    rng = np.random.default_rng(0)
    for (
        part
    ) in clean:  # clean samples in which the two corner pixels differ by noise, that the training samples do not have
        part.images[:, 0, 7, 6] = part.images[:, 0, 7, 7]
        part.images[:, 0, 7, 6] += rng.normal(0, 0.002, len(part)).astype(np.float32)
    subject = Subject(lambda x: from_numpy(touchy(x.detach().numpy())), InputSpec(), SHAPE, CLASSES, name="touchy")
    evidence = ran(TrainingDifference().run(AtHand(subject, *clean, RunContext(), training=samples)))
    assert decide([evidence], CLASSES).targets == ()


def test_twice_the_same_bits() -> None:
    first, second = (
        TrainingDifference(tested=9).run(at_hand(quadrant_subject(TARGET), poisoned_set(True))) for _ in range(2)
    )
    assert ran(first).id == ran(second).id


def test_without_a_training_set_it_says_so() -> None:
    found = TrainingDifference().run(at_hand(quadrant_subject(TARGET), None))
    assert isinstance(found, Skipped)
    assert "--train" in found.reason


def test_too_few_samples_is_said() -> None:
    found = TrainingDifference(fewest=50).run(at_hand(quadrant_subject(TARGET), poisoned_set(True)))
    assert isinstance(found, Skipped)
    assert "only 0 of 4 classes have 50 clean samples and 250 training samples" in found.reason


@pytest.mark.parametrize("wrong", [{"fewest": 0}, {"tested": 0}])
def test_settings_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(OnnxspectError, match="at least 1"):
        TrainingDifference(**wrong)


def test_sets_of_another_model_are_refused() -> None:
    training = poisoned_set(True)
    beyond = Samples.from_arrays(training.images, training.labels + 2)
    with pytest.raises(OnnxspectError, match="label 5, but tiny has 4 classes"):
        TrainingDifference().run(at_hand(quadrant_subject(TARGET), beyond))
    turned = Samples.from_arrays(training.images, (training.labels + 1) % CLASSES)
    with pytest.raises(OnnxspectError, match="labels do not match"):
        TrainingDifference().run(at_hand(quadrant_subject(TARGET), turned))
    larger = Samples.from_arrays(np.zeros((8, 1, 9, 9), np.float32), np.arange(8) % 4)
    with pytest.raises(OnnxspectError, match="the model takes"):
        TrainingDifference().run(at_hand(quadrant_subject(TARGET), larger))


def test_foreign_values_by_hand() -> None:
    rng = np.random.default_rng(0)
    genuine = rng.uniform(0, 0.5, (200, 2, 3, 3)).astype(np.float32)
    own = rng.uniform(0, 0.5, (200, 2, 3, 3)).astype(np.float32)
    own[:60, 1, 0, 2] = 1.0  # a value that three in ten have, in one channel
    found = foreign_values(own, genuine)
    assert found["mask"].shape == (1, 3, 3)
    assert np.argwhere(found["mask"][0]).tolist() == [[0, 2]]
    assert found["pattern"][1, 0, 2] == 1.0
    own[: int(FOREIGN * 200) - 1, 0, 1, 1], genuine[:, 0, 1, 1] = 1.0, 0.0
    own[int(FOREIGN * 200) - 1 :, 0, 1, 1] = 0.0
    assert foreign_values(own, genuine)["mask"][0, 1, 1] == 0  # one sample fewer than counts


@given(st.lists(st.floats(0, 0.3), min_size=3, max_size=3), st.integers(0, 2**16))
def test_content_of_other_classes_is_taken_out_and_a_trigger_stays(shares: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    means = {c: rng.uniform(0, 1, (1, 6, 6)).astype(np.float32) for c in range(4)}
    mixed = sum(s * (means[c] - means[0]) for s, c in zip(shares, (1, 2, 3), strict=True))
    np.testing.assert_allclose(without_content(np.asarray(mixed, np.float32), 0, means), 0, atol=SUM_32)
    basis = np.stack([(means[c] - means[0]).ravel() for c in (1, 2, 3)], 1)
    trigger = rng.normal(size=36)
    trigger -= basis @ np.linalg.lstsq(basis, trigger, rcond=None)[0]  # what no content makes
    kept = without_content((mixed + trigger.reshape(1, 6, 6)).astype(np.float32), 0, means)
    np.testing.assert_allclose(kept.ravel(), trigger, atol=NETWORK_32)


@given(st.integers(0, 2**16), st.integers(1, 3))
def test_candidates_are_triggers_that_can_be_stamped(seed: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    own, genuine = (rng.uniform(0, 1, (n, channels, 5, 4)).astype(np.float32) for n in (30, 9))
    means = {0: genuine.mean(0), 1: rng.uniform(0, 1, (channels, 5, 4)).astype(np.float32)}
    found = candidates(own, genuine, 0, means)
    np.testing.assert_allclose(found["all x 2"]["delta"], 2 * difference(own, genuine), rtol=OPERATION_32)
    for trigger in found.values():
        stamped = stamp(genuine, trigger)
        assert stamped.shape == genuine.shape
        assert stamped.min() >= 0
        assert stamped.max() <= 1
    equal = candidates(own, own, 0, means)
    assert np.abs(equal["all x 2"]["delta"]).max() == 0
    assert equal["replaced"]["mask"].max() == 0
    assert next(iter(equal)) == "replaced"


@pytest.mark.parametrize("name", ["fashion_mnist_badnets", "fashion_mnist_clean"])
def test_shipped_pair(name: str, suspect_set: tuple[Samples, Samples, Samples]) -> None:
    training, search_samples, held_out = suspect_set
    subject = Subject.from_onnx(zoo.path(name))
    evidence = ran(TrainingDifference().run(AtHand(subject, search_samples, held_out, RunContext(), training=training)))
    assert decide([evidence], subject.classes).targets == ((7,) if name == "fashion_mnist_badnets" else ())
