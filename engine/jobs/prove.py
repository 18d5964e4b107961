"""Verification from paths: what `onnxspect verify` calls. It gathers samples, preprocessing and triggers.

A fresh scan of the patched file is asked of the caller (`rescan`), because a scan is a whole job of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxspect.converters.file.onnx_file import read_onnx
from onnxspect.engine.errors import InconclusiveError, OnnxspectError
from onnxspect.engine.jobs.case import open_case
from onnxspect.engine.mitigation.deployed import Deployment, deployed
from onnxspect.engine.mitigation.recovered import named, read_recovered
from onnxspect.engine.mitigation.strip import Strip
from onnxspect.engine.mitigation.verification import Goals, Rescan, Verification
from onnxspect.engine.mitigation.verify import verify
from onnxspect.engine.readers import npz
from onnxspect.engine.report import patch_document
from onnxspect.engine.report.progress import watched
from onnxspect.engine.report.result import Report, folder_of
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.datasets import Data
from onnxspect.engine.subject.onnx_model import open_file
from onnxspect.engine.subject.opening import Model
from onnxspect.engine.subject.precision import judging
from onnxspect.engine.subject.preprocessing import check_labels, check_order, preflight
from onnxspect.engine.subject.resizing import Resizing
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.trigger import DISPLACEMENT, UNTARGETED, Aimed, Trigger, bounds, form_of, shapes


@judging()
def prove(
    patched: str | Path,
    original: Model,
    data: Data,
    run_folder: str | Path | Report | None = None,
    trigger: str | Path | Sequence[str | Path] | None = None,
    spec: InputSpec | None = None,
    goals: Goals | None = None,
    resize: Resizing = False,
    run: RunContext | None = None,
    strip: Strip | None = None,
    rescan: Callable[[Path, InputSpec], Mapping[str, Any]] | None = None,
) -> Verification:
    """Measure a patched file against its original.

    Args:
        patched, original: the files.
        data: clean samples, in any form (datasets.ACCEPTED).
        run_folder: of the scan whose triggers are measured, or the report that it gave; its preprocessing is used too.
        trigger: npz of a trigger of one's own (see `load_trigger`), or several.
        spec: preprocessing where the user knows it; else the run's, else it is found on the original.
        goals: what must hold.
        resize: bring images of another size to the model's, or the way to do it (resizing.Resize).
        run: seed, device, observer.
        strip: also say what this filter would do on top of the original.
        rescan: scans the patched file with this preprocessing and returns the report; its verdict counts too.

    Raises:
        OnnxspectError: a file does not fit.
    """
    if run_folder is None and not trigger and rescan is None:
        raise OnnxspectError(
            "no trigger to measure: accuracy alone proves no patch",
            "--run takes the triggers of a scan, --trigger one of your own, --rescan searches anew",
        )
    run = run or watched()
    gathered = _gathered(original, data, run_folder, trigger, spec, resize, run, needed=rescan is None)
    subject, samples, triggers, chosen = gathered.subject, gathered.samples, gathered.triggers, gathered.subject.spec
    proof = verify(
        Path(patched),
        subject.origin.file.path,
        samples,
        chosen,
        triggers,
        goals,
        run.device,
        timed=True,
        strip=strip,
        run=run,
        opened=(subject.origin.file, open_file(patched, dict(subject.origin.file.bound))),
        logits=subject.origin.logits,
    )
    proof = replace(proof, notes=gathered.notes)
    if rescan is None:
        return proof
    try:
        report = rescan(Path(patched), chosen)
    except InconclusiveError as error:  # too few samples for a verdict are no evidence against the proof
        return replace(proof, rescan=Rescan("inconclusive", (), 1.0, (error.message,)))
    found = Rescan(report["verdict"], tuple(report["targets"]), report["p_value"], tuple(report["reasons"]))
    return replace(proof, rescan=found)


@judging()
def prove_deployed(
    model: Model,
    data: Data,
    run_folder: str | Path | Report | None = None,
    trigger: str | Path | Sequence[str | Path] | None = None,
    spec: InputSpec | None = None,
    resize: Resizing = False,
    run: RunContext | None = None,
) -> Deployment:
    """Compare a file with what optimisers and quantisers make of it, on clean samples and on triggers.

    Args:
        model: the file.
        data, run_folder, trigger, spec, resize, run: as for `prove`; without triggers clean samples alone are compared.

    Raises:
        OnnxspectError: the file is not usable, or does not fit the run.
    """
    gathered = _gathered(model, data, run_folder, trigger, spec, resize, run or watched(), needed=False)
    return deployed(gathered.subject, gathered.samples, gathered.triggers)


@dataclass(frozen=True)
class _Gathered:
    """What files are measured on: the classifier with its preprocessing settled, clean samples, and triggers by name; and what was
    changed or guessed on the way."""

    subject: Subject
    samples: Samples
    triggers: Mapping[str, Aimed]
    notes: tuple[str, ...] = ()


def _gathered(
    original: Model,
    data: Data,
    run_folder: str | Path | Report | None,
    trigger: str | Path | Sequence[str | Path] | None,
    spec: InputSpec | None,
    resize: Resizing,
    run: RunContext,
    needed: bool,
) -> _Gathered:
    folder = folder_of(run_folder) if run_folder is not None else None
    recovered = read_recovered(folder) if folder is not None else None
    case = open_case(original if recovered is None else recovered.scan.view(original), data, spec, run, resize)
    subject, samples = case.subject, case.samples
    check_labels(samples, subject)
    triggers: dict[str, Aimed] = {}
    if folder is not None and recovered is not None:
        recovered.scan.check(subject, folder)
        triggers |= named(recovered.triggers)
        if not triggers and not trigger and needed:
            verdict = recovered.scan.report["verdict"]
            open_question = verdict == "inconclusive"
            raise (InconclusiveError if open_question else OnnxspectError)(
                f"{folder}: the scan's verdict is {verdict}: it has no trigger to measure",
                "--trigger takes one of your own, --rescan searches the patched file anew",
            )
    given = [trigger] if isinstance(trigger, str | Path) else list(trigger or ())
    for path in map(Path, given):
        own = load_trigger(path, samples.shape)
        if own.target >= subject.classes:
            raise OnnxspectError(
                f"{path}: target {own.target}, but the model has {subject.classes} classes",
                "class indices count from 0",
            )
        name = path.stem
        while name in triggers:
            name += "'"
        triggers[name] = own
    if spec is None and recovered is not None:
        settled = subject.with_spec(replace(recovered.scan.spec, layout=subject.spec.layout))
        said = check_order(settled, samples, run)
    else:
        checked = preflight(subject, samples, run, spec, samples.order_given)
        settled, said = checked.subject, checked.notes
    return _Gathered(settled, samples, triggers, (*case.notes, *said))


def document_of(
    proof: Verification, patched: Path, original: Path, data: Path, run_folder: Path | None = None
) -> dict[str, Any]:
    """The document of a verification (report/patch_document.py). Nothing is written: the run may be untrusted, on read-only media.

    Args:
        proof: what `prove` gave.
        patched, original: the files.
        data: clean samples.
        run_folder: of the scan whose triggers were measured.

    Raises:
        OnnxspectError: a file cannot be read any more.
    """
    return patch_document.build(
        patch_document.VERIFY,
        proof.describe(),
        (str(original), read_onnx(Path(original)).sha256),
        (str(patched), read_onnx(Path(patched)).sha256),
        (str(data), "", proof.samples),
        "" if run_folder is None else str(run_folder),
    )


def load_trigger(path: Path, shape: tuple[int, int, int]) -> Trigger:
    """A user's own trigger: npz with `target` (a class index, or -1 for any but the image's own class) and either `mask` and
    `pattern`, or `delta`, or `displacement`.

    Arrays are float in [0, 1] (`delta` in [-1, 1]), ``(channels, height, width)``, or ``(height, width)`` for a mask; a `displacement`
    is in pixels, ``(2, height, width)``.

    Raises:
        OnnxspectError: not such a file, or another shape.
    """
    arrays = npz.arrays(path, str(path))
    names = form_of(arrays)
    if "target" not in arrays or not names:
        raise OnnxspectError(
            f"{path}: a trigger has `target`, and `mask` and `pattern`, or `delta`, or `displacement`",
            "save it so: np.savez(path, target=7, mask=mask, pattern=pattern)",
        )
    kept = {}
    for name in names:
        if arrays[name].dtype.kind not in "biuf":
            raise OnnxspectError(
                f"{path}: {name} holds no numbers ({arrays[name].dtype})", "an array of floats in [0, 1]"
            )
        array = arrays[name].astype(np.float32)
        if array.ndim == 2:
            array = array[None]
        if array.shape not in shapes(name, shape):
            raise OnnxspectError(
                f"{path}: {name} has shape {array.shape}, the images {shape}",
                f"make it for images of the model's size, ({'2' if name == DISPLACEMENT else 'channels'}, height, width)",
            )
        low, high = bounds(name, shape[1:])
        if not np.isfinite(array).all() or array.min() < low or array.max() > high:
            raise OnnxspectError(
                f"{path}: {name} has values outside [{low:g}, {high:g}]",
                "pixels are floats in [0, 1]; a delta lies in [-1, 1], a displacement within the picture",
            )
        kept[name] = array
    target = arrays["target"]
    if target.size != 1 or target.dtype.kind not in "ui" or int(target.reshape(())) < UNTARGETED:
        raise OnnxspectError(
            f"{path}: `target` is not one class index", f"{UNTARGETED} stands for any class but the image's own"
        )
    return Trigger(int(target.reshape(())), kept)
