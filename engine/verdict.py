"""`decide`: from evidence to a verdict. The only threshold in the code, and the only place that names a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxspect.engine.evidence import Evidence, Skipped, UnitEvidence
from onnxspect.engine.null_model import FEWEST_CLASSES, Judgement, leave_one_out, mad

#: Chance of an alarm on a clean model that the verdict allows, over all classes together.
ALPHA = 0.05
#: A trigger that fools fewer clean samples than this, of those the search never saw, is overfitted and proves nothing.
CARRIES_OVER = 0.8
#: Share of searches that must have converged before "clean" may be said.
CONVERGED_ENOUGH = 0.7


@dataclass(frozen=True)
class ClassFinding:
    """What is known of one class.

    Attributes:
        index: the class.
        p_value: corrected for the number of classes; 1 where there is no statistic.
        log10_p: its logarithm.
        statistic: by detector.
        reference: the same on the reference networks (their geometric mean), where there are any.
        anomaly: distance from the other classes, in deviations, by detector.
        mad_index: Neural Cleanse's anomaly index, by detector: the paper's rule, beside the calibrated one.
        held_out_success: of its trigger on unseen clean samples, by detector.
    """

    index: int
    p_value: float
    log10_p: float
    statistic: dict[str, float | None]
    reference: dict[str, float | None]
    anomaly: dict[str, float | None]
    mad_index: dict[str, float | None]
    held_out_success: dict[str, float | None]


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


def decide(evidence: Sequence[Evidence | Skipped], classes: int, alpha: float = ALPHA) -> Verdict:
    """Combine what the detectors found into one verdict.

    A class is named where its corrected p-value is below `alpha` *and* its trigger carries over to clean samples that
    the search never saw. "Clean" needs enough converged searches; else the answer is "inconclusive", with the reason.

    Args:
        evidence: from every detector that was asked for.
        classes: number of classes of the subject.
        alpha: allowed rate of false alarms per model.
    """
    ran = [e for e in evidence if isinstance(e, Evidence)]
    skipped = [e for e in evidence if isinstance(e, Skipped)]
    reasons = [f"{s.detector} did not run: {s.reason}" for s in skipped]
    if not ran:
        return Verdict("inconclusive", (), 1.0, (*reasons, "no detector ran"), ())
    if classes < FEWEST_CLASSES:
        reasons.append(f"{classes} classes are too few to tell an outlier from chance (at least {FEWEST_CLASSES})")

    views = [_view(e, classes) for e in ran]
    findings = tuple(_finding(k, views) for k in range(classes))
    # Detectors look at the same model, so their p-values are dependent: Bonferroni over those that ran.
    suspects = [f for f in findings if f.p_value * len(ran) < alpha]
    targets: list[int] = []
    refuted: list[int] = []
    for finding in sorted(suspects, key=lambda f: f.log10_p):
        carried = [s for s in finding.held_out_success.values() if s is not None]
        (refuted if carried and max(carried) < CARRIES_OVER else targets).append(finding.index)
    for index in refuted:
        reasons.append(f"class {index} stands out, but its trigger does not carry over to unseen samples: no alarm")

    p_value = min((min(1.0, f.p_value * len(ran)) for f in findings), default=1.0)
    if targets:
        reasons.insert(0, _names(targets) + " is reached by a far smaller trigger than the others")
        return Verdict("backdoored", tuple(targets), p_value, tuple(reasons), findings)
    weak = _not_enough(ran, classes)
    if weak:
        return Verdict("inconclusive", (), p_value, (*reasons, *weak), findings)
    reasons.insert(0, f"no class stands out (smallest corrected p-value {p_value:.2g}, alarm below {alpha:g})")
    return Verdict("clean", (), p_value, tuple(reasons), findings)


def _names(targets: Sequence[int]) -> str:
    return ("class " if len(targets) == 1 else "each of the classes ") + ", ".join(map(str, targets))


@dataclass(frozen=True)
class _View:
    """One detector's evidence by class: the calibrated judgement, the paper's, and the unit that speaks for each."""

    evidence: Evidence
    calibrated: Judgement
    paper: Judgement
    units: dict[int, UnitEvidence]


def _view(evidence: Evidence, classes: int) -> _View:
    values, paper = np.full(classes, np.nan), np.full(classes, np.nan)
    units: dict[int, UnitEvidence] = {}
    sign = 1 if evidence.tail == "low" else -1
    for unit in evidence.units:
        value = unit.statistics.get(evidence.statistic)
        if value is None:
            continue
        k = unit.unit.target
        if np.isnan(values[k]) or sign * value < sign * values[k]:  # of several sources, the most suspicious speaks
            values[k], units[k] = value, unit
            paper[k] = unit.statistics[evidence.paper_statistic]
    return _View(evidence, leave_one_out(values, evidence.tail), mad(paper, evidence.tail), units)


def _finding(k: int, views: Sequence[_View]) -> ClassFinding:
    by: dict[str, dict[str, float | None]] = {f: {} for f in ("statistic", "reference", "anomaly", "mad", "held_out")}
    for view in views:
        unit, name = view.units.get(k), view.evidence.detector
        by["statistic"][name] = None if unit is None else float(unit.statistics[view.evidence.paper_statistic])
        by["reference"][name] = (
            None if unit is None else unit.statistics.get(f"reference_{view.evidence.paper_statistic}")
        )
        by["anomaly"][name] = _finite(view.calibrated.index[k])
        by["mad"][name] = _finite(view.paper.index[k])
        by["held_out"][name] = None if unit is None else unit.held_out_success
    log10_p = min(float(view.calibrated.log10_p[k]) for view in views)
    return ClassFinding(
        k,
        float(10**log10_p),
        log10_p,
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
        units = evidence.units
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
