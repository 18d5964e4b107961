"""`onnxspect data`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from onnxspect.cli import exit_status, options
from onnxspect.cli.console import show, show_raw
from onnxspect.cli.path_option import path_option
from onnxspect.engine.jobs.describe_data import describe_data
from onnxspect.engine.report.as_json import render as to_json
from onnxspect.engine.subject.datasets import Source

#: Classes that the table lists.
_LISTED = 40


@click.command("data", epilog="Exit status: 0 readable, 2 not readable (why is said), 4 failure.")
@click.argument("data", type=click.Path(path_type=Path), metavar="PATH")
@options.classes_option
@click.option("--train", "training", is_flag=True, help="Of a set in parts, look at the training part.")
@path_option("--pictures", metavar="PNG", help="Write five of the images there.")
@options.JSON
def command(data: Source, training: bool, pictures: Path | None, as_json: bool) -> int:
    """Show what was understood of the data at PATH: its form, images of each class, sizes, and what was guessed.

    \b
    Example:
      onnxspect data photos/
      onnxspect data test.csv --classes names.txt --pictures five.png
    """
    facts = describe_data(data.path, data.classes, training, pictures)
    if as_json:
        show_raw(to_json(facts))
        return exit_status.CLEAN
    grid = Table.grid(padding=(0, 2))
    present = sum(c["images"] > 0 for c in facts["classes"])
    sizes = "; ".join(f"{name}: {n}" for name, n in list(facts["sizes"].items())[:6])
    for name, text in {
        "path": facts["path"],
        "form": facts["form"],
        "images": f"{facts['images']} of {present} classes",
        "sizes": f"{sizes} ({facts['sizes_of']} images looked at)",
        "class order": facts["order"],
    }.items():
        grid.add_row(name, Text(str(text)))
    show(grid)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("class", "name", "images"):
        table.add_column(column, justify="left" if column == "name" else "right")
    for one in facts["classes"][:_LISTED]:
        table.add_row(str(one["index"]), Text(one["name"]), str(one["images"]))
    show(table)
    if len(facts["classes"]) > _LISTED:
        show(Text(f"and {len(facts['classes']) - _LISTED} more classes (--json lists all)", "dim"))
    for note in facts["notes"]:
        show(Text(f"note: {note}", "dim"))
    return exit_status.CLEAN
