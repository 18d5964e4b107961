"""`onnxspect demo`: the whole story on the shipped models.

The demo is the one command that imports onnxspect.models: it needs the true trigger to show that the patch removes
what the attacker planted, and not only what the search recovered.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from rich.panel import Panel
from rich.text import Text

from onnxspect.cli import exit_status, options, tables
from onnxspect.cli.console import err, show, show_raw
from onnxspect.cli.path_option import path_option
from onnxspect.engine.errors import writing
from onnxspect.engine.jobs.patch import patch
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.mitigation.verification import JUDGED_ON_FEW, Goals
from onnxspect.engine.mitigation.verify import verify
from onnxspect.engine.report import as_text
from onnxspect.engine.report.as_json import render as to_json
from onnxspect.engine.report.result import Report
from onnxspect.engine.run import RunContext
from onnxspect.engine.store import made_folder
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec
from onnxspect.engine.trigger import KnownChange
from onnxspect.models import zoo
from onnxspect.models.triggers import trigger_from_dict

INFECTED, CLEAN, DATA = "fashion_mnist_badnets", "fashion_mnist_clean", "fashion_mnist_test"


@click.command("demo", epilog="Exit status: 0 everything as it should be, 4 anything else.")
@path_option(
    "--out",
    default=Path("demo"),
    show_default=True,
    metavar="DIR",
    help="Where runs, pictures and the patched file go.",
)
@options.JSON
@options.run_options
@options.QUIET
def command(out: Path, as_json: bool, device: str, seed: int, quiet: bool) -> int:
    """Find a real backdoor in a real ONNX model, show its trigger, patch the model, and prove the patch.

    Two Fashion-MNIST classifiers are shipped, twins but for a backdoor: the clean one must be called clean, the
    infected one must be found, and after the patch the attacker's own trigger must be dead. The models and samples stay in
    DIR, to try other commands on.

    \b
    Example:
      onnxspect demo --out demo
    """
    started = time.perf_counter()
    run = options.run_context(device, seed, quiet)
    known, unseen = _parts(out)
    models = _models(out)
    infected = _scan(models[INFECTED], known, out, run, show_report=not as_json)
    clean = _scan(models[CLEAN], known, out, run, show_report=not as_json)

    row = zoo.entry(INFECTED)
    found = infected.report["verdict"] == "backdoored" and infected.report["targets"] == [row["target"]]
    spared = clean.report["verdict"] == "clean"
    summary: dict[str, object] = {
        "infected": {
            "verdict": infected.report["verdict"],
            "targets": infected.report["targets"],
            "true": row["target"],
        },
        "clean": {"verdict": clean.report["verdict"]},
    }
    if not found:
        return _ended(summary, False, as_json, "the planted backdoor was not found", started)

    patched = out / "patched.onnx"
    _step(as_json, f"patching {models[INFECTED].name} by the trigger that the scan recovered")
    patch(models[INFECTED], infected.folder, known, patched, run=run)
    true = {"planted by the attacker": KnownChange(int(row["target"]), _true_trigger(row))}
    spec = infected.report["preprocessing"]["chosen"]
    proof = verify(
        patched,
        models[INFECTED],
        Samples.load(unseen),
        InputSpec(**{**spec, "mean": tuple(spec["mean"]), "std": tuple(spec["std"])}),
        true,
        # Of 361 images one in a hundred lies within chance of one in fifty: the goals are met or missed within that error.
        Goals(errors=JUDGED_ON_FEW),
        run.device,
    )
    summary["proof"] = proof.describe()
    if not as_json:
        title = f"{patched} on {proof.samples} images that neither scan nor patch has seen, within their sampling error (95 %)"
        show(tables.verification(proof, title))
    return _ended(
        summary, spared and proof.holds, as_json, "a step did not give what it should", started, infected.folder
    )


def _parts(out: Path) -> tuple[Path, Path]:
    """The shipped test images in two files: three fifths for scan and patch, two for the proof."""
    made_folder(out)
    with np.load(zoo.path(DATA), allow_pickle=False) as archive:
        images, labels, classes = archive["images"], archive["labels"], archive["classes"]
    parts = []
    for name, fifths in (("known", (0, 1, 2)), ("unseen", (3, 4))):
        rows = np.isin(np.arange(len(labels)) % 5, fifths)
        path = out / f"{name}.npz"
        with writing(path):
            np.savez_compressed(path, images=images[rows], labels=labels[rows], classes=classes)
        parts.append(path)
    return parts[0], parts[1]


def _models(out: Path) -> dict[str, Path]:
    """The shipped models, copied to where whoever tries more than the demo finds them."""
    copies = {name: out / zoo.path(name).name for name in (INFECTED, CLEAN)}
    for name, copy in copies.items():
        with writing(copy):
            shutil.copyfile(zoo.path(name), copy)
    return copies


def _scan(model: Path, data: Path, out: Path, run: RunContext, show_report: bool) -> Report:
    _step(not show_report, f"scanning {model.name}")
    result = scan(model, data, out / model.stem, preset="quick", run=run, references=out / "references")
    if show_report:
        show(Panel(as_text.render(result.report), title=model.name, title_align="left"))
    return result


def _true_trigger(row: dict[str, object]) -> Callable[[np.ndarray], np.ndarray]:
    """The planted trigger on pixels in [0, 1]: to 8 bits, stamped as the attacker did, and back."""
    trigger = trigger_from_dict(row["trigger"])

    def apply(pixels: np.ndarray) -> np.ndarray:
        images = np.round(pixels * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        stamped = trigger.apply(images, np.random.default_rng(0))
        return np.ascontiguousarray(stamped.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)

    return apply


def _step(silent: bool, text: str) -> None:
    if not silent:
        err.print()
        err.print(text, style="bold")


def _ended(
    summary: dict[str, object], well: bool, as_json: bool, problem: str, started: float, folder: Path | None = None
) -> int:
    seconds = time.perf_counter() - started
    if as_json:
        show_raw(to_json({**summary, "as_it_should_be": well, "seconds": round(seconds, 1)}))
    else:
        line = Text("found, shown, patched, proven" if well else problem, "bold green" if well else "bold red")
        line.append(f" in {seconds:.0f} s", "default")
        if folder is not None:
            line.append(f"; pictures in {folder}", "dim")
        show(line)
    return exit_status.CLEAN if well else exit_status.FAILURE
