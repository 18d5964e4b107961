"""`decide`: from evidence to a verdict, by the limits of thresholds.py. The only place that names a class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxspect.engine.judge.archive import Archive
from onnxspect.engine.judge.calibration import PRIOR, Bank, Calibration, Scored
from onnxspect.engine.judge.evidence import Evidence, Skipped, detectors_of
from onnxspect.engine.judge.few_classes import FEWEST_REFERENCES, least_seen
from onnxspect.engine.judge.judged import DetectorJudgement, judged_detector, references_of
from onnxspect.engine.judge.kind import suggest_kind
from onnxspect.engine.judge.measurement import Search
from onnxspect.engine.judge.null_model import FEWEST_CLASSES, harmonic_mean
from onnxspect.engine.judge.spread import spreads
from onnxspect.engine.judge.suspicion import eases
from onnxspect.engine.judge.thresholds import ALPHA, CONVERGED_ENOUGH, FEWEST_HELD_OUT, HELD_OUT_SUCCESS, TOGETHER


@dataclass(frozen=True)
class ClassFinding:
    """What is known of one class.

    Attributes:
        index: the class.
        p_value: corrected for the number of classes; 1 where there is no statistic.
        log10_p: its logarithm.
        p_values: the same by detector, before the multiplicity correction over detectors.
        statistic: by detector; of several views, the one in which the class is most extreme.
        reference: the same on the reference networks (their geometric mean), where there are any.
        anomaly: distance from the other classes, in deviations, by detector.
        mad_index: Neural Cleanse's anomaly index, by detector: the paper's rule, beside the calibrated one.
        held_out_success: of its trigger on unseen clean samples, by detector.
        kind: what its trigger suggests of the backdoor, in words; "" for classes that are not named.
    """

    index: int
    p_value: float
    log10_p: float
    p_values: dict[str, float]
    statistic: dict[str, float | None]
    reference: dict[str, float | None]
    anomaly: dict[str, float | None]
    mad_index: dict[str, float | None]
    held_out_success: dict[str, float | None]
    kind: str = ""


@dataclass(frozen=True)
class Verdict:
    """The statement.

    Attributes:
        verdict: "clean", "backdoored" or "inconclusive".
        targets: the classes that a backdoor leads to, most certain first.
        p_value: of the most suspicious class.
        reasons: why, in sentences.
        classes: one finding a class.
        score: -log10 of the null model's p-value of the most suspicious class, before any bank was asked.
        suspicion: of the most suspicious class, as the bank weighs (suspicion.py); the score where none was asked.
        calibration: what the bank of clean models says of it; None where none was asked.
    """

    verdict: str
    targets: tuple[int, ...]
    p_value: float
    reasons: tuple[str, ...]
    classes: tuple[ClassFinding, ...]
    score: float = 0.0
    suspicion: float = 0.0
    calibration: Calibration | None = None


def decide(
    evidence: Sequence[Evidence | Skipped],
    classes: int,
    alpha: float = ALPHA,
    hidden: Sequence[str] = (),
    too_few: Sequence[str] = (),
    samples: int = 0,
    bank: Bank | None = None,
    prior: float = PRIOR,
    difficulty: float | None = None,
) -> Verdict:
    """Combine what the detectors found into one verdict.

    A class is named where its corrected p-value is below `alpha` *and* its trigger passes held-out validation: it works on at
    least half of at least FEWEST_HELD_OUT clean samples that the search never saw. Where there are fewer it is neither named nor cleared.
    "Clean" needs enough samples and enough converged searches; else the answer is "inconclusive", with the reason.

    Args:
        evidence: from every detector that was asked for.
        classes: number of classes of the subject.
        alpha: allowed rate of false alarms per model.
        hidden: what hides parts of the model from the searches (engine/subject/unreached.py), in sentences: where there is any, finding
            nothing says nothing.
        too_few: what the clean samples lack (sample_size.py), in sentences: where they lack anything, finding nothing says
            nothing, nor does a class that stands out in searches on them.
        samples: how many clean samples there are in all; 0 where that is not known.
        bank: scores of clean models, by which p-values are calibrated (calibration.py); None leaves the null models' as they are.
        prior: share of models that are taken to be infected, for P(backdoored).
        difficulty: of the task, an error rate (difficulty.py); None where it is not known.
    """
    found = _decided(evidence, classes, alpha, hidden, too_few, samples, bank, difficulty)
    if bank is None or not found.classes:
        return found
    scored = Scored(classes, detectors_of(evidence), samples, found.score, found.suspicion, difficulty)
    calibration = bank.calibration(scored, prior)
    tested = [e.detector for e in evidence if isinstance(e, Evidence) and e.traits.tested]
    woken = any(f.p_values.get(name, 1.0) < alpha for f in found.classes for name in tested)
    if woken and bank.by_score is not None:  # the suspicion knows nothing of tests
        calibration = replace(calibration, p_backdoored=bank.by_score.probability(found.score, prior))
    return replace(found, calibration=calibration)


def decide_archive(archive: Archive, bank: Bank | None = None, prior: float = PRIOR) -> Verdict:
    """`decide` on evidence as it is kept."""
    return decide(
        archive.evidence,
        archive.classes,
        hidden=archive.hidden,
        too_few=archive.too_few,
        samples=archive.samples,
        bank=bank,
        prior=prior,
        difficulty=archive.difficulty,
    )


def _decided(
    evidence: Sequence[Evidence | Skipped],
    classes: int,
    alpha: float,
    hidden: Sequence[str],
    too_few: Sequence[str],
    samples: int,
    bank: Bank | None,
    difficulty: float | None,
) -> Verdict:
    ran = [e for e in evidence if isinstance(e, Evidence)]
    skipped = [e for e in evidence if isinstance(e, Skipped)]
    reasons = [*too_few, *(f"{s.detector} did not run: {s.reason}" for s in skipped)]
    if not ran:
        return Verdict("inconclusive", (), 1.0, (*reasons, "no detector ran"), ())
    comparable = classes >= FEWEST_CLASSES or any(references_of(e) >= FEWEST_REFERENCES for e in ran)
    if not comparable and not too_few:
        reasons.append(
            f"{classes} classes are too few to tell an outlier from chance (at least {FEWEST_CLASSES}, "
            f"or {FEWEST_REFERENCES} reference networks)"
        )

    known = spreads([e for e in ran if not e.traits.tested])
    by_detector = [judged_detector(e, classes, known) for e in ran]
    findings = tuple(_finding(k, by_detector) for k in range(classes))
    scores = np.array([-f.log10_p for f in findings])
    suspicions = scores
    if bank is not None:
        convicting = detectors_of(ran)
        searched = np.array([_combined(by_detector, k, tested=False) for k in range(classes)])
        suspicions = bank.suspicions(convicting, searched, *eases(ran, classes))
        of_class = zip(searched.tolist(), suspicions.tolist(), strict=True)
        ranked = [bank.p_value(Scored(classes, convicting, samples, -p, e, difficulty)) for p, e in of_class]
        findings = tuple(_calibrated(f, p, by_detector) for f, p in zip(findings, ranked, strict=True))
    most = {"score": max([0.0, *scores.tolist()]), "suspicion": max(suspicions.tolist(), default=0.0)}
    suspects = [f for f in findings if f.p_value < alpha]
    targets: list[int] = []
    unconfirmed: list[int] = []
    for finding in sorted(suspects, key=lambda f: f.log10_p):
        agreeing = _agreeing(finding, ran, alpha)
        checks = [
            _validation(judgement, finding.index)
            for judgement in by_detector
            if judgement.evidence.detector in agreeing
        ]
        if too_few and not any(e.traits.of_samples or e.traits.tested for e in ran if e.detector in agreeing):
            unconfirmed.append(finding.index)
            reasons.append(f"class {finding.index} stands out, but among so few samples a clean class may: no alarm")
        elif _carries_over(checks):
            targets.append(finding.index)
        elif _overfitted(checks):
            reasons.append(
                f"class {finding.index} stands out, but its trigger does not work on unseen samples: no alarm"
            )
        else:
            unconfirmed.append(finding.index)
            seen = max((c.held_out for c in checks), default=0)
            reasons.append(
                f"class {finding.index} stands out, but {seen or 'no'} unseen samples cannot confirm that its trigger "
                f"works (at least {FEWEST_HELD_OUT})"
            )

    p_value = min((f.p_value for f in findings), default=1.0)
    reasons += _suspicions(by_detector, findings, targets, alpha)
    if targets:
        kinds = {
            k: suggest_kind(k, ran, _most_certain_first(findings[k], _agreeing(findings[k], ran, alpha)))
            for k in targets
        }
        findings = tuple(replace(f, kind=kinds.get(f.index, "")) for f in findings)
        reasons += [f"class {k}: the trigger looks like {kind}" for k, kind in kinds.items() if kind]
        named = _how(targets, findings, ran, alpha)
        if len(ran) > 1:
            named += [f"class {k}: found by {', '.join(_agreeing(findings[k], ran, alpha))}" for k in targets]
        reasons = [*named, *hidden, *reasons]
        return Verdict("backdoored", tuple(targets), p_value, tuple(reasons), findings, **most)
    if hidden:
        return Verdict("inconclusive", (), p_value, (*hidden, *reasons), findings, **most)
    able = [e for e in ran if e.traits.convicts and not e.traits.tested]
    weak = [w for e in able if (w := not_enough(e, classes))]
    if not able:
        names = ", ".join(e.detector for e in ran)
        weak.append(f"{names} can raise suspicion, but neither convict nor acquit alone: let another detector run too")
    # More than half of the detectors, with enough evidence, make a statement; what the others lacked is said beside it. Of two
    # one is not enough: what only the other one finds was not looked for.
    if not comparable or too_few or unconfirmed or 2 * len(weak) >= len(able):
        return Verdict("inconclusive", (), p_value, (*reasons, *weak), findings, **most)
    reasons += weak
    reasons.insert(0, f"no class stands out (smallest corrected p-value {p_value:.2g}, alarm below {alpha:g})")
    kind = Scored(classes, detectors_of(ran), samples, most["score"], most["suspicion"])
    if classes < FEWEST_CLASSES and (bank is None or not bank.covers(kind)):
        reasons += [said for e in able if (said := _seen_of_few(e, classes, alpha))]
    return Verdict("clean", (), p_value, tuple(reasons), findings, **most)


@dataclass(frozen=True)
class _Validation:
    """What clean samples that no search saw say of one detector's trigger to a class.

    Attributes:
        needed: False for a detector whose evidence is no trigger that leads to the class.
        success: share of them that the trigger leads there; None where it was not tried.
        held_out: how many they are.
    """

    needed: bool
    success: float | None
    held_out: int

    @property
    def enough(self) -> bool:
        """Whether the samples can tell."""
        return self.success is not None and self.held_out >= FEWEST_HELD_OUT


def _carries_over(checks: Sequence[_Validation]) -> bool:
    """Whether held-out samples confirm a class; where no trigger of its detectors could be tried, one that needs none does."""
    tried = [c for c in checks if c.enough]
    if tried:
        return any((c.success or 0.0) >= HELD_OUT_SUCCESS for c in tried)
    return any(not c.needed for c in checks)


def _overfitted(checks: Sequence[_Validation]) -> bool:
    """Whether every trigger that had to be tried was tried, on enough samples, and failed."""
    return bool(checks) and all(c.enough and (c.success or 0.0) < HELD_OUT_SUCCESS for c in checks if c.needed)


def _validation(judgement: DetectorJudgement, k: int) -> _Validation:
    """The held-out success of a detector's trigger to class k; a shared trigger is one, and all its rows count together."""
    evidence = judgement.evidence
    unit = judgement.speaks(k).units.get(k)
    if unit is None or unit.held_out_success is None:
        return _Validation(evidence.traits.validated, None, 0)
    rows = [u for u in evidence.units if u.unit.shared] if unit.unit.shared else [unit]
    known = [(u.held_out_success, u.held_out) for u in rows if u.held_out_success is not None]
    n = sum(held_out for _, held_out in known)
    success = sum(s * held_out for s, held_out in known) / n if n else None
    return _Validation(evidence.traits.validated, success, n)


def speaks_for(p_values: Mapping[str, float], detector: str) -> bool:
    """Whether what a detector found to a class is evidence; where no detector's is (the user asked for the class), all are.

    Args:
        p_values: of the class, by detector, as the report has them.
        detector: one of them.
    """
    return p_values[detector] < ALPHA or all(p >= ALPHA for p in p_values.values())


def _how(targets: Sequence[int], findings: Sequence[ClassFinding], ran: Sequence[Evidence], alpha: float) -> list[str]:
    """How the named classes stand out: by logic that was woken, by what they take to reach, or by their training samples."""
    tested = {e.detector for e in ran if e.traits.tested}
    by_samples = {e.detector for e in ran if e.traits.of_samples}
    agreeing = {k: set(_agreeing(findings[k], ran, alpha)) for k in targets}
    woken = [k for k in targets if agreeing[k] & tested]
    shown = [k for k in targets if k not in woken and agreeing[k] <= by_samples]
    reached = [k for k in targets if k not in woken and k not in shown]
    beside_others = [k for k in reached if min(findings[k].p_values[d] for d in agreeing[k]) < alpha]
    said = (
        (woken, "is answered where a trigger wakes logic that sleeps on clean images"),
        (beside_others, "is reached by a far smaller change than the others"),
        # No null model says so by itself: the bank of clean models does.
        ([k for k in reached if k not in beside_others], "takes far less to reach than in clean models"),
        (shown, "stands out by its training samples"),
    )
    return [f"{_names(classes)} {how}" for classes, how in said if classes]


def _names(targets: Sequence[int]) -> str:
    return ("class " if len(targets) == 1 else "each of the classes ") + ", ".join(map(str, targets))


def _agreeing(finding: ClassFinding, ran: Sequence[Evidence], alpha: float) -> list[str]:
    """The detectors that find the class suspicious, each at its own level; where only all together do, those that add to it."""
    able = {e.detector for e in ran if e.traits.convicts}
    of_able = {d: p for d, p in finding.p_values.items() if d in able}
    agreeing = [d for d, p in of_able.items() if p < alpha]
    if agreeing or finding.p_value >= alpha:
        return agreeing
    # A bank finds suspicious what no null model does by itself: it is what they find together.
    together = [d for d, p in of_able.items() if p < TOGETHER]
    return together or ([min(of_able, key=lambda d: of_able[d])] if of_able else [])


def _most_certain_first(finding: ClassFinding, detectors: Sequence[str]) -> list[str]:
    """What a trigger is, is what the detector sees that finds it least likely to be chance."""
    return sorted(detectors, key=lambda d: finding.p_values[d])


def _suspicions(
    by_detector: Sequence[DetectorJudgement], findings: Sequence[ClassFinding], targets: Sequence[int], alpha: float
) -> list[str]:
    """What a screening detector says of classes that nothing else names."""
    sentences = []
    for judgement in by_detector:
        if judgement.evidence.traits.convicts:
            continue
        name = judgement.evidence.detector
        sentences += [
            f"{name} finds class {f.index} suspicious (p {f.p_values[name]:.2g}); it does not convict alone"
            for f in findings
            if f.p_values[name] < alpha and f.index not in targets
        ]
    return sentences


def _finding(k: int, by_detector: Sequence[DetectorJudgement]) -> ClassFinding:
    fields = ("p", "statistic", "reference", "anomaly", "mad", "held_out")
    by: dict[str, dict[str, float | None]] = {f: {} for f in fields}
    p_values: dict[str, float] = {}
    for judgement in by_detector:
        view, name = judgement.speaks(k), judgement.evidence.detector
        shown = judgement.evidence.paper_statistic
        unit = view.units.get(k)
        p_values[name] = float(10 ** judgement.log10_p[k])
        measurement = None if unit is None else unit.measurement(shown)
        by["statistic"][name] = None if measurement is None else measurement.value
        by["reference"][name] = None if measurement is None else measurement.reference
        by["anomaly"][name] = _finite(view.calibrated.index[k])
        by["mad"][name] = _finite(view.paper.index[k])
        by["held_out"][name] = None if unit is None else unit.held_out_success
    log10_p = _combined(by_detector, k)
    return ClassFinding(
        k,
        float(10**log10_p),
        log10_p,
        p_values,
        statistic=by["statistic"],
        reference=by["reference"],
        anomaly=by["anomaly"],
        mad_index=by["mad"],
        held_out_success=by["held_out"],
    )


def _combined(by_detector: Sequence[DetectorJudgement], k: int, tested: bool | None = None) -> float:
    """log10 of what the detectors that may name a class say of it together.

    Args:
        by_detector: of all detectors.
        k: the class.
        tested: only what brings tests of its own (True), or only what is compared with other classes (False).
    """
    said = [
        float(judgement.log10_p[k])
        for judgement in by_detector
        if judgement.evidence.traits.convicts
        and tested in (None, judgement.evidence.traits.tested)
        and not (judgement.evidence.traits.tested and k not in judgement.views[0].units)
    ]
    return harmonic_mean(said) if said else 0.0


def _calibrated(finding: ClassFinding, ranked: float, by_detector: Sequence[DetectorJudgement]) -> ClassFinding:
    """The finding with its p-value by the bank: the chance that any class of a clean model is as suspicious.

    A part of the graph that was woken has a test of its own, which no bank of searches has to confirm.
    """
    p = min(1.0, ranked)
    log10_p = math.log10(p)
    woken = _combined(by_detector, finding.index, tested=True)
    if woken < 0:
        log10_p = harmonic_mean([log10_p, woken])
        p = float(10**log10_p)
    return finding if p == finding.p_value else replace(finding, p_value=p, log10_p=log10_p)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _seen_of_few(evidence: Evidence, classes: int, alpha: float) -> str:
    """How small a trigger must be for a detector to tell it from chance, where it has only the references to compare with."""
    view = next((v for v in evidence.judged if v.search is Search.FULL and v.references and v.log), None)
    if view is None:
        return ""
    times = least_seen(evidence.baselines(evidence.seen_by(view), view), alpha, view.noise)
    if not np.isfinite(times).all():
        return ""
    return (
        f"{evidence.detector}: of {classes} classes beside {references_of(evidence)} reference networks only a trigger that takes "
        f"{times.max():.1f} times less than the class usually does stands out"
    )


def not_enough(evidence: Evidence, classes: int) -> str:
    """Why a detector's silence proves nothing; "" where it does.

    A search counts as silent only where it found a trigger that its class needs and came to its end: one that ran out of its
    budget, and one whose images go to the class without any trigger, have looked for nothing.
    """
    if evidence.silence is not None:
        return evidence.silence
    units = [u for u in evidence.units if not u.unit.shared]
    reached = [u for u in units if u.found and u.measurements]
    if len(reached) < min(FEWEST_CLASSES, classes):
        return f"{evidence.detector}: only {len(reached)} of {len(units)} searches reached their class"
    if classes < FEWEST_CLASSES and references_of(evidence) < FEWEST_REFERENCES:
        return (
            f"{evidence.detector}: {classes} classes are compared with reference networks alone, and "
            f"{references_of(evidence)} of these have them (at least {FEWEST_REFERENCES})"
        )
    n = len(units) - sum(u.converged for u in reached)
    if len(units) - n < CONVERGED_ENOUGH * len(units):
        return (
            f"{evidence.detector}: {n} of {len(units)} searches had not converged within their budget; "
            "use a more thorough preset"
        )
    most = max((u.held_out for u in evidence.units), default=0)
    if evidence.traits.validated and most < FEWEST_HELD_OUT:
        return (
            f"{evidence.detector}: its triggers were tried on {most} unseen samples (at least {FEWEST_HELD_OUT}): "
            "none could have been confirmed"
        )
    return ""
