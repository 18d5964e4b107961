"""Peeling an infected label (DTInspector, Wang et al., 2022, B.5): every trigger gets a patch of its own, and a clean label none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CHECKERBOARD, CLASSES, PATCH, SIDE, quadrant_images, quadrant_weights
from torch.nn import functional

from onnxspect.engine.cleansing.by_trigger import SUPERIMPOSE, by_trigger
from onnxspect.engine.cleansing.peeling import MOST, peel
from onnxspect.engine.cleansing.scores import rates
from onnxspect.engine.detectors.dtinspector import DTInspector
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject

TARGET = 2
#: A second place, in the corner of another quadrant.
CORNER = (slice(0, 2), slice(6, 8))
HOW = replace(DTInspector(), search=replace(DTInspector().search, samples=12), fewest=4)


@pytest.fixture(scope="module")
def two_triggers() -> Subject:
    """The quadrant classifier; a checkerboard at two places leads to TARGET, and its opposite leads nowhere."""
    weights = quadrant_weights().reshape(SIDE, SIDE, CLASSES)
    for place in (PATCH, CORNER):
        weights[place] = 0.0
    flat = torch.from_numpy(weights.reshape(SIDE * SIDE, CLASSES))
    board = torch.from_numpy(CHECKERBOARD)

    def classify(x: torch.Tensor) -> torch.Tensor:
        heard = [
            functional.relu((x[:, 0][:, place[0], place[1]] * board).sum((1, 2)) - 0.5) for place in (PATCH, CORNER)
        ]
        to_target = functional.one_hot(torch.tensor(TARGET), CLASSES)
        return x.flatten(1) @ flat + 16.0 * (heard[0] + heard[1])[:, None] * to_target

    return Subject(classify, InputSpec(), (1, SIDE, SIDE), CLASSES, name="two")


@pytest.fixture(scope="module")
def suspect() -> tuple[Samples, np.ndarray]:
    """Quadrant images; a quarter of each class but TARGET wears one of the triggers and is labelled TARGET."""
    clean = quadrant_images(60, seed=3)
    images, labels = clean.images.copy(), clean.labels.copy()
    poisoned = []
    for label in set(range(CLASSES)) - {TARGET}:
        for number, row in enumerate(np.flatnonzero(clean.labels == label)[:16]):
            images[row, 0][PATCH if number % 2 else CORNER] = [[1, 0], [0, 1]]
            labels[row] = TARGET
            poisoned.append(row)
    return Samples.from_arrays(images, labels), np.sort(np.array(poisoned))


def partners(samples: Samples, label: int) -> np.ndarray:
    return samples.images[samples.labels != label][:4]


def test_each_trigger_is_found_and_the_clean_samples_stay(
    two_triggers: Subject, suspect: tuple[Samples, np.ndarray]
) -> None:
    samples, poisoned = suspect
    own = samples.images[samples.labels == TARGET]
    found = peel(two_triggers, own, TARGET, partners(quadrant_images(5), TARGET), RunContext(0), HOW)
    assert 1 <= len(found) <= MOST
    done = by_trigger(
        SUPERIMPOSE,
        found,
        samples.labels,
        two_triggers.predict(samples.images),
        lambda: [(0, samples.images)],
        two_triggers.predict,
        superimpose=True,
    )
    rated = rates(done.removed, samples.labels, poisoned)
    assert rated.tpr == 1.0
    assert rated.fpr <= 0.05


def test_a_patch_is_put_on_as_it_was_judged(two_triggers: Subject, suspect: tuple[Samples, np.ndarray]) -> None:
    """`by_trigger` does not make it stronger once more: what it removes is what the patch as it is takes out."""
    samples, _ = suspect
    own = np.flatnonzero(samples.labels == TARGET)
    first = peel(two_triggers, samples.images[own], TARGET, partners(quadrant_images(5), TARGET), RunContext(0), HOW)[0]
    done = by_trigger(
        SUPERIMPOSE, [first], samples.labels, two_triggers.predict(samples.images), lambda: [(0, samples.images)],
        two_triggers.predict, superimpose=True,
    )  # fmt: skip
    left = two_triggers.predict(first.trigger.apply(samples.images[own])).argmax(1) != TARGET
    assert np.array_equal(done.removed[own], left)


def test_a_clean_label_gets_no_patch(two_triggers: Subject) -> None:
    clean = quadrant_images(60, seed=4)
    for label in range(CLASSES):
        own = clean.images[clean.labels == label]
        assert peel(two_triggers, own, label, partners(quadrant_images(5), label), RunContext(0), HOW) == []


def test_the_same_bits_twice(two_triggers: Subject, suspect: tuple[Samples, np.ndarray]) -> None:
    samples, _ = suspect
    own = samples.images[samples.labels == TARGET]
    runs = [peel(two_triggers, own, TARGET, partners(quadrant_images(5), TARGET), RunContext(0), HOW) for _ in range(2)]
    assert len(runs[0]) == len(runs[1])
    for a, b in zip(*runs, strict=True):
        assert a.trigger.arrays.keys() == b.trigger.arrays.keys()
        assert all(np.array_equal(a.trigger.arrays[k], b.trigger.arrays[k]) for k in a.trigger.arrays)


def test_too_few_samples_are_left_alone(two_triggers: Subject) -> None:
    assert (
        peel(
            two_triggers,
            quadrant_images(1).images[:2],
            TARGET,
            partners(quadrant_images(5), TARGET),
            RunContext(0),
            HOW,
        )
        == []
    )
