"""`onnxspect scan`."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from onnxspect.cli import exit_status, options
from onnxspect.cli.console import err, show, show_raw
from onnxspect.engine.detectors.registry import NAMES, PRESETS
from onnxspect.engine.jobs.budget import parse_duration
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.judge.calibration import PRIOR
from onnxspect.engine.report import as_text, document
from onnxspect.engine.subject.datasets import Source
from onnxspect.engine.subject.resizing import Resizing
from onnxspect.engine.subject.subject import InputSpec


@click.command("scan", epilog=exit_status.HELP)
@options.MODEL
@options.view
@options.data()
@click.option(
    "--train",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The training set, perhaps poisoned, in the same forms: detectors that need one run then.",
)
@click.option(
    "--preset", type=click.Choice(list(PRESETS)), default="standard", show_default=True, help="How hard to search."
)
@click.option(
    "--budget",
    metavar="TIME",
    help="About how long the scan may take, such as 10m: the most thorough preset that fits (up to --preset, where it is given); "
    "what is left out is said.",
)
@click.option("--detector", "detectors", multiple=True, metavar="NAME", help=f"Only these: {', '.join(NAMES)}.")
@click.option("--tap", "taps", multiple=True, metavar="NAME", help="Layers that cepa looks at, as `info` lists them.")
@click.option("--perturb-at", default="", metavar="NAME", help="Perturb this inner value, not the pixels (cepa).")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Run folder.  [default: runs/MODEL-xxxxxxxx]"
)
@click.option(
    "--prior",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=PRIOR,
    show_default=True,
    help="Share of models taken to be infected, for P(backdoored).",
)
@options.JSON
@options.preprocessing_options
@options.reading_options
@options.run_options
@options.QUIET
def command(
    model: Path,
    data: Source,
    train: Source | None,
    preset: str,
    budget: str | None,
    detectors: tuple[str, ...],
    taps: tuple[str, ...],
    perturb_at: str,
    out: Path | None,
    prior: float,
    as_json: bool,
    resize: Resizing,
    spec: InputSpec | None,
    device: str,
    seed: int,
    quiet: bool,
) -> int:
    """Look for backdoors in the ONNX file MODEL and say how sure it is.

    The report goes to stdout; triggers and charts go to the run folder as pictures. A scan that was interrupted
    resumes when the same command is given again.

    \b
    Example:
      onnxspect scan model.onnx --data clean.npz --out runs/model
    """
    seconds = parse_duration(budget) if budget is not None else None
    asked = click.get_current_context().get_parameter_source("preset") is not ParameterSource.DEFAULT
    if seconds is not None and not asked:
        preset = list(PRESETS)[-1]
    run = options.run_context(device, seed, quiet)
    result = scan(
        model, data, out, preset, detectors, spec, resize, run,
        train=train, taps=taps, perturb_at=perturb_at, budget=seconds, prior=prior,
    )  # fmt: skip
    if as_json:
        show_raw(document.as_json(result.report))
    else:
        show(as_text.render(result.report))
    if not quiet:
        err.print(f"run folder: {result.folder}")
    return exit_status.OF_VERDICT[result.report["verdict"]]
