"""One scan from model to report: open, preflight, search, judge, keep. The library call behind `onnxspect scan`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onnxspect.converters.stages import stage
from onnxspect.engine.ahead import load_ahead
from onnxspect.engine.detectors.base import AtHand, Detector
from onnxspect.engine.detectors.graph_logic import GraphLogic, idle_in
from onnxspect.engine.errors import InconclusiveError, Kind, OnnxspectError
from onnxspect.engine.jobs.budget import parts, within
from onnxspect.engine.jobs.case import open_case
from onnxspect.engine.jobs.choice import SEARCH_SHARE, settings_of, wanted_detectors
from onnxspect.engine.jobs.references import Request, Shelf, reference_fingerprint
from onnxspect.engine.jobs.time_left import forecast, no_more
from onnxspect.engine.judge.archive import Archive
from onnxspect.engine.judge.calibration import PRIOR, shipped
from onnxspect.engine.judge.evidence import Evidence, Skipped
from onnxspect.engine.judge.verdict import Verdict, decide_archive
from onnxspect.engine.readers.forms import open_reader
from onnxspect.engine.report import as_json, document, pictures
from onnxspect.engine.report.progress import watched
from onnxspect.engine.report.result import Report
from onnxspect.engine.run import RunContext, prepare_process
from onnxspect.engine.run_folder import REFERENCES
from onnxspect.engine.search.search import SearchConfig
from onnxspect.engine.store import Ledger, write_atomically
from onnxspect.engine.stored_report import digest
from onnxspect.engine.subject.class_scores import ModelView
from onnxspect.engine.subject.datasets import Data, Source
from onnxspect.engine.subject.memory import memory_share
from onnxspect.engine.subject.opening import Model, in_scratch
from onnxspect.engine.subject.precision import judging
from onnxspect.engine.subject.preprocessing import preflight
from onnxspect.engine.subject.reference import can_train, count, train_references
from onnxspect.engine.subject.resizing import Resize, Resizing
from onnxspect.engine.subject.sample_size import SampleCounts, advice, shortfalls
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.subject.unreached import unreached
from onnxspect.engine.version import tool_version

#: The ledger's name for the share of the device's memory that the searches were planned with.
_MEMORY_SHARE = "memory share"

#: The ledger's name for the evidence that the verdict was made of (judge/archive.py).
EVIDENCE = "evidence"
#: What makes a scan search less than others of the same settings; its references are its own.
_NARROWING = frozenset({"budget", "searched classes"})
#: Name, in the run folder, of the ONNX file of a model that came without one.
MODEL = "model.onnx"


@judging()
def scan(
    model: Model,
    data: Data,
    out: str | Path | None = None,
    preset: str = "standard",
    detectors: str | Detector | Sequence[str | Detector] = (),
    spec: InputSpec | None = None,
    resize: Resizing = False,
    run: RunContext | None = None,
    references: str | Path | None = None,
    train: Data | None = None,
    taps: Sequence[str] = (),
    perturb_at: str = "",
    classes: Sequence[int] = (),
    search: SearchConfig | Mapping[str, Any] | None = None,
    budget: float | None = None,
    prior: float = PRIOR,
    shelf: str | Path | None = None,
) -> Report:
    """Scan a model for backdoors.

    Args:
        model: path of an ONNX file, or of a Keras, TensorFlow, TFLite, TorchScript or .pt2 one, which is converted first; the
            bytes of an ONNX file; an onnx.ModelProto; a torch.nn.Module; a Keras model; or a Subject.
        data: clean samples: a path of any form that is read (docs/data.md), or a Source, which also says the order of the
            classes; Samples; a pair of arrays (images, labels); a torch Dataset or DataLoader; or a Hugging Face Dataset.
            Pixels are integers to 255, or floats in [0, 1].
        out: run folder; by default runs/ and a name made of the model's name and the scan's fingerprint, so that the
            same scan finds its own unfinished run.
        preset: quick, standard or thorough.
        detectors: names, or detectors of one's own (docs/extending.md); all that apply, by default.
        spec: the model's preprocessing, where the user knows it; else it is found.
        resize: bring images of another size to the model's, or the way to do it (resizing.Resize).
        run: seed, device, observer.
        references: folder that keeps what was measured on reference networks, to be shared by scans of several models
            with the same data; inside the run folder by default.
        train: the training set, perhaps poisoned, in the same forms as `data`; detectors that need one run then.
        taps: internal layers that cepa searches at: ONNX value names, or indices as `onnxspect info` lists them.
        perturb_at: value name of the first continuous tensor of a model whose input is discrete: cepa perturbs it in
            place of the pixels.
        classes: only triggers to these classes are searched for; such a scan names a backdoor, but never says "clean".
        search: how hard the detectors search: a SearchConfig in place of the preset's, or a mapping of the fields that are
            to be others, such as ``{"steps": 100}``.
        budget: seconds that the scan may take in all, about: `preset` is then the most thorough that is tried, and what does not
            fit is left out and named (engine/jobs/budget.py).
        prior: share of models that are taken to be infected, in (0, 1): for P(backdoored), beside the p-value.
        shelf: folder of finished references (jobs/references.py), which is only read: those that are wanted are copied into the run.

    Returns:
        the report. A model that had no ONNX file of its own lies beside it, as model.onnx in the run folder.

    Raises:
        OnnxspectError: anything that stops the scan, with a hint; inconclusive where the samples are too few for a verdict and
            neither detectors are named nor a training set is given; ReferencesWantedError where the shelf lacks what is wanted.
    """
    if not 0 < prior < 1:
        raise OnnxspectError(f"prior is {prior:g}", "a share between 0 and 1, such as 0.1")
    run = run or watched()
    wanted_detectors(
        preset, detectors, train is not None, search, 0, taps, perturb_at
    )  # what is wrong is said before anything is opened
    prepare_process(run.device)
    started = time.perf_counter()
    load_ahead(run.device)
    case = open_case(model, data, spec, run, resize, train)
    subject, samples, training, spec = case.subject, case.samples, case.training, case.spec
    able = wanted_detectors(preset, detectors, train is not None, search, subject.classes, taps, perturb_at)
    searched = _searched(classes, subject.classes)
    fingerprint = _fingerprint(subject, samples, training, preset, able, spec, resize, run)
    if isinstance(model, ModelView) and (model.output or model.bind):
        fingerprint["view"] = {"output": model.output, "bind": dict(model.bind)}
    if prior != PRIOR:
        fingerprint["prior"] = prior
    if searched:
        fingerprint["searched classes"] = list(searched)
    if budget is not None:
        fingerprint["budget"] = budget
    folder = Path(out) if out is not None else Path("runs") / f"{_stem(subject)}-{_short(fingerprint)}"
    with Ledger(folder, fingerprint, movable=True) as ledger:
        if ledger.fact("report") is not None:
            run.observer.notice(f"{folder}: this scan is already finished; showing its report")
            return Report(ledger.report(), folder)
        resumed = ledger.count()
        if shelf is not None and references is None and not _NARROWING & set(fingerprint):
            wanted = Request(subject.image_shape, subject.classes, case.reading)
            expected = reference_fingerprint(
                samples, training, preset, able, resize, run, subject.image_shape, subject.classes
            )
            if any(d.traits.references for d in able) and can_train(subject, samples):
                Shelf(Path(shelf)).fetch(wanted, expected, folder)
        notes = list(case.notes)
        for said in notes:
            run.observer.notice(said)
        checked = preflight(subject, samples, run, spec, samples.order_given)
        _keep_model(subject, folder)
        beyond = unreached(checked.subject, samples, run.seed, idle_in(checked.subject, samples, run))
        for reason in beyond.hidden:
            run.observer.notice(reason)
        search_samples, held_out = samples.split(SEARCH_SHARE, run.numpy_generator("split"))
        counts = SampleCounts.of(search_samples, held_out, checked.subject.classes)
        # Logic in the graph is tested by itself: what is found of it is a verdict, however few the samples are for the searches.
        first = AtHand(checked.subject, search_samples, held_out, run, ledger, classes=searched, beyond=beyond)
        logic = {d.name: _evidence_of(d, first, alone=len(able) == 1) for d in able if isinstance(d, GraphLogic)}
        forced = (
            bool(detectors) or training is not None or any(isinstance(e, Evidence) and e.units for e in logic.values())
        )
        too_few = _sufficient(counts, run, samples.path, forced)
        left_out: list[Skipped] = []
        if budget is not None:

            def easier(name: str) -> Sequence[Detector]:
                return wanted_detectors(name, (), training is not None, search, subject.classes, taps, perturb_at)

            left = budget - (time.perf_counter() - started)
            made, fitting = within(
                left,
                preset,
                able,
                None if detectors else easier,
                checked.subject,
                search_samples,
                ledger,
                run,
                budget - left,
            )
            able = [d for d in fitting if d.name in made.kept or d.name in logic]
            if made.preset != preset:
                notes.append(f"the budget does not hold the preset {preset}: {made.preset} was taken")
            preset, left_out = made.preset, made.skipped()
        baseline = _reference_folder(folder, references)
        of_references = reference_fingerprint(
            samples, training, preset, able, resize, run, subject.image_shape, subject.classes
        ) | {k: fingerprint[k] for k in _NARROWING if k in fingerprint}
        with (
            Ledger(baseline, of_references, movable=references is None) as reference_ledger,
            contextlib.ExitStack() as at_last,
        ):
            at_last.callback(no_more, run.observer)
            if shelf is None and references is None:  # elsewhere they are another's work
                resumed += reference_ledger.count()
            if resumed:
                run.observer.notice(f"{folder}: resuming, {resumed} units are already done")
            compared = any(d.traits.references for d in able)
            to_come = [d for d in able if d.name not in logic]
            watching = replace(run, observer=forecast(run.observer, partial(parts, to_come, first)))
            clean = train_references(checked.subject, search_samples, held_out, watching, baseline) if compared else []
            if compared and len(clean) < count(checked.subject.classes):
                watching = replace(run, observer=forecast(run.observer, partial(parts, to_come, first, len(clean))))
            if compared and not clean:
                notes.append(
                    f"no reference network learned these classes from {len(search_samples)} samples: classes were compared with "
                    "each other only"
                )
            at_hand = AtHand(
                checked.subject,
                search_samples,
                held_out,
                watching,
                ledger,
                clean,
                reference_ledger,
                training,
                searched,
                beyond,
            )
            with _planned_memory(ledger, run.device):
                evidence = [
                    *(
                        logic[d.name] if d.name in logic else _evidence_of(d, at_hand, alone=len(able) == 1)
                        for d in able
                    ),
                    *left_out,
                ]
        for found in evidence:
            if isinstance(found, Evidence):
                ledger.keep_evidence(found.detector, found.units)
        errors = [1 - r.accuracy(held_out.images, held_out.labels) for r in clean]
        archive = Archive(
            tuple(evidence),
            checked.subject.classes,
            tuple(beyond.hidden),
            tuple(too_few),
            len(samples),
            1 - checked.clean_accuracy,
            float(np.mean(errors)) if errors else None,
        )
        ledger.set_fact(EVIDENCE, json.dumps(archive.describe(), allow_nan=False))
        verdict = decide_archive(archive, shipped(), prior)
        verdict = _of_part(verdict, searched)
        searching = sum(e.seconds for e in evidence if isinstance(e, Evidence))
        seconds = searching if resumed else time.perf_counter() - started
        stage("writing the report")
        report = document.build(
            checked.subject,
            samples,
            checked,
            evidence,
            verdict,
            run,
            preset,
            seconds,
            beyond,
            searched,
            ledger.devices,
            notes,
        )
        pictures.draw(report, evidence, samples, folder)
        text = as_json.render(report)
        write_atomically(folder / "report.json", text.encode())
        ledger.set_fact("report", text)
        return Report(ledger.report(), folder, resumed)  # as every later reader gets it: JSON has no tuples


def check_settings(
    data: Source,
    train: Source | None = None,
    preset: str = "standard",
    detectors: Sequence[str] = (),
    taps: Sequence[str] = (),
    perturb_at: str = "",
) -> None:
    """What can be known to be wrong of a scan before any model is looked at: its detectors, and the form of its samples.

    Args:
        data, train, preset, detectors, taps, perturb_at: as for `scan`.

    Raises:
        OnnxspectError: saying what is wrong.
    """
    wanted_detectors(preset, detectors, train is not None, None, 0, taps, perturb_at)
    for source in (data, train):
        if source is not None:
            open_reader(source.path)


def _searched(classes: Sequence[int], most: int) -> tuple[int, ...]:
    """The classes that a scan is narrowed to, in increasing order; none where it is not.

    Raises:
        OnnxspectError: one that the model does not have.
    """
    for k in classes:
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 0 <= k < most:
            raise OnnxspectError(f"classes: {k!r:.40} is no class of the model", f"indices from 0 to {most - 1}")
    found = tuple(sorted({int(k) for k in classes}))
    return found if len(found) < most else ()


def _of_part(verdict: Verdict, searched: Sequence[int]) -> Verdict:
    """The verdict of a narrowed scan: where it found nothing, it has not looked everywhere."""
    if not searched or verdict.verdict == "backdoored":
        return verdict
    reason = f"only triggers to the classes {', '.join(map(str, searched))} were searched for; another may hide one"
    return replace(verdict, verdict="inconclusive", reasons=(reason, *verdict.reasons))


def _stem(subject: Subject) -> str:
    """How the run folder of a subject is named."""
    return "-".join(Path(subject.name).stem.split()) or "model"


def _keep_model(subject: Subject, folder: Path) -> None:
    """The ONNX file of a model that came without one, in the run folder: a patch starts from it."""
    if subject.file is not None and in_scratch(subject.file):
        write_atomically(folder / MODEL, subject.file.path.read_bytes())


def _planned_memory(ledger: Ledger, device: str) -> contextlib.AbstractContextManager[None]:
    """Plan with the share of the device's memory that an earlier part of this scan ended with; keep it where it shrinks."""
    known = ledger.fact(_MEMORY_SHARE)
    return memory_share(device, float(known or 1.0), lambda _, share: ledger.set_fact(_MEMORY_SHARE, str(share)))


def _sufficient(counts: SampleCounts, run: RunContext, path: str, forced: bool) -> tuple[str, ...]:
    """What the samples lack for a verdict, said before anything is searched.

    Args:
        counts: the samples.
        run: the observer reports classes without samples, and what is lacking where the search is wanted all the same.
        path: of the samples.
        forced: detectors were chosen by name, for their triggers perhaps, or there is a training set to look at as well: the
            scan goes on, and its verdict says what is lacking.

    Raises:
        InconclusiveError: no verdict can be had, and nothing else is asked for.
    """
    lacking = shortfalls(counts)
    where = path or "the samples"
    if lacking and not forced:
        hint = advice(counts) or "no number of samples mends that; --detector NAME searches for triggers all the same"
        raise InconclusiveError(f"{where}: {'; '.join(lacking)}", hint)
    if counts.without:
        run.observer.notice(f"{where}: no clean sample of {counts.listed(counts.without)}")
    for sentence in lacking:
        run.observer.notice(f"{where}: {sentence}: there will be no verdict from searches on them")
    return (*lacking, advice(counts)) if lacking and advice(counts) else lacking


def _evidence_of(detector: Detector, at_hand: AtHand, alone: bool) -> Evidence | Skipped:
    """One detector's evidence; where it cannot run, the others still do."""
    try:
        found = detector.run(at_hand)
    except OnnxspectError as error:
        if alone or error.kind in (Kind.MACHINE, Kind.INTERNAL):  # a full disk is no reason to say less of the model
            raise
        return Skipped(detector.name, error.message)
    if isinstance(found, Skipped):
        return found
    convicts = found.traits.convicts and detector.traits.convicts
    return replace(found, traits=replace(detector.traits, convicts=convicts))


def _reference_folder(folder: Path, references: str | Path | None) -> Path:
    return Path(references) if references is not None else folder / REFERENCES


def _fingerprint(
    subject: Subject,
    samples: Samples,
    training: Samples | None,
    preset: str,
    detectors: Sequence[Detector],
    spec: InputSpec | None,
    resize: Resizing,
    run: RunContext,
) -> dict[str, Any]:
    """Everything that the results depend on; thread count too, because it changes the last bits of a convolution."""
    return {
        "tool": tool_version(),
        "model": _identity(subject),
        "model path": subject.name,
        "data": samples.sha256,
        "data path": samples.path,
        "training set": None if training is None else training.sha256,
        "preset": preset,
        "detectors": {d.name: settings_of(d) for d in detectors},
        "preprocessing": spec.describe() if spec is not None else None,
        "resize": resize.describe() if isinstance(resize, Resize) else resize,
        "seed": run.seed,
        "device": run.device,
        "threads": torch.get_num_threads() if run.device == "cpu" else 0,
        "torch": torch.__version__,
    }


def _identity(subject: Subject) -> str:
    """What tells a model from any other: the file's digest; without one, that of the weights and of what they answer."""
    if subject.file is not None:
        return subject.file.sha256
    return hashlib.sha256(f"{subject.sha256} {subject.answers_digest}".encode()).hexdigest()


def _short(fingerprint: dict[str, Any]) -> str:
    """Part of the run folder's name; where the files lie does not count."""
    return digest({k: v for k, v in fingerprint.items() if not k.endswith(" path")})[:8]
