"""What a report says of a trigger: its form, where it acts, on how many images it was tried; and its plain pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import quadrant_images

from onnxspect.engine.judge.evidence import Evidence, Unit, UnitEvidence
from onnxspect.engine.judge.kind import strongest_box
from onnxspect.engine.judge.measurement import TRANSFER, Measurement
from onnxspect.engine.judge.measurement import measured as of_search
from onnxspect.engine.judge.traits import Family, Traits
from onnxspect.engine.judge.verdict import ClassFinding, Verdict
from onnxspect.engine.report.measured import measured
from onnxspect.engine.report.pictures import draw


def corner(strength: float = 1.0) -> np.ndarray:
    mask = np.zeros((1, 8, 8), np.float32)
    mask[0, 6:, 5:] = strength
    return mask


TRIGGERS = {
    "mask": {"mask": corner(), "pattern": np.ones((1, 8, 8), np.float32)},
    "delta": {"delta": corner(-0.2)},
    "inner": {"direction": np.ones(16, np.float32)},
}


def unit(form: str, target: int = 2, held_out_success: float = 0.9, source: int | None = None) -> UnitEvidence:
    return UnitEvidence(
        Unit(target, source), of_search(l1=6.0), True, True, 10, 1.0, held_out_success, 40, TRIGGERS[form]
    )


def verdict_of(p_values: dict[str, float], targets: tuple[int, ...] = (2,)) -> Verdict:
    by = dict.fromkeys(p_values)
    rows = tuple(ClassFinding(k, 1.0, 0.0, p_values if k in targets else dict.fromkeys(p_values, 1.0), dict(by), dict(by), dict(by),
                              dict(by), dict(by)) for k in range(4))  # fmt: skip
    return Verdict("backdoored", targets, 1e-6, ("r",), rows)


def evidence(name: str, *units: UnitEvidence, family: Family = Family.OTHER) -> Evidence:
    return Evidence(name, {}, "l1", "l1", "low", units, traits=Traits(family))


@pytest.mark.parametrize("form", TRIGGERS)
def test_every_form(form: str) -> None:
    (row,) = measured([evidence("a", unit(form))], verdict_of({"a": 1e-6}))
    assert (row["class"], row["detector"], row["form"], row["held_out"], row["held_out_success"]) == (
        2,
        "a",
        form,
        40,
        0.9,
    )
    if form == "inner":
        assert row["box"] is row["size"] is row["changed"] is None
    else:
        assert row["box"] == {"top": 6, "left": 5, "height": 2, "width": 3}
        assert row["size"] == [8, 8]
        assert row["changed"] == round(6 / 64, 4)


def test_one_that_can_be_looked_at_comes_first_of_the_detectors_that_speak() -> None:
    found = [evidence("inner", unit("inner")), evidence("seen", unit("mask")), evidence("silent", unit("delta"))]
    (row,) = measured(found, verdict_of({"inner": 1e-9, "seen": 1e-4, "silent": 0.5}))
    assert (row["detector"], row["form"]) == ("seen", "mask")


@pytest.mark.parametrize(
    ("p_values", "works", "transfer", "shown"),
    [
        ({"small": 1e-6, "patch": 1e-3, "added": 1e-2}, 0.9, 0.0, "patch"),
        ({"small": 1e-6, "patch": 0.9, "added": 1e-2}, 0.9, 0.0, "patch"),  # silent by itself, and it works
        ({"small": 1e-6, "patch": 1e-3, "added": 1e-7}, 0.9, 0.0, "patch"),  # hardly more certain
        ({"small": 1e-6, "patch": 1e-3, "added": 1e-9}, 0.9, 0.0, "added"),
        ({"small": 1e-6, "patch": 1e-3, "moved": 1e-9}, 0.9, 0.0, "moved"),
        ({"small": 1e-6, "patch": 1e-3}, 0.3, 0.0, "small"),  # does not work on unseen samples
        ({"small": 1e-6, "patch": 1e-3}, 0.9, 0.8, "small"),  # works on clean networks too
        ({"patch": 1.0, "small": 1.0}, 0.9, None, "patch"),  # of two classes no null model speaks
    ],
)
def test_a_patch_of_whole_pixels_is_shown(
    p_values: dict[str, float], works: float, transfer: float | None, shown: str
) -> None:
    whole = unit("mask", held_out_success=works)
    if transfer is not None:
        whole = replace(whole, measurements=(*whole.measurements, Measurement(TRANSFER, transfer)))
    soft = replace(unit("mask"), trigger={"mask": corner(0.7), "pattern": np.ones((1, 8, 8), np.float32)})
    made = {
        "small": evidence("small", soft, family=Family.REPLACED),
        "patch": evidence("patch", whole, family=Family.REPLACED),
        "added": evidence("added", unit("delta"), family=Family.ADDED),
        "moved": evidence("moved", unit("delta"), family=Family.MOVED),
    }
    (row,) = measured([made[name] for name in p_values], verdict_of(p_values))
    assert row["detector"] == shown


def test_one_that_holds_on_unseen_samples_comes_first() -> None:
    found = [evidence("a", unit("mask", held_out_success=0.1), unit("delta", held_out_success=0.8, source=1))]
    (row,) = measured(found, verdict_of({"a": 1e-6}))
    assert (row["form"], row["source"]) == ("delta", 1)


def test_a_class_without_a_trigger_has_a_row_too() -> None:
    (row,) = measured([evidence("a", unit("mask", target=1))], verdict_of({"a": 1e-6}))
    assert (row["form"], row["detector"], row["held_out_success"]) == ("none", "a", None)


def test_the_box_is_around_the_strongest_places() -> None:
    faint = corner()[0] + 0.01
    assert strongest_box(faint) == (6, 5, 8, 8)
    assert strongest_box(np.zeros((8, 8))) == (0, 0, 8, 8)


def test_plain_pictures_of_what_was_found(tmp_path: Path) -> None:
    samples, found = quadrant_images(5), [evidence("a", unit("mask"))]
    verdict = verdict_of({"a": 1e-6})
    rows = [
        {"index": k, "name": str(k), "p_value": 1.0, "p_values": {"a": 1.0}, "statistic": {"a": None}, "reference": {}}
        for k in range(4)
    ]
    report = {
        "found": measured(found, verdict),
        "targets": [2],
        "classes": rows,
        "detectors": [],
        "model": {"path": "m"},
        "verdict": "backdoored",
    }
    written = {p.name for p in draw(report, found, samples, tmp_path)}
    assert "found-2-trigger.png" in written
    examples = sorted(n for n in written if n.startswith("found-2-") and n != "found-2-trigger.png")
    assert len(examples) == 9
    assert {n.split("-from-")[1].split("-")[0] for n in examples} == {"0", "1", "3"}  # never of the class itself
