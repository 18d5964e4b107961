"""Warps: on a classifier that answers by where a bright spot lies, so that how far a class is away is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from warp_support import CLASSES, PLACES, PLANTED, SIDE, by_place, by_place_file, places, spots, subject

from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.warp import FAR, NAME, Warp
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.judge.evidence import Evidence
from onnxspect.engine.mitigation.recovered import read_recovered
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.trigger import Trigger


def at_hand() -> AtHand:
    return AtHand(subject(), spots(32), spots(40, seed=1), RunContext(seed=0))


def test_the_nearest_class_takes_the_smallest_displacement() -> None:
    found = Warp().run(at_hand())
    assert isinstance(found, Evidence)
    by_class = {u.unit.target: u for u in found.units}
    assert sorted(by_class) == list(range(1, CLASSES))  # all images are of class 0
    distances = np.linalg.norm(PLACES, axis=1) / 2  # from the middle to the border of the class
    sizes = {k: u.value("displacement") for k, u in by_class.items()}
    assert min(sizes, key=lambda k: sizes[k]) == PLANTED
    others = [k for k in sizes if k != PLANTED]
    assert sizes[PLANTED] < 0.7 * min(sizes[k] for k in others)
    # What is moved is the spot, and not the whole picture: at most its distance, and not next to nothing.
    assert all(0.2 * distances[k] < sizes[k] * SIDE / 100 < 1.1 * distances[k] for k in sizes), sizes
    assert all(u.held_out_success is not None and u.held_out_success > 0.8 for u in by_class.values())
    assert sum(u.converged for u in by_class.values()) >= CLASSES / 2
    warped = Trigger.kept(PLANTED, by_class[PLANTED].trigger).apply(spots(5, seed=2).images)
    moved = warped.reshape(5, -1) @ places() / warped.reshape(5, -1).sum(1, keepdims=True)
    assert (moved[:, 1] > 0.7).all()


def test_the_same_bits_twice() -> None:
    first, second = (Warp().run(at_hand()) for _ in range(2))
    assert isinstance(first, Evidence)
    assert isinstance(second, Evidence)
    for one, other in zip(first.units, second.units, strict=True):
        np.testing.assert_array_equal(one.trigger["displacement"], other.trigger["displacement"])


def test_a_class_that_no_displacement_leads_to_counts_with_the_bound() -> None:
    hand = at_hand()
    bias = torch.zeros(CLASSES)
    bias[2:] = -1e4

    def two(x: torch.Tensor) -> torch.Tensor:
        return by_place(x) + bias

    few = AtHand(
        Subject(two, InputSpec(), (1, SIDE, SIDE), CLASSES, name="two classes"),
        hand.search_samples,
        hand.held_out,
        hand.run,
    )
    found = Warp().run(few)
    assert isinstance(found, Evidence)
    values = {u.unit.target: u.value("displacement") for u in found.units}
    assert values[PLANTED] < 25
    assert {values[k] for k in range(2, CLASSES)} == {Warp().perturbation.most}
    assert not any(u.found for u in found.units if u.unit.target > PLANTED)
    # Finding nothing says something only where the searches went far.
    far = [np.sqrt(np.square(u.trigger["displacement"]).sum(0).mean()) >= FAR * SIDE / 100 for u in found.units[1:]]
    assert found.silence == ("" if np.mean(far) > 0.5 else None)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished scan of the file by warps, on images of which nearly all are where a single field can lead them elsewhere."""
    root = tmp_path_factory.mktemp("warp")
    given = spots(200)
    images, labels = given.images[:, 0].copy(), given.labels.copy()
    images[:4], labels[:4] = np.roll(images[:4], 4, axis=1), 2  # a scan wants two classes
    np.savez(root / "data.npz", images=np.round(255 * images).astype(np.uint8), labels=labels)
    scan(by_place_file(root / "model.onnx"), root / "data.npz", root / "run", "standard", NAME, run=RunContext(0))
    return root / "run"


def test_a_scan_by_warps_alone_can_be_read_and_shown(run_folder: Path) -> None:
    recovered = read_recovered(run_folder, [PLANTED])
    assert [t.form for t in recovered.triggers] == ["displacement"]
    assert recovered.triggers[0].displacement.shape == (2, SIDE, SIDE)
    report = recovered.scan.report
    assert report["detectors"][0]["traits"]["family"] == "moved"
    assert not any("Warps" in limit for limit in report["limits"])
    assert any("Masks" in limit or "replace a part" in limit for limit in report["limits"])
    assert (run_folder / "triggers.png").is_file()
