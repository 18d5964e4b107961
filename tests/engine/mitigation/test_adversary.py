"""A moving trigger climbs towards its target, stays within its bounds, and leaves what it started from alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import CHECKERBOARD, PATCH, SIDE, quadrant_images
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import NETWORK_32, SUM_32
from warp_support import PLANTED, spots
from warp_support import SIDE as WIDE
from warp_support import subject as by_place

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.adversary import MovingTrigger, within
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import Trigger, stamp

TARGET = 2
SAMPLES = quadrant_images(12)


def weak(family: str) -> Trigger:
    """A trigger in the right place that is too weak to work: a quarter of the planted one."""
    if family == "delta":
        delta = np.zeros((1, SIDE, SIDE), np.float32)
        delta[(0, *PATCH)] = 0.1 * CHECKERBOARD
        return Trigger(TARGET, {"delta": delta})
    mask, pattern = np.full((1, SIDE, SIDE), 0.01, np.float32), np.full((1, SIDE, SIDE), 0.5, np.float32)
    mask[(0, *PATCH)] = 0.1
    return Trigger(TARGET, {"mask": mask, "pattern": pattern})


def share(subject: Subject, samples: Samples, arrays: dict[str, np.ndarray]) -> float:
    rows = samples.labels != TARGET
    return float((subject.predict(stamp(samples.images[rows], arrays)).argmax(1) == TARGET).mean())


@pytest.mark.parametrize("family", ["delta", "mask"])
def test_it_climbs_to_the_planted_trigger_within_its_bound(planted: Subject, family: str) -> None:
    start = weak(family)
    before = {name: array.copy() for name, array in start.arrays.items()}
    reach = 8.0
    moving = MovingTrigger(start, SAMPLES, reach, steps=4)
    generator = torch.Generator().manual_seed(0)
    arrays = dict(start.arrays)
    at_first = share(planted, SAMPLES, arrays)
    for _ in range(10):
        arrays = moving.advance(planted, generator)
        assert Trigger(TARGET, arrays).size <= reach * start.size * (1 + SUM_32)
        for name, (low, high) in {"delta": (-1, 1), "mask": (0, 1), "pattern": (0, 1)}.items():
            assert name not in arrays or (low <= arrays[name].min() and arrays[name].max() <= high)
    assert at_first < 0.5
    assert share(planted, SAMPLES, arrays) > 0.95
    # Where the planted weight is, there the trigger has grown most.
    grown = np.abs(arrays["mask" if family == "mask" else "delta"])[0]
    rows, columns = PATCH
    assert (rows.start, columns.start) <= np.unravel_index(int(grown.argmax()), grown.shape) < (rows.stop, columns.stop)
    for name, array in before.items():
        np.testing.assert_array_equal(start.arrays[name], array)


def test_a_warp_climbs_within_its_bound() -> None:
    start = Trigger(PLANTED, {"displacement": np.full((2, WIDE, WIDE), 0.05, np.float32)})
    images, student, generator = spots(24), by_place(), torch.Generator().manual_seed(0)
    moving = MovingTrigger(start, images, 40.0, steps=4)
    for _ in range(5):
        moved = Trigger(PLANTED, moving.advance(student, generator))
        assert moved.size <= 40 * start.size * (1 + SUM_32)
    led = [(student.predict(t.apply(images.images)).argmax(1) == PLANTED).mean() for t in (start, moved)]
    assert led[0] == 0
    assert led[1] > 0.9


def test_it_moves_on_the_images_of_its_source_alone(planted: Subject) -> None:
    """Other classes' images may be anything: what is not looked at cannot change the steps."""
    trigger = Trigger(TARGET, dict(weak("delta").arrays), source=0)
    spoilt = SAMPLES.images.copy()
    spoilt[SAMPLES.labels != 0] = 0.0
    moved = [
        MovingTrigger(trigger, s, 4.0, 3).advance(planted, torch.Generator().manual_seed(1))["delta"]
        for s in (SAMPLES, Samples(spoilt, SAMPLES.labels))
    ]
    assert moved[0].tobytes() == moved[1].tobytes()
    with pytest.raises(OnnxspectError, match="no samples"):
        MovingTrigger(trigger, SAMPLES.take(np.flatnonzero(SAMPLES.labels == TARGET)), 4.0, 3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30), st.floats(0.0, 20.0))
def test_within_is_the_nearest_mask_in_the_ball(values: list[float], bound: float) -> None:
    """Against its definition: in the ball, one threshold for all values, and as much left as the bound allows."""
    mask = torch.tensor(values, dtype=torch.float32)
    inside = within(mask, bound)
    assert float(inside.sum()) <= bound * (1 + SUM_32) + SUM_32
    if float(mask.sum()) <= bound:
        assert torch.equal(inside, mask)
        return
    assert float(inside.sum()) == pytest.approx(bound, abs=NETWORK_32)
    left = inside > 0
    fallen = (mask - inside)[left]
    assert float(fallen.max() - fallen.min()) < SUM_32 if left.any() else bound < NETWORK_32
    if left.any():
        assert (mask[~left] <= fallen.max() + SUM_32).all()
