"""`onnxspect certify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from onnxspect.cli import exit_status, options
from onnxspect.cli.console import err, show, show_raw
from onnxspect.cli.path_option import path_option
from onnxspect.engine.certification.feasible import INTEGRITY, SETS
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.certify import CENTROIDS, FRACTIONS, certify
from onnxspect.engine.report.as_json import render as to_json


@click.command("certify", epilog="Exit status: 0 done, 2 usage error, 4 failure.")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--classes", type=int, nargs=2, required=True, metavar="A B", help="The two classes to tell apart.")
@path_option("--model", metavar="MODEL", help="Take features at a tap of this model.")
@options.view
@click.option(
    "--tap", metavar="VALUE", help="Which tap (`onnxspect info` lists them).  [default: the penultimate layer]"
)
@click.option("--set", "kind", type=click.Choice(SETS), default="both", show_default=True, help="The feasible set.")
@click.option(
    "--centroids",
    type=click.Choice(CENTROIDS),
    default="oracle",
    show_default=True,
    help="Means of the clean samples, or of clean and poison together.",
)
@click.option(
    "--keep", type=click.FloatRange(0, 1, min_open=True), default=0.9, show_default=True, help="Share each limit keeps."
)
@click.option(
    "--integrity",
    type=click.Choice(INTEGRITY),
    default="none",
    show_default=True,
    help="What features must be: in [0, 1] (box), or non-negative integers (counts).",
)
@click.option(
    "--epsilon",
    "fractions",
    default=",".join(f"{f:g}" for f in FRACTIONS),
    show_default=True,
    help="Poison as shares of the clean samples.",
)
@click.option("--radius", type=float, help="Of the ball of parameters.  [default: by held-out loss]")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use at most N samples of each class.")
@path_option("--sanitise", "suspect", metavar="PATH", help="A training set to filter by the set.")
@path_option("--out", default=Path("certificate"), show_default=True, metavar="DIR")
@options.JSON
@options.run_options
@options.QUIET
def command(
    data: Path,
    classes: tuple[int, int],
    model: Path | None,
    tap: str | None,
    kind: str,
    centroids: str,
    keep: float,
    integrity: str,
    fractions: str,
    radius: float | None,
    limit: int | None,
    suspect: Path | None,
    out: Path,
    as_json: bool,
    device: str,
    seed: int,
    quiet: bool,
) -> int:
    """Bound the damage that poisoned points can do to a linear classifier behind a sanitiser, given clean samples DATA.

    DATA is an npz with `images` or `features`, and `labels`; or a folder of images by class. The certificate is about two
    classes, hinge loss and points that are added; it says nothing about backdoors.

    \b
    Example:
      onnxspect certify clean.npz --classes 1 7 --set both --epsilon 0,0.05,0.1 --out certificate
    """
    done = certify(
        data, classes, out, model, tap, kind, centroids, keep, integrity, _fractions(fractions), radius, limit, suspect,
        run=options.run_context(device, seed, quiet),
    )  # fmt: skip
    if as_json:
        show_raw(to_json(done.report))
    else:
        show(_table(done.report))
    if not quiet:
        err.print(f"certificate folder: {done.folder}")
    return exit_status.CLEAN


def _fractions(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise OnnxspectError(
            f"--epsilon {text!r}: not a comma-separated list of numbers", "such as --epsilon 0,0.05,0.1"
        ) from None


def _table(report: dict[str, Any]) -> Group:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("poison", "points", "upper bound", "attack attains", "on clean part", "error on clean", "gap"):
        table.add_column(column, justify="right")
    for row in report["certificates"]:
        table.add_row(
            f"{row['epsilon']:.1%}",
            str(row["poison_points"]),
            f"{row['upper_bound']:.4f}",
            f"{row['attack_loss']:.4f}",
            f"{row['attack_loss_clean_part']:.4f}",
            f"{row['attack_error_on_clean']:.1%}",
            f"{row['gap']:.1%}",
        )
    described = report["set"]
    head = Text(
        f"{described['kind']} set, {described['centroids']} centroids, classes {report['classes'][0]} and "
        f"{report['classes'][1]}, {report['features']['source']}: keeps {described['clean_kept']:.1%} of the clean samples"
    )
    lines: list[Text | Table] = [head, Text(), table, Text()]
    if "sanitised" in report:
        s = report["sanitised"]
        lines += [Text(f"{s['path']}: {s['removed']} of {s['samples']} samples removed"), Text()]
    lines.append(Text("certifies: " + report["certifies"]))
    lines += [Text("does not certify " + what, "dim") for what in report["does_not_certify"]]
    return Group(*lines)
