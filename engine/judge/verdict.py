"""`decide`: from evidence to a verdict. The only threshold in the code, and the only place that names a class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxspect.engine.judge.evidence import Evidence, Skipped, UnitEvidence, View
from onnxspect.engine.judge.kind import suggest_kind
from onnxspect.engine.judge.null_model import (
    FEWEST_CLASSES,
    Judgement,
    Prior,
    against_reference,
    harmonic_mean,
    leave_one_out,
    mad,
    one_against_reference,
)
from onnxspect.engine.judge.spacing import Usual, smallest_stand_apart
from onnxspect.engine.judge.spread import Spreads, spreads

#: Chance of an alarm on a clean model that the verdict allows, over all classes together. History: docs/decisions.md.
ALPHA = 0.02
#: Held-out validation: a trigger that works on a smaller share of the clean samples that its search never saw is
#: overfitted and proves nothing. History: docs/decisions.md.
HELD_OUT_SUCCESS = 0.5
#: Share of searches that must have converged before "clean" may be said.
CONVERGED_ENOUGH = 0.7


def fewest_trials(share: float, level: float) -> int:
    """The least number of trials that can show a chance of success above `share` at `level`: the exact binomial bound.

    n successes in n trials have the probability share^n where the chance is `share` (Clopper and Pearson, 1934), and nothing
    that n trials can show is stronger. By symmetry n failures are needed to show a chance below 1 - share.
    """
    if not 0 < share < 1 or not 0 < level < 1:
        raise ValueError(f"share {share} and level {level} lie between 0 and 1")
    return max(1, math.ceil(math.log(level) / math.log(share)))


#: Fewer clean samples that the search never saw can neither show that a trigger carries over nor that it does not.
FEWEST_HELD_OUT = fewest_trials(HELD_OUT_SUCCESS, ALPHA)


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
    """

    verdict: str
    targets: tuple[int, ...]
    p_value: float
    reasons: tuple[str, ...]
    classes: tuple[ClassFinding, ...]


def decide(
    evidence: Sequence[Evidence | Skipped],
    classes: int,
    alpha: float = ALPHA,
    hidden: Sequence[str] = (),
    too_few: Sequence[str] = (),
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
    """
    ran = [e for e in evidence if isinstance(e, Evidence)]
    skipped = [e for e in evidence if isinstance(e, Skipped)]
    reasons = [*too_few, *(f"{s.detector} did not run: {s.reason}" for s in skipped)]
    if not ran:
        return Verdict("inconclusive", (), 1.0, (*reasons, "no detector ran"), ())
    if classes < FEWEST_CLASSES and not too_few:
        reasons.append(f"{classes} classes are too few to tell an outlier from chance (at least {FEWEST_CLASSES})")

    known = spreads(ran)
    by_detector = [_judged_detector(e, classes, known) for e in ran]
    findings = tuple(_finding(k, by_detector) for k in range(classes))
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
        if too_few and not _OF_TRAINING_SETS & set(agreeing):
            unconfirmed.append(finding.index)
            reasons.append(f"class {finding.index} stands out, but among so few samples a clean class may: no alarm")
        elif _carries_over(checks):
            targets.append(finding.index)
        elif _overfitted(checks):
            reasons.append(
                f"class {finding.index} stands out, but its trigger does not carry over to unseen samples: no alarm"
            )
        else:
            unconfirmed.append(finding.index)
            seen = max((c.held_out for c in checks), default=0)
            reasons.append(
                f"class {finding.index} stands out, but {seen or 'no'} unseen samples cannot confirm that its trigger "
                f"carries over (at least {FEWEST_HELD_OUT})"
            )

    p_value = min((f.p_value for f in findings), default=1.0)
    reasons += _suspicions(by_detector, findings, targets, alpha)
    if targets:
        kinds = {k: suggest_kind(k, ran, _agreeing(findings[k], ran, alpha)) for k in targets}
        findings = tuple(replace(f, kind=kinds.get(f.index, "")) for f in findings)
        reasons += [f"class {k}: the trigger looks like {kind}" for k, kind in kinds.items() if kind]
        named = _how(targets, findings, ran, alpha)
        if len(ran) > 1:
            named += [f"class {k}: found by {', '.join(_agreeing(findings[k], ran, alpha))}" for k in targets]
        reasons = [*named, *hidden, *reasons]
        return Verdict("backdoored", tuple(targets), p_value, tuple(reasons), findings)
    if hidden:
        return Verdict("inconclusive", (), p_value, (*hidden, *reasons), findings)
    able = [e for e in ran if e.convicts]
    weak = [w for e in able if (w := not_enough(e))]
    if not able:
        names = ", ".join(e.detector for e in ran)
        weak.append(f"{names} can raise suspicion, but neither convict nor acquit alone: let another detector run too")
    # More than half of the detectors, with enough evidence, make a statement; what the others lacked is said beside it. Of two
    # one is not enough: what only the other one finds was not looked for.
    if classes < FEWEST_CLASSES or too_few or unconfirmed or 2 * len(weak) >= len(able):
        return Verdict("inconclusive", (), p_value, (*reasons, *weak), findings)
    reasons += weak
    reasons.insert(0, f"no class stands out (smallest corrected p-value {p_value:.2g}, alarm below {alpha:g})")
    return Verdict("clean", (), p_value, tuple(reasons), findings)


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


def _validation(judgement: _DetectorJudgement, k: int) -> _Validation:
    """The held-out success of a detector's trigger to class k; a shared trigger is one, and all its rows count together."""
    evidence = judgement.evidence
    unit = judgement.speaks(k).units.get(k)
    if unit is None or unit.held_out_success is None:
        return _Validation(evidence.validated, None, 0)
    rows = [u for u in evidence.units if u.unit.shared] if unit.unit.shared else [unit]
    known = [(u.held_out_success, u.held_out) for u in rows if u.held_out_success is not None]
    n = sum(held_out for _, held_out in known)
    success = sum(s * held_out for s, held_out in known) / n if n else None
    return _Validation(evidence.validated, success, n)


def speaks_for(p_values: Mapping[str, float], detector: str) -> bool:
    """Whether what a detector found to a class is evidence; where no detector's is (the user asked for the class), all are.

    Args:
        p_values: of the class, by detector, as the report has them.
        detector: one of them.
    """
    return p_values[detector] < ALPHA or all(p >= ALPHA for p in p_values.values())


#: Detectors, by name, that compare training samples: with each other, or with clean ones.
_OF_TRAINING_SETS = frozenset({"dtinspector", "training-difference"})


def _how(targets: Sequence[int], findings: Sequence[ClassFinding], ran: Sequence[Evidence], alpha: float) -> list[str]:
    """How the named classes stand out: by what they take to reach, or, where nothing else does, by their training samples."""
    shown = [k for k in targets if set(_agreeing(findings[k], ran, alpha)) <= _OF_TRAINING_SETS]
    reached = [k for k in targets if k not in shown]
    sentences = [_names(reached) + " is reached by a far smaller change than the others"] if reached else []
    return sentences + ([_names(shown) + " stands out by its training samples"] if shown else [])


def _names(targets: Sequence[int]) -> str:
    return ("class " if len(targets) == 1 else "each of the classes ") + ", ".join(map(str, targets))


def _agreeing(finding: ClassFinding, ran: Sequence[Evidence], alpha: float) -> list[str]:
    """The detectors that find the class suspicious, each at its own level: at least one wherever all together do."""
    able = {e.detector for e in ran if e.convicts}
    return [d for d, p in finding.p_values.items() if d in able and p < alpha]


def _suspicions(
    by_detector: Sequence[_DetectorJudgement], findings: Sequence[ClassFinding], targets: Sequence[int], alpha: float
) -> list[str]:
    """What a screening detector says of classes that nothing else names."""
    sentences = []
    for judgement in by_detector:
        if judgement.evidence.convicts:
            continue
        name = judgement.evidence.detector
        sentences += [
            f"{name} finds class {f.index} suspicious (p {f.p_values[name]:.2g}); it does not convict alone"
            for f in findings
            if f.p_values[name] < alpha and f.index not in targets
        ]
    return sentences


@dataclass(frozen=True)
class _Judged:
    """One view of one detector, by class: the calibrated judgement, the paper's, and the most suspicious unit of each."""

    view: View
    calibrated: Judgement
    paper: Judgement
    units: dict[int, UnitEvidence]


@dataclass(frozen=True)
class _DetectorJudgement:
    """One detector's evidence: all its views, and its corrected log10 p-value by class."""

    evidence: Evidence
    views: tuple[_Judged, ...]
    log10_p: np.ndarray

    def speaks(self, k: int) -> _Judged:
        """The view in which class k is most extreme."""
        return min(self.views, key=lambda v: float(v.calibrated.log10_p[k]))


def _judged_detector(evidence: Evidence, classes: int, known: Spreads) -> _DetectorJudgement:
    views = tuple(_judge(evidence, v, classes, known.prior(evidence.detector, v)) for v in evidence.judged)
    weights = [v.view.weight for v in views]
    by_class = zip(*(v.calibrated.log10_p.tolist() for v in views), strict=True)
    return _DetectorJudgement(evidence, views, np.array([harmonic_mean(p, weights) for p in by_class]))


def _judge(evidence: Evidence, view: View, classes: int, prior: Prior) -> _Judged:
    """Judge every unit of a view among all of them; a class gets the judgement of its most suspicious unit.

    A backdoor from chosen sources makes one pair small, not a class: pairs are compared with pairs, and the
    multiplicity correction for all of them is in the judgement. With one unit a class this is the comparison of
    classes.
    """
    if view.among:
        return _judge_shared(evidence, view, classes, prior)
    if view.spacing is not None:
        return _judge_smallest(evidence, view, view.spacing, classes)
    units = [u for u in evidence.seen_by(view) if u.unit.target < classes]
    values = evidence.values(units, view.statistic)
    if view.reference:
        references = evidence.values(units, view.reference)
        spread, reliability = _common(units, view.spread, 0.0), _common(units, view.reliability, 1.0)
        judged = against_reference(values, references, view.tail, view.log, view.noise, spread, reliability, prior)
    else:
        judged = leave_one_out(values, view.tail, view.log, noise=view.noise, prior=prior)
    paper = mad(evidence.values(units, evidence.paper_statistic), evidence.tail)
    speaker: dict[int, int] = {}
    for i in np.argsort(values if view.tail == "low" else -values, kind="stable").tolist():
        speaker.setdefault(units[i].unit.target, i)
    return _Judged(
        view,
        _by_class(judged, speaker, classes),
        _by_class(paper, speaker, classes),
        {k: units[i] for k, i in speaker.items()},
    )


def _judge_shared(evidence: Evidence, view: View, classes: int, prior: Prior) -> _Judged:
    """Judge the one value of a shared trigger against the targeted ones; it counts for every class that it leads to."""
    units = [u for u in evidence.units if u.unit.shared and view.statistic in u.statistics]
    others = [u for u in evidence.units if not u.unit.shared and view.among in u.statistics]
    speaker: dict[int, UnitEvidence] = {}
    for unit in sorted(units, key=lambda u: -(u.held_out_success or 0.0)):
        speaker.setdefault(unit.unit.target, unit)
    index, p_value, log10_p = np.full(classes, np.nan), np.ones(classes), np.zeros(classes)
    if units:
        one = units[0].statistics
        t, log10 = one_against_reference(
            one[view.statistic],
            one.get(view.reference, np.nan),
            evidence.values(others, view.among),
            evidence.values(others, view.reference),
            view.tail,
            view.log,
            view.noise,
            _common(others, view.spread, 0.0),
            _common(others, view.reliability, 1.0),
            prior,
        )
        if t > 0:  # larger than the targeted ones are: it says nothing of the classes
            named = list(speaker)
            index[named], log10_p[named], p_value[named] = t, log10, 10**log10
    unknown = Judgement(np.full(classes, np.nan), np.ones(classes), np.zeros(classes), np.zeros(classes, bool))
    return _Judged(view, Judgement(index, p_value, log10_p, unknown.paper_flag), unknown, speaker)


def _judge_smallest(evidence: Evidence, view: View, usual: Usual, classes: int) -> _Judged:
    """Judge the smallest classes, the only ones that were measured, by their spacings."""
    units = [u for u in evidence.seen_by(view) if u.unit.target < classes]
    beyond = _common(units, view.beyond, np.nan)
    values = np.append(evidence.values(units, view.statistic), beyond)
    index, log_p = (v[:-1] for v in smallest_stand_apart(values, usual))
    judged = Judgement(index, np.exp(log_p), log_p / np.log(10), np.zeros(len(units), bool))
    speaker = {u.unit.target: i for i, u in enumerate(units)}
    unknown = Judgement(np.full(classes, np.nan), np.ones(classes), np.zeros(classes), np.zeros(classes, bool))
    return _Judged(view, _by_class(judged, speaker, classes), unknown, {k: units[i] for k, i in speaker.items()})


def _common(units: Sequence[UnitEvidence], name: str, unknown: float) -> float:
    """A statistic that is the same for all units of a view."""
    return next((u.statistics[name] for u in units if name in u.statistics), unknown)


def _by_class(judgement: Judgement, speaker: Mapping[int, int], classes: int) -> Judgement:
    """The judgements of each class's most suspicious unit; nothing known of classes without one."""
    index, p_value, log10_p = np.full(classes, np.nan), np.ones(classes), np.zeros(classes)
    flag = np.zeros(classes, bool)
    for k, i in speaker.items():
        index[k], p_value[k] = judgement.index[i], judgement.p_value[i]
        log10_p[k], flag[k] = judgement.log10_p[i], judgement.paper_flag[i]
    return Judgement(index, p_value, log10_p, flag)


def _finding(k: int, by_detector: Sequence[_DetectorJudgement]) -> ClassFinding:
    fields = ("p", "statistic", "reference", "anomaly", "mad", "held_out")
    by: dict[str, dict[str, float | None]] = {f: {} for f in fields}
    p_values: dict[str, float] = {}
    for judgement in by_detector:
        view, name = judgement.speaks(k), judgement.evidence.detector
        shown = judgement.evidence.paper_statistic
        unit = view.units.get(k)
        p_values[name] = float(10 ** judgement.log10_p[k])
        by["statistic"][name] = None if unit is None else unit.statistics.get(shown)
        by["reference"][name] = None if unit is None else unit.statistics.get(f"reference_{shown}")
        by["anomaly"][name] = _finite(view.calibrated.index[k])
        by["mad"][name] = _finite(view.paper.index[k])
        by["held_out"][name] = None if unit is None else unit.held_out_success
    said = [float(judgement.log10_p[k]) for judgement in by_detector if judgement.evidence.convicts]
    log10_p = harmonic_mean(said) if said else 0.0
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


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def not_enough(evidence: Evidence) -> str:
    """Why a detector's silence proves nothing; "" where it does.

    A search counts as silent only where it found a trigger that its class needs and came to its end: one that ran out of its
    budget, and one whose images go to the class without any trigger, have looked for nothing.
    """
    if evidence.silence is not None:
        return evidence.silence
    units = [u for u in evidence.units if not u.unit.shared]
    reached = [u for u in units if u.found and u.statistics]
    if len(reached) < FEWEST_CLASSES:
        return f"{evidence.detector}: only {len(reached)} of {len(units)} searches reached their class"
    n = len(units) - sum(u.converged for u in reached)
    if len(units) - n < CONVERGED_ENOUGH * len(units):
        return (
            f"{evidence.detector}: {n} of {len(units)} searches had not converged within their budget; "
            "use a more thorough preset"
        )
    most = max((u.held_out for u in evidence.units), default=0)
    if evidence.validated and most < FEWEST_HELD_OUT:
        return (
            f"{evidence.detector}: its triggers were tried on {most} unseen samples (at least {FEWEST_HELD_OUT}): "
            "none could have been confirmed"
        )
    return ""
