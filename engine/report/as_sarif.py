"""The report as SARIF 2.1.0 (OASIS), for code-scanning dashboards: one rule a kind of finding, one result a class."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from onnxspect.converters.text import sarif_text
from onnxspect.engine.judge.kind import GRAPH_LOGIC

_RULES = {
    "backdoor": (
        "Backdoor in a neural network",
        "A small trigger sends inputs of any other class to this class.",
        "error",
    ),
    "inconclusive": ("No verdict on a neural network", "The evidence does not allow a verdict.", "warning"),
}


def render(report: dict[str, Any]) -> dict[str, Any]:
    """A SARIF log with one run."""
    results = [_result("backdoor", _message(report, k), report, {"class": k}) for k in report["targets"]]
    if report["verdict"] == "inconclusive":
        results = [_result("inconclusive", sarif_text("; ".join(report["reasons"])), report, {})]
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": report["tool"]["name"],
                        "version": report["tool"]["version"],
                        "rules": [
                            {
                                "id": rule,
                                "name": rule,
                                "shortDescription": {"text": title},
                                "fullDescription": {"text": text},
                                "defaultConfiguration": {"level": level},
                            }
                            for rule, (title, text, level) in _RULES.items()
                        ],
                    }
                },
                "artifacts": [{"location": {"uri": _uri(report)}, "hashes": {"sha-256": report["model"]["sha256"]}}],
                "results": results,
                "properties": {"verdict": report["verdict"], "digest": report["digest"]},
            }
        ],
    }


def _message(report: dict[str, Any], k: int) -> str:
    row = report["classes"][k]
    name = sarif_text(row["name"])
    if row["kind"] == GRAPH_LOGIC:
        return f"Class {k} ({name}) is answered where a trigger wakes {GRAPH_LOGIC} (p = {row['p_value']:.2g})."
    return f"Class {k} ({name}) is reached by a far smaller trigger than the others (p = {row['p_value']:.2g})."


def _result(rule: str, text: str, report: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "ruleId": rule,
        "level": _RULES[rule][2],
        "message": {"text": text},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": _uri(report), "index": 0}}}],
        "partialFingerprints": {"model/v1": f"{report['model']['sha256']}:{rule}:{properties.get('class', '')}"},
        "properties": properties,
    }


def _uri(report: dict[str, Any]) -> str:
    """The model's path as a (relative) URI reference."""
    return quote(Path(report["model"]["path"]).as_posix().encode("utf-8", "backslashreplace"))
