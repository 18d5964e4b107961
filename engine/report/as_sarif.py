"""The report as SARIF 2.1.0 (OASIS), for code-scanning dashboards: one rule a kind of finding (rules.py), one result a finding.

It passes the public validator (Microsoft's SARIF Multitool) with its rules for GitHub's code scanning.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from onnxspect.converters.text import sarif_text, visible
from onnxspect.engine.report.findings import Finding, findings
from onnxspect.engine.report.rules import RULES, TAXONOMIES, Rule, Taxon, documentation

#: Names of taxonomies and their entries are stable: so are ids that are made of them.
_NAMESPACE = uuid.UUID("7d1f5a52-6f0c-5d39-9a8e-2f1d0b6b7c11")


def render(
    report: Mapping[str, Any], folder: Path | None = None, accepted: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A SARIF log with one run.

    Args:
        report: of a scan.
        folder: its run folder, for the commands that results name.
        accepted: ids of findings that a policy accepts, with the reason: they are marked as suppressed.
    """
    driver: dict[str, Any] = {
        "name": report["tool"]["name"],
        "version": report["tool"]["version"],
        "semanticVersion": report["tool"]["version"],
        "informationUri": documentation() or "urn:onnxspect",
        "rules": [_rule(rule) for rule in RULES.values()],
        "supportedTaxonomies": [{"name": t.name, "index": i, "guid": _guid(t.name)} for i, t in enumerate(TAXONOMIES)],
    }
    artifact: dict[str, Any] = {"location": {"uri": _uri(report)}, "roles": ["analysisTarget"]}
    if report["model"]["sha256"]:
        artifact["hashes"] = {"sha-256": report["model"]["sha256"]}
    invocation: dict[str, Any] = {"executionSuccessful": True}
    if report.get("finished"):
        invocation["endTimeUtc"] = report["finished"]
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"onnxspect/{report['preset']}/"},
        "invocations": [invocation],
        "taxonomies": _taxonomies(),
        "artifacts": [artifact],
        "results": [_result(f, report, (accepted or {}).get(f.id)) for f in findings(report, folder)],
        "columnKind": "utf16CodeUnits",
        "properties": {"verdict": report["verdict"], "digest": report["digest"]},
    }
    return {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}


def _rule(rule: Rule) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": rule.id,
        "name": rule.name,
        "shortDescription": {"text": f"{rule.title}."},
        "fullDescription": {"text": f"{rule.what} {rule.risk}"},
        "help": {"text": f"{rule.evidence}\n\n{rule.fix}", "markdown": rule.help},
        "helpUri": rule.url,
        "defaultConfiguration": {"level": rule.level},
        "properties": {"tags": ["security", "machine-learning", *(t.id for t in rule.taxa)], "precision": "high"},
    }
    if rule.severity:
        found["properties"]["security-severity"] = rule.severity
    else:
        found["properties"]["problem.severity"] = "warning"
    if rule.taxa:
        found["relationships"] = [{"target": _reference(t), "kinds": ["relevant"]} for t in rule.taxa]
    return found


def _result(finding: Finding, report: Mapping[str, Any], accepted: str | None) -> dict[str, Any]:
    properties: dict[str, Any] = {"id": finding.id}
    if finding.target is not None:
        properties |= {"class": finding.target, "className": visible(report["classes"][finding.target]["name"])}
    if finding.p_value is not None:
        properties["pValue"] = finding.p_value
    found: dict[str, Any] = {
        "ruleId": finding.rule.id,
        "ruleIndex": list(RULES).index(finding.rule.id),
        "level": finding.rule.level,
        "message": {"text": sarif_text(f"{finding.message} {finding.fix}")},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(report), "index": 0},
                    # A model has no lines; dashboards that annotate text take its first one.
                    "region": {"startLine": 1, "startColumn": 1, "endLine": 1, "endColumn": 2},
                }
            }
        ],
        "partialFingerprints": {"finding/v1": finding.id},
        "properties": properties,
    }
    if finding.rule.taxa:
        found["taxa"] = [_reference(t) for t in finding.rule.taxa]
    if accepted is not None:
        found["suppressions"] = [{"kind": "external", "status": "accepted", "justification": accepted}]
    return found


def _taxonomies() -> list[dict[str, Any]]:
    return [
        {
            "name": t.name,
            "version": t.version,
            "organization": t.organization,
            "guid": _guid(t.name),
            "informationUri": t.url,
            "shortDescription": {"text": t.description},
            "isComprehensive": False,
            "taxa": [
                {
                    "id": x.id,
                    "name": x.name,
                    "guid": _guid(x.id),
                    "helpUri": x.url,
                    "shortDescription": {"text": f"{x.name}."},
                }
                for x in _entries(t.name)
            ],
        }
        for t in TAXONOMIES
    ]


def _entries(taxonomy: str) -> list[Taxon]:
    """Those that some rule names, once each."""
    return list(dict.fromkeys(t for rule in RULES.values() for t in rule.taxa if t.taxonomy == taxonomy))


def _reference(taxon: Taxon) -> dict[str, Any]:
    names = [t.name for t in TAXONOMIES]
    component = {"name": taxon.taxonomy, "index": names.index(taxon.taxonomy), "guid": _guid(taxon.taxonomy)}
    return {
        "id": taxon.id,
        "index": _entries(taxon.taxonomy).index(taxon),
        "guid": _guid(taxon.id),
        "toolComponent": component,
    }


def _guid(name: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, name))


def _uri(report: Mapping[str, Any]) -> str:
    """The model's path as a (relative) URI reference."""
    return quote(Path(report["model"]["path"]).as_posix().encode("utf-8", "backslashreplace"))
