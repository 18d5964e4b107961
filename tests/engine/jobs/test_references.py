"""References that are made without a model: what may be asked for, and what is taken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, SIDE, quadrant_images, quadrant_model, saved

from onnxspect.engine.detectors.cepa import Cepa
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.case import Reading
from onnxspect.engine.jobs.references import ReferencesWantedError, Request, Shelf, search_references
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.readers.labels import ClassList
from onnxspect.engine.run import RunContext
from onnxspect.engine.run_folder import REQUEST
from onnxspect.engine.search.search import SearchConfig
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.resizing import Resize

GOOD = {"classes": 4, "names": None, "shape": [1, 8, 8], "size": None, "way": False}


@pytest.mark.parametrize(
    "reading",
    [
        Reading(),
        Reading((3, 32, 32), Resize("crop", 40, 32), ClassList(("a", "b"), "the model", certain=False)),
        Reading((3, 32, 32), True, None),
    ],
)
def test_a_request_comes_back_as_it_was(reading: Reading, tmp_path: Path) -> None:
    request = Request((3, 32, 32), 2, reading)
    (tmp_path / "r.json").write_text(request.text())
    assert Request.read(tmp_path / "r.json") == request
    assert Request.read(tmp_path / "r.json").key == request.key


@pytest.mark.parametrize(
    "changed",
    [
        {"classes": 1}, {"classes": 10**9}, {"classes": "4"}, {"shape": [1, 8]}, {"shape": [1, 8, 10**6]}, {"shape": [0, 8, 8]},
        {"size": 3}, {"way": "crop"}, {"way": {"how": "nonsense", "shorter": None, "crop": None}}, {"names": [1]}, {"more": 1},
    ],
)  # fmt: skip
def test_nonsense_is_no_request(changed: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(GOOD | changed))
    with pytest.raises(OnnxspectError, match="no request for references"):
        Request.read(tmp_path / "r.json")


def test_samples_of_another_form_are_refused(tmp_path: Path) -> None:
    samples = quadrant_images(3)
    with pytest.raises(OnnxspectError, match=r"references for \(3, 8, 8\)"):
        search_references(Request((3, SIDE, SIDE), CLASSES, Reading()), samples, tmp_path / "out", "quick")


def test_a_folder_that_holds_a_scan_is_left_alone(tmp_path: Path) -> None:
    samples, request = quadrant_images(8), Request((1, SIDE, SIDE), CLASSES, Reading())
    scan(
        saved(quadrant_model(1), tmp_path / "m.onnx"),
        samples,
        tmp_path / "run",
        "quick",
        ["max-margin"],
        run=RunContext(),
    )
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(OnnxspectError, match="holds a scan"):
        search_references(request, samples, tmp_path / "run", "quick", ["cepa"])
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_other_references_make_room_where_nothing_else_is_there(tmp_path: Path) -> None:
    samples, request = quadrant_images(8), Request((1, SIDE, SIDE), CLASSES, Reading())
    detector = Cepa(search=SearchConfig(steps=3, samples=4, success=0.9), carried=0)
    out = tmp_path / "out"
    search_references(request, samples, out, "quick", [detector], run=RunContext(seed=1))
    first = (out / "reference-0.npz").read_bytes()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OnnxspectError, match="other files"):
        search_references(request, samples, out, "quick", [detector], run=RunContext(seed=2))
    assert (out / "reference-0.npz").read_bytes() == first
    (out / "notes.txt").unlink()
    search_references(request, samples, out, "quick", [detector], run=RunContext(seed=2))
    assert (out / "reference-0.npz").read_bytes() != first


def test_a_scan_searches_no_reference_that_the_shelf_has(tmp_path: Path) -> None:
    """CEPA, whose references are searched at taps: the scan asks, and finds all units; others' references it does not take."""
    model = saved(quadrant_model(1), tmp_path / "m.onnx")
    samples = quadrant_images(8)
    np.savez(tmp_path / "d.npz", images=samples.images, labels=samples.labels)
    detector = Cepa(search=SearchConfig(steps=3, samples=4, success=0.9), carried=0)
    run = RunContext()

    def begun() -> Ledger | None:
        try:
            scan(model, tmp_path / "d.npz", tmp_path / "run", "quick", [detector], run=run, shelf=tmp_path / "shelf")
        except ReferencesWantedError:
            return None
        return Ledger(tmp_path / "run/references")

    assert begun() is None
    request = Request.read(tmp_path / "run" / REQUEST)
    place = tmp_path / "shelf" / request.key
    search_references(request, tmp_path / "d.npz", place, "quick", [detector], run=RunContext(seed=1))
    assert begun() is None  # those of another seed
    search_references(request, tmp_path / "d.npz", place, "quick", [detector], run=run)
    before = (place / "run.sqlite").read_bytes()
    ledger = begun()
    assert ledger is not None
    assert not (tmp_path / "run" / REQUEST).exists()
    with ledger, Ledger(place) as made:
        for i in range(3):
            name = f"cepa on reference {i}"
            assert made.units(name).keys() == ledger.units(name).keys() != set()
    assert (place / "run.sqlite").read_bytes() == before
    assert Shelf(tmp_path / "shelf").folder == tmp_path / "shelf"
