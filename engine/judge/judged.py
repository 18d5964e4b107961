"""One detector's evidence judged: each of its views by the null model that applies, and their p-values by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxspect.engine.judge.evidence import Evidence, UnitEvidence, View
from onnxspect.engine.judge.few_classes import beside_references
from onnxspect.engine.judge.measurement import Search
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
from onnxspect.engine.judge.spread import Spreads

#: Statistic of a unit that brings a test of its own (`Traits.tested`): the logarithm of its p-value, corrected for all that was tried.
LOG10_P = "log10_p"


@dataclass(frozen=True)
class JudgedView:
    """One view of one detector, by class: the calibrated judgement, the paper's, and the most suspicious unit of each."""

    view: View
    calibrated: Judgement
    paper: Judgement
    units: dict[int, UnitEvidence]


@dataclass(frozen=True)
class DetectorJudgement:
    """One detector's evidence: all its views, and its corrected log10 p-value by class."""

    evidence: Evidence
    views: tuple[JudgedView, ...]
    log10_p: np.ndarray

    def speaks(self, k: int) -> JudgedView:
        """The view in which class k is most extreme."""
        return min(self.views, key=lambda v: float(v.calibrated.log10_p[k]))


def judged_detector(evidence: Evidence, classes: int, known: Spreads) -> DetectorJudgement:
    """All views of one detector, and what they say of each class together.

    Args:
        evidence: of the detector.
        classes: of the subject.
        known: how far its classes lie apart, as all detectors see it.
    """
    if evidence.traits.tested:
        view = _judge_tested(evidence, classes)
        return DetectorJudgement(evidence, (view,), view.calibrated.log10_p)
    views = tuple(_judge(evidence, v, classes, known.prior(evidence.detector, v)) for v in evidence.judged)
    weights = [v.view.weight for v in views]
    by_class = zip(*(v.calibrated.log10_p.tolist() for v in views), strict=True)
    return DetectorJudgement(evidence, views, np.array([harmonic_mean(p, weights) for p in by_class]))


def _judge(evidence: Evidence, view: View, classes: int, prior: Prior) -> JudgedView:
    """Judge every unit of a view among all of them; a class gets the judgement of its most suspicious unit.

    A backdoor from chosen sources makes one pair small, not a class: pairs are compared with pairs, and the
    multiplicity correction for all of them is in the judgement. With one unit a class this is the comparison of
    classes.
    """
    if view.search is Search.SHARED:
        return _judge_shared(evidence, view, classes, prior)
    if view.spacing is not None:
        return _judge_smallest(evidence, view, view.spacing, classes)
    units = [u for u in evidence.seen_by(view) if u.unit.target < classes]
    values = evidence.values(units, view.statistic, view.search)
    if classes < FEWEST_CLASSES:
        judged = _judge_few(evidence, units, view)
    elif view.references:
        references, (spread, reliability) = evidence.normal(units, view), _common(units, view)
        judged = against_reference(values, references, view.tail, view.log, view.noise, spread, reliability, prior)
    else:
        judged = leave_one_out(values, view.tail, view.log, noise=view.noise, prior=prior)
    paper = mad(evidence.values(units, evidence.paper_statistic), evidence.tail)
    speaker: dict[int, int] = {}
    for i in np.argsort(values if view.tail == "low" else -values, kind="stable").tolist():
        speaker.setdefault(units[i].unit.target, i)
    return JudgedView(
        view,
        _by_class(judged, speaker, classes),
        _by_class(paper, speaker, classes),
        {k: units[i] for k, i in speaker.items()},
    )


def _judge_tested(evidence: Evidence, classes: int) -> JudgedView:
    """Units with p-values of their own; classes without one are not judged."""
    units = {u.unit.target: u for u in evidence.units if u.unit.target < classes}
    log10_p = np.array([units[k].value(LOG10_P) if k in units else 0.0 for k in range(classes)])
    unknown = np.full(classes, np.nan)
    judged = Judgement(unknown, 10**log10_p, log10_p, np.zeros(classes, bool))
    paper = Judgement(unknown, np.ones(classes), np.zeros(classes), np.zeros(classes, bool))
    return JudgedView(evidence.judged[0], judged, paper, units)


def _judge_few(evidence: Evidence, units: Sequence[UnitEvidence], view: View) -> Judgement:
    """Judge two or three classes against the references alone; a view of pairs, chosen for being small, says nothing then."""
    values = evidence.values(units, view.statistic, view.search)
    of_classes = len({u.unit.target for u in units}) == len(units) and view.search is Search.FULL
    baselines = evidence.baselines(units, view) if of_classes and view.references else np.empty((len(units), 0))
    return beside_references(values, baselines, view.tail, view.log, view.noise)


def references_of(evidence: Evidence) -> int:
    """How many reference networks a detector's classes were compared with, at least."""
    found = [evidence.baselines(evidence.seen_by(v), v) for v in evidence.judged if v.search is Search.FULL]
    return min((int(np.isfinite(b).all(0).sum()) for b in found), default=0)


def _judge_shared(evidence: Evidence, view: View, classes: int, prior: Prior) -> JudgedView:
    """Judge the one value of a shared trigger against the targeted ones; it counts for every class that it leads to."""
    among = replace(view, search=Search.FULL)
    units = [u for u in evidence.units if u.unit.shared and u.measurement(view.statistic, view.search) is not None]
    others = evidence.seen_by(among)
    speaker: dict[int, UnitEvidence] = {}
    for unit in sorted(units, key=lambda u: -(u.held_out_success or 0.0)):
        speaker.setdefault(unit.unit.target, unit)
    index, p_value, log10_p = np.full(classes, np.nan), np.ones(classes), np.zeros(classes)
    if units:
        spread, reliability = _common(others, among)
        t, log10 = one_against_reference(
            units[0].value(view.statistic, view.search),
            evidence.normal(units[:1], view)[0],
            evidence.values(others, view.statistic, Search.FULL),
            evidence.normal(others, among),
            view.tail,
            view.log,
            view.noise,
            spread,
            reliability,
            prior,
        )
        if t > 0:  # larger than the targeted ones are: it says nothing of the classes
            named = list(speaker)
            index[named], log10_p[named], p_value[named] = t, log10, 10**log10
    unknown = Judgement(np.full(classes, np.nan), np.ones(classes), np.zeros(classes), np.zeros(classes, bool))
    return JudgedView(view, Judgement(index, p_value, log10_p, unknown.paper_flag), unknown, speaker)


def _judge_smallest(evidence: Evidence, view: View, usual: Usual, classes: int) -> JudgedView:
    """Judge the smallest classes, the only ones that were measured, by their spacings."""
    units = [u for u in evidence.seen_by(view) if u.unit.target < classes]
    beyond = next((m.value for u in units if (m := u.measurement(view.beyond)) is not None), np.nan)
    values = np.append(evidence.values(units, view.statistic), beyond)
    index, log_p = (v[:-1] for v in smallest_stand_apart(values, usual))
    judged = Judgement(index, np.exp(log_p), log_p / np.log(10), np.zeros(len(units), bool))
    speaker = {u.unit.target: i for i, u in enumerate(units)}
    unknown = Judgement(np.full(classes, np.nan), np.ones(classes), np.zeros(classes), np.zeros(classes, bool))
    return JudgedView(view, _by_class(judged, speaker, classes), unknown, {k: units[i] for k, i in speaker.items()})


def _common(units: Sequence[UnitEvidence], view: View) -> tuple[float, float]:
    """(spread, reliability) of a view's references, which are the same for all units; 0 and 1 where they are not known."""
    found = [m for u in units if (m := u.measurement(view.statistic, view.search)) is not None]
    spread = next((m.spread for m in found if m.spread is not None), 0.0)
    return spread, next((m.reliability for m in found if m.reliability is not None), 1.0)


def _by_class(judgement: Judgement, speaker: Mapping[int, int], classes: int) -> Judgement:
    """The judgements of each class's most suspicious unit; nothing known of classes without one."""
    index, p_value, log10_p = np.full(classes, np.nan), np.ones(classes), np.zeros(classes)
    flag = np.zeros(classes, bool)
    for k, i in speaker.items():
        index[k], p_value[k] = judgement.index[i], judgement.p_value[i]
        log10_p[k], flag[k] = judgement.log10_p[i], judgement.paper_flag[i]
    return Judgement(index, p_value, log10_p, flag)
