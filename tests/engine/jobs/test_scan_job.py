"""The scan as a call: a model and data in memory, a search that is narrowed, and the report as values."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import numpy as np
import pytest
import torch
from conftest import CHECKERBOARD, CLASSES, PATCH, SIDE, quadrant_images, quadrant_model, quadrant_weights, saved
from torch import nn

from onnxspect import (
    Detector,
    InputSpec,
    OnnxspectError,
    Report,
    RunContext,
    SearchConfig,
    Subject,
    patch,
    scan,
    verify,
)
from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.max_margin import MaxMargin
from onnxspect.engine.detectors.neural_cleanse import NeuralCleanse
from onnxspect.engine.detectors.registry import chosen
from onnxspect.engine.jobs.scan import _of_part
from onnxspect.engine.judge.evidence import Evidence, Unit, UnitEvidence, View
from onnxspect.engine.judge.measurement import measured
from onnxspect.engine.judge.traits import Traits
from onnxspect.engine.judge.verdict import Verdict
from onnxspect.engine.mitigation.method import Edit, PatchInput
from onnxspect.engine.mitigation.training import trainable_copy
from onnxspect.engine.trigger import stamp

SAMPLES = quadrant_images(30)
KNOWN = InputSpec()


@dataclass(frozen=True)
class Planted(Detector):
    """Stamps the patch that was planted, on every class's behalf: a detector whose answer is known by hand."""

    name: ClassVar[str] = "planted-patch"
    traits: ClassVar[Traits] = Traits(references=False)
    pair: tuple[float, float] = (0.5, 0.9)  # a setting that JSON knows in another form

    def run(self, at_hand: AtHand) -> Evidence:
        mask, pattern = np.zeros((2, 1, SIDE, SIDE), np.float32)
        mask[:, PATCH[0], PATCH[1]], pattern[:, PATCH[0], PATCH[1]] = 1, np.maximum(CHECKERBOARD, 0)
        trigger = {"mask": mask, "pattern": pattern}
        units = []
        for t in at_hand.targets:
            others = at_hand.held_out.images[at_hand.held_out.labels != t]
            led = float((at_hand.subject.predict(stamp(others, trigger)).argmax(1) == t).mean())
            units.append(UnitEvidence(Unit(t), measured(led=led), True, True, 0, led, led, len(others), trigger))
        view = View("led", "high", log=False, noise=0.05)
        return Evidence(self.name, self.settings(), "led", "led", "high", tuple(units), (view,))


@dataclass(frozen=True)
class Clip:
    """Weights within [-1, 1]: the planted ones are 8 and -8, the others 0 and 1."""

    name: ClassVar[str] = "clip"
    trains: ClassVar[bool] = False
    mends: ClassVar[bool] = True

    def edit(self, given: PatchInput) -> Edit:
        _, parameters = trainable_copy(given.subject)
        return Edit({name: p.detach().numpy().clip(-1, 1) for name, p in parameters.items()})


def live(target: int | None = 2, scale: float = 1.0) -> nn.Module:
    linear = nn.Linear(SIDE * SIDE, CLASSES, bias=False)
    with torch.no_grad():
        linear.weight.copy_(scale * torch.from_numpy(quadrant_weights(target).T))
    return nn.Sequential(nn.Flatten(), linear)


def scanned(model: Any, out: Path, **options: Any) -> Report:
    return scan(model, SAMPLES, out, "quick", options.pop("detectors", Planted()), KNOWN, **options)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of a model that is in memory alone."""
    return scanned(quadrant_model(2), tmp_path_factory.mktemp("scan") / "run")


def test_the_report_as_values(report: Report) -> None:
    assert (report.verdict, report.targets, report.resumed) == ("backdoored", (2,), 0)
    assert report.p_value == min(c.p_value for c in report.classes) < 0.02
    assert [c.index for c in report.classes if c.named] == [2]
    row = report.classes[2]
    assert (row.name, row.statistic, row.held_out_success) == ("2", {"planted-patch": 1.0}, {"planted-patch": 1.0})
    assert "local patch" in row.kind
    assert report.reasons[0].startswith("class 2 is reached")
    assert any("neural-cleanse" in limit for limit in report.limits)
    assert report.to_dict() == report.document == report.report
    report.to_dict()["verdict"] = "clean"
    assert report.verdict == "backdoored"


def test_triggers_are_arrays(report: Report) -> None:
    trigger = report.classes[2].trigger
    assert trigger is not None
    assert (trigger.target, trigger.masked) == (2, True)
    with pytest.raises(OnnxspectError, match="this trigger has no delta"):
        _ = trigger.delta
    assert trigger.mask.shape == trigger.pattern.shape == (1, SIDE, SIDE)
    assert trigger.mask.dtype == np.float32
    assert np.argwhere(trigger.mask[0]).tolist() == [[3, 3], [3, 4], [4, 3], [4, 4]]
    np.testing.assert_array_equal(trigger.pattern[0][PATCH], np.maximum(CHECKERBOARD, 0))
    answers = Subject.from_module(live(), (1, SIDE, SIDE)).predict(trigger.apply(SAMPLES.images)).argmax(1)
    assert (answers == 2).all()
    assert list(report.classes[2].triggers) == ["planted-patch"]
    assert report.evidence("planted-patch")[2].held_out > 0
    with pytest.raises(OnnxspectError, match=r"'cepa' did not run.*planted-patch"):
        report.evidence("cepa")


def test_it_pickles_and_opens_again(report: Report) -> None:
    assert report.classes[2].trigger is not None  # what was read is not pickled with it
    again = pickle.loads(pickle.dumps(report))  # noqa: S301 - our own
    assert again == report
    assert again.classes[2].trigger.mask.sum() == 4
    assert Report.open(report.folder) == report
    assert copy.copy(report) == report


def test_arrays_are_read_when_they_are_asked_for(report: Report, tmp_path: Path) -> None:
    shutil.copytree(report.folder, tmp_path / "moved")
    moved = Report(report.document, tmp_path / "moved")
    shutil.rmtree(moved.folder)
    assert moved.verdict == "backdoored"
    assert moved.classes[2].p_value == report.classes[2].p_value
    with pytest.raises(OnnxspectError, match="no run in this folder"):
        _ = moved.classes[2].trigger


def test_it_shows_itself(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    report.show()
    assert "BACKDOORED" in capsys.readouterr().out
    assert report.text().startswith("BACKDOORED  model in memory")
    assert "\x1b" not in report.text()
    frame = report._repr_html_()
    assert frame.startswith('<iframe srcdoc="<!doctype html>')
    assert 'sandbox=""' in frame
    assert frame.count('"') == 6  # what is inside cannot end the attribute
    assert "data:image/png;base64," in report.html()
    assert "verdict='backdoored'" in repr(report)
    assert len(repr(report)) < 300


def test_a_model_in_memory_is_kept_for_the_patch(report: Report, tmp_path: Path) -> None:
    """From the scan to the proof without a file of one's own: the run folder has what was scanned."""
    model = report.folder / "model.onnx"
    assert report.document["model"]["path"] == "model in memory"
    assert Subject.from_onnx(model).sha256 == report.document["model"]["sha256"]
    done = patch(quadrant_model(2), report, SAMPLES, tmp_path / "patched.onnx", Clip())
    assert (done.method, done.proof.holds) == ("clip", True)
    proof = verify(tmp_path / "patched.onnx", model, (SAMPLES.images, SAMPLES.labels), report)
    assert (proof.holds, [t.after for t in proof.triggers]) == (True, [0.0])


def test_the_same_scan_in_memory_is_found_again(report: Report) -> None:
    again = scan(quadrant_model(2), (SAMPLES.images, SAMPLES.labels), report.folder, "quick", [Planted()], KNOWN)
    assert again == report


def test_a_live_module_is_known_by_its_weights(tmp_path: Path, schema: dict[str, Any]) -> None:
    found = scanned(live(), tmp_path / "run")
    assert (found.verdict, found.targets) == ("backdoored", (2,))
    assert found.document["model"]["path"] == "Sequential"
    assert found.document["model"]["sha256"] == Subject.from_module(live(), (1, SIDE, SIDE)).sha256
    jsonschema.validate(found.to_dict(), schema)
    assert not (tmp_path / "run" / "model.onnx").exists()
    assert scanned(live(), tmp_path / "run") == found
    with pytest.raises(OnnxspectError, match="holds a run with other model"):
        scanned(live(scale=1.5), tmp_path / "run")
    with pytest.raises(OnnxspectError, match="no ONNX file behind"):
        patch(live(), found, SAMPLES, tmp_path / "patched.onnx")


@pytest.fixture
def schema() -> dict[str, Any]:
    page = Path(__file__).parents[3] / "docs" / "report.schema.json"
    return dict(json.loads(page.read_text()))


def test_narrowed_to_some_classes(tmp_path: Path) -> None:
    """What it searches for it finds; what it did not find it does not call clean."""
    detectors = [Planted(), MaxMargin()]
    model = saved(quadrant_model(None), tmp_path / "clean.onnx")
    part = scanned(model, tmp_path / "part", detectors=detectors, classes=[3, 0, 1, 1, 0])
    assert {u.unit.target for u in part.evidence("planted-patch")} == {0, 1, 3}
    assert part.document["detectors"][0]["reason"] == "3 classes are too few to compare (at least 4)"
    assert part.verdict == "inconclusive"
    assert part.reasons[0].startswith("only triggers to the classes 0, 1, 3 were searched for")
    assert part.limits[0] == "Only triggers to the classes 0, 1, 3 were searched for."
    assert part.classes[2].statistic["planted-patch"] is None
    whole = scanned(model, tmp_path / "whole", detectors=detectors, classes=range(CLASSES))
    assert not any("Only triggers" in limit for limit in whole.limits)
    for wrong in (4, -1, True, "2"):
        with pytest.raises(OnnxspectError, match="is no class of the model"):
            scanned(model, tmp_path / "wrong", classes=[wrong])


def test_a_part_is_never_clean() -> None:
    clean = Verdict("clean", (), 0.7, ("no class stands out",), ())
    found = _of_part(clean, (0, 1, 2, 3, 4))
    assert (found.verdict, found.targets, found.p_value) == ("inconclusive", (), 0.7)
    assert found.reasons[1:] == clean.reasons
    assert _of_part(clean, ()) is clean
    named = Verdict("backdoored", (3,), 1e-5, ("class 3",), ())
    assert _of_part(named, (2, 3)) is named


@pytest.mark.parametrize(
    "name", ["neural-cleanse", "reverse-engineering", "cepa", "dtinspector", "training-difference"]
)
def test_every_detector_searches_the_classes_that_it_is_told(name: str, planted: Subject) -> None:
    (detector,) = chosen("quick", [name], search=None if name == "training-difference" else {"steps": 2, "samples": 4})
    search_samples, held_out = SAMPLES.split(0.5, np.random.default_rng(0))
    at_hand = AtHand(planted, search_samples, held_out, RunContext(), training=quadrant_images(80, 1), classes=(1, 3))
    evidence = detector.run(at_hand)
    targets = {u.unit.target for u in evidence.units} if isinstance(evidence, Evidence) else set()
    assert targets <= {1, 3}
    if name not in ("dtinspector", "training-difference"):  # which compare at least four classes
        assert targets == {1, 3}


def test_searching_harder_or_less() -> None:
    usual = chosen("quick", ["neural-cleanse", "max-margin"])
    changed = chosen("quick", ["neural-cleanse", "max-margin"], search={"steps": 7, "success": 1})
    assert [d.search.steps for d in changed] == [7, 7]  # type: ignore[attr-defined]
    assert [d.search.learning_rate for d in changed] == [d.search.learning_rate for d in usual]  # type: ignore[attr-defined]
    whole = chosen("quick", NeuralCleanse(), search=SearchConfig(steps=9))
    assert whole == [NeuralCleanse(search=SearchConfig(steps=9))]
    assert chosen("quick", "neural-cleanse", search={}) == chosen("quick", ["neural-cleanse"])


WRONG: dict[str, tuple[Any, Iterable[Any], str]] = {
    "no such field": ({"step": 7}, ["max-margin"], "SearchConfig has no field 'step'.*steps"),
    "text": ({"steps": "7"}, ["max-margin"], "steps is '7', not of type int"),
    "a number for a flag": ({"stop_at_success": 1}, ["max-margin"], "not of type bool"),
    "a flag for a number": ({"steps": True}, ["max-margin"], "steps is True, not of type int"),
    "no mapping": (7, ["max-margin"], "search is 7"),
    "nothing searches": ({"steps": 7}, ["training-difference"], "training-difference searches nothing"),
    "twice": (None, [NeuralCleanse(), NeuralCleanse(pairs=True)], "two detectors are called 'neural-cleanse'"),
    "a class": (None, [NeuralCleanse], r"give an object: NeuralCleanse\(\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_searched(case: str) -> None:
    search, names, said = WRONG[case]
    with pytest.raises(OnnxspectError, match=said):
        chosen("quick", list(names), search=search)


def test_ours_in_another_setting_stands_where_ours_stands() -> None:
    own = MaxMargin(search=SearchConfig(steps=3))
    assert chosen("quick", [Planted(), "neural-cleanse", own])[0] is own
    assert [d.name for d in chosen("quick", [Planted(), "max-margin"])] == ["max-margin", "planted-patch"]
