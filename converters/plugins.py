"""What other installed packages bring in, as entry points: detectors, mitigations, source formats (docs/extending.md).

A package lists them in its pyproject.toml, under ``[project.entry-points."onnxspect.detectors"]``. They are imported only when a
user asks for one by its name (a source format, when a file is of no format that is known): that a package is installed changes
no scan.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.text import printable

DETECTORS, MITIGATIONS, SOURCES = "onnxspect.detectors", "onnxspect.mitigations", "onnxspect.sources"


def names(group: str) -> tuple[str, ...]:
    """The names that installed packages bring in for a group, in alphabetical order."""
    return tuple(sorted({entry.name for entry in metadata.entry_points(group=group)}))


def load(group: str, name: str) -> Any:
    """What a package brings in under a name.

    Raises:
        OnnxspectError: no package does, or two do, or it cannot be imported.
    """
    entries = {(e.name, e.value): e for e in metadata.entry_points(group=group) if e.name == name}
    if not entries:
        raise OnnxspectError(f"no installed package brings in {name!r} ({group})")
    if len(entries) > 1:
        values = ", ".join(sorted(value for _, value in entries))
        raise OnnxspectError(f"{name!r} is brought in by several packages ({values})", "uninstall all but one")
    ((_, value), entry), *_ = entries.items()
    try:
        return entry.load()
    except Exception as error:  # whatever a foreign package raises on import is the same finding
        line = (str(error).splitlines() or [""])[0]
        raise OnnxspectError(
            f"{name!r} ({value}) cannot be imported: {type(error).__name__}: {printable(line, 200)}",
            "mend the package that brings it in, or uninstall it",
        ) from error
