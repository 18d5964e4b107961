"""Cleansing from files: what `onnxspect cleanse` calls. It gathers scores, decides, and writes what is kept.

The training set is never changed: everything goes to the output folder. Its images are read in order and in batches, the
model runs in onnxruntime, and only labels, scores and decisions are held for all samples (and one class's activations
at a time), so a training set may be larger than memory. Retraining (retrain.py) is the exception: it holds the kept images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxspect.converters.text import printable
from onnxspect.engine.cleansing.by_activation import (
    CLUSTERING,
    IMPURITY,
    SPECTRAL,
    PriorKnowledge,
    activation_clustering,
    box_blur,
    cluster_impurity,
    known_targets,
    spectral_signatures,
)
from onnxspect.engine.cleansing.by_presence import FORMER_NAMES, PRESENCE, TRIGGER_BEARING, by_found, by_presence
from onnxspect.engine.cleansing.by_trigger import REMOVE, SUPERIMPOSE, Found, by_trigger
from onnxspect.engine.cleansing.estimation import chooser, estimate_patterns
from onnxspect.engine.cleansing.from_scan import triggers as triggers_of
from onnxspect.engine.cleansing.outputs import contact_sheet, unlisted, write_kept, write_scores
from onnxspect.engine.cleansing.peeling import peeled
from onnxspect.engine.cleansing.scores import Rates, Scores, rates
from onnxspect.engine.cleansing.weighing import weighed
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.case import open_training_case
from onnxspect.engine.jobs.retrain import Retrain, retrained
from onnxspect.engine.mitigation.verification import Verification
from onnxspect.engine.readers import npz
from onnxspect.engine.report.as_json import render as to_json
from onnxspect.engine.report.pictures import plain_text, png
from onnxspect.engine.report.progress import watched
from onnxspect.engine.report.result import Report, folder_of
from onnxspect.engine.run import RunContext, prepare_process
from onnxspect.engine.store import made_folder, write_atomically
from onnxspect.engine.subject.activations import TrainingSet, activations, file_classifier, penultimate
from onnxspect.engine.subject.class_scores import scores_array
from onnxspect.engine.subject.datasets import Source
from onnxspect.engine.subject.finished_scan import FinishedScan
from onnxspect.engine.subject.opening import Model
from onnxspect.engine.subject.precision import judging
from onnxspect.engine.subject.preprocessing import check_labels, preflight
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject

METHODS = (REMOVE, SUPERIMPOSE, TRIGGER_BEARING, PRESENCE, SPECTRAL, CLUSTERING, IMPURITY)
#: Methods that need nothing but the training set's activations, taken once: they always run.
CHEAP = (SPECTRAL, CLUSTERING, IMPURITY)
#: Methods that use the triggers of a scan.
FROM_SCAN = (REMOVE, SUPERIMPOSE, TRIGGER_BEARING, PRESENCE)
#: Said where a scan had clean samples alone: its triggers are the smallest that work, not the attacker's.
WITHOUT_TRAIN = (
    "the scan did not see the training set: one with --train names poisoned samples better, and their number"
)
#: Training samples a class that a pattern is estimated on, and that the preprocessing is found on.
SEARCHED = 100


@dataclass(frozen=True)
class Cleansed:
    """What a cleansing leaves.

    Attributes:
        report: the JSON document.
        folder: with scores.csv, kept.npz or kept.txt, suspicious.png, cleansing.json.
        scores: one a method.
        removed: bool ``(n,)``: what any of the methods removes, see weighing.weighed.
        proof: of the retrained model, where one was asked for.
    """

    report: dict[str, Any]
    folder: Path
    scores: tuple[Scores, ...]
    removed: np.ndarray
    proof: Verification | None


@judging()
def cleanse(
    model: Model,
    train: str | Path | Source,
    out: str | Path,
    run_folder: str | Path | Report | None = None,
    detectors: Sequence[str] = (),
    tap: str | None = None,
    targets: Sequence[int] = (),
    known: PriorKnowledge | None = None,
    as_written: bool = False,
    truth: str | Path | None = None,
    retrain: str | Path | None = None,
    how: Retrain | None = None,
    spec: InputSpec | None = None,
    run: RunContext | None = None,
) -> Cleansed:
    """Name the poisoned samples of a training set by a model that was trained on it.

    Args:
        model: the ONNX file, or any other form that has one behind it (opening.ACCEPTED).
        train: the suspect training set: a path of any form that is read, or a Source; never changed.
        out: folder for what is found; activations are kept in its `cache`.
        run_folder: of a finished scan of this model, whose triggers are used, or the report that it gave.
        detectors: methods, of METHODS; a sample is removed if any of them says so. By default those by trigger for which
            there is one, and the cheap ones; then in every class the one decides whose scores separate best (weighing.py).
        tap: where activations are taken; the penultimate layer by default.
        targets: target classes, where they are known.
        known: more that is known, for the baselines.
        as_written: Eq. 12 of RE (Xiang et al., 2020) to the letter; see `by_trigger`.
        truth: npz with `indices` of the samples that are poisoned, to measure TPR and FPR.
        retrain: write a model fine-tuned on the kept samples there.
        how: its settings.
        spec: the model's preprocessing, where the user knows it.
        run: seed, device, observer.

    Raises:
        OnnxspectError: what does not fit, with a hint.
    """
    run = run or watched()
    detectors = [FORMER_NAMES.get(d, d) for d in detectors]
    unknown = [d for d in detectors if d not in METHODS]
    if unknown:
        raise OnnxspectError(f"unknown detector {unknown[0]!r}", f"one of {', '.join(METHODS)}")
    prepare_process(run.device)
    folder = made_folder(Path(out))
    scan = FinishedScan.read(folder_of(run_folder)) if run_folder is not None else None
    chosen = spec or (scan.spec if scan is not None else None)
    case = open_training_case(model, train, chosen, run)
    subject, training, chosen = case.subject, case.samples, case.spec
    check_labels(training, subject)
    sizes = np.bincount(training.labels, minlength=subject.classes)
    notes = [*case.notes, *(f"class {c} has no training samples" for c in np.flatnonzero(sizes == 0))]
    part = _part(training, run)
    if scan is not None:
        scan.check(subject, folder_of(run_folder or ""))
    else:
        checked = preflight(subject, part, run, chosen, part.order_given)
        subject = checked.subject
        notes += checked.notes
    poisoned = _truth(Path(truth), len(training)) if truth is not None else None

    known = replace(known or PriorKnowledge(), targets=known_targets(targets, subject.classes))
    by_method, found_notes = _triggers(
        subject, training, part, scan, detectors, known, as_written, retrain is not None, folder, run
    )
    notes += found_notes
    methods = list(detectors) or [*(m for m in FROM_SCAN if by_method.get(m)), *CHEAP]
    inside = [m for m in methods if m in CHEAP]
    name, missing = _tap(subject, tap, inside, named=bool(detectors))
    if name is None and inside:
        notes.append(f"{', '.join(inside)} did not run: {missing}")
        methods = [m for m in methods if m not in CHEAP]
    values = activations(subject, training, [name] if name else [], folder / "cache", run)
    logits = np.asarray(values["logits"])
    session = file_classifier(subject)

    def answers(images: np.ndarray) -> np.ndarray:
        return scores_array(session.run(images)[0], subject.logits)

    scores = tuple(
        _score(m, training, answers, logits, values[name] if name else logits, by_method, known, as_written, run)
        for m in methods
    )
    # Whoever names methods gets what any of them removes.
    weighing = weighed(scores, training.labels)
    removed = np.any([s.removed for s in scores], axis=0) if detectors else weighing.scores.removed
    shown = scores[0] if len(detectors) == 1 else replace(weighing.scores, removed=removed)
    notes += [*(() if detectors else weighing.notes), *training.notes]
    notes += [f"{one.detector}: {note}" for one in scores for note in one.notes]
    for c in sorted(set(training.labels.tolist())):
        if removed[training.labels == c].all():
            notes.append(f"every sample of class {c} is removed: look at the scores before training on the rest")
    if odd := unlisted(training, ~removed):
        notes.append(
            f"{len(odd)} kept files have line ends or control characters in their names, the first {printable(odd[0], 80)}: kept.txt names "
            "them escaped; rename them to keep them"
        )
    report = {
        "model": {"path": subject.name, "sha256": subject.sha256},
        "train": {"path": str(training.path), "sha256": training.sha256, "samples": len(training)},
        "preprocessing": subject.spec.describe(),
        "tap": name,
        "model_accuracy_on_train": float((logits.argmax(1) == training.labels).mean()),
        "methods": [_method(s, training.labels, poisoned) for s in scores],
        "removed": int(removed.sum()),
        "kept": int((~removed).sum()),
        "rates": vars(rates(removed, training.labels, poisoned)) if poisoned is not None else None,
        "triggers": [
            {"method": m, "target": t.trigger.target, "source": t.trigger.source}
            for m, ts in by_method.items()
            for t in ts
        ],
        "notes": notes,
        "seed": run.seed,
    }
    write_scores(scores, training, folder)
    kept_path = write_kept(training, ~removed, folder)
    report["kept_as"] = kept_path.name
    if scores:
        with plain_text():
            write_atomically(folder / "suspicious.png", png(contact_sheet(shown, training)))
    proof = None
    if retrain is not None:
        # DTInspector's patches lead out of their class: they prove nothing.
        patterns = by_method.get(REMOVE) or by_method.get(PRESENCE) or ()
        proof = retrained(subject, training, removed, patterns, Path(retrain), how or Retrain(), run)
        report["retrained"] = {
            "path": str(retrain),
            "clean_accuracy": [proof.accuracy_before, proof.accuracy_after],
            "trigger_success": [[t.before, t.after] for t in proof.triggers],
            "failures": list(proof.failures),
        }
    write_atomically(folder / "cleansing.json", to_json(report).encode())
    return Cleansed(report, folder, scores, removed, proof)


def _triggers(
    subject: Subject,
    training: TrainingSet,
    part: Samples,
    scan: FinishedScan | None,
    detectors: Sequence[str],
    known: PriorKnowledge,
    as_written: bool,
    proving: bool,
    folder: Path,
    run: RunContext,
) -> tuple[dict[str, list[Found]], list[str]]:
    """Triggers by method: those of the scan, or estimated here on the training set as RE does.

    A pattern to take off is chosen, which is most of the work, where a method or a proof needs one.
    """
    for needed, what in {SUPERIMPOSE: "DTInspector's patch", PRESENCE: "the training difference"}.items():
        if needed in detectors and (scan is None or needed not in scan.units):
            raise OnnxspectError(
                f"{what} comes from a scan with the training set"
                + ("" if scan is None else ", which this run had not"),
                f"onnxspect scan MODEL --data clean.npz --train PATH --detector {needed} --out DIR, then --run DIR",
            )
    if scan is None and TRIGGER_BEARING in detectors:
        raise OnnxspectError(
            "what samples may carry is found by a scan",
            "onnxspect scan MODEL --data clean.npz --out DIR, then --run DIR",
        )
    choose = chooser(subject, training, part, as_written, run)
    if scan is not None:
        targets = known.targets or scan.targets
        wanted = not detectors or REMOVE in detectors or proving

        def usual(target: int) -> np.ndarray:
            return np.asarray(part.images[part.labels != target].mean(0))

        found = triggers_of(scan, targets, choose if wanted else None, usual)
        if not targets:
            return found, [
                f"the scan names no target class (its verdict is {scan.report['verdict']}): its triggers play no part here"
            ]
        if not as_written and (not detectors or SUPERIMPOSE in detectors):
            found[SUPERIMPOSE] = [p for one in found[SUPERIMPOSE] for p in peeled(one, subject, training, part, run)]
        without_training = not detectors and not {SUPERIMPOSE, PRESENCE} & set(scan.units)
        return found, [WITHOUT_TRAIN] if without_training else []
    if detectors and REMOVE not in detectors:
        return {}, []
    patterns = estimate_patterns(subject, part, known.targets, folder, run, choose)
    if not patterns:
        return {REMOVE: []}, ["reverse engineering finds no attack in this training set: nothing to remove"]
    return {REMOVE: patterns}, []


def _tap(subject: Subject, tap: str | None, inside: Sequence[str], named: bool) -> tuple[str | None, str]:
    """The tap that activations are taken at, or None and why there is none; whoever names the methods gets an error."""
    if not inside or tap:
        return tap if inside else None, ""
    try:
        return penultimate(subject), ""
    except OnnxspectError as error:
        if named:
            raise
        return None, error.message


def _part(training: TrainingSet, run: RunContext) -> Samples:
    """At most SEARCHED samples of every class."""
    rows = []
    for c in np.unique(training.labels):
        own = run.numpy_generator("cleanse", int(c), "part").permutation(np.flatnonzero(training.labels == c))
        rows.append(own[:SEARCHED])
    return training.take(np.sort(np.concatenate(rows)))


def _score(
    method: str,
    training: TrainingSet,
    answers: Callable[[np.ndarray], np.ndarray],
    logits: np.ndarray,
    values: np.ndarray,
    triggers: Mapping[str, Sequence[Found]],
    known: PriorKnowledge,
    as_written: bool,
    run: RunContext,
) -> Scores:
    seed = run.key(method) % 2**31
    if method in FROM_SCAN:
        found = list(triggers.get(method, ()))
        if not found:
            nothing = np.full(len(training), np.nan)
            return Scores(method, nothing, np.zeros(len(training), bool), {}, ("no trigger to look for",))
        if method == TRIGGER_BEARING:
            carried = [(f.trigger.target, f.difference) for f in found if f.difference is not None]
            return by_found(carried, training, seed, run)
        if method == PRESENCE:
            differences = {t.trigger.target: t.difference for t in found if t.difference is not None}
            return by_presence(differences, training, seed, run)
        return by_trigger(
            method,
            found,
            training.labels,
            logits,
            training.batches,
            answers,
            superimpose=method == SUPERIMPOSE,
            as_written=as_written,
        )
    if method == SPECTRAL:
        return spectral_signatures(values, training.labels, known)
    if method == CLUSTERING:
        return activation_clustering(values, training.labels, known, seed)

    def blurred() -> np.ndarray:
        return np.concatenate([answers(box_blur(images)).argmax(1) for _, images in training.batches()])

    return cluster_impurity(values, training.labels, logits.argmax(1), blurred, known, seed)


def _method(scores: Scores, labels: np.ndarray, poisoned: np.ndarray | None) -> dict[str, Any]:
    measured: Rates | None = rates(scores.removed, labels, poisoned) if poisoned is not None else None
    return {
        "name": scores.detector,
        "removed": int(scores.removed.sum()),
        "classes": {str(c): dict(facts) for c, facts in scores.classes.items()},
        "notes": list(scores.notes),
        "rates": vars(measured) if measured is not None else None,
    }


def _truth(path: Path, n: int) -> np.ndarray:
    """Indices of the poisoned samples; `rates` checks them."""
    indices = npz.arrays(path, str(path), ("indices",)).get("indices")
    if indices is None:
        raise OnnxspectError(
            f"{path}: not an npz with `indices` of the poisoned samples", "save them so: np.savez(path, indices=rows)"
        )
    if indices.ndim != 1 or indices.dtype.kind not in "ui":
        raise OnnxspectError(
            f"{path}: `indices` are {indices.dtype} of shape {indices.shape}, not integers (k,)",
            "the rows of the poisoned samples in the training set, counted from 0",
        )
    rates(np.zeros(n, bool), np.zeros(n, int), indices.astype(np.int64))  # refuses what does not fit, before any work
    return indices.astype(np.int64)
