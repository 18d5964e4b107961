"""`onnxspect report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxspect.cli import exit_status
from onnxspect.cli.console import err, show_raw
from onnxspect.cli.path_option import path_option
from onnxspect.cli.report_output import accepted_findings, check, found_policy, put, put_patch, report_options
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.report import as_json, as_patch_html, formats, patch_document, signature
from onnxspect.engine.store import Ledger


@click.command(
    "report", epilog="Exit status: 0 whatever the verdict is (a scan's own status decides), 2 usage error, 4 failure."
)
@click.argument("source", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(formats.FORMATS),
    help="How to print it.  [default: text; with --sign json]",
)
@click.option(
    "--of",
    "of",
    type=click.Choice(["scan", patch_document.PATCH, patch_document.VERIFY]),
    default="scan",
    show_default=True,
    help="What is reported: the scan, or the patch or verification that was made with the run (html or json).",
)
@path_option(
    "--sign",
    metavar="KEY",
    help="Print it as JSON with a signature by this Ed25519 private key (PEM), to be handed on.",
)
@path_option(
    "--verify-key",
    metavar="KEY",
    help="Show it only if it was signed by the owner of this public key (PEM), and not changed since.",
)
@report_options
def command(
    source: Path,
    form: str | None,
    of: str,
    sign: Path | None,
    verify_key: Path | None,
    outputs: tuple[Path, ...],
    policy_file: Path | None,
) -> int:
    """Show the report of the finished scan in the folder RUN, for people or for a pipeline.

    RUN may also be a signed report that was handed on. Nothing in a run folder is changed, and its digest is checked. With -o
    nothing is printed.

    \b
    Example:
      onnxspect report runs/model -o report.html -o report.sarif
      onnxspect report runs/model --format markdown >> "$GITHUB_STEP_SUMMARY"
      onnxspect report runs/model --of patch --format html > patch.html
      onnxspect report runs/model --sign key.pem > signed.json
      onnxspect report signed.json --verify-key public.pem
    """
    if of != "scan":
        return _patch(source, of, form, outputs, sign)
    form = form or ("json" if sign is not None else formats.TEXT)
    if sign is not None and (form != "json" or outputs):
        raise OnnxspectError("--sign prints JSON on standard output and nothing else", "leave --format and -o away")
    files = check(outputs, None if form == formats.TEXT else form)
    report, folder = _read(source, verify_key)
    if sign is not None:
        show_raw(as_json.render(signature.signed(report, sign)))
        return exit_status.CLEAN
    accepted, _ = accepted_findings(report, folder, found_policy(policy_file))
    put(report, folder, form, files, accepted, quiet=bool(outputs))
    return exit_status.CLEAN


def _patch(source: Path, of: str, form: str | None, outputs: tuple[Path, ...], sign: Path | None) -> int:
    """The page, or the document, of a patch or a verification."""
    if form not in (None, "html", "json") or sign is not None:
        raise OnnxspectError(
            f"--of {of} is html or json, without a signature",
            "leave --sign away, or sign the run's report without --of",
        )
    made = patch_document.read(source, of)
    if made is None:
        raise OnnxspectError(
            f"{source}: no {of} was made with this run",
            f"`onnxspect {of} ... --run {source} --report {source}/{of}.json` makes one",
        )
    for path in outputs:
        put_patch(made, path)
    if not outputs:
        show_raw(as_json.render(made) if form == "json" else as_patch_html.render(made))
    return exit_status.CLEAN


def _read(source: Path, verify_key: Path | None) -> tuple[dict[str, Any], Path]:
    """The report of a run folder or in a file, and the folder with its pictures."""
    if source.is_file():
        report, signer = signature.read(source, verify_key)
        if verify_key is None:
            who = f"signed by {signer}, which was not checked; --verify-key does" if signer else "not signed"
            err.print(f"{source}: {who}", style="dim")
        return report, source.parent / "no pictures are handed on"
    if verify_key is not None:
        raise OnnxspectError(f"{source}: a run folder has no signature", "give the report that --sign printed")
    with Ledger(source) as ledger:
        return ledger.report(), source
