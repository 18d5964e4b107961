"""How far a network's classes lie apart by nature: one property of the network, which several detectors see.

Ten classes say little of their own deviation: with nine of them to compare with, the tenth is judged by Student's t with
eight degrees of freedom, whose tail is so heavy that a mask of a fifth of the others' area is hardly surprising. But
deviations are not arbitrary. Over 55 models (benchmarks/results/detection_standard.json) that of one statistic beyond
the
references varied by a factor of two either way, and it varies by network: classes of a residual network differ in every
statistic, those of LeNet-5 in none.

So a deviation is estimated by a moderated t (Smyth, 2004): the variance of the classes at hand, with its degrees of
freedom, is averaged with a prior one, with PRIOR_DF; if variances are scaled inverse chi-squared, the t of the average
follows Student's law with the sum of both. The prior is the statistic's usual deviation (View.typical) times this
network's factor, which is estimated from the *other* detectors' views, by a robust deviation, since the suspicious
classes are among those that it is taken over.

All this is about sizes of triggers, which are judged on a logarithmic scale. A share's deviation on the scale of angles
is
of another kind: its prior is what is usual, whatever the network, and it is no estimate of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxspect.engine.judge.evidence import Evidence, View
from onnxspect.engine.judge.measurement import Search
from onnxspect.engine.judge.null_model import NO_PRIOR, Prior, beyond_references, robust_deviation

#: The prior deviation counts as that of so many more classes. History: docs/decisions.md.
PRIOR_DF = 5.0
#: Degrees of freedom of the prior of a network's factor (which is 1), and of each other detector's estimate of it.
#: History: docs/decisions.md.
FACTOR_DF, SEEN_DF = 4.0, 2.0
#: The median absolute deviation of ten normal values is so much too small in the mean.
SMALL_SAMPLE = 0.92


@dataclass(frozen=True)
class Spreads:
    """What a model's detectors say of how far its classes lie apart.

    Attributes:
        ratios: detector -> (deviation / View.typical)^2, the mean over its views of whole classes that have one.
    """

    ratios: dict[str, float]

    def prior(self, detector: str, view: View) -> Prior:
        """For one view of one detector; none where its statistic's usual deviation is not known."""
        if not view.typical:
            return NO_PRIOR
        if not view.log:
            return Prior(view.typical, PRIOR_DF)
        others = [r for name, r in self.ratios.items() if name != detector]
        squared = (FACTOR_DF + SEEN_DF * sum(others)) / (FACTOR_DF + SEEN_DF * len(others))
        return Prior(view.typical * float(np.sqrt(squared)), PRIOR_DF)


def spreads(evidence: Sequence[Evidence]) -> Spreads:
    """Of all detectors that ran."""
    ratios = {}
    for e in evidence:
        seen = [r for view in e.judged if (r := _ratio(e, view)) is not None]
        if seen:
            ratios[e.detector] = float(np.mean(seen))
    return Spreads(ratios)


def _ratio(evidence: Evidence, view: View) -> float | None:
    """The squared ratio of one view; None where it is not one of sizes, of whole classes, with a usual deviation."""
    units = evidence.seen_by(view)
    if (
        not view.typical
        or not view.log
        or view.search is Search.SHARED
        or any(u.unit.source is not None for u in units)
    ):
        return None
    rest = beyond_references(
        evidence.values(units, view.statistic, view.search), evidence.normal(units, view), view.tail, view.log
    )
    if not len(rest):
        return None
    return (robust_deviation(rest) / SMALL_SAMPLE / view.typical) ** 2
