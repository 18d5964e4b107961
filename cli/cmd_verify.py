"""`onnxspect verify`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxspect.cli import exit_status, options, tables
from onnxspect.cli.console import show, show_raw
from onnxspect.engine.mitigation.verify import Goals
from onnxspect.engine.prove import prove
from onnxspect.engine.report.document import as_json as to_json


@click.command("verify", epilog="Exit status: 0 the goals hold, 1 they do not, 2 usage error, 4 failure.")
@options.MODEL
@click.option("--against", type=click.Path(path_type=Path), required=True, metavar="MODEL", help="The original file.")
@options.data("Clean samples, best those that neither the scan nor the patch has seen.")
@click.option(
    "--run",
    "run_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The scan's run folder: its triggers are measured.",
)
@click.option(
    "--trigger",
    type=click.Path(path_type=Path),
    metavar="NPZ",
    help="A trigger of your own: mask and pattern, or delta; and target.",
)
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
@options.preprocessing_options
@options.JSON
@options.run_options
@options.QUIET
def command(
    model: Path,
    against: Path,
    data: Path,
    run_folder: Path | None,
    trigger: Path | None,
    max_success: float,
    max_accuracy_lost: float,
    resize: bool,
    scale: float | None,
    mean: str | None,
    std: str | None,
    channel_order: str | None,
    as_json: bool,
    device: str,
    seed: int,
    quiet: bool,
) -> int:
    """Measure the patched file MODEL against its original in onnxruntime: accuracy, triggers, and what differs.

    \b
    Example:
      onnxspect verify patched.onnx --against model.onnx --data clean.npz --run runs/model
    """
    proof = prove(
        model,
        against,
        data,
        run_folder,
        trigger,
        options.input_spec(scale, mean, std, channel_order),
        Goals(max_success, max_accuracy_lost),
        resize,
        options.run_context(device, seed, quiet),
    )
    if as_json:
        show_raw(to_json(proof.describe()))
    else:
        show(tables.verification(proof, f"{model} against {against}"))
    return exit_status.CLEAN if proof.holds else exit_status.BACKDOOR
