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
from onnxspect.engine.jobs.budget import measure_speed
from onnxspect.engine.jobs.case import open_case
from onnxspect.engine.jobs.export import Provenance, check_writable, patched_model, write_model
from onnxspect.engine.jobs.patch_time import Clock, Timed, announced
from onnxspect.engine.mitigation.cut import Cut
from onnxspect.engine.mitigation.input_filter import NAME as INPUT_FILTER
from onnxspect.engine.mitigation.method import Method, PatchInput
from onnxspect.engine.mitigation.recovered import named, read_recovered
from onnxspect.engine.mitigation.registry import AUTO, CHOICES, chosen
from onnxspect.engine.mitigation.remainder import Searches, search_again, with_size_limits
from onnxspect.engine.mitigation.verify import JUDGED_ON_FEW, Goals, Verification, verify
from onnxspect.engine.report import patch_document
from onnxspect.engine.report.progress import watched
from onnxspect.engine.report.result import Report, folder_of
from onnxspect.engine.run import RunContext, prepare_process, tool_version
from onnxspect.engine.store import write_atomically
from onnxspect.engine.subject.datasets import Data
from onnxspect.engine.subject.opening import Model
from onnxspect.engine.subject.precision import judging
from onnxspect.engine.subject.preprocessing import check_labels, check_order
from onnxspect.engine.subject.resizing import Resizing
from onnxspect.engine.subject.subject import Subject

METHODS = CHOICES
#: Share of the clean samples that the patch learns from; the rest chooses the epoch and gives the proof.
FIT_SHARE = 0.8
#: A patch is judged on at least so many samples: even none of twenty leaves one in seven possible (95 %).
FEWEST_JUDGES = 20
#: Of the answers that a patch changes, the share by which accuracy falls. Of 28 students of the shipped model, measured on 6,000
#: images, it was 0.22 in the mean (0.02 to 0.38, more where more had changed).
LOST_OF_CHANGED = 0.25
_NEW_SEARCH = Searches()


@dataclass(frozen=True)
class Attempt:
    """What one method gave.

    Attributes:
        method: its name.
        proof: of its file; None where it made none.
        problem: why it made none, or "".
        left: size of the smallest trigger to the same targets that a new search found on its file, as a multiple of
            the first one's size; None where nothing was searched, infinite where nothing was found.
        withstands: none of those found is small enough to be the backdoor's; None where nothing was searched.
        facts: what the method says of itself.
        seconds: wall time.
        judged_apart: its proof is of samples that had no part in making it.
        mends: it takes the backdoor out, and does not only stand guard.
    """

    method: str
    proof: Verification | None
    problem: str
    left: float | None = None
    withstands: bool | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    judged_apart: bool = True
    mends: bool = True

    @property
    def lost(self) -> float:
        """The clean accuracy that was most likely lost; infinite where there is no file.

        A hundred samples show a point of accuracy less well than what share of their answers has changed, of which
        LOST_OF_CHANGED is lost, give or take as much again. This is what both say together, each weighted by the inverse of
        its variance; of samples that the method itself was chosen by, the changed answers alone.
        """
        if self.proof is None:
            return float("inf")
        changed = 1 - self.proof.agreement
        expected = LOST_OF_CHANGED * changed
        if not self.judged_apart or changed == 0:
            return expected
        by_changes, by_labels = expected**-2, self.proof.samples / changed
        measured = self.proof.accuracy_before - self.proof.accuracy_after
        return (by_changes * expected + by_labels * measured) / (by_changes + by_labels)

    @property
    def worst(self) -> float:
        """Success of the trigger that still works best, on its file."""
        return max((t.after for t in self.proof.triggers), default=0.0) if self.proof else 1.0

    @property
    def stops_triggers(self) -> bool:
        """Whether the triggers' success meets its goal as measured, and the rest within the measurement's error."""
        if self.proof is None or not self.proof.holds:
            return False
        return replace(self.proof, goals=replace(self.proof.goals, accuracy_lost=1.0, errors=0.0)).holds

    @property
    def good(self) -> bool:
        """Whether there is nothing left to wish for: the goals met, and no small trigger found."""
        if self.proof is None or not self.stops_triggers or self.withstands is False:
            return False
        goal = self.proof.goals.accuracy_lost
        if not self.judged_apart and 1 - self.proof.agreement + self.worst > goal:
            return False
        return self.lost <= goal + 0.5 / self.proof.samples  # half a sample of slack, as in Verification.failures

    @property
    def rank(self) -> tuple[bool, bool, bool, bool, float]:
        """Of two that meet the goals within the measurement's error, the greater is the better one to keep.

        First the one that leaves nothing to wish for, then the one that withstands a new search, then the one that takes the
        backdoor out, then the one that stops the triggers, then the one that does less harm: accuracy most likely lost, and
        success of the trigger that still works best. Both have a file.
        """
        return self.good, self.withstands is not False, self.mends, self.stops_triggers, -self.lost - self.worst

    @property
    def outcome(self) -> str:
        """One line for people."""
        if self.proof is None:
            return f"{self.method}: {self.problem}"
        lost = self.proof.accuracy_before - self.proof.accuracy_after
        text = f"{self.method}: triggers at most {self.worst:.1%}, clean accuracy {-lost:+.1%}"
        if self.proof.rejected is not None:
            text += f", {self.proof.rejected:.1%} of clean images rejected"
        if self.withstands is False:
            text += f"; a new search still finds a trigger {self.left:.1f} times the first one's size"
        if not self.proof.holds:
            return f"{text}; misses its goals"
        if self.withstands is not False and not self.good:
            text += f"; changes {1 - self.proof.agreement:.1%} of all answers"
        return text if self.judged_apart else f"{text}; judged on the samples that it was chosen by"

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        proof = None if self.proof is None else self.proof.describe()
        left = None if self.left is None or not np.isfinite(self.left) else round(self.left, 3)
        return {
            "method": self.method,
            "outcome": self.outcome,
            "new_search_relative_size": left,
            "withstands_new_search": self.withstands,
            "facts": dict(self.facts),
            "proof": proof,
            "seconds": round(self.seconds, 1),
        }


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
            interrupted patch does not resume: it begins anew.

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
    check_order(subject, samples, run)
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
            raise InconclusiveError(f"{where}: no samples of any class but {trigger.target} to try its trigger on")
    triggers = recovered.triggers
    given = PatchInput(subject, fit, guard, triggers, run, wanted.success / 2, wanted.accuracy_lost)
    speed = measure_speed(subject, fit, run, with_references=False, side_by_side=False)  # training is one piece of work
    run.observer.notice(announced(methods, given, speed, _NEW_SEARCH))
    clock = None if budget is None else Clock(budget, speed, _NEW_SEARCH, started)
    if clock is not None:
        run = replace(run, observer=Timed(run.observer, clock))
    if [m.name for m in methods] != [Cut.name]:  # which trains nothing and is not searched again
        triggers = with_size_limits(subject, fit, triggers, run)
    given = PatchInput(subject, fit, guard, triggers, run, wanted.success / 2, wanted.accuracy_lost)
    best, attempts = try_methods(methods, given, recovered.evidence, wanted, folder, clock)
    if best is None:
        missed = "; ".join(a.outcome for a in attempts)
        hint = "more clean samples give a better patch"
        if method != INPUT_FILTER:
            hint += f"; --method {INPUT_FILTER} leaves the weights alone and rejects stamped images"
        raise InconclusiveError(f"the patch misses its goals and is not written: {missed}", hint)
    attempt, proto, changes = best
    write_model(proto, file, Path(out))
    assert attempt.proof is not None
    document = patch_document.build(
        patch_document.PATCH,
        attempt.proof.describe(),
        (subject.name, file.sha256),
        (str(out), read_onnx(Path(out)).sha256),
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
    return Patched(Path(out), attempt.method, changes, attempt.proof, attempts, document)


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
            attempts.append(Attempt(method.name, None, late, judged_apart=method.trains))
            given.run.observer.notice(attempts[-1].outcome)
            continue
        searched = len(methods) > 1 and method.mends
        if searched and clock is not None and not clock.holds_search(given):
            searched = False
            given.run.observer.notice(f"{method.name}: the budget does not hold a new search of what it leaves")
        attempt, proto, changes = _try(method, given, evidence, goals, folder, searched, alone=len(methods) == 1)
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
    method: Method, given: PatchInput, evidence: str, goals: Goals, folder: Path | None, searched: bool, alone: bool
) -> tuple[Attempt, onnx.ModelProto | None, tuple[Change, ...]]:
    """One method: its edit, the file made of it, and what is measured on that file."""
    started = time.perf_counter()
    subject = given.subject
    file = subject.origin.file
    provenance = Provenance(file.sha256, tool_version(), method.name, evidence)
    try:
        edit = method.edit(given)
        proto, changes = patched_model(subject, edit.values, provenance, edit.additions)
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
        left, withstands = _left(trial, given) if searched and proof.holds else (None, None)
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
    )
    return attempt, proto, tuple(changes)


def _left(patched: Path, given: PatchInput) -> tuple[float, bool]:
    """The relative size of the smallest trigger that a new search finds on the patched file; whether none is small."""
    subject = Subject.from_onnx(patched, given.subject.spec, given.run.device, given.subject.image_shape)
    found = search_again(subject, given.fit, given.triggers, given.run, "patch: new search", _NEW_SEARCH)
    return min((f.relative for f in found), default=np.inf), not any(f.remains for f in found)


def _reachable(report: Mapping[str, Any]) -> list[int]:
    """The classes to which some search of the scan led."""
    return [c["index"] for c in report["classes"] if any(v is not None for v in c["statistic"].values())]
