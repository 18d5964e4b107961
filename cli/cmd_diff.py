"""`onnxspect diff`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxspect.cli import exit_status
from onnxspect.cli.console import show_raw
from onnxspect.converters.proof.compare import Difference, compare
from onnxspect.engine.mitigation.graph_edit import without_additions
from onnxspect.engine.report.as_json import render as to_json
from onnxspect.engine.subject.onnx_model import open_file


@click.command("diff", epilog="Exit status: 0 the same, 1 they differ, 2 usage error, 4 failure.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
def command(a: Path, b: Path, as_json: bool) -> int:
    """List every difference between the ONNX files A and B: tensors by relative change, nodes, interface, metadata.

    \b
    Example:
      onnxspect diff model.onnx patched.onnx
    """
    before, after = open_file(a).proto, open_file(b).proto
    # What a patch added is separated, so that everything else can be compared node by node.
    plain, added = without_additions(before, after)
    differences = [*(Difference("added", "", line) for line in added), *compare(before, plain)]
    if as_json:
        show_raw(to_json({"differences": [vars(d) for d in differences]}))
    else:
        show_raw("\n".join(d.text for d in differences) or "no differences")
    return exit_status.BACKDOOR if differences else exit_status.CLEAN
