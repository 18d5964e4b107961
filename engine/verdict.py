"""`decide`: from evidence to a verdict. The only threshold in the code, and the only place that names a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxspect.engine.evidence import Evidence, Skipped, UnitEvidence, View
from onnxspect.engine.kind import suggest_kind
from onnxspect.engine.null_model import (
    FEWEST_CLASSES,
    Judgement,
    Prior,
    against_reference,
    harmonic_mean,
    leave_one_out,
    mad,
    one_against_reference,
)
from onnxspect.engine.spread import Spreads, spreads

#: Chance of an alarm on a clean model that the verdict allows, over all classes together.
ALPHA = 0.02
#: A trigger that fools fewer clean samples than this, of those the search never saw, is overfitted and proves nothing. Not
#: more than half: a trigger found on 32 images of a hard attack carries over to 70 %, and how small it is decides anyway.
CARRIES_OVER = 0.5
#: Share of searches that must have converged before "clean" may be said.
CONVERGED_ENOUGH = 0.7


@dataclass(frozen=True)
class ClassFinding:
    """What is known of one class.

    Attributes:
        index: the class.
        p_value: corrected for the number of classes; 1 where there is no statistic.
        log10_p: its logarithm.
        p_values: the same by detector, before the price of looking with several.
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
    evidence: Sequence[Evidence | Skipped], classes: int, alpha: float = ALPHA, hidden: Sequence[str] = ()
) -> Verdict:
    """Combine what the detectors found into one verdict.

    A class is named where its corrected p-value is below `alpha` *and* its trigger carries over to clean samples that
    the search never saw. "Clean" needs enough converged searches; else the answer is "inconclusive", with the reason.

    Args:
        evidence: from every detector that was asked for.
        classes: number of classes of the subject.
        alpha: allowed rate of false alarms per model.
        hidden: what hides parts of the model from the searches (engine/unreached.py), in sentences: where there is any, finding
            nothing says nothing.
    """
    ran = [e for e in evidence if isinstance(e, Evidence)]
    skipped = [e for e in evidence if isinstance(e, Skipped)]
    reasons = [f"{s.detector} did not run: {s.reason}" for s in skipped]
    if not ran:
        return Verdict("inconclusive", (), 1.0, (*reasons, "no detector ran"), ())
    if classes < FEWEST_CLASSES:
        reasons.append(f"{classes} classes are too few to tell an outlier from chance (at least {FEWEST_CLASSES})")

    known = spreads(ran)
    looks = [_look(e, classes, known) for e in ran]
    findings = tuple(_finding(k, looks) for k in range(classes))
    suspects = [f for f in findings if f.p_value < alpha]
    targets: list[int] = []
    refuted: list[int] = []
    for finding in sorted(suspects, key=lambda f: f.log10_p):
        agreeing = _agreeing(finding, ran, alpha)
        carried = [s for d, s in finding.held_out_success.items() if s is not None and d in agreeing]
        (refuted if carried and max(carried) < CARRIES_OVER else targets).append(finding.index)
    for index in refuted:
        reasons.append(f"class {index} stands out, but its trigger does not carry over to unseen samples: no alarm")

    p_value = min((f.p_value for f in findings), default=1.0)
    reasons += _suspicions(looks, findings, targets, alpha)
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
    weak = _not_enough(able, classes)
    if not able:
        names = ", ".join(e.detector for e in ran)
        weak.append(f"{names} can raise suspicion, but neither convict nor acquit alone: let another detector run too")
    # Half of the detectors with enough evidence make a statement; what the others lacked is said beside it.
    if classes < FEWEST_CLASSES or 2 * len(weak) > len(able) or not able:
        return Verdict("inconclusive", (), p_value, (*reasons, *weak), findings)
    reasons += weak
    reasons.insert(0, f"no class stands out (smallest corrected p-value {p_value:.2g}, alarm below {alpha:g})")
    return Verdict("clean", (), p_value, tuple(reasons), findings)


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
    told = [_names(reached) + " is reached by a far smaller change than the others"] if reached else []
    return told + ([_names(shown) + " stands out by its training samples"] if shown else [])


def _names(targets: Sequence[int]) -> str:
    return ("class " if len(targets) == 1 else "each of the classes ") + ", ".join(map(str, targets))


def _agreeing(finding: ClassFinding, ran: Sequence[Evidence], alpha: float) -> list[str]:
    """The detectors that find the class suspicious, each at its own level: at least one wherever all together do."""
    able = {e.detector for e in ran if e.convicts}
    return [d for d, p in finding.p_values.items() if d in able and p < alpha]


def _suspicions(
    looks: Sequence[_Look], findings: Sequence[ClassFinding], targets: Sequence[int], alpha: float
) -> list[str]:
    """What a first look says of classes that nothing else names."""
    told = []
    for look in looks:
        if look.evidence.convicts:
            continue
        name = look.evidence.detector
        told += [
            f"{name} finds class {f.index} suspicious (p {f.p_values[name]:.2g}); it does not convict alone"
            for f in findings
            if f.p_values[name] < alpha and f.index not in targets
        ]
    return told


@dataclass(frozen=True)
class _Judged:
    """One view of one detector, by class: the calibrated judgement, the paper's, and the unit that speaks for each."""

    view: View
    calibrated: Judgement
    paper: Judgement
    units: dict[int, UnitEvidence]


@dataclass(frozen=True)
class _Look:
    """One detector's evidence: all its views, and its corrected log10 p-value by class."""

    evidence: Evidence
    views: tuple[_Judged, ...]
    log10_p: np.ndarray

    def speaks(self, k: int) -> _Judged:
        """The view in which class k is most extreme."""
        return min(self.views, key=lambda v: float(v.calibrated.log10_p[k]))


def _look(evidence: Evidence, classes: int, known: Spreads) -> _Look:
    views = tuple(_judge(evidence, v, classes, known.prior(evidence.detector, v)) for v in evidence.judged)
    weights = [v.view.weight for v in views]
    by_class = zip(*(v.calibrated.log10_p.tolist() for v in views), strict=True)
    return _Look(evidence, views, np.array([harmonic_mean(p, weights) for p in by_class]))


def _judge(evidence: Evidence, view: View, classes: int, prior: Prior) -> _Judged:
    """Judge every unit of a view among all of them; for a class its most suspicious unit speaks.

    A backdoor from chosen sources makes one pair small, not a class: pairs are compared with pairs, and the price of
    looking at all of them is in the judgement. With one unit a class this is the comparison of classes.
    """
    if view.among:
        return _judge_shared(evidence, view, classes, prior)
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
    """Judge the one value of a shared trigger against the targeted ones; it speaks for every class that it leads to."""
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


def _common(units: Sequence[UnitEvidence], name: str, unknown: float) -> float:
    """A statistic that is the same for all units of a view."""
    return next((u.statistics[name] for u in units if name in u.statistics), unknown)


def _by_class(judgement: Judgement, speaker: Mapping[int, int], classes: int) -> Judgement:
    """The judgements of the units that speak for each class; nothing known of the others."""
    index, p_value, log10_p = np.full(classes, np.nan), np.ones(classes), np.zeros(classes)
    flag = np.zeros(classes, bool)
    for k, i in speaker.items():
        index[k], p_value[k] = judgement.index[i], judgement.p_value[i]
        log10_p[k], flag[k] = judgement.log10_p[i], judgement.paper_flag[i]
    return Judgement(index, p_value, log10_p, flag)


def _finding(k: int, looks: Sequence[_Look]) -> ClassFinding:
    fields = ("p", "statistic", "reference", "anomaly", "mad", "held_out")
    by: dict[str, dict[str, float | None]] = {f: {} for f in fields}
    p_values: dict[str, float] = {}
    for look in looks:
        view, name = look.speaks(k), look.evidence.detector
        shown = look.evidence.paper_statistic
        unit = view.units.get(k)
        p_values[name] = float(10 ** look.log10_p[k])
        by["statistic"][name] = None if unit is None else unit.statistics.get(shown)
        by["reference"][name] = None if unit is None else unit.statistics.get(f"reference_{shown}")
        by["anomaly"][name] = _finite(view.calibrated.index[k])
        by["mad"][name] = _finite(view.paper.index[k])
        by["held_out"][name] = None if unit is None else unit.held_out_success
    said = [float(look.log10_p[k]) for look in looks if look.evidence.convicts]
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


def _not_enough(ran: Sequence[Evidence], classes: int) -> list[str]:
    """Reasons why silence proves nothing."""
    if classes < FEWEST_CLASSES:
        return ["the paper's outlier test needs more classes: nothing can be said from this evidence alone"]
    weak = []
    for evidence in ran:
        units = [u for u in evidence.units if not u.unit.shared]
        found = [u for u in units if u.found]
        if len(found) < FEWEST_CLASSES:
            weak.append(f"{evidence.detector}: only {len(found)} of {len(units)} searches reached their class")
        elif sum(u.converged for u in units) < CONVERGED_ENOUGH * len(units):
            n = sum(not u.converged for u in units)
            weak.append(
                f"{evidence.detector}: {n} of {len(units)} searches had not converged within their budget; "
                "use a more thorough preset"
            )
    return weak
