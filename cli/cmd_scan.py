"""`onnxspect scan`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxspect.cli import exit_status, options
from onnxspect.cli.console import err
from onnxspect.cli.path_option import path_option
from onnxspect.cli.report_output import accepted_findings, check, found_policy, put, report_options
from onnxspect.engine.detectors.registry import NAMES, PRESETS
from onnxspect.engine.durations import parse_duration
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.scan import check_settings, scan
from onnxspect.engine.judge.calibration import PRIOR
from onnxspect.engine.readers.labels import ClassList
from onnxspect.engine.report import formats, policy
from onnxspect.engine.subject.datasets import Source
from onnxspect.engine.subject.resizing import Resizing
from onnxspect.engine.subject.subject import InputSpec

Command = TypeVar("Command", bound=Callable[..., Any])


def _only_one(context: click.Context, _: click.Parameter, given: tuple[Path, ...]) -> Path | None:
    """The model; where there are several, it is many.py's work."""
    if len(given) != 1 and not context.resilient_parsing:
        raise click.UsageError(f"{len(given)} models where one is scanned")
    return given[0] if given else None


def _many_options(command: Command) -> Command:
    """What makes it a scan of many, of one model too; cli/many.py reads them."""
    for option in (
        click.option(
            "--ray",
            metavar="ADDRESS",
            expose_value=False,
            help="Scan them on this Ray cluster (onnxspect[ray]); auto takes the one at hand.",
        ),
        click.option(
            "--no-cache",
            is_flag=True,
            expose_value=False,
            help="Take nothing from earlier scans of many, and keep nothing for later ones.",
        ),
        click.option(
            "--cache",
            type=click.Path(path_type=Path),
            metavar="DIR",
            expose_value=False,
            help="Where scans of many keep what they share and know.  [default: the user's cache folder]",
        ),
        click.option(
            "--jobs",
            type=click.IntRange(min=1),
            metavar="N",
            expose_value=False,
            help="Scan so many at a time.  [default: by cores, GPUs and memory]",
        ),
    ):
        command = option(command)
    return command


@click.command("scan", epilog=exit_status.HELP)
@click.argument(
    "model", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="MODEL...", callback=_only_one
)
@options.view
@path_option(
    "--data",
    metavar="PATH",
    help="Clean samples: an npz with images and labels, or a folder of images by class.  [required, but for a policy with data]",
)
@path_option(
    "--train",
    metavar="PATH",
    help="The training set, perhaps poisoned, in the same forms: detectors that need one run then.",
)
@click.option(
    "--preset", type=click.Choice(list(PRESETS)), help="How hard to search.  [default: the policy's, or standard]"
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
@path_option("--out", metavar="DIR", help="Run folder.  [default: runs/MODEL-xxxxxxxx]")
@click.option(
    "--shelf",
    type=click.Path(path_type=Path),
    metavar="DIR",
    hidden=True,  # a scan of many models gives it to each (cli/many.py)
    help="Finished references (`onnxspect references`), which are only read.",
)
@click.option(
    "--check-only",
    is_flag=True,
    hidden=True,  # a scan of many models asks once, before it begins with any (engine/fleet/fleet.py)
    help="Check the options, and that the samples are there; look at no model.",
)
@click.option(
    "--prior",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=PRIOR,
    show_default=True,
    help="Share of models taken to be infected, for P(backdoored).",
)
@click.option("--format", "form", type=click.Choice(formats.FORMATS), help="How to print the report.  [default: text]")
@options.JSON
@report_options
@click.option(
    "--fail-on",
    type=click.Choice(policy.FAIL_ON),
    help="Which verdicts end in a status that is not 0: backdoored alone, inconclusive too, or none.  [default: the policy's, or "
    "inconclusive]",
)
@click.option("--exit-zero", is_flag=True, help="The same as --fail-on never.")
@_many_options
@options.PROGRESS
@options.preprocessing_options
@options.reading_options
@options.run_options
@options.QUIET
def command(
    model: Path,
    data: Source | None,
    train: Source | None,
    preset: str | None,
    budget: str | None,
    detectors: tuple[str, ...],
    taps: tuple[str, ...],
    perturb_at: str,
    out: Path | None,
    shelf: Path | None,
    check_only: bool,
    prior: float,
    form: str | None,
    as_json: bool,
    outputs: tuple[Path, ...],
    policy_file: Path | None,
    fail_on: str | None,
    exit_zero: bool,
    progress: str,
    resize: Resizing,
    spec: InputSpec | None,
    device: str,
    seed: int,
    quiet: bool,
) -> int:
    """Look for backdoors in the ONNX file MODEL and say how sure it is; or in many: files, folders, patterns, lists of them.

    The report goes to stdout, and to files with -o; triggers and charts go to the run folder as pictures. A scan that was
    interrupted resumes when the same command is given again.

    \b
    Example:
      onnxspect scan model.onnx --data clean.npz --out runs/model
      onnxspect scan model.onnx --data clean.npz -o report.html -o report.sarif --fail-on backdoored
      onnxspect scan models/ more/*.onnx --data clean.npz --out runs
    """
    if exit_zero and fail_on not in (None, policy.NEVER):
        raise OnnxspectError(f"--exit-zero and --fail-on {fail_on} contradict each other", "give one of the two")
    rules = found_policy(policy_file)
    form = "json" if as_json else form or formats.TEXT
    files = check(outputs, None)
    listed = click.get_current_context().params.get("classes")  # said of the policy's samples, where none are given
    known = ClassList.of(listed) if listed else None
    data = data or (Source(rules.data, known) if rules.data else None)
    train = train or (Source(rules.train, known) if rules.train else None)
    if data is None:
        raise OnnxspectError(
            "no clean samples are given", '--data PATH, or data = "PATH" in a policy (docs/pipelines.md)'
        )
    seconds = parse_duration(budget) if budget is not None else None
    # With a budget the most thorough preset that fits is taken, up to the one that is asked for.
    preset = preset or rules.preset or (list(PRESETS)[-1] if seconds is not None else "standard")
    run = options.run_context(device, seed, quiet, progress)
    if check_only:
        check_settings(data, train, preset, detectors, taps, perturb_at)
        return exit_status.CLEAN
    result = scan(
        model, data, out, preset, detectors, spec, resize, run,
        train=train, taps=taps, perturb_at=perturb_at, budget=seconds, prior=prior, shelf=shelf,
    )  # fmt: skip
    accepted, all_accepted = accepted_findings(result.report, result.folder, rules)
    put(result.report, result.folder, form, files, accepted)
    if not quiet and progress != "json":
        err.print(f"run folder: {result.folder}")
    wanted = policy.NEVER if exit_zero else fail_on or rules.fail_on or policy.INCONCLUSIVE
    return exit_status.of_scan(result.verdict, wanted, all_accepted)
