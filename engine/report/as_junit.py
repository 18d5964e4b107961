"""The report as JUnit XML, for build servers: one suite a model, one case a class and one for the whole model."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxspect.converters.text import visible
from onnxspect.engine.report import words
from onnxspect.engine.report.findings import Finding, findings

#: Beyond so many classes only those with a finding have a case of their own.
MOST_CASES = 200


def render(report: Mapping[str, Any], folder: Path | None = None, accepted: Mapping[str, str] | None = None) -> str:
    """The document. A finding is a failure, "inconclusive" an error, and a finding that a policy accepts a skipped case."""
    found = findings(report, folder)
    by_class = {f.target: f for f in found if f.target is not None}
    rows = report["classes"] if len(report["classes"]) <= MOST_CASES else [report["classes"][k] for k in by_class]
    suite = ET.Element(
        "testsuite", name=_clean(f"onnxspect {visible(report['model']['path'])}"), time=f"{report['seconds']:.3f}"
    )
    if report.get("finished"):
        suite.set("timestamp", report["finished"].rstrip("Z"))
    properties = ET.SubElement(suite, "properties")
    for name, value in (
        ("verdict", report["verdict"]),
        ("p_value", f"{report['p_value']:.3g}"),
        ("sha256", report["model"]["sha256"]),
        ("digest", report["digest"]),
    ):
        ET.SubElement(properties, "property", name=name, value=value)
    for row in rows:
        case = ET.SubElement(suite, "testcase", classname="onnxspect.classes", name=_clean(f"class {words.label(row)}"))
        case.set("time", "0")
        _outcome(case, by_class.get(row["index"]), accepted or {})
    whole = ET.SubElement(
        suite, "testcase", classname="onnxspect.model", name="verdict", time=f"{report['seconds']:.3f}"
    )
    for finding in found:
        if finding.target is None:
            _outcome(whole, finding, accepted or {})
            break
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(sum(case.find(tag) is not None for case in suite.findall("testcase"))))
    suite.set("tests", str(len(suite.findall("testcase"))))
    root = ET.Element("testsuites", name="onnxspect")
    for name in ("tests", "failures", "errors"):
        root.set(name, suite.get(name, "0"))
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _outcome(case: ET.Element, finding: Finding | None, accepted: Mapping[str, str]) -> None:
    if finding is None:
        return
    if finding.id in accepted:
        ET.SubElement(case, "skipped", message=_clean(f"{finding.id} is accepted: {accepted[finding.id]}"))
        return
    tag = "failure" if finding.target is not None else "error"
    outcome = ET.SubElement(case, tag, type=finding.rule.id, message=_clean(finding.message))
    outcome.text = _clean(f"{finding.message}\n{finding.fix}\n{finding.id}\n{finding.rule.url}")


def _clean(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold, escaped or not; class names are untrusted."""
    return "".join(
        c if c in "\t\n" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c >= "\U00010000" else "?"
        for c in text
    )
