"""`onnxspect convert`."""

from __future__ import annotations

import math
from pathlib import Path

import click

from onnxspect.cli import exit_status
from onnxspect.cli.console import err, show_raw
from onnxspect.cli.path_option import path_option
from onnxspect.converters.sources.conversion import sidecar_text
from onnxspect.converters.sources.convert import Conversion, convert
from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError


@click.command(
    "convert", epilog="Exit status: 0 converted and equal, 1 hostile file, 2 usage error or refused, 4 failure."
)
@click.argument("source", type=click.Path(path_type=Path))
@path_option("-o", "--output", required=True, metavar="MODEL", help="The ONNX file.")
@click.option("--factory", metavar="MODULE:FUNCTION", help="Makes the network, where SOURCE holds weights alone.")
@click.option("--input-shape", metavar="C,H,W", help="Of one sample, where SOURCE does not say.")
@click.option("--head", default="", metavar="NAME", help="The output that is meant, where SOURCE has several.")
@click.option("--framework", metavar="NAME", help="What SOURCE is, where its content misleads.")
@click.option("--require-sandbox", is_flag=True, help="Refuse where the system cannot lock the conversion in.")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def command(
    source: Path,
    output: Path,
    factory: str | None,
    input_shape: str | None,
    head: str,
    framework: str | None,
    require_sandbox: bool,
    as_json: bool,
) -> int:
    """Turn SOURCE, a model of any framework, into an ONNX file, and prove that it computes the same.

    PyTorch (.pt2, TorchScript, state dict, safetensors), Keras, TensorFlow SavedModel, TFLite, JAX, scikit-learn, and
    ONNX itself. The framework runs in a locked-in process of its own; what it answers on seeded inputs is compared
    with what onnxruntime answers on the written file.

    \b
    Example:
      onnxspect convert model.keras -o model.onnx
    """
    shape = None
    if input_shape is not None:
        try:
            shape = [int(part) for part in input_shape.split(",")]
        except ValueError:
            raise OnnxspectError(
                f"--input-shape {input_shape!r}: not a comma-separated list of sizes",
                "the sizes of one sample, such as --input-shape 3,224,224",
            ) from None
    made = convert(
        source,
        output,
        factory=factory,
        input_shape=shape,
        framework=framework,
        require_sandbox=require_sandbox,
        head=head,
    )
    for warning in made.warnings:
        err.print(printable(warning, 400), style="dim", markup=False)
    if not made.sandbox.complete:
        err.print(f"the conversion was not locked in completely: {made.sandbox}", style="dim", markup=False)
    if as_json:
        show_raw(sidecar_text(made.facts))
    else:
        show_raw("\n".join(_said(made)))
    return exit_status.CLEAN


def _said(made: Conversion) -> list[str]:
    """What was written, and how it was proved to be the same."""
    parity, images = made.parity, sum(made.parity.batches)
    if made.exporter.startswith("copied"):
        what = "with what was missing filled in" if "repaired" in made.exporter else "byte for byte"
        first = f"{made.out}: the ONNX file itself, {what}, sha256 {made.sha256}"
    else:
        first = f"{made.out}: from {made.format.title} by {made.exporter}, sha256 {made.sha256}"
    lines = [first]
    if images and math.isfinite(parity.difference):
        lines.append(
            f"proved: on {images} images onnxruntime is {parity.difference:.2g} away from the framework's own answers, which reach "
            f"{parity.scale:.2g} ({parity.allowed:.2g} is allowed), and {parity.same_class:.0%} of them have the same class"
        )
    elif made.format.name == "onnx":
        lines.append("not compared: there is nothing beside the file itself to compare it with")
    return [*lines, f"facts: {made.sidecar}"]
