"""A hostile file for dashboards: what was found in it as JSON, and as SARIF 2.1.0 with a rule of its own.

There is no report of a scan then: the file was not opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from onnxspect.converters.text import sarif_text, visible
from onnxspect.engine.errors import HostileError
from onnxspect.engine.version import tool_version

#: The rule's id, which never changes. CWE-502: deserialization of untrusted data; CWE-506: embedded malicious code.
RULE = "OSX901"
SCHEMA = "onnxspect-hostile/1"
_TITLE = "A model file that attacks whoever opens it"
_TEXT = (
    "The file holds what no model needs and every attack on model files uses: a call of programs, code, other files or the network, or "
    "names that lead out of its folder. It was not opened, and nothing in it was run."
)


def as_document(error: HostileError) -> dict[str, Any]:
    """What was found, as JSON values."""
    return {
        "schema": SCHEMA,
        "tool": {"name": "onnxspect", "version": tool_version()},
        "verdict": "hostile",
        "path": error.path,
        "findings": list(error.offences),
        "message": error.message,
    }


def as_sarif(error: HostileError) -> dict[str, Any]:
    """A SARIF log with one run, and one result for each thing that was found."""
    return _log(error.path, error.offences or (error.message,), error.hint)


def none_found(path: str) -> dict[str, Any]:
    """The same of a file in which nothing hostile was found: a log without results."""
    return _log(path, (), "")


def _log(path: str, offences: tuple[str, ...], hint: str) -> dict[str, Any]:
    uri = quote(Path(path or "unknown").as_posix().encode("utf-8", "backslashreplace"))
    location = {"physicalLocation": {"artifactLocation": {"uri": uri, "index": 0}}}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "onnxspect",
                        "version": tool_version(),
                        "rules": [
                            {
                                "id": RULE,
                                "name": "HostileFile",
                                "shortDescription": {"text": _TITLE},
                                "fullDescription": {"text": _TEXT},
                                "help": {"text": hint or _TEXT},
                                "defaultConfiguration": {"level": "error"},
                                "properties": {
                                    "security-severity": "9.8",
                                    "tags": ["security", "external/cwe/cwe-502", "external/cwe/cwe-506"],
                                },
                            }
                        ],
                    }
                },
                "artifacts": [{"location": {"uri": uri}}],
                "results": [
                    {
                        "ruleId": RULE,
                        "ruleIndex": 0,
                        "level": "error",
                        "message": {"text": f"Hostile file: {sarif_text(found)}."},
                        "locations": [location],
                        "partialFingerprints": {"offence/v1": visible(found)},
                    }
                    for found in offences
                ],
                "properties": {"hostile": bool(offences)},
            }
        ],
    }
