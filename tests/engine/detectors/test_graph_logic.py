"""Dormant logic is woken: a working trigger, measured in onnxruntime, makes a verdict; and the cut takes it out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import quadrant_images, saved
from hidden_logic import PAYLOADS, SIDE, TARGET, Payload, opened, stamped

from onnxspect.converters.proof.compare import compare
from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.graph_logic import NAME, GraphLogic
from onnxspect.engine.jobs.patch import patch
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.judge.evidence import Evidence
from onnxspect.engine.mitigation.graph_edit import without_additions
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.file_classifier import file_answers, file_scores
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.models import zoo


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    return onnx.load(zoo.path("fashion_mnist_clean"))


#: Those that are told apart by what wakes them; benchmarks/graph_logic.py has all of them, on trained networks of many kinds.
WOKEN = (
    *("comparison", "where_and_zeros", "product_of_relus", "pooling_only", "equality", "sum_with_a_decoy"),
    *("where_inside", "matched_filter", "checksum", "two_regions", "brightest", "softmax_gate"),
)


def woken(subject: Subject, samples: Samples) -> Evidence:
    halves = samples.take(np.arange(60)), samples.take(np.arange(60, 120))
    evidence = GraphLogic().run(AtHand(subject, *halves, RunContext()))
    assert isinstance(evidence, Evidence)
    return evidence


@pytest.mark.parametrize("name", WOKEN)
def test_a_payload_is_woken(name: str, network: onnx.ModelProto, clean_samples: Samples, tmp_path: Path) -> None:
    subject = opened(saved(PAYLOADS[name](Payload(network)), tmp_path / "payload.onnx"))
    evidence = woken(subject, clean_samples)
    planted = int(file_answers(subject, stamped(clean_samples.images[:1], name))[0])
    (unit,) = evidence.units
    assert unit.unit.target == planted
    assert unit.statistics["log10_p"] < -6
    assert unit.statistics["success_with_part_asleep"] < 0.5
    assert unit.held_out_success is not None
    assert unit.held_out_success > 0.9
    # Measured once more, on other images.
    others = clean_samples.take(np.arange(500, 600))
    trigger = unit.stampable
    assert trigger is not None
    rows = others.labels != planted
    assert (file_answers(subject, trigger.apply(others.images[rows])) == planted).mean() > 0.9


def test_the_trigger_is_no_larger_than_need_be(
    network: onnx.ModelProto, clean_samples: Samples, tmp_path: Path
) -> None:
    subject = opened(saved(PAYLOADS["comparison"](Payload(network)), tmp_path / "p.onnx"))
    (unit,) = woken(subject, clean_samples).units
    mask, pattern = unit.trigger["mask"][0] > 0, unit.trigger["pattern"]
    corner = np.zeros_like(mask)
    corner[:SIDE, :SIDE] = True
    np.testing.assert_array_equal(mask, corner)
    assert (pattern[:, corner] > 0.95).all()
    np.testing.assert_array_equal(pattern, np.round(pattern * 255).astype(np.float32) / np.float32(255))


def test_ordinary_files_have_nothing_to_wake(clean_samples: Samples, planted_file: Path) -> None:
    """Nor has a backdoor in the weights."""
    assert woken(opened(zoo.path("fashion_mnist_badnets")), clean_samples).units == ()
    tiny = GraphLogic().run(
        AtHand(Subject.from_onnx(planted_file), quadrant_images(10), quadrant_images(10, 1), RunContext())
    )
    assert isinstance(tiny, Evidence)
    assert tiny.units == ()


@pytest.fixture(scope="module")
def scanned(network: onnx.ModelProto, clean_samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with payload.onnx, clean.npz and the run of a scan by this detector alone."""
    work = tmp_path_factory.mktemp("scanned")
    saved(PAYLOADS["saturation"](Payload(network)), work / "payload.onnx")
    few = clean_samples.take(np.arange(300))
    np.savez(
        work / "clean.npz", images=(255 * few.images).round().astype(np.uint8).transpose(0, 2, 3, 1), labels=few.labels
    )
    report = scan(work / "payload.onnx", work / "clean.npz", work / "run", "quick", detectors=[NAME])
    assert report.verdict == "backdoored"
    return work


def test_a_scan_names_the_class_and_shows_the_trigger(scanned: Path) -> None:
    report = scan(scanned / "payload.onnx", scanned / "clean.npz", scanned / "run", "quick", detectors=[NAME])
    assert report.targets == (TARGET,)
    assert report.p_value < 1e-6
    row = report.classes[TARGET]
    assert row.named
    assert "graph logic" in row.kind
    assert row.held_out_success[NAME] == 1.0
    assert row.trigger is not None
    assert "wakes logic" in report.reasons[0]
    assert any("hidden_Relu" in reason for reason in report.reasons)
    assert (scanned / "run" / f"trigger-class-{TARGET}.png").exists()
    assert sum(c.named for c in report.classes) == 1


def test_the_cut_leaves_clean_answers_as_they_are_and_the_trigger_dead(scanned: Path, clean_samples: Samples) -> None:
    out = scanned / "cut.onnx"
    done = patch(scanned / "payload.onnx", scanned / "run", scanned / "clean.npz", out, "cut")
    assert done.method == "cut"
    assert done.attempts[0].facts["bit_identical"] is True
    before, after = opened(scanned / "payload.onnx"), opened(out)
    unseen = clean_samples.images[400:]
    np.testing.assert_array_equal(file_scores(before, unseen), file_scores(after, unseen))
    bad = stamped(unseen, "saturation")
    assert (file_answers(before, bad) == TARGET).all()
    np.testing.assert_array_equal(file_answers(after, bad), file_answers(opened(zoo.path("fashion_mnist_clean")), bad))
    plain, lines = without_additions(onnx.load(scanned / "payload.onnx"), onnx.load(out))
    assert any("hidden_Relu" in line for line in lines)
    assert {d.kind for d in compare(onnx.load(scanned / "payload.onnx"), plain)} == {"metadata"}
    assert woken(opened(out), clean_samples).units == ()


def test_a_decision_is_frozen_too(network: onnx.ModelProto, clean_samples: Samples, tmp_path: Path) -> None:
    """onnxruntime has no Where of truth values."""
    path = saved(PAYLOADS["where"](Payload(network)), tmp_path / "payload.onnx")
    few, data = clean_samples.take(np.arange(200)), tmp_path / "clean.npz"
    np.savez(data, images=(255 * few.images).round().astype(np.uint8).transpose(0, 2, 3, 1), labels=few.labels)
    scan(path, data, tmp_path / "run", "quick", detectors=[NAME])
    patch(path, tmp_path / "run", data, tmp_path / "cut.onnx", "cut")
    bad = stamped(few.images, "where")
    np.testing.assert_array_equal(
        file_answers(opened(tmp_path / "cut.onnx"), bad),
        file_answers(opened(zoo.path("fashion_mnist_clean")), bad),
    )
