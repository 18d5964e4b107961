"""SARIF, CycloneDX, JUnit and Markdown: what their schemas ask, and that names in them stay text."""

from __future__ import annotations

import json
import os
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from report_support import of_many_classes, report_of

from onnxspect.engine.report import as_cyclonedx, as_junit, as_markdown, as_sarif, as_text, formats
from onnxspect.engine.report.findings import findings, rule_of
from onnxspect.engine.report.rules import RULES

ROOT = Path(__file__).parents[3]
VERDICTS = ("clean", "backdoored", "inconclusive")
#: Microsoft's SARIF Multitool, where it is installed (`make check-tools`).
MULTITOOL = ROOT / "build/npm/node_modules/@microsoft/sarif-multitool-linux/Sarif.Multitool"


@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("hostile", [False, True])
def test_sarif_has_what_github_asks_for(verdict: str, hostile: bool) -> None:
    log = json.loads(json.dumps(as_sarif.render(report_of(verdict, hostile, hidden=["a switch sleeps"]))))
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [r["id"] for r in rules] == list(RULES)
    for rule in rules:
        for name in ("shortDescription", "fullDescription", "help"):  # GH2012
            assert rule[name]["text"]
        assert rule["help"]["markdown"].startswith(f"# {rule['id']}")
        assert rule["helpUri"].endswith((f"/{rule['id']}/", f":{rule['id']}"))
        assert rule["name"] != rule["id"]
        assert 0 < float(rule["properties"].get("security-severity", 1)) <= 10
        for relation in rule.get("relationships", ()):
            target = relation["target"]
            taxonomy = run["taxonomies"][target["toolComponent"]["index"]]
            assert taxonomy["taxa"][target["index"]]["id"] == target["id"]
            assert taxonomy["guid"] == target["toolComponent"]["guid"]
    assert {t["id"] for x in run["taxonomies"] for t in x["taxa"]} == {
        "AML.T0018.000",
        "AML.T0018.001",
        "CWE-506",
        "CWE-1039",
        "ML10",
    }
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["locations"][0]["physicalLocation"]["region"]["startLine"] == 1
        assert "\n" not in result["message"]["text"]
        assert "{0}" not in result["message"]["text"].replace("{{0}}", "")
    if verdict == "backdoored":
        assert "onnxspect patch" in run["results"][0]["message"]["text"]
    assert {r["ruleId"] for r in run["results"]} == (
        {"OSX201"} | {"clean": set(), "backdoored": {"OSX101"}, "inconclusive": {"OSX301"}}[verdict]
    )


@pytest.mark.skipif(not MULTITOOL.is_file(), reason="SARIF Multitool is not installed (make check-tools)")
@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_public_validator_is_content(verdict: str, tmp_path: Path) -> None:
    """Microsoft's SARIF Multitool with its rules for SARIF and for GitHub's code scanning: no error and no warning."""
    path = tmp_path / "log.sarif"
    report = report_of(verdict, hostile=True, hidden=["a switch sleeps"])
    accepted = {findings(report)[0].id: "known"}
    path.write_text(json.dumps(as_sarif.render(report, tmp_path, accepted)))
    done = subprocess.run(
        [str(MULTITOOL), "validate", "--rule-kind", "Sarif;Ghas", str(path)],
        capture_output=True,
        text=True,
        env=os.environ | {"DOTNET_SYSTEM_GLOBALIZATION_INVARIANT": "1"},
    )
    assert "Analysis completed successfully" in done.stdout, done.stdout
    assert "error" not in done.stdout
    assert "warning" not in done.stdout


@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("hostile", [False, True])
def test_cyclonedx_is_valid(verdict: str, hostile: bool) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    report = report_of(verdict, hostile)
    text = as_cyclonedx.render(report)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bom = json.loads(text)
    component = bom["metadata"]["component"]
    assert component["type"] == "machine-learning-model"
    assert component["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    vulnerabilities = bom.get("vulnerabilities", [])
    assert len(vulnerabilities) == (verdict != "clean")
    for v in vulnerabilities:
        assert v["affects"] == [{"ref": component["bom-ref"]}]
        assert v["analysis"]["state"] == ("exploitable" if verdict == "backdoored" else "in_triage")
    assert as_cyclonedx.render(report) == text


def test_cyclonedx_of_a_patched_file_has_the_original_as_its_pedigree() -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    patched = {"patched": {"path": "x/p.onnx", "sha256": "cd" * 32}, "method": "unlearn", "result": {"holds": True}}
    text = as_cyclonedx.render(report_of("backdoored"), patched=patched)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bom = json.loads(text)
    assert bom["metadata"]["component"]["name"] == "p.onnx"
    (ancestor,) = bom["metadata"]["component"]["pedigree"]["ancestors"]
    assert ancestor["hashes"][0]["content"] == "ab" * 32
    assert bom["vulnerabilities"][0]["analysis"]["state"] == "resolved"


@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("hostile", [False, True])
def test_junit(verdict: str, hostile: bool) -> None:
    root = ET.fromstring(as_junit.render(report_of(verdict, hostile)))
    (suite,) = root
    cases = suite.findall("testcase")
    assert suite.get("tests") == str(len(cases)) == "5"
    assert suite.get("failures") == str(len(suite.findall(".//failure"))) == str(int(verdict == "backdoored"))
    assert suite.get("errors") == str(len(suite.findall(".//error"))) == str(int(verdict == "inconclusive"))
    assert all(c.get("name") and c.get("classname") and c.get("time") for c in cases)
    assert len(ET.fromstring(as_junit.render(of_many_classes()))[0].findall("testcase")) == 2


def test_markdown_names_stay_text() -> None:
    report = report_of("backdoored", hostile=True)
    text = as_markdown.render(report)
    assert "<script" not in text.replace(r"\<script", "")
    assert "](https" not in text.replace(r"\](https", "")
    assert "://" not in text
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    assert all(
        line.count("|") - line.count(r"\|") == 4
        for line in text.splitlines()
        if line.startswith("| ") and "p-value" in line
    )
    assert "OSX101" in text
    assert "onnxspect patch MODEL.onnx" in text


def test_text_of_a_thousand_classes_shows_the_ten_that_matter() -> None:
    report = of_many_classes()
    text = as_text.plain(report, 160)
    shown = [line for line in text.splitlines() if "a name, somewhat longer" in line]
    assert len(shown) == 10
    assert shown[0].startswith("417 ")
    assert "990 less suspicious classes are not shown" in text
    most = sorted(report["classes"], key=lambda c: (c["index"] != 417, c["log10_p"]))[:10]
    assert [int(line.split()[0]) for line in shown] == [c["index"] for c in most]


@pytest.mark.parametrize(
    ("kind", "found", "rule"),
    [
        ("a local patch", {}, "OSX101"),
        ("a faint pattern added to the whole image", {}, "OSX102"),
        ("a pattern spread over the image (a blend, several patches or a sinusoid)", {}, "OSX102"),
        (
            "a change that differs from image to image, such as a warp, or a blend too strong for one pattern",
            {},
            "OSX103",
        ),
        ("a local patch that leads each class to another one (all-to-all)", {"shared": True}, "OSX104"),
        ("a local patch from class 3", {"source": 3}, "OSX105"),
        ("", {}, "OSX109"),
    ],
)
def test_every_kind_has_its_rule(kind: str, found: dict[str, object], rule: str) -> None:
    report = report_of("backdoored")
    report["classes"][2]["kind"] = kind
    report["found"][0] |= found
    assert rule_of(report, 2).id == rule
    del report["found"]
    assert rule_of(report, 2).id == rule


def test_ids_stay_the_same_and_tell_findings_apart() -> None:
    report = report_of("backdoored")
    assert [f.id for f in findings(report)] == ["OSX101-2-abababababab"]
    assert [f.id for f in findings(report_of("backdoored", hostile=True), Path("elsewhere"))] == [
        "OSX101-2-abababababab"
    ]
    assert [f.id for f in findings(report_of("inconclusive"))] == ["OSX301-abababababab"]
    assert findings(report_of("clean")) == []


def test_every_rule_has_its_page() -> None:
    pages = {p.stem: p.read_text() for p in (ROOT / "docs/findings").glob("OSX*.md")}
    assert pages == {rule.id: rule.help for rule in RULES.values()}, "run: python docs/make_findings.py"


@pytest.mark.parametrize("form", formats.FORMATS)
def test_every_format_takes_every_verdict(form: str, tmp_path: Path) -> None:
    for verdict in VERDICTS:
        assert formats.render(form, report_of(verdict, hostile=True), tmp_path).strip()


def test_endings_name_formats() -> None:
    names = {"a.sarif": "sarif", "A.HTML": "html", "b.cdx.json": "cyclonedx", "b.json": "json", "r.sarif.json": "sarif"}
    assert {n: formats.by_name(Path(n)) for n in names} == names
    assert set(formats.ENDINGS.values()) == set(formats.FORMATS)
