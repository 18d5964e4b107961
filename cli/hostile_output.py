"""What a command that was to print JSON or SARIF gives for a hostile file: a document of that kind, since no report comes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxspect.cli.console import show_raw
from onnxspect.engine.errors import HostileError
from onnxspect.engine.report import hostile
from onnxspect.engine.report.as_json import render as to_json
from onnxspect.engine.store import write_atomically

_OUT = ("-o", "--output", "--format")


def put(error: HostileError, arguments: Sequence[str]) -> None:
    """Print it where the command line asks for JSON or SARIF, and write it to every output that is named so.

    Args:
        error: what was found.
        arguments: of the command line, as they were typed; the command itself did not get to them.
    """
    printed = "json" if "--json" in arguments else ""
    for option, value in _given(arguments):
        if option == "--format":
            printed = value
        elif value.endswith(".sarif"):
            write_atomically(Path(value), to_json(hostile.as_sarif(error)).encode())
    if printed in ("json", "sarif"):
        document: dict[str, Any] = hostile.as_sarif(error) if printed == "sarif" else hostile.as_document(error)
        show_raw(to_json(document))


def _given(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """(option, value) of the options that say what is printed where."""
    found = []
    for at, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        if option in _OUT:
            found.append((option, value if equals else "".join(arguments[at + 1 : at + 2])))
    return found
