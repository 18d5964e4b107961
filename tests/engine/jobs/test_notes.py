"""Nothing silent: what was changed, guessed or left out on the way to a verdict or a patch is in the document that is left."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from conftest import CLASSES, SIDE, quadrant_images, quadrant_model, quadrant_weights, saved
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from onnxspect.converters.sources.convert import convert
from onnxspect.engine.detectors.base import AtHand, Detector
from onnxspect.engine.jobs.prove import prove
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.judge.evidence import Evidence
from onnxspect.engine.judge.traits import Traits
from onnxspect.engine.readers.forms import open_reader
from onnxspect.engine.report import as_markdown
from onnxspect.engine.report.result import Report
from onnxspect.engine.run import RunContext, Silent
from onnxspect.engine.subject.activations import open_training_set
from onnxspect.engine.subject.preprocessing import PROBABILITIES
from onnxspect.engine.subject.samples import Samples

SCHEMA = json.loads((Path(__file__).parents[3] / "docs/report.schema.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class FewerThanAsked(Detector):
    """Finds nothing, and says that it did something else than it was set to."""

    name: ClassVar[str] = "fewer"
    traits: ClassVar[Traits] = Traits(references=True)

    def run(self, at_hand: AtHand) -> Evidence:
        assert at_hand.references == []
        return Evidence(self.name, {}, "l1", "l1", "low", (), notes=("groups of 3 instead of 9",))


class Told(Silent):
    """Remembers what is said while it runs."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


def two_headed() -> onnx.ModelProto:
    """The tiny classifier with a softmax behind a scale that training left open, and a second head of as many classes."""
    model = quadrant_model(2)
    graph = model.graph
    graph.node[-1].output[0] = "raw"
    other = np.random.default_rng(0).normal(size=quadrant_weights().shape).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(other, "other"))
    graph.node.append(helper.make_node("Mul", ["raw", "keep_prob"], ["logits"]))
    graph.node.append(helper.make_node("MatMul", ["flat", "other"], ["colour"]))
    graph.input.append(helper.make_tensor_value_info("keep_prob", TensorProto.FLOAT, []))
    graph.output.append(helper.make_tensor_value_info("colour", TensorProto.FLOAT, ["n", CLASSES]))
    return model


def folder(root: Path, samples: Samples, mode: str) -> Path:
    """The samples as PNG files by class; all but every third have an alpha channel."""
    for i, (image, k) in enumerate(zip(samples.images, samples.labels, strict=True)):
        place = root / str(k)
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.round(image[0] * 255).astype(np.uint8))
        (picture.convert(mode) if i % 3 else picture).save(place / f"{i:03d}.png")
    return root


def scanned(model: Any, data: Any, out: Path, **options: Any) -> tuple[Report, list[str]]:
    told = Told()
    return scan(model, data, out, "quick", FewerThanAsked(), run=RunContext(observer=told), **options), told.notices


def test_what_was_done_on_the_way_is_in_the_report_and_on_its_pages(tmp_path: Path) -> None:
    model = saved(two_headed(), tmp_path / "m.onnx")
    data = folder(tmp_path / "data", quadrant_images(3), "LA")
    train = folder(tmp_path / "train", quadrant_images(9), "RGBA")
    report, said = scanned(model, data, tmp_path / "run", train=train)
    jsonschema.validate(report.document, SCHEMA)
    notes = report.document["notes"]
    for told in (
        "input keep_prob is taken as 1, as in use",
        "several outputs hold class scores; of 12 samples they classify correctly: logits 100.0%, colour",
        "8 images have an alpha channel",
        "training set: 24 images have an alpha channel",
        "training set: 24 images are in colour: converted to grey",
    ):
        assert len([n for n in notes if told in n]) == 1, told
        assert [s for s in said if told in s], told  # and before the searches begin
    assert (
        "no reference network learned these classes from 8 samples: classes were compared with each other only" in notes
    )
    assert "fewer: groups of 3 instead of 9" in notes
    markdown = as_markdown.render(report.document).replace("\\", "")
    for shown in (report.text(), report.html(), markdown):
        words = " ".join(shown.split())
        assert all(note.split(" (")[0].split(";")[0] in words for note in notes)
    assert Report.open(tmp_path / "run").document["notes"] == notes


def test_how_a_file_was_converted_is_said_whenever_it_is_scanned(tmp_path: Path) -> None:
    unsorted = quadrant_model(2)
    unsorted.graph.node.append(unsorted.graph.node.pop(0))
    made = convert(saved(unsorted, tmp_path / "unsorted.onnx"), tmp_path / "m.onnx")
    assert made.facts == json.loads(made.sidecar.read_text())
    assert made.warnings
    np.savez(tmp_path / "data.npz", images=quadrant_images(3).images, labels=quadrant_images(3).labels)
    report, _ = scanned(made.out, tmp_path / "data.npz", tmp_path / "run")
    assert f"converted: {made.warnings[0]}" in report.document["notes"]
    facts = {
        **made.facts,
        "warnings": [3, "", "x\x1b[2J" + 500 * "y"],
    }  # a stranger's file: text alone, and no more than a line
    made.sidecar.write_text(json.dumps(facts))
    report, _ = scanned(made.out, tmp_path / "data.npz", tmp_path / "again")
    (note,) = [n for n in report.document["notes"] if n.startswith("converted")]
    assert note.startswith("converted: x\\x1b[2Jyyy")
    assert len(note) < 420


def test_probabilities_whose_softmax_nobody_sees_are_said(tmp_path: Path) -> None:
    linear = nn.Linear(SIDE * SIDE, CLASSES, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(quadrant_weights(2).T))
    module = nn.Sequential(nn.Flatten(), linear, nn.Softmax(1))
    report, said = scanned(module, quadrant_images(3), tmp_path / "run")
    assert PROBABILITIES in report.document["notes"]
    assert PROBABILITIES in said


def test_a_proof_says_how_its_samples_were_read(tmp_path: Path) -> None:
    model = saved(quadrant_model(2), tmp_path / "m.onnx")
    data = folder(tmp_path / "data", quadrant_images(8), "LA")
    np.savez(tmp_path / "t.npz", target=2, mask=np.ones((SIDE, SIDE)), pattern=np.ones((SIDE, SIDE)))
    proof = prove(model, model, data, trigger=tmp_path / "t.npz")
    assert any("21 images have an alpha channel" in n for n in proof.notes)
    assert proof.describe()["notes"] == list(proof.notes)


@pytest.mark.parametrize("times", [1, 3])
def test_a_set_that_is_read_again_has_no_more_pictures(times: int, tmp_path: Path) -> None:
    root = folder(tmp_path / "data", quadrant_images(8), "LA")
    reader, training = open_reader(root), open_training_set(root, (3, SIDE, SIDE))
    for _ in range(times):
        list(reader.images())
        list(training.batches())
    list(reader.images([0, 1]))
    assert reader.notes()[0].startswith("21 images have an alpha")
    assert next(n for n in training.notes if "are grey" in n).startswith("32 images")
