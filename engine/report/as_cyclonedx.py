"""The report as a CycloneDX 1.6 ML-BOM: the model with its hashes, the verdict as vulnerabilities with their analysis, and a patched
file with the original as its pedigree.

The library (cyclonedx-python-lib) keeps the format; it is imported only here.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from onnxspect.converters.text import visible
from onnxspect.engine.report.findings import Finding, findings
from onnxspect.engine.report.rules import documentation

#: Serial numbers are made of the report's digest, so that the same report has the same one.
_NAMESPACE = uuid.UUID("2b0c6a0e-51c4-5b1f-8f39-6d7a2d0f3e88")


def render(
    report: Mapping[str, Any],
    folder: Path | None = None,
    accepted: Mapping[str, str] | None = None,
    patched: Mapping[str, Any] | None = None,
) -> str:
    """The document as JSON.

    Args:
        report: of a scan.
        folder: its run folder, for the commands that recommendations name.
        accepted: ids of findings that a policy accepts, with the reason.
        patched: a document of patch_document.py: its file is the component then, the scanned one its ancestor.
    """
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    original = _model(report, "model")
    component = original
    bom = Bom(serial_number=uuid.uuid5(_NAMESPACE, report["digest"]), version=1)
    if patched is not None:
        from cyclonedx.model.component import Pedigree

        component = _component(patched["patched"]["path"], patched["patched"]["sha256"], report, "patched")
        component.pedigree = Pedigree(ancestors=[original], notes=f"Patched by onnxspect ({patched['method']})")
    tool = Component(name="onnxspect", version=report["tool"]["version"], type=ComponentType.APPLICATION)
    bom.metadata = BomMetaData(component=component, timestamp=_at(report))
    bom.metadata.tools.components.add(tool)
    data = _data(report)
    bom.components.add(data)
    bom.register_dependency(component, [data])
    holds = bool(patched and patched["result"]["holds"])
    for finding in findings(report, folder):
        bom.vulnerabilities.add(_vulnerability(finding, component, (accepted or {}).get(finding.id), holds))
    return str(JsonV1Dot6(bom).output_as_string(indent=2)) + "\n"


def _model(report: Mapping[str, Any], reference: str) -> Any:
    return _component(report["model"]["path"], report["model"]["sha256"], report, reference)


def _component(path: str, sha256: str, report: Mapping[str, Any], reference: str) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    facts = {
        "verdict": report["verdict"],
        "p_value": f"{report['p_value']:.6g}",
        "classes": str(report["model"]["classes"]),
        "input": "x".join(map(str, report["model"]["input"]["shape"])),
        "clean_accuracy": f"{report['preprocessing']['clean_accuracy']:.6g}",
        "preset": report["preset"],
        "digest": report["digest"],
    }
    return Component(
        name=visible(Path(path).name) or "model",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"{reference}-{sha256[:16] or 'live'}",
        version=sha256[:12] or None,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else [],
        properties=[Property(name=f"onnxspect:{k}", value=v) for k, v in facts.items()],
    )


def _data(report: Mapping[str, Any]) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    sha256 = report["data"]["sha256"]
    return Component(
        name=visible(Path(report["data"]["path"]).name) or "clean samples",
        type=ComponentType.DATA,
        bom_ref=f"data-{sha256[:16] or 'live'}",
        description=f"{report['data']['samples']} clean samples that the model was scanned with",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else [],
    )


def _vulnerability(finding: Finding, component: Any, accepted: str | None, mended: bool) -> Any:
    from cyclonedx.model import XsUri
    from cyclonedx.model.impact_analysis import ImpactAnalysisResponse, ImpactAnalysisState
    from cyclonedx.model.vulnerability import (
        BomTarget,
        Vulnerability,
        VulnerabilityAdvisory,
        VulnerabilityAnalysis,
        VulnerabilityRating,
        VulnerabilityScoreSource,
        VulnerabilitySeverity,
        VulnerabilitySource,
    )

    severity = float(finding.rule.severity or 0)
    state, response, detail = ImpactAnalysisState.EXPLOITABLE, ImpactAnalysisResponse.UPDATE, finding.message
    if finding.target is None:
        state = ImpactAnalysisState.IN_TRIAGE
    if accepted is not None:
        response, detail = ImpactAnalysisResponse.WILL_NOT_FIX, f"{finding.message} Accepted: {accepted}"
    elif mended and finding.target is not None:
        state, detail = (
            ImpactAnalysisState.RESOLVED,
            f"{finding.message} Removed by a patch that was proven in onnxruntime.",
        )
    grade = "CRITICAL" if severity >= 9 else "HIGH" if severity >= 7 else "MEDIUM" if severity >= 4 else "UNKNOWN"
    home = documentation()
    return Vulnerability(
        bom_ref=finding.id,
        id=finding.id,
        source=VulnerabilitySource(name="onnxspect", url=XsUri(home) if home else None),
        ratings=[
            VulnerabilityRating(
                score=Decimal(finding.rule.severity) if finding.rule.severity else None,
                severity=VulnerabilitySeverity[grade],
                method=VulnerabilityScoreSource.OTHER,
                justification=None if finding.p_value is None else f"p = {finding.p_value:.3g}",
            )
        ],
        cwes=[int(t.id.removeprefix("CWE-")) for t in finding.rule.taxa if t.taxonomy == "CWE"],
        description=finding.rule.title,
        detail=detail,
        recommendation=finding.fix,
        advisories=[VulnerabilityAdvisory(url=XsUri(t.url), title=f"{t.id} {t.name}") for t in finding.rule.taxa],
        affects=[BomTarget(ref=component.bom_ref.value)],
        analysis=VulnerabilityAnalysis(state=state, responses=[response], detail=detail),
    )


def _at(report: Mapping[str, Any]) -> datetime.datetime:
    """When the report was finished; of an old one that does not say so, the start of the epoch, so that nothing is made up."""
    text = report.get("finished") or "1970-01-01T00:00:00Z"
    return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
