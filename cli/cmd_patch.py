"""`onnxspect patch`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxspect.cli import exit_status, options, tables
from onnxspect.cli.console import show, show_raw
from onnxspect.engine.mitigation.verify import Goals
from onnxspect.engine.patch import METHODS, patch
from onnxspect.engine.report.document import as_json as to_json


@click.command(
    "patch", epilog="Exit status: 0 patched and proven, 2 usage error, 3 goals missed (nothing written), 4 failure."
)
@options.MODEL
@click.option(
    "--run", "run_folder", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The scan's run folder."
)
@options.data()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="MODEL", help="The patched file."
)
@click.option("--method", type=click.Choice(METHODS), default="auto", show_default=True, help="How to patch.")
@click.option(
    "--max-success",
    type=click.FloatRange(0, 1),
    default=0.02,
    show_default=True,
    help="Most that a trigger may still succeed.",
)
@click.option(
    "--max-accuracy-lost",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Most clean accuracy that may be lost.",
)
@click.option("--resize", is_flag=True, help="Bring images of another size to the model's.")
@options.JSON
@options.run_options
@options.QUIET
def command(
    model: Path,
    run_folder: Path,
    data: Path,
    output: Path,
    method: str,
    max_success: float,
    max_accuracy_lost: float,
    resize: bool,
    as_json: bool,
    device: str,
    seed: int,
    quiet: bool,
) -> int:
    """Remove the backdoor that a scan found in MODEL, and prove it on the written file in onnxruntime.

    Only weights change: inputs, outputs, names, opset and metadata stay, and the original file is never touched. A
    patch that misses its goals is not written.

    \b
    Example:
      onnxspect patch model.onnx --run runs/model --data clean.npz -o patched.onnx
    """
    goals = Goals(max_success, max_accuracy_lost)
    done = patch(model, run_folder, data, output, method, goals, resize, options.run_context(device, seed, quiet))
    if as_json:
        show_raw(to_json(done.describe()))
    else:
        show(tables.verification(done.proof, f"{output}: patched by {done.method}"))
    return exit_status.CLEAN
