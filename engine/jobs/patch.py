"""From a finished scan to a proven file: the library call behind `onnxspect patch`.

The original is opened, the run's triggers are taken from its ledger, a method works out an edit, the edit is written to
a scratch folder, measured there in onnxruntime, and only then written to the destination, whole or not at all. A patch
that misses its goals is not written.

`auto` tries methods in order of cost and keeps the first whose file meets the goals *and* withstands a new search: the
trigger that a method was given is not the attacker's own, and a method can switch off the one and leave the other. It
withstands where the search finds no trigger that is still small for a class without an attack (mitigation/remainder.py).
The triggers' success must meet its goal as measured, with no allowance for the few samples, and so must the accuracy
that was most likely lost (`Attempt.lost`). Of a method that is chosen and judged on the same samples (pruning), no more
answers may have changed, those to triggers counted in, than accuracy may be lost. Where no method does all that, the
best of those that meet the goals within the measurement's error is kept (`Attempt.rank`), and the answer says what is
wrong with it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxspect.converters.file.onnx_file import read_onnx
from onnxspect.converters.proof.writeback import Change
from onnxspect.engine.errors import InconclusiveError, Kind, OnnxspectError
from onnxspect.engine.jobs.attempt import Attempt
from onnxspect.engine.jobs.budget import measure_speed
from onnxspect.engine.jobs.case import open_case
from onnxspect.engine.jobs.export import Provenance, check_writable, patched_model, write_model
from onnxspect.engine.jobs.patch_time import BudgetSpentError, Clock, Timed, announced
from onnxspect.engine.mitigation.cut import Cut
from onnxspect.engine.mitigation.input_filter import NAME as INPUT_FILTER
from onnxspect.engine.mitigation.method import Method, PatchInput
from onnxspect.engine.mitigation.recovered import named, read_recovered
from onnxspect.engine.mitigation.registry import AUTO, CHOICES, chosen
from onnxspect.engine.mitigation.remainder import Searches, search_again, with_size_limits
from onnxspect.engine.mitigation.verification import JUDGED_ON_FEW, Goals, Verification
from onnxspect.engine.mitigation.verify import verify
from onnxspect.engine.report import patch_document
from onnxspect.engine.report.progress import watched
from onnxspect.engine.report.result import Report, folder_of
from onnxspect.engine.run import RunContext, prepare_process
from onnxspect.engine.store import write_atomically
from onnxspect.engine.subject.datasets import Data
from onnxspect.engine.subject.opening import Model
from onnxspect.engine.subject.precision import judging
from onnxspect.engine.subject.preprocessing import check_labels, check_order
from onnxspect.engine.subject.resizing import Resizing
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.version import tool_version

METHODS = CHOICES
#: Share of the clean samples that the patch learns from; the rest chooses the epoch and gives the proof.
FIT_SHARE = 0.8
#: A patch is judged on at least so many samples: even none of twenty leaves one in seven possible (95 %).
FEWEST_JUDGES = 20
_NEW_SEARCH = Searches()


@dataclass(frozen=True)
class Patched:
    """What a patch leaves: the file, what changed in it, its proof, and what was tried on the way.

    `document` says all that as JSON, with what it is about; the run folder has it as patch.json.
    """

    out: Path
    method: str
    changes: tuple[Change, ...]
    proof: Verification
    attempts: tuple[Attempt, ...]
    document: dict[str, Any] = field(default_factory=dict, repr=False)

    def describe(self) -> dict[str, Any]:
        """As `onnxspect patch --json` prints it."""
        return {
            "out": str(self.out),
            "method": self.method,
            "attempts": [a.describe() for a in self.attempts],
            "proof": self.proof.describe(),
        }


@judging()
def patch(
    model: Model,
    run_folder: str | Path | Report,
    data: Data,
    out: str | Path,
    method: str | Method = AUTO,
    goals: Goals | None = None,
    resize: Resizing = False,
    run: RunContext | None = None,
    targets: Sequence[int] | None = None,
    proactive: bool = False,
    settings: Mapping[str, Any] | None = None,
    budget: float | None = None,
) -> Patched:
    """Patch the backdoor that a scan found, and prove the patch on the written file.

    Args:
        model: the original: a path, or any other form that has an ONNX file behind it (opening.ACCEPTED); never changed.
        run_folder: where the scan's run is, or the report that the scan gave.
        data: clean samples, to learn from (80 %) and to prove on (20 %), in any form (datasets.ACCEPTED).
        out: the patched file; an existing one is replaced only by a finished patch.
        method: one of `METHODS`, the name of an installed package's, or a method itself.
        goals: what the patch must reach to be written.
        resize: bring images of another size to the model's, or the way to do it (resizing.Resize).
        run: seed, device, observer.
        targets: classes to patch; those that the scan named by default.
        proactive: patch every class, whatever the scan said (Neural Cleanse, Wang et al., 2019, sec. VII-D).
        settings: of the methods, by the names of their fields, or as "method.key" (mitigation/settings.py).
        budget: seconds that the whole may take; methods that do not fit are left out, and a training is stopped between two epochs. An
            interrupted patch does not resume: it begins anew. Time alone never makes a patch fail that a method has finished.

    Raises:
        OnnxspectError: nothing to patch, the run belongs to another model, or the goals are missed.
    """
    run, started = run or watched(), time.monotonic()
    settings = dict(settings or {})
    methods = chosen(method, **settings)
    prepare_process(run.device)
    folder = folder_of(run_folder)
    recovered = read_recovered(folder, targets)
    if proactive:
        recovered = read_recovered(folder, _reachable(recovered.scan.report))
    opened = open_case(recovered.scan.view(model), data, recovered.scan.spec, run, resize)
    subject, samples, file = opened.subject, opened.samples, opened.subject.origin.file
    recovered.scan.check(subject, folder)
    if not recovered.triggers:
        verdict = recovered.scan.report["verdict"]
        open_question = verdict == "inconclusive"
        raise (InconclusiveError if open_question else OnnxspectError)(
            f"{folder}: the scan's verdict is {verdict}: there is no backdoor to patch",
            "--target patches a class all the same, --proactive every class",
        )
    if method == AUTO and recovered.by_logic:
        methods = [Cut(), *methods]
    check_writable(file, Path(out))
    check_labels(samples, subject)
    notes = (*opened.notes, *check_order(subject, samples, run))
    for note in notes:
        run.observer.notice(note)
    where = samples.path or "the samples"
    fit, guard = samples.split(FIT_SHARE, run.numpy_generator("patch"))
    if len(guard) < FEWEST_JUDGES:
        raise InconclusiveError(
            f"{where}: {len(samples)} samples are too few to patch and to prove: {len(guard)} would be left to judge on",
            f"{int(np.ceil(FEWEST_JUDGES / (1 - FIT_SHARE)))} at least, ten times as many for figures one can rely on",
        )
    wanted = goals or Goals()
    for trigger in recovered.triggers:
        if not all(trigger.counts_on(part.labels).any() for part in (fit, guard)):
            raise InconclusiveError(
                f"{where}: no samples of any class but {trigger.target} to try its trigger on",
                "clean samples of at least two classes, a few of each",
            )
    triggers = recovered.triggers
    given = PatchInput(subject, fit, guard, triggers, run, wanted.success / 2, wanted.accuracy_lost)
    speed = measure_speed(subject, fit, run, with_references=False, side_by_side=False)  # training is one piece of work
    run.observer.notice(announced(methods, given, speed, _NEW_SEARCH))
    clock = None if budget is None else Clock(budget, speed, _NEW_SEARCH, started, time.monotonic() - started)
    if clock is not None:
        run = replace(run, observer=Timed(run.observer, clock))
    # Only a new search asks how large a trigger may be; the cut is not searched again.
    if [m.name for m in methods] != [Cut.name] and (clock is None or clock.holds_size_limits(methods, given)):
        triggers = with_size_limits(subject, fit, triggers, run)
    given = PatchInput(subject, fit, guard, triggers, run, wanted.success / 2, wanted.accuracy_lost)
    best, attempts = try_methods(methods, given, recovered.evidence, wanted, folder, clock)
    if best is None:
        missed = "; ".join(a.outcome for a in attempts)
        if any(a.problem and a.late for a in attempts) and clock is not None:
            hint = f"nothing was written; --budget {clock.enough(methods, given)} holds all of them"
        else:
            hint = "more clean samples give a better patch"
            if method != INPUT_FILTER:
                hint += f"; --method {INPUT_FILTER} leaves the weights alone and rejects stamped images"
        raise InconclusiveError(f"the patch misses its goals and is not written: {missed}", hint)
    attempt, proto, changes = best
    digest = write_model(proto, file, Path(out))
    assert attempt.proof is not None
    proof = replace(attempt.proof, notes=notes)
    attempt = replace(attempt, proof=proof)
    attempts = tuple(attempt if a.method == attempt.method else a for a in attempts)
    document = patch_document.build(
        patch_document.PATCH,
        proof.describe(),
        (subject.name, file.sha256),
        (str(out), digest),
        (samples.path, samples.sha256, len(samples)),
        str(folder),
        attempt.method,
        tuple(a.describe() for a in attempts),
    )
    try:
        patch_document.keep(document, folder)
    except (
        OnnxspectError
    ) as error:  # the patch is written and proven: a run on read-only media is no reason to call it failed
        run.observer.notice(f"the run folder keeps no document of the patch: {error.message}")
    return Patched(Path(out), attempt.method, changes, proof, attempts, document)


Result = tuple[Attempt, onnx.ModelProto, tuple[Change, ...]]


def try_methods(
    methods: Sequence[Method],
    given: PatchInput,
    evidence: str,
    goals: Goals,
    folder: Path | None = None,
    clock: Clock | None = None,
) -> tuple[Result | None, tuple[Attempt, ...]]:
    """Try methods in turn, up to the first that meets the goals and withstands a new search.

    Args:
        methods: what to try.
        given: the model, its triggers and clean samples.
        evidence: id of the evidence, for the provenance.
        goals: what must be reached.
        folder: where pictures go; None keeps none.
        clock: of a budget; None has no end.

    Returns:
        the file to keep (None where every one misses the goals), and all attempts.
    """
    best: Result | None = None
    attempts = []
    for method in methods:
        # A search of what only stands guard would find the backdoor, which is still there.
        late = "" if clock is None else clock.left_out(method, given)
        if late:
            attempts.append(Attempt(method.name, None, late, judged_apart=method.trains, late=True))
            given.run.observer.notice(attempts[-1].outcome)
            continue
        searched = len(methods) > 1 and method.mends
        attempt, proto, changes = _try(method, given, evidence, goals, folder, searched, len(methods) == 1, clock)
        attempts.append(attempt)
        given.run.observer.notice(attempt.outcome)
        if proto is None or attempt.proof is None or not attempt.proof.holds:
            continue
        if best is None or attempt.rank > best[0].rank:
            best = (attempt, proto, changes)
        if attempt.good:
            break
    return best, tuple(attempts)


def _try(
    method: Method,
    given: PatchInput,
    evidence: str,
    goals: Goals,
    folder: Path | None,
    searched: bool,
    alone: bool,
    clock: Clock | None,
) -> tuple[Attempt, onnx.ModelProto | None, tuple[Change, ...]]:
    """One method: its edit, the file made of it, and what is measured on that file."""
    started = time.perf_counter()
    subject = given.subject
    file = subject.origin.file
    provenance = Provenance(file.sha256, tool_version(), method.name, evidence)
    try:
        edit = method.edit(given)
        proto, changes = patched_model(subject, edit.values, provenance, edit.additions)
    except BudgetSpentError as error:
        seconds = time.perf_counter() - started
        return (
            Attempt(method.name, None, error.message, seconds=seconds, judged_apart=method.trains, late=True),
            None,
            (),
        )
    except OnnxspectError as error:
        if alone or error.kind in (Kind.MACHINE, Kind.INTERNAL):  # the next method would meet the same
            raise
        seconds = time.perf_counter() - started
        return Attempt(method.name, None, error.message, seconds=seconds, judged_apart=method.trains), None, ()
    if folder is not None:
        for name, png in edit.pictures.items():
            write_atomically(folder / name, png)
    wanted = replace(goals, errors=JUDGED_ON_FEW, rejected=getattr(method, "false_positives", goals.rejected))
    with tempfile.TemporaryDirectory(prefix="onnxspect-") as scratch:
        trial = Path(scratch) / "patched.onnx"
        write_model(proto, file, trial)
        judges = given.guard if method.trains else given.clean
        opened = (file, read_onnx(trial))  # made of a file that was checked; nothing to guard against
        proof = verify(
            trial,
            file.path,
            judges,
            subject.spec,
            named(given.triggers),
            wanted,
            given.run.device,
            opened=opened,
            logits=given.subject.origin.logits,
        )
        left, withstands, unsearched = _left(trial, given, clock) if searched and proof.holds else (None, None, "")
    attempt = Attempt(
        method.name,
        proof,
        "",
        left,
        withstands,
        edit.facts,
        time.perf_counter() - started,
        method.trains,
        method.mends,
        unsearched,
        bool(unsearched),
    )
    return attempt, proto, tuple(changes)


def _left(patched: Path, given: PatchInput, clock: Clock | None) -> tuple[float | None, bool | None, str]:
    """The relative size of the smallest trigger that a new search finds on the patched file; whether none is small; why there was no search."""
    if clock is not None and not clock.holds_search(given):
        return None, None, "the budget does not hold it"
    subject = Subject.from_onnx(patched, given.subject.spec, given.run.device, given.subject.image_shape)
    try:
        found = search_again(subject, given.fit, given.triggers, given.run, "patch: new search", _NEW_SEARCH)
    except BudgetSpentError as error:
        return None, None, error.message
    return min((f.relative for f in found), default=np.inf), not any(f.remains for f in found), ""


def _reachable(report: Mapping[str, Any]) -> list[int]:
    """The classes to which some search of the scan led."""
    return [c["index"] for c in report["classes"] if any(v is not None for v in c["statistic"].values())]
