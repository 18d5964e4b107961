"""`onnxspect report`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxspect.cli import exit_status
from onnxspect.cli.console import show, show_raw
from onnxspect.engine.report import as_html, as_sarif, as_text, document
from onnxspect.engine.store import Ledger


@click.command("report", epilog=exit_status.HELP)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "html", "sarif"]),
    default="text",
    show_default=True,
    help="How to print it.",
)
def command(folder: Path, form: str) -> int:
    """Show the report of the finished scan in DIR, with the exit status that the scan had.

    \b
    Example:
      onnxspect report runs/model --format html > report.html
    """
    with Ledger(folder) as ledger:
        report = ledger.report()
    if form == "json":
        show_raw(document.as_json(report))
    elif form == "html":
        show_raw(as_html.render(report, folder))
    elif form == "sarif":
        show_raw(document.as_json(as_sarif.render(report)))
    else:
        show(as_text.render(report))
    return exit_status.OF_VERDICT[report["verdict"]]
