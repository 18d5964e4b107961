"""Evidence as a document: what is kept is what was found, and a verdict on it is the same verdict."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.archive import Archive, read_compressed, write_compressed
from onnxspect.engine.judge.earlier import measurements_of, traits_of
from onnxspect.engine.judge.evidence import Evidence, Skipped, Unit, UnitEvidence, View, detectors_of
from onnxspect.engine.judge.measurement import Measurement, Search, measured
from onnxspect.engine.judge.traits import Family, Traits
from onnxspect.engine.judge.verdict import decide

SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "evidence.schema.json").read_text())
number = st.floats(allow_nan=False)
known = st.none() | st.floats(0.01, 1.0)
error = st.none() | st.floats(0.0, 1.0)
measurements = st.builds(
    Measurement,
    st.sampled_from(["l1", "l2", "delta_norm"]),
    number,
    st.sampled_from(list(Search)),
    st.booleans(),
    st.lists(number, max_size=3).map(tuple),
    known,
    known,
    known,
)
units = st.builds(
    UnitEvidence,
    st.builds(Unit, st.integers(0, 5), st.none() | st.integers(0, 5), st.sampled_from(["", "tap"]), st.booleans()),
    st.lists(measurements, max_size=3).map(tuple),
    st.booleans(),
    st.booleans(),
    st.integers(0, 100),
    st.floats(0, 1),
    st.none() | st.floats(0, 1),
    st.integers(0, 100),
    st.just({}),
    st.floats(0, 100),
)
views = st.builds(View, st.sampled_from(["l1", "l2"]), search=st.sampled_from(list(Search)), references=st.booleans())
evidence = st.builds(
    Evidence,
    st.sampled_from(["one", "two"]),
    st.just({"steps": "5"}),
    st.just("l1"),
    st.just("l1"),
    st.sampled_from(["low", "high"]),
    st.lists(units, max_size=4).map(tuple),
    st.lists(views, max_size=2).map(tuple),
    st.builds(Traits, st.sampled_from(list(Family)), st.booleans(), st.booleans(), st.booleans()),
)
skipped = st.builds(Skipped, st.just("three"), st.text(min_size=1, max_size=5))
archives = st.builds(
    Archive,
    st.lists(evidence | skipped, max_size=3).map(tuple),
    st.integers(2, 9),
    samples=st.integers(0, 9),
    subject_error=error,
    reference_error=error,
)


@settings(max_examples=40)
@given(archives)
def test_what_is_kept_comes_back(kept: Archive) -> None:
    document = json.loads(json.dumps(kept.describe(), allow_nan=False))
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    assert Archive.described(document) == kept


def test_difficulty_is_the_larger_error_and_what_an_earlier_version_kept_has_none() -> None:
    assert Archive((), 5, subject_error=0.1, reference_error=0.3).difficulty == 0.3
    assert Archive((), 5, subject_error=0.1, reference_error=0.05).difficulty == 0.1
    assert Archive((), 5, subject_error=0.1).difficulty == 0.1
    assert Archive((), 5, reference_error=0.3).difficulty is None
    document = Archive((clean(),), 5, subject_error=0.1, reference_error=0.3).describe()
    earlier = {k: v for k, v in document.items() if not k.endswith("_error")}
    assert Archive.described(earlier).difficulty is None


def clean() -> Evidence:
    rows = [
        UnitEvidence(Unit(k), (Measurement("l1", 10.0 + k, reference=9.0),), True, True, 5, 1.0, 0.9, 50, {})
        for k in range(5)
    ]
    return Evidence(
        "nc", {"steps": 5, "betas": (0.5, 0.9)}, "l1", "l1", "low", tuple(rows), (View("l1", references=True),)
    )


def test_the_file_is_small_and_the_same_each_time(tmp_path: Path) -> None:
    document = Archive((clean(),), 5).describe()
    for name in ("a", "b"):
        write_compressed(tmp_path / name, document)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len((tmp_path / "a").read_bytes()) < len(json.dumps(document)) / 2
    back = Archive.described(read_compressed(tmp_path / "a"))
    assert decide(back.evidence, 5).classes == decide([clean()], 5).classes


def damaged(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(Archive((clean(),), 5).describe())
    *parents, last = path.split("/")
    place: Any = document
    for part in parents:
        place = place[int(part) if part.isdecimal() else part]
    place[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", "onnxspect-evidence/99"),
        ("classes", "many"),
        ("detectors/0/units/0/measurements/0/search", "sideways"),
        ("detectors/0/units/0/measurements/0/value", "much"),
        ("detectors/0/traits/family", "unknown"),
        ("detectors/0/views/0/colour", 3),
        ("detectors", 7),
    ],
)
def test_a_document_that_is_none_is_refused(path: str, value: Any) -> None:
    with pytest.raises(OnnxspectError):
        Archive.described(damaged(path, value))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"not gzip")
    for name in ("x", "missing"):
        with pytest.raises(OnnxspectError, match="cannot be read"):
            read_compressed(tmp_path / name)


def test_the_detectors_that_a_score_depends_on() -> None:
    screening = Evidence("mm", {}, "m", "m", "high", (), traits=Traits(convicts=False))
    assert detectors_of([clean(), screening, Skipped("cepa", "no")]) == ("nc",)


# What earlier versions kept.

LOGS = {"reference_l2": 4.0, "spread_l2": 0.2, "reliability_l2": 0.9}


@pytest.mark.parametrize(
    ("statistics", "expected"),
    [
        ({"l1": 3.0}, measured(l1=3.0)),
        (
            {"l2": 2.0, "all_l2": 2.0, "relative_all_l2": 0.5, **LOGS},
            (Measurement("l2", 2.0, reference=4.0, spread=0.2, reliability=0.9),),
        ),
        # Scouted, then searched in full: the reference is that of the full search, the scouts' is in their ratio.
        (
            {"l2": 2.0, "scout_l2": 3.0, "relative_scout_l2": 0.6, "pair_l2": 2.0, "relative_pair_l2": 0.5, **LOGS},
            (
                Measurement("l2", 3.0, Search.SCOUT, reference=5.0, spread=0.2, reliability=0.9),
                Measurement("l2", 2.0, Search.PAIR, reference=4.0, spread=0.2, reliability=0.9),
            ),
        ),
        ({"l1": 7.0, "shared_l1": 7.0}, (Measurement("l1", 7.0, Search.SHARED),)),
        (
            {"l1": 6.0, "scout_l1": 6.0, "carried_over": 1.0, "all_l1": 3.0},
            (
                Measurement("l1", 6.0, Search.SCOUT),
                Measurement("l1", 3.0, carried=True),
            ),
        ),
        ({"success": 0.5, "chance": 0.1, "excess_angle": 0.3}, measured(success=0.5, chance=0.1, excess_angle=0.3)),
        ({}, ()),
    ],
)
def test_statistics_by_prefixed_names_are_still_read(
    statistics: dict[str, float], expected: tuple[Measurement, ...]
) -> None:
    assert measurements_of(statistics) == expected


def test_the_traits_of_earlier_reports() -> None:
    assert not traits_of({"name": "dtinspector"}).leads_to_target
    assert not traits_of({"name": "training-difference"}).smallest
    assert traits_of({"name": "a user's"}) == Traits()
    kept = Traits(Family.ADDED, convicts=False)
    assert traits_of({"name": "dtinspector", "traits": kept.describe()}) == kept
