"""The report against its published schema, and everything that is drawn from it."""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from conftest import quadrant_images
from report_support import sealed
from rich.console import Console

from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.neural_cleanse import NeuralCleanse
from onnxspect.engine.judge.evidence import Evidence, Skipped, UnitEvidence
from onnxspect.engine.judge.measurement import measured
from onnxspect.engine.judge.verdict import decide
from onnxspect.engine.report import as_html, as_sarif, as_text, document
from onnxspect.engine.report.as_json import render as as_json
from onnxspect.engine.report.document import build
from onnxspect.engine.report.pictures import draw
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.search import SearchConfig, Unit
from onnxspect.engine.stored_report import digest
from onnxspect.engine.subject.preprocessing import preflight
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.subject.unreached import Unreached

SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "report.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src="https://example.com/x">',
    "[bold red]x[/]",
    "\x1b[2Jgone\n",
    "plain",
)

Report = dict[str, Any]


SEARCH = SearchConfig(steps=80, samples=16, settle=20)


def small_scan(subject: Subject, folder: Path) -> Report:
    """The detector itself, searching lightly, and what a scan makes of its evidence."""
    samples, run = quadrant_images(20), RunContext()
    checked = preflight(subject, samples, run)
    search_samples, held_out = samples.split(0.5, run.numpy_generator("split"))
    evidence = [NeuralCleanse(search=SEARCH).run(AtHand(checked.subject, search_samples, held_out, run))]
    report = build(checked.subject, samples, checked, evidence, decide(evidence, 4), run, "quick", 1.0, Unreached())
    draw(report, evidence, samples, folder)
    return report


@pytest.fixture(scope="module")
def scanned(planted: Subject, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """A real report of the tiny planted model, and the folder with its pictures."""
    folder = tmp_path_factory.mktemp("scan")
    return small_scan(planted, folder), folder


def unit(target: int, value: float) -> UnitEvidence:
    trigger = {"mask": np.full((1, 8, 8), value / 64, np.float32), "pattern": np.ones((1, 8, 8), np.float32)}
    return UnitEvidence(Unit(target), measured(l1=value), True, True, 100, 1.0, 0.97, 50, trigger, seconds=1.5)


@pytest.fixture(scope="module")
def by_hand(planted: Subject) -> dict[str, Report]:
    """One report of every verdict, with class names that try to break out."""
    base = quadrant_images(20)
    samples = Samples(base.images, base.labels, HOSTILE, "data <b>.npz", base.sha256)
    run = RunContext()
    checked = preflight(planted, samples, run)
    norms = {"clean": [10.0, 12.0, 11.0, 13.0], "backdoored": [10.0, 12.0, 0.001, 11.0]}
    found: dict[str, list[Evidence | Skipped]] = {
        verdict: [
            Skipped("cepa", "it needs <b>taps</b>"),
            Evidence(
                "neural-cleanse", {"a": 1, "b": (0.5, 0.9)}, "l1", "l1", "low", tuple(map(unit, range(4), values))
            ),
        ]
        for verdict, values in norms.items()
    }
    found["inconclusive"] = [Skipped("neural-cleanse", "no samples")]
    reports = {
        verdict: build(planted, samples, checked, evidence, decide(evidence, 4), run, "quick", 12.3456, Unreached())
        for verdict, evidence in found.items()
    }
    assert {v: r["verdict"] for v, r in reports.items()} == {v: v for v in reports}
    return reports


def test_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_real_report_keeps_the_schema(scanned: tuple[Report, Path]) -> None:
    report, _ = scanned
    stored = json.loads(as_json(report))
    VALIDATOR.validate(stored)
    assert len(stored["classes"]) == 4
    assert stored["detectors"][0]["budget"]["units"] == 4
    assert min(stored["classes"], key=lambda c: c["statistic"]["neural-cleanse"])["index"] == 2
    assert digest(stored) == stored["digest"]


def test_shipped_schema_is_the_published_one() -> None:
    assert SCHEMA["properties"]["schema"]["const"] == document.SCHEMA
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("verdict", ["clean", "backdoored", "inconclusive"])
def test_every_verdict_keeps_the_schema(by_hand: dict[str, Report], verdict: str) -> None:
    report = json.loads(as_json(by_hand[verdict]))
    VALIDATOR.validate(report)
    assert digest(report) == report["digest"] == by_hand[verdict]["digest"]


def test_the_schema_refuses(by_hand: dict[str, Report]) -> None:
    whole = json.loads(as_json(by_hand["backdoored"]))
    for key in SCHEMA["required"]:
        broken = {k: v for k, v in whole.items() if k != key}
        assert not VALIDATOR.is_valid(broken), key
    for path, value in (
        (("verdict",), "fine"),
        (("verdict",), "clean"),  # with targets
        (("targets",), []),  # backdoored without
        (("targets",), [2, 2]),
        (("p_value",), 1.5),
        (("schema",), "onnxspect-report/2"),
        (("classes", 0, "log10_p"), 0.5),
        (("classes", 0, "surprise"), 1),
        (("detectors", 1, "status"), "skipped"),
        (("preprocessing", "chosen", "layout"), "CHW"),
        (("digest",), "short"),
    ):
        broken = copy.deepcopy(whole)
        place: Any = broken
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        assert not VALIDATOR.is_valid(broken), path


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every single value of a document is."""
    if isinstance(value, dict) and value:
        for k, v in value.items():
            yield from leaves(v, (*path, k))
    elif isinstance(value, list) and value:
        for i, v in enumerate(value):
            yield from leaves(v, (*path, i))
    else:
        yield path


def test_digest_ignores_seconds_and_nothing_else(by_hand: dict[str, Report]) -> None:
    whole = json.loads(as_json(by_hand["backdoored"]))
    ignored = set()
    for path in leaves(whole):
        changed = copy.deepcopy(whole)
        place: Any = changed
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = "something else"
        if digest(changed) == whole["digest"]:
            ignored.add(path)
    assert ignored == {("seconds",), ("detectors", 1, "seconds"), ("digest",), ("finished",)}


def test_digest_does_not_depend_on_the_order_of_keys(by_hand: dict[str, Report]) -> None:
    report = by_hand["backdoored"]
    assert digest(dict(reversed(report.items()))) == report["digest"]


def test_the_same_work_again_has_the_same_digest(
    scanned: tuple[Report, Path], planted: Subject, tmp_path: Path
) -> None:
    report, folder = scanned
    assert small_scan(planted, tmp_path)["digest"] == report["digest"]
    names = sorted(p.name for p in folder.iterdir())
    assert names == sorted(p.name for p in tmp_path.iterdir())
    assert {"classes.png", "triggers.png"} <= set(names)
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("verdict", ["clean", "backdoored", "inconclusive"])
def test_html_escapes_whatever_it_is_given(by_hand: dict[str, Report], verdict: str, tmp_path: Path) -> None:
    report = copy.deepcopy(by_hand[verdict])
    report["model"]["path"] = "<script>x</script>.onnx"
    parsed = sealed(as_html.render(report, tmp_path))
    assert "<script>x</script>.onnx" in parsed.text
    assert as_html.headline(report) in parsed.text
    if report["classes"]:
        assert HOSTILE[0] in parsed.text
        assert HOSTILE[1] in parsed.text
    for limit in report["limits"]:
        assert limit in parsed.text


def test_html_of_a_real_scan_holds_its_pictures(scanned: tuple[Report, Path]) -> None:
    report, folder = scanned
    parsed = sealed(as_html.render(report, folder))
    pictures = [a["src"] for t, a in parsed.tags if t == "img"]
    assert len(pictures) == 10 * len(report["targets"])  # the trigger, and three images before, after, and what changed
    assert report["digest"] in parsed.text


URI = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]*")


@pytest.mark.parametrize("verdict", ["clean", "backdoored", "inconclusive"])
def test_sarif_has_what_2_1_0_requires(by_hand: dict[str, Report], verdict: str) -> None:
    report = by_hand[verdict]
    log = json.loads(json.dumps(as_sarif.render(report)))
    assert log["version"] == "2.1.0"  # required: version, runs
    (run,) = log["runs"]
    driver = run["tool"]["driver"]  # required: tool.driver.name
    assert driver["name"] == "onnxspect"
    rules = [rule["id"] for rule in driver["rules"]]  # required: id
    assert len(set(rules)) == len(rules)
    for rule in driver["rules"]:
        assert rule["shortDescription"]["text"]
        assert rule["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
    assert isinstance(run["results"], list)  # required where a scan was made, empty for "nothing found"
    assert len(run["results"]) == {"clean": 0, "backdoored": 1, "inconclusive": 1}[verdict]
    for result in run["results"]:
        assert result["message"]["text"]  # required: message
        assert result["ruleId"] in rules
        assert result["level"] in ("none", "note", "warning", "error")
        location = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert run["artifacts"][location["index"]]["location"]["uri"] == location["uri"]
        assert all(isinstance(v, str) for v in result["partialFingerprints"].values())
    for artifact in run["artifacts"]:
        assert set(artifact["hashes"]) == {"sha-256"}


def test_sarif_fingerprints_tell_results_apart(by_hand: dict[str, Report]) -> None:
    report = by_hand["backdoored"] | {"targets": [1, 2]}
    results = as_sarif.render(report)["runs"][0]["results"]
    assert len({json.dumps(r["partialFingerprints"]) for r in results}) == 2


@pytest.mark.parametrize("path", ["model.onnx", "my models/net 1.onnx", "modèle.onnx", "a%20b.onnx"])
def test_sarif_uris_are_uris(by_hand: dict[str, Report], path: str) -> None:
    """SARIF 2.1.0, 3.4.3: `uri` is a valid URI reference (RFC 3986), so spaces and letters beyond ASCII are escaped."""
    report = copy.deepcopy(by_hand["backdoored"])
    report["model"]["path"] = path
    run = as_sarif.render(report)["runs"][0]
    uris = [run["artifacts"][0]["location"]["uri"]]
    uris += [r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in run["results"]]
    for uri in uris:
        assert URI.fullmatch(uri), uri
    if "%" in path:
        assert uris[0] == "a%2520b.onnx"  # else a reader would look for "a b.onnx"


def as_plain_text(report: Report) -> str:
    out = io.StringIO()
    Console(file=out, width=160, force_terminal=False, color_system=None).print(as_text.render(report))
    return out.getvalue()


def test_text(by_hand: dict[str, Report], scanned: tuple[Report, Path]) -> None:
    for report in (*by_hand.values(), scanned[0]):
        shown = as_plain_text(report)
        assert report["verdict"].upper() in shown
        for limit in report["limits"]:
            assert limit[:60] in shown
    assert "it needs <b>taps</b>" in as_plain_text(by_hand["clean"])
    assert "[bold red]x[/]" in as_plain_text(by_hand["clean"])
    fed = {**by_hand["clean"]["preprocessing"]["chosen"], "layout": "NHWC", "channel_order": "BGR", "scale": 255.0}
    fed |= {"mean": [103.9, 116.8, 123.7], "std": [1.0, 1.0, 1.0]}
    report = {**by_hand["clean"], "preprocessing": {**by_hand["clean"]["preprocessing"], "chosen": fed}}
    assert "(NHWC, BGR, times 255, mean 103.9, 116.8, 123.7)" in as_plain_text(report)


def test_text_sends_no_control_codes_to_the_terminal(by_hand: dict[str, Report]) -> None:
    """A class name comes from whoever made the data: it must not be able to clear the auditor's screen."""
    shown = as_plain_text(by_hand["clean"])
    assert "gone" in shown
    assert not [c for c in shown if ord(c) < 32 and c != "\n"]
