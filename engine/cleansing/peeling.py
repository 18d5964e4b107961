"""All patches of an infected label, one trigger after the other (DTInspector, Wang et al., 2022, sec. 3.2 and B.5).

A scan has named the label, and its patch took out the 40 % of the most confident samples that leave most easily: enough
to distinguish an infected class from a clean one where few samples are poisoned (detectors/dtinspector.py). To remove
samples it is too little. Where three triggers lead to one label, it destroys one of them; DTInspector finds all three
(its Fig. 5) since its patch must take out 95 %. So a label that is known to be infected is peeled:

* its most confident samples D_h, by superimposed confidence (confidence.py), get the patch that takes out the largest
  of `SHARES` of them and still spares the least confident ones, D_l: a patch that destroys a trigger does, one that
  turns clean samples does not. It covers or is added, as learned or stronger (a mask in full, what is added doubled),
  whichever takes out most;
* the samples that leave are set aside, and the rest is ranked and searched again, until no patch spares D_l.

What this was worth where it was measured: docs/decisions.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from onnxspect.engine.cleansing.by_trigger import SUPERIMPOSE, Found, in_full
from onnxspect.engine.detectors.confidence import choose_partners, log_odds, superimposed
from onnxspect.engine.detectors.dtinspector import DTInspector, LeaveClass, leaves
from onnxspect.engine.judge.evidence import Unit
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.perturbation import Additive, Perturbation
from onnxspect.engine.search.search import SearchConfig, search
from onnxspect.engine.subject.activations import TrainingSet
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import Trigger

#: Shares of the most confident samples that a patch has to take out, tried in this order. 95 % is DTInspector's, 40 %
#: the scan's.
SHARES = (0.95, 0.7, 0.4)
#: Share of the least confident samples that may leave with a patch that counts as a trigger's. History:
#: docs/decisions.md.
SPARED = 0.25
#: How hard a patch that is added is searched for: its steps are tenths of a mask's, as an imperceptible pattern is low. It
#: destroys a trigger that is spread over the image, which no small mask does.
ADDED = replace(DTInspector().search, learning_rate=0.01, multiplier=0.01)
#: Samples of a label that they are learned on, at most.
PEELED = 5000
#: Patches of one label at most.
MOST = 8


def peel(
    subject: Subject,
    images: np.ndarray,
    label: int,
    partners: np.ndarray,
    run: RunContext,
    how: DTInspector | None = None,
) -> list[Found]:
    """The patches that destroy the triggers of an infected label, the first found first; none where it has none.

    Args:
        subject: the model.
        images: training samples of that label ``(n, channels, height, width)`` in [0, 1].
        label: the class.
        partners: images of other classes ``(m, channels, height, width)``, m at least 1, that are laid over them.
        run: the seed.
        how: the detector's settings: its search, its `fewest`.
    """
    how = how or DTInspector()
    size = min(how.search.samples, len(images) // 3)
    odds = log_odds(subject.predict(images), label)
    certain = superimposed(subject, images, label, partners)
    left = np.flatnonzero(odds > 0)  # a sample that is taken for another class already has no trigger that works
    found: list[Found] = []
    while len(found) < MOST and len(left) >= max(3 * size, how.fewest):
        most_confident = left[np.argsort(-certain[left], kind="stable")][:size]
        least_confident = left[np.argsort(odds[left], kind="stable")]
        least_confident = least_confident[~np.isin(least_confident, most_confident)][: 2 * size]
        best = _patch(subject, images, label, most_confident, least_confident, left, how, run, len(found))
        if best is None:
            break
        patch, out = best
        found.append(Found(Trigger(label, patch), ready=True))
        left = left[~out]
    return found


def _patch(
    subject: Subject,
    images: np.ndarray,
    label: int,
    most_confident: np.ndarray,
    least_confident: np.ndarray,
    left: np.ndarray,
    how: DTInspector,
    run: RunContext,
    number: int,
) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
    """A patch for the largest share of the rows `most_confident` that spares `least_confident`, and which of `left` it takes out.

    Of several it is the one that takes out most of `left`.
    """
    samples = Samples(images[most_confident], np.full(len(most_confident), label))
    families: list[tuple[Perturbation, SearchConfig]] = [(how.perturbation, how.search), (Additive(), ADDED)]
    every = np.arange(len(most_confident))
    for share in SHARES:
        able: list[tuple[dict[str, np.ndarray], np.ndarray]] = []
        for family, config in families:
            config = replace(config, samples=len(most_confident), success=share)
            aim = LeaveClass(family, how.loss, share)
            name = f"{SUPERIMPOSE} peel {label} {number} {share} {type(family).__name__}"
            ((result,),) = search(subject, samples, [(Unit(label),)], aim, config, run, name, choose=lambda _: every)
            if not result.found:
                continue
            for patch in _strengthened(result.trigger):
                if leaves(subject, images[least_confident], patch, label).mean() <= SPARED:
                    able.append((patch, leaves(subject, images[left], patch, label)))
        if able:
            return max(able, key=lambda one: int(one[1].sum()))
    return None


def _strengthened(patch: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The least patch that works made stronger, and as it is: a mask put on in full, what is added doubled."""
    if "delta" in patch:
        return [{"delta": times * patch["delta"]} for times in (2.0, 1.0)]
    return [in_full(patch), dict(patch)]


def peeled(found: Found, subject: Subject, training: TrainingSet, part: Samples, run: RunContext) -> list[Found]:
    """The patches of all triggers to the label of the scan's patch; that one where peeling finds none."""
    label, settings = found.trigger.target, DTInspector()
    rng = run.numpy_generator("cleanse", label, "peeled")
    rows = np.sort(rng.permutation(np.flatnonzero(training.labels == label))[:PEELED])
    laid_over = part.images[choose_partners(part.labels, label, settings.partners, rng)]
    if len(rows) < 3 * settings.fewest or not len(laid_over):
        return [found]
    return peel(subject, training.take(rows).images, label, laid_over, run, settings) or [found]
