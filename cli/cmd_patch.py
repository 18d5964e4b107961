"""`onnxspect patch`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.text import Text

from onnxspect.cli import exit_status, options, tables
from onnxspect.cli.console import show, show_raw
from onnxspect.cli.path_option import path_option
from onnxspect.cli.report_output import patch_format, put_patch
from onnxspect.engine.durations import parse_duration
from onnxspect.engine.jobs.patch import patch
from onnxspect.engine.mitigation.input_filter import FORMS
from onnxspect.engine.mitigation.registry import AUTO, CHOICES, MAKERS, METHODS, canonical
from onnxspect.engine.mitigation.settings import parsed
from onnxspect.engine.mitigation.training import BATCH_NORM
from onnxspect.engine.mitigation.verification import Goals
from onnxspect.engine.report.as_json import render as to_json
from onnxspect.engine.subject.datasets import Source
from onnxspect.engine.subject.resizing import Resizing


class _Method(click.Choice[str]):
    """A method's name, in its old spelling too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(canonical(str(value)), param, ctx)


@click.command(
    "patch", epilog="Exit status: 0 patched and proven, 2 usage error, 3 goals missed (nothing written), 4 failure."
)
@options.MODEL
@options.view(name="--head")
@path_option("--run", "run_folder", required=True, metavar="DIR", help="The scan's run folder.")
@options.data()
@path_option("-o", "--output", required=True, metavar="MODEL", help="The patched file.")
@click.option(
    "--method",
    type=_Method(CHOICES),
    default=AUTO,
    show_default=True,
    help="How to patch; auto tries "
    + ", ".join(n for n, e in METHODS.items() if e.automatic)
    + " in turn. "
    + "; ".join(f"{n}: {e.summary}" for n, e in METHODS.items())
    + ".",
)
@click.option(
    "--target",
    "targets",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="CLASS",
    help="Patch this class, whatever the scan named. May be given again.",
)
@click.option("--proactive", is_flag=True, help="Patch every class, whatever the scan named.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="METHOD.KEY=VALUE",
    help="A setting of a method, such as input-filter.form=profile or unlearn.rounds=2; all of them are listed in "
    "docs/cli.md. May be given again.",
)
# The options of single methods before there was --set; they are kept for scripts.
@click.option("--layer", hidden=True)
@click.option("--form", type=click.Choice(FORMS), hidden=True)
@click.option("--batch-norm", type=click.Choice(BATCH_NORM), hidden=True)
@click.option("--rounds", type=click.IntRange(min=1), hidden=True)
@click.option("--false-positives", type=click.FloatRange(0, 1, min_open=True, max_open=True), hidden=True)
@click.option(
    "--budget",
    metavar="TIME",
    help="Let the whole take no longer than this (90s, 10m, 1h30m): methods that do not fit are left out. An interrupted patch begins anew.",
)
@options.MAX_SUCCESS
@options.MAX_ACCURACY_LOST
@options.page("patch")
@options.reading_options
@options.JSON
@options.PROGRESS
@options.run_options
@options.QUIET
def command(
    model: Path,
    run_folder: Path,
    data: Source,
    output: Path,
    method: str,
    targets: tuple[int, ...],
    proactive: bool,
    settings: tuple[str, ...],
    layer: str | None,
    form: str | None,
    batch_norm: str | None,
    rounds: int | None,
    false_positives: float | None,
    budget: str | None,
    max_success: float,
    max_accuracy_lost: float,
    report: Path | None,
    resize: Resizing,
    as_json: bool,
    progress: str,
    device: str,
    seed: int,
    quiet: bool,
) -> int:
    """Remove the backdoor that a scan found in MODEL, and prove it on the written file in onnxruntime.

    Only weights change (and, for a mask or the input filter, nodes are added): inputs, outputs, names, opset and metadata
    stay, and the original file is never touched. A patch that misses its goals is not written.

    \b
    Example:
      onnxspect patch model.onnx --run runs/model --data clean.npz -o patched.onnx
      onnxspect patch model.onnx --run runs/model --data clean.npz --method input-filter -o guarded.onnx
    """
    if report is not None:
        patch_format(report)
    given: dict[str, str | float | None] = {
        "layer": layer,
        "form": form,
        "batch_norm": batch_norm,
        "rounds": rounds,
        "false_positives": false_positives,
    }
    done = patch(
        model,
        run_folder,
        data,
        output,
        method,
        Goals(max_success, max_accuracy_lost),
        resize,
        options.run_context(device, seed, quiet, progress),
        targets or None,
        proactive,
        {name: value for name, value in given.items() if value is not None} | parsed(settings, MAKERS),
        None if budget is None else parse_duration(budget),
    )
    if report is not None:
        put_patch(done.document, report)
    if as_json:
        show_raw(to_json(done.describe()))
    else:
        show(tables.verification(done.proof, f"{output}: patched by {done.method}"))
        if len(done.attempts) > 1 or done.attempts[0].left is not None:
            show(Text("\n".join(["tried in order of cost:", *(f"  {a.outcome}" for a in done.attempts)]), "dim"))
    return exit_status.CLEAN
