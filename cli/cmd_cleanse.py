"""`onnxspect cleanse`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from onnxspect.cli import exit_status, options, tables
from onnxspect.cli.console import err, show, show_raw
from onnxspect.cli.path_option import path_option
from onnxspect.engine.cleansing.by_activation import PriorKnowledge
from onnxspect.engine.jobs.cleanse import METHODS, cleanse
from onnxspect.engine.report.as_json import render as to_json
from onnxspect.engine.subject.datasets import Source
from onnxspect.engine.subject.subject import InputSpec


@click.command("cleanse", epilog="Exit status: 0 nothing to remove, 1 samples removed, 2 usage error, 4 failure.")
@options.MODEL
@options.view
@path_option(
    "--train",
    required=True,
    metavar="PATH",
    help="The suspect training set: a folder of images by class, an npz, or another form (docs/data.md).",
)
@path_option(
    "--run",
    "run_folder",
    metavar="DIR",
    help="A finished scan of MODEL, whose triggers are used.  [default: patterns are estimated on the training set]",
)
@click.option(
    "--detector", "detectors", multiple=True, metavar="NAME", help=f"One or several of: {', '.join(METHODS)}."
)
@click.option("--tap", metavar="VALUE", help="Where activations are taken.  [default: the penultimate layer]")
@click.option(
    "--target", "targets", type=int, multiple=True, metavar="CLASS", help="A target class, where it is known."
)
@click.option("--count", type=click.IntRange(min=1), help="Samples that spectral signatures remove from each class.")
@click.option(
    "--expected",
    type=click.FloatRange(0, 0.5, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Share of poison that spectral signatures expect in a class (half as much again is removed).",
)
@click.option("--silhouette", type=float, default=0.29, show_default=True, help="Threshold of activation clustering.")
@click.option("--impurity", type=float, default=0.65, show_default=True, help="Threshold of cluster impurity.")
@click.option(
    "--as-written", is_flag=True, help="The papers to the letter: Eq. 12, and the scan's one patch as it was learned."
)
@path_option("--truth", metavar="NPZ", help="`indices` of the poisoned samples: measure TPR, FPR.")
@path_option("--retrain", metavar="MODEL", help="Fine-tune on what is kept, write the model there, and measure it.")
@path_option(
    "--out", default=Path("cleansed"), show_default=True, metavar="DIR",
    help="Folder for scores, kept samples and pictures.",
)  # fmt: skip
@options.preprocessing_options
@options.classes_option
@options.JSON
@options.run_options
@options.QUIET
def command(
    model: Path,
    train: Source,
    run_folder: Path | None,
    detectors: tuple[str, ...],
    tap: str | None,
    targets: tuple[int, ...],
    count: int | None,
    expected: float,
    silhouette: float,
    impurity: float,
    as_written: bool,
    truth: Path | None,
    retrain: Path | None,
    out: Path,
    spec: InputSpec | None,
    as_json: bool,
    device: str,
    seed: int,
    quiet: bool,
) -> int:
    """Name the poisoned samples of a training set, given the ONNX file MODEL that was trained on it.

    The set itself is never changed: scores.csv, the kept samples (kept.npz, or kept.txt for a folder of images) and a
    sheet of the most suspicious ones go to DIR.

    \b
    Example:
      onnxspect cleanse model.onnx --train train.npz --run runs/model --out cleansed
    """
    known = PriorKnowledge(count=count, expected=expected, silhouette=silhouette, impurity=impurity)
    done = cleanse(
        model, train, out, run_folder, detectors, tap, targets, known, as_written, truth, retrain,
        spec=spec, run=options.run_context(device, seed, quiet),
    )  # fmt: skip
    if as_json:
        show_raw(to_json(done.report))
    else:
        show(_table(done.report))
        if done.proof is not None:
            show(tables.verification(done.proof, f"{retrain}: fine-tuned on {done.report['kept']} samples"))
    if not quiet:
        err.print(f"cleansing folder: {done.folder}")
    return exit_status.BACKDOOR if done.report["removed"] else exit_status.CLEAN


def _table(report: dict[str, Any]) -> Group:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("method", "removed", "by class", "TPR", "FPR in these classes", "FPR in all"):
        table.add_column(column, justify="left" if column in ("method", "by class") else "right")
    for m in report["methods"]:
        per_class = ", ".join(f"{c}: {f['removed']}" for c, f in m["classes"].items() if f.get("removed"))
        known = m["rates"]
        table.add_row(
            m["name"],
            str(m["removed"]),
            per_class or "none",
            f"{known['tpr']:.1%}" if known else "",
            f"{known['fpr']:.1%}" if known else "",
            f"{known['fpr_all']:.1%}" if known else "",
        )
    head = f"{report['removed']} of {report['train']['samples']} samples removed; the rest is in {report['kept_as']}"
    return Group(Text(head, "bold"), Text(), table, *(Text(note, "dim") for note in report["notes"]))
