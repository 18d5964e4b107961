"""`onnxspect verify`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from onnxspect.cli import exit_status, options, tables
from onnxspect.cli.console import show, show_raw
from onnxspect.cli.path_option import path_option
from onnxspect.cli.report_output import patch_format, put_patch
from onnxspect.engine.detectors.registry import PRESETS
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.prove import document_of, prove, prove_deployed
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.mitigation.strip import Strip
from onnxspect.engine.mitigation.verification import Goals, Verification
from onnxspect.engine.report.as_json import render as to_json
from onnxspect.engine.subject.class_scores import ModelView
from onnxspect.engine.subject.datasets import Source
from onnxspect.engine.subject.resizing import Resizing
from onnxspect.engine.subject.subject import InputSpec


@click.command(
    "verify",
    epilog="Exit status: 0 the goals hold, 1 the fresh scan finds a backdoor, or a deployed variant is another classifier, "
    "2 usage error, 3 goals missed, 4 failure.",
)
@options.MODEL
@options.view(of="against")
@path_option("--against", metavar="MODEL", help="The original file.")
@click.option(
    "--as-deployed",
    is_flag=True,
    help="Also (without --against: only) compare MODEL with what onnxruntime's optimiser levels and quantisers make of it.",
)
@options.data("Clean samples, best those that neither the scan nor the patch has seen.")
@path_option("--run", "run_folder", metavar="DIR", help="The scan's run folder: its triggers are measured.")
@path_option(
    "--trigger",
    "triggers",
    metavar="NPZ",
    multiple=True,
    help="A trigger of your own (docs/patches.md): mask and pattern, or delta, or displacement; and target. May be given again.",
)
@click.option(
    "--rescan",
    type=click.Choice(list(PRESETS)),
    help="Also scan MODEL afresh with this preset; a backdoor found is a goal missed.",
)
@path_option("--rescan-out", metavar="DIR", help="Where the fresh scan is kept (default: nowhere).")
@click.option("--strip", is_flag=True, help="Also say what the STRIP filter would catch (many forward passes).")
@options.MAX_SUCCESS
@options.MAX_ACCURACY_LOST
@options.MAX_REJECTED
@options.page("proof")
@options.preprocessing_options
@options.reading_options
@options.JSON
@options.PROGRESS
@options.run_options
@options.QUIET
def command(
    model: Path,
    against: Path | None,
    as_deployed: bool,
    data: Source,
    run_folder: Path | None,
    triggers: tuple[Path, ...],
    rescan: str | None,
    rescan_out: Path | None,
    strip: bool,
    max_success: float,
    max_accuracy_lost: float,
    max_rejected: float,
    report: Path | None,
    resize: Resizing,
    spec: InputSpec | None,
    as_json: bool,
    progress: str,
    device: str,
    seed: int,
    quiet: bool,
) -> int:
    """Measure the patched file MODEL against its original in onnxruntime: accuracy, triggers, latency, what differs.

    \b
    Example:
      onnxspect verify patched.onnx --against model.onnx --data clean.npz --run runs/model
      onnxspect verify patched.onnx --against model.onnx --data clean.npz --trigger mine.npz --rescan quick
      onnxspect verify model.onnx --as-deployed --data clean.npz --run runs/model
    """
    if report is not None:
        patch_format(report)
    if rescan_out is not None and not rescan:
        raise OnnxspectError("--rescan-out keeps a fresh scan, and none is asked for", "--rescan quick")
    run = options.run_context(device, seed, quiet, progress)
    if against is None:
        if not as_deployed:
            raise OnnxspectError("no file to measure MODEL against", "--against names the original; or --as-deployed")
        if report is not None:
            raise OnnxspectError(
                "--report is the page of a proof, and none is asked for", "--against names the original"
            )
        alone = prove_deployed(model, data, run_folder, triggers, spec, resize, run)
        if as_json:
            show_raw(to_json({"as_deployed": alone.describe()}))
        else:
            show(tables.deployment(alone, str(model)))
        return exit_status.BACKDOOR if alone.findings else exit_status.CLEAN

    def scan_again(patched: Path, spec: InputSpec) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory(prefix="onnxspect-") as scratch:
            out = rescan_out if rescan_out is not None else Path(scratch) / "run"
            again = replace(against, model=patched) if isinstance(against, ModelView) else patched
            return scan(again, data, out, rescan or "quick", spec=spec, resize=resize, run=run).report

    proof = prove(
        model,
        against,
        data,
        run_folder,
        triggers,
        spec,
        Goals(max_success, max_accuracy_lost, rejected=max_rejected),
        resize,
        run,
        Strip() if strip else None,
        scan_again if rescan else None,
    )
    # The run is the original's; of the patched file only triggers of the user's own can be told apart from it.
    deployment = prove_deployed(model, data, None, triggers, spec, resize, run) if as_deployed else None
    if report is not None:
        original = Path(str(getattr(against, "model", against)))
        put_patch(document_of(proof, model, original, data.path, run_folder), report)
    if as_json:
        more = {} if deployment is None else {"as_deployed": deployment.describe()}
        show_raw(to_json(proof.describe() | more))
    else:
        show(tables.verification(proof, f"{model} against {getattr(against, 'model', against)}"))
        show(Text("\n".join(_more(proof)), "dim"))
        if deployment is not None:
            show(tables.deployment(deployment, str(model)))
    if deployment is not None and deployment.findings:
        return exit_status.BACKDOOR
    if proof.rescan is not None and proof.rescan.verdict == "backdoored":
        return exit_status.BACKDOOR
    return exit_status.CLEAN if proof.holds else exit_status.INCONCLUSIVE


def _more(proof: Verification) -> list[str]:
    """What the table has no row for, a line each."""
    lines = [
        f"latency, {entry.batch} image{'s' if entry.batch != 1 else ''} a call: {entry.before:.2f} ms -> {entry.after:.2f} ms"
        for entry in proof.latency
    ]
    lines += list(proof.additions)
    if proof.strip is not None:
        caught = ", ".join(f"{1 - missed:.1%} with trigger {name}" for name, missed in proof.strip.missed.items())
        tail = f" and {caught}" if caught else ""
        lines.append(
            f"STRIP ({proof.strip.blends} passes an image) on the original would reject {proof.strip.rejected:.1%} of clean "
            f"images{tail}"
        )
    if proof.rescan is not None:
        lines.append(f"a fresh scan says: {proof.rescan.verdict} ({'; '.join(proof.rescan.reasons)})")
    return lines
