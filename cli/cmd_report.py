"""`onnxspect report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxspect.cli import exit_status
from onnxspect.cli.console import err, show, show_raw
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.report import as_html, as_sarif, as_text, document, signature
from onnxspect.engine.store import Ledger


@click.command("report", epilog=exit_status.HELP)
@click.argument("source", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "html", "sarif"]),
    help="How to print it.  [default: text; with --sign json]",
)
@click.option(
    "--sign",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="Print it as JSON with a signature by this Ed25519 private key (PEM), to be handed on.",
)
@click.option(
    "--verify-key",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="Show it only if it was signed by the owner of this public key (PEM), and not changed since.",
)
def command(source: Path, form: str | None, sign: Path | None, verify_key: Path | None) -> int:
    """Show the report of the finished scan in the folder RUN, with the exit status that the scan had.

    RUN may also be a signed report that was handed on. Nothing in a run folder is changed, and its digest is checked.

    \b
    Example:
      onnxspect report runs/model --format html > report.html
      onnxspect report runs/model --sign key.pem > signed.json
      onnxspect report signed.json --verify-key public.pem
    """
    form = form or ("json" if sign is not None else "text")
    if sign is not None and form != "json":
        raise OnnxspectError(f"--sign prints JSON, not {form}", "leave --format away, or take json")
    report, folder = _read(source, verify_key)
    if sign is not None:
        show_raw(document.as_json(signature.signed(report, sign)))
    elif form == "json":
        show_raw(document.as_json(report))
    elif form == "html":
        show_raw(as_html.render(report, folder))
    elif form == "sarif":
        show_raw(document.as_json(as_sarif.render(report)))
    else:
        show(as_text.render(report))
    return exit_status.OF_VERDICT[report["verdict"]]


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
