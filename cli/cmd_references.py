"""`onnxspect references`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxspect.cli import exit_status, options
from onnxspect.engine.detectors.registry import NAMES, PRESETS
from onnxspect.engine.jobs.references import Request, search_references
from onnxspect.engine.subject.datasets import Source
from onnxspect.engine.subject.resizing import Resizing


@click.command("references", epilog="Exit status: 0 done, 2 usage error, 4 failure.")
@click.argument("request", type=click.Path(path_type=Path))
@options.data()
@click.option("--train", type=click.Path(path_type=Path), metavar="PATH", help="As for `scan`.")
@click.option(
    "--preset", type=click.Choice(list(PRESETS)), default="standard", show_default=True, help="As for `scan`."
)
@click.option("--detector", "detectors", multiple=True, metavar="NAME", help=f"Only these: {', '.join(NAMES)}.")
@click.option("--tap", "taps", multiple=True, metavar="NAME", help="As for `scan`.")
@click.option("--perturb-at", default="", metavar="NAME", help="As for `scan`.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("references"),
    show_default=True,
    metavar="DIR",
    help="To fill.",
)
@options.PROGRESS
@options.reading_options
@options.run_options
@options.QUIET
def command(
    request: Path,
    data: Source,
    train: Source | None,
    preset: str,
    detectors: tuple[str, ...],
    taps: tuple[str, ...],
    perturb_at: str,
    out: Path,
    progress: str,
    resize: Resizing,
    device: str,
    seed: int,
    quiet: bool,
) -> int:
    """Train reference networks on clean samples, and search them, for all scans that lack the same.

    A scan of many models does this by itself. REQUEST is what a scan with --shelf left in its run folder; no model is opened.
    The folder is named by the request and lies in the scans' shelf.

    \b
    Example:
      onnxspect references runs/model/references-wanted.json --data clean.npz --out shelf/NAME
    """
    run = options.run_context(device, seed, quiet, progress)
    search_references(
        Request.read(request), data, out, preset, detectors, resize, run, train, taps=taps, perturb_at=perturb_at
    )
    return exit_status.CLEAN
