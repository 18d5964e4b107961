"""One scan from file to report: open, preflight, search, judge, keep. The library call behind `onnxspect scan`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from onnxspect.converters.lowering.logits import switch_of
from onnxspect.engine.ahead import load_ahead
from onnxspect.engine.detectors.base import AtHand, Detector
from onnxspect.engine.detectors.cepa import Cepa
from onnxspect.engine.detectors.registry import chosen
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.evidence import Evidence, Skipped
from onnxspect.engine.judge.verdict import decide
from onnxspect.engine.report import document, pictures
from onnxspect.engine.run import RunContext, prepare_process, tool_version
from onnxspect.engine.store import Ledger, write_atomically
from onnxspect.engine.subject.preprocessing import preflight
from onnxspect.engine.subject.reference import train_references
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject

#: Share of the clean samples that searches see; the rest is for the second look, and for proofs.
SEARCH_SHARE = 0.5


@dataclass(frozen=True)
class ScanResult:
    """What a scan leaves.

    Attributes:
        report: the JSON document.
        folder: the run folder: ledger, report.json and pictures.
        resumed: units that an earlier run had finished.
    """

    report: dict[str, Any]
    folder: Path
    resumed: int


def scan(
    model: str | Path,
    data: str | Path,
    out: str | Path | None = None,
    preset: str = "standard",
    detectors: Sequence[str] = (),
    spec: InputSpec | None = None,
    resize: bool = False,
    run: RunContext | None = None,
    references: str | Path | None = None,
    train: str | Path | None = None,
    taps: Sequence[str] = (),
    perturb_at: str = "",
) -> ScanResult:
    """Scan an ONNX file for backdoors.

    Args:
        model: the ONNX file.
        data: clean samples: npz, or a folder of images by class.
        out: run folder; by default runs/ and a name made of the model's name and the scan's fingerprint, so that the
            same scan finds its own unfinished run.
        preset: quick, standard or thorough.
        detectors: names; all that apply, by default.
        spec: the model's preprocessing, where the user knows it; else it is found.
        resize: bring images of another size to the model's.
        run: seed, device, observer.
        references: folder that keeps what was measured on reference networks, to be shared by scans of several models
            with the same data; inside the run folder by default.
        train: the training set, perhaps poisoned, in the same forms as `data`; detectors that need one run then.
        taps: internal layers that cepa looks at: ONNX value names, or indices as `onnxspect info` lists them.
        perturb_at: value name of the first continuous tensor of a model whose input is discrete: cepa perturbs it in
            place of the pixels.

    Raises:
        OnnxspectError: anything that stops the scan, with a hint.
    """
    run = run or RunContext()
    able = [_aimed(d, taps, perturb_at) for d in chosen(preset, detectors, with_training_set=train is not None)]
    if (taps or perturb_at) and not any(isinstance(d, Cepa) for d in able):
        raise OnnxspectError("taps are cepa's, which does not run", "add it, or choose a more thorough preset")
    prepare_process(run.device)
    started = time.perf_counter()
    load_ahead(run.device)
    subject = Subject.from_onnx(model, spec, run.device)
    samples = Samples.load(data, subject.size, resize)
    training = Samples.load(train, subject.size, resize) if train is not None else None
    fingerprint = _fingerprint(subject, samples, training, preset, able, spec, resize, run)
    folder = Path(out) if out is not None else Path("runs") / f"{Path(model).stem}-{_short(fingerprint)}"
    with Ledger(folder, fingerprint) as ledger:
        if ledger.fact("report") is not None:
            run.observer.notice(f"{folder}: this scan is already finished; showing its report")
            return ScanResult(ledger.report(), folder, 0)
        checked = preflight(subject, samples, run, spec)
        found_on, held_out = samples.split(SEARCH_SHARE, run.numpy_generator("split"))
        resumed = sum(len(ledger.units(d.name)) for d in able)
        baseline = _reference_folder(folder, references)
        if resumed:
            run.observer.notice(f"{folder}: resuming, {resumed} units are already done")
        with Ledger(baseline, _baseline_fingerprint(fingerprint, checked.subject, able)) as reference_ledger:
            compared = any(d.uses_references for d in able)
            clean = train_references(checked.subject, found_on, held_out, run, baseline) if compared else []
            at_hand = AtHand(checked.subject, found_on, held_out, run, ledger, clean, reference_ledger, training)
            evidence = [_look(d, at_hand, alone=len(able) == 1) for d in able]
        for found in evidence:
            if isinstance(found, Evidence):
                ledger.keep_evidence(found.detector, found.units)
        verdict = decide(evidence, checked.subject.classes, switch=_switch(checked.subject))
        searching = sum(e.seconds for e in evidence if isinstance(e, Evidence))
        seconds = searching if resumed else time.perf_counter() - started
        report = document.build(checked.subject, samples, checked, evidence, verdict, run, preset, seconds)
        pictures.draw(report, evidence, samples, folder)
        text = document.as_json(report)
        write_atomically(folder / "report.json", text.encode())
        ledger.set_fact("report", text)
    return ScanResult(report, folder, resumed)


def _aimed(detector: Detector, taps: Sequence[str], perturb_at: str) -> Detector:
    """CEPA at the user's layers; every other detector as it is."""
    if not isinstance(detector, Cepa):
        return detector
    wanted = tuple(int(t) if t.isdecimal() else t for t in taps)
    return replace(detector, taps=wanted or detector.taps, perturb_at=perturb_at)


def _look(detector: Detector, at_hand: AtHand, alone: bool) -> Evidence | Skipped:
    """One detector's evidence; where it cannot run, the others still do."""
    try:
        found = detector.run(at_hand)
    except OnnxspectError as error:
        if alone:
            raise
        return Skipped(detector.name, error.message)
    if isinstance(found, Skipped):
        return found
    return replace(found, convicts=found.convicts and detector.convicts)


def _switch(subject: Subject) -> str:
    """The node that hides what is in front of the class scores from the searches, or ""."""
    if subject.file is None or subject.logits is None:
        return ""
    return switch_of(subject.file.proto, subject.logits.value)


def _reference_folder(folder: Path, references: str | Path | None) -> Path:
    return Path(references) if references is not None else folder / "references"


def _baseline_fingerprint(
    fingerprint: dict[str, Any], subject: Subject, detectors: Sequence[Detector]
) -> dict[str, Any]:
    """What the references depend on: everything but the model, and of the detectors those that look at references."""
    kept = {
        k: v
        for k, v in fingerprint.items()
        if k not in ("model", "model path", "data path", "training set", "preprocessing")
    }
    compared = {d.name: fingerprint["detectors"][d.name] for d in detectors if d.uses_references}
    return kept | {"detectors": compared, "classes": subject.classes, "image": list(subject.image_shape)}


def _fingerprint(
    subject: Subject,
    samples: Samples,
    training: Samples | None,
    preset: str,
    detectors: Sequence[Detector],
    spec: InputSpec | None,
    resize: bool,
    run: RunContext,
) -> dict[str, Any]:
    """Everything that the results depend on; thread count too, because it changes the last bits of a convolution."""
    return {
        "tool": tool_version(),
        "model": subject.file.sha256 if subject.file is not None else subject.name,
        "model path": subject.name,
        "data": samples.sha256,
        "data path": samples.path,
        "training set": None if training is None else training.sha256,
        "preset": preset,
        "detectors": {d.name: {k: str(v) for k, v in d.settings().items()} for d in detectors},
        "preprocessing": spec.describe() if spec is not None else None,
        "resize": resize,
        "seed": run.seed,
        "device": run.device,
        "threads": torch.get_num_threads() if run.device == "cpu" else 0,
        "torch": torch.__version__,
    }


def _short(fingerprint: dict[str, Any]) -> str:
    return document.digest(fingerprint)[:8]
