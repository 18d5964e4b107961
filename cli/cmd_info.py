"""`onnxspect info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from onnxspect.cli import exit_status, options
from onnxspect.cli.console import show, show_raw
from onnxspect.cli.path_option import path_option
from onnxspect.converters.text import visible
from onnxspect.engine.jobs.describe import describe
from onnxspect.engine.report import hostile
from onnxspect.engine.report.as_json import render as to_json


@click.command("info", epilog="Exit status: 0 usable, 1 hostile file, 2 not usable (why is said), 4 failure.")
@options.MODEL
@options.view
@click.option(
    "--second-opinion", "second", is_flag=True, help="Compare with onnx2torch, an independent implementation."
)
@click.option("--logic", is_flag=True, help="Rule on every decision by the image's data: can it change the class?")
@path_option("--data", metavar="PATH", help="Clean samples that --logic measures on; images are made up without.")
@options.JSON
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "sarif"]),
    default="text",
    show_default=True,
    help="How to print it; SARIF says what is hostile in the file, and is empty for all others.",
)
def command(model: Path, second: bool, logic: bool, data: Path | None, as_json: bool, form: str) -> int:
    """Show what the ONNX file MODEL is: input, logits, weights, and its taps (the internal layers to look at).

    \b
    Example:
      onnxspect info model.onnx
      onnxspect info model.onnx --second-opinion
      onnxspect info model.onnx --logic --data clean.npz
    """
    facts = describe(model, second, logic, data)
    if form == "sarif":
        show_raw(to_json(hostile.none_found(str(model))))
        return exit_status.CLEAN
    if as_json or form == "json":
        show_raw(to_json(facts))
        return exit_status.CLEAN
    grid = Table.grid(padding=(0, 2))
    for name in ("path", "sha256", "opset", "producer", "input", "outputs", "logits", "parameters", "operators"):
        grid.add_row(name, Text(visible(str(facts[name]))))
    for warning in facts["warnings"]:
        grid.add_row("warning", Text(visible(warning), "yellow"))
    show(grid)
    table = Table(box=None, pad_edge=False, header_style="bold", title="taps", title_justify="left")
    for column in ("index", "value", "shape", "depth", "operator"):
        table.add_column(column, justify="left" if column in ("value", "operator") else "right")
    for tap in facts["taps"]:
        table.add_row(
            str(tap["index"]), Text(tap["value"]), Text(str(tap["shape"])), f"{tap['depth']:.2f}", tap["operator"]
        )
    show(table)
    if second:
        show(_opinion(facts["second_opinion"]))
    if logic:
        show(_rulings(facts["logic"]))
    return exit_status.CLEAN


def _rulings(found: dict[str, Any]) -> Group:
    """One line a decision, and what is said of it."""
    head = f"decisions by the image's data, on images that are {found['images']}"
    if not found["decisions"]:
        return Group(Text(f"{head}: none; nothing in this graph compares or chooses by what it sees"))
    lines = [Text(head, "bold")]
    for row in found["decisions"]:
        box = row["box"]
        where = "" if box is None else f", rows {box[0]} to {box[1]}, columns {box[2]} to {box[3]}"
        lines.append(Text(f"{row['node']} ({row['operator']}): reads {row['pixels']:.0%} of the pixels{where}"))
        lines.append(Text(f"  {row['said']}", "red" if row["changes"] else ""))
    return Group(*lines)


def _opinion(found: dict[str, Any]) -> Text:
    """What the second opinion is, in lines."""
    lines = [f"second opinion: {found['by']} converts {found['converted']} of {found['nodes']} nodes"]
    lines += [f"  not converted: {operator}" for operator in found["unsupported"]]
    for value in found["compared"]:
        theirs = "another shape" if value["theirs"] is None else f"{value['theirs']:.2g}"
        ours = "fused, not compared" if value["ours"] is None else f"{value['ours']:.2g}"
        lines.append(
            f"  {value['value']}: from onnxruntime it is {theirs} away, ours {ours} ({value['allowed']:.1g} is rounding)"
        )
    lines += [f"  differs: {said}" for said in found["differences"]]
    if found["agrees"]:
        lines.append("  all three agree")
    return Text("\n".join(lines))
