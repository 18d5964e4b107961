"""Every format that a scan's report can be had in, by name, and by the ending of a file's name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.report import as_cyclonedx, as_html, as_json, as_junit, as_markdown, as_sarif, as_text

TEXT = "text"
FORMATS = (TEXT, "json", "html", "sarif", "cyclonedx", "junit", "markdown")
#: Ending of a file's name -> format; the longest that fits counts.
ENDINGS = {
    ".txt": TEXT,
    ".json": "json",
    ".html": "html",
    ".htm": "html",
    ".sarif": "sarif",
    ".sarif.json": "sarif",
    ".cdx.json": "cyclonedx",
    ".bom.json": "cyclonedx",
    ".xml": "junit",
    ".md": "markdown",
}


def render(
    form: str,
    report: dict[str, Any],
    folder: Path,
    accepted: Mapping[str, str] | None = None,
    patched: Mapping[str, Any] | None = None,
) -> str:
    """The report of a scan as text in a format.

    Args:
        form: one of FORMATS.
        report: the JSON document.
        folder: its run folder, for pictures, and for the commands that are shown.
        accepted: ids of findings that a policy accepts, with the reason.
        patched: the patch of the model, where there is one, for a CycloneDX document's pedigree.
    """
    if form == "json":
        return as_json.render(report)
    if form == "html":
        return as_html.render(report, folder)
    if form == "sarif":
        return as_json.render(as_sarif.render(report, folder, accepted))
    if form == "cyclonedx":
        return as_cyclonedx.render(report, folder, accepted, patched)
    if form == "junit":
        return as_junit.render(report, folder, accepted)
    if form == "markdown":
        return as_markdown.render(report, folder, accepted)
    return as_text.plain(report)


def by_name(path: Path) -> str:
    """The format that a file's name asks for.

    Raises:
        OnnxspectError: its ending says nothing.
    """
    name = path.name.lower()
    for ending in sorted(ENDINGS, key=len, reverse=True):
        if name.endswith(ending):
            return ENDINGS[ending]
    raise OnnxspectError(f"{path}: its ending names no format", f"one of {', '.join(ENDINGS)}, or --format")
