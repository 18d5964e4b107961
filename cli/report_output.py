"""Where a report goes: to stdout in a format, and to files by their endings."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from onnxspect.cli.console import err, show, show_raw
from onnxspect.cli.path_option import path_option
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.report import as_json, as_patch_html, as_text, formats, patch_document, policy
from onnxspect.engine.report.findings import findings
from onnxspect.engine.report.policy import Policy
from onnxspect.engine.store import write_atomically

Command = TypeVar("Command", bound=Callable[..., Any])

ENDINGS = ", ".join(formats.ENDINGS)


def report_options(command: Command) -> Command:
    """-o and --policy, of the commands that print a scan's report."""
    for option in (
        path_option(
            "--policy",
            "policy_file",
            metavar="FILE",
            help=f"Accepted findings, and what a scan is made with, such as {policy.FILE} (docs/pipelines.md).",
        ),
        path_option(
            "-o",
            "--write",
            "outputs",
            multiple=True,
            metavar="FILE",
            help=f"Write the report to FILE, in the format that its ending names ({ENDINGS}). May be given again.",
        ),
    ):
        command = option(command)
    return command


def found_policy(given: Path | None) -> Policy:
    """The policy that was named; an empty one where none is.

    None is looked for: what lies in the working folder may be untrusted, and would decide what passes.

    Raises:
        OnnxspectError: it cannot be read.
    """
    return Policy() if given is None else policy.read(given)


def check(outputs: Sequence[Path], form: str | None) -> list[tuple[Path, str]]:
    """The format of every file; asked before any work is done.

    Raises:
        OnnxspectError: a file's ending names no format, and `form` does not either.
    """
    return [(path, form if form and len(outputs) == 1 else formats.by_name(path)) for path in outputs]


def accepted_findings(report: Mapping[str, Any], folder: Path, rules: Policy) -> tuple[dict[str, str], bool]:
    """Accepted findings of a report with their reasons, and whether they are all that it has; what has expired is said."""
    found, today = findings(report, folder), datetime.datetime.now(datetime.UTC).date()
    for notice in rules.notices(found, today):
        err.print(f"policy: {notice}", style="yellow")
    reasons = rules.reasons(found, today)
    for name, reason in reasons.items():
        err.print(f"policy: {name} is accepted: {reason}", style="dim")
    return reasons, bool(found) and all(f.id in reasons for f in found)


def put(
    report: dict[str, Any],
    folder: Path,
    form: str,
    files: Sequence[tuple[Path, str]],
    accepted: Mapping[str, str],
    quiet: bool = False,
) -> None:
    """Write the report to its files and, unless `quiet`, to stdout."""
    patched = patch_document.read(folder, patch_document.PATCH) if folder.is_dir() else None
    for path, kind in files:
        write_atomically(path, formats.render(kind, report, folder, accepted, patched).encode())
    if quiet:
        return
    if form == formats.TEXT:
        show(as_text.render(report))
    else:
        show_raw(formats.render(form, report, folder, accepted, patched))


def put_patch(made: dict[str, Any], path: Path) -> None:
    """Write the page, or the document, of a patch or verification to a file by its ending."""
    kind = patch_format(path)
    write_atomically(path, (as_patch_html.render(made) if kind == "html" else as_json.render(made)).encode())


def patch_format(path: Path) -> str:
    """ "html" or "json", by a file's ending.

    Raises:
        OnnxspectError: it is neither.
    """
    kind = formats.by_name(path)
    if kind not in ("html", "json"):
        raise OnnxspectError(f"{path}: a patch is reported as .html or .json", "name the file so")
    return kind
