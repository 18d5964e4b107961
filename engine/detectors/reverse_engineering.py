"""Reverse engineering of imperceptible backdoors (RE; Xiang et al., 2020): the smallest additive pattern per class pair.

For a pair (s, t) a pattern v is sought that sends at least a share pi of the images of s to t when it is added (Eq. 1),
and, where the training set is given, takes as many as possible of its images labelled t *away* from t when it is removed:

    J_st(v) = mean over D_t of log(1 - p_t([x - v]_c))  +  lambda * mean over D_s of log p_t([x + v]_c)        (Eq. 9)

climbed from v = 0 and stopped as soon as pi is reached (Algorithm 1). Without a training set the first term has no images: what
is left is its post-training form (lambda -> infinity), on clean samples alone. The statistic is d(v), by default the l2
norm; a backdoor pair needs a far smaller one. The paper's inference over it (Eq. 10-11) is `gamma_order.gamma_order`.

Departures, and why:

* *Step.* The paper's constant step (1e-4 times the gradient) needs thousands of steps on one network and overshoots on
  another. Here a step goes along the gradient over a length of `growth` times the present norm (at least
  `learning_rate`). So the norm at the first success exceeds the norm of the last failure by at most that factor: an overshoot of
  at most `growth` on any network, in tens of steps. On logarithms, where the classes are compared, it is 0.1 at most,
  against a spread between classes of 0.2 to 0.3.
* *Fixed images*, full-batch steps: success is exact at every step, and the same bits come out twice.
* *All classes to one first.* One search per target with all other classes as its sources is K searches instead of
  K (K - 1), and finds every attack from all classes. Then all pairs are scouted on a few images each, and for each
  target the most suspicious pair is searched in full. So every target is judged by the same rule, which the null model
  needs, and attacks from chosen sources are found at about twice the cost of the first pass.
* *References.* Classes differ by nature (a shirt is a T-shirt but for 0.7 of l2 norm). Where reference networks could be
  trained (engine/subject/reference.py), norms are judged by what the same unit takes on them (null_model.against_reference).
* *All-to-all* backdoors have no target that all classes are led to: see untargeted.py.
* A pair whose images are classified as t without any pattern has no statistic: that is confusion, not a trigger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from onnxspect.engine.detectors.base import (
    NATURE,
    PAIRS,
    USUAL_STEPS,
    AtHand,
    Detector,
    Work,
    compared,
    front_and_random,
    most_suspicious_of_each_target,
    on_all_references,
    one_class,
    rank,
    search_with_references,
    targets_and_sources,
    with_values,
)
from onnxspect.engine.detectors.untargeted import MOST_IMAGES, shared_trigger, shared_view
from onnxspect.engine.judge.evidence import Evidence, Skipped, Unit, UnitEvidence, View
from onnxspect.engine.judge.gamma_order import PairJudgement, gamma_order
from onnxspect.engine.judge.measurement import Search
from onnxspect.engine.judge.traits import Family, Traits
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.objective import Measured, Memory, ReachTarget, StepSettings, laid_out
from onnxspect.engine.search.perturbation import Additive, State
from onnxspect.engine.search.search import SearchConfig
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject

NAME = "reverse-engineering"
#: RE, sec. 5.2.1: pi = 0.95. No multiplier: the norm is bounded by where the climb stops. `patience` only ends a unit
#: whose loss is not finite.
CLIMB = SearchConfig(steps=150, samples=64, learning_rate=0.05, success=0.95, multiplier=0.0, stop_at_success=True)


@dataclass(frozen=True)
class Climb(ReachTarget):
    """Eq. 9 of RE, climbed by steps that grow with the pattern.

    Attributes:
        growth: length of a step, as a share of the present norm.
        labelled: training images by class ``(class, n, channels, height, width)``, D_t of Eq. 9; None leaves its first
            term out.
        weight: lambda, of the term that sends images to t (1 in the paper).
    """

    perturbation: Additive = field(default_factory=Additive)
    growth: float = 0.1
    labelled: Tensor | None = field(default=None, repr=False, compare=False)
    weight: float = 1.0

    @property
    def bound(self) -> bool:
        """The training images lie on one device."""
        return self.labelled is not None

    def measure(
        self, subject: Subject, state: State, constants: State, images: Tensor, targets: Tensor, multiplier: Tensor
    ) -> Measured:
        """-J_st, the pattern's norm, the share that reaches t."""
        reached = super().measure(subject, state, constants, images, targets, multiplier)
        if self.labelled is None:
            return reached
        units = len(targets)
        labelled = self.labelled[targets]
        logits = subject(laid_out(self.perturbation.remove(state, labelled).flatten(0, 1)))
        logits = logits.view(units, labelled.shape[1], -1)
        own = torch.zeros_like(logits, dtype=torch.bool)
        own[torch.arange(units, device=targets.device), :, targets] = True
        # log(1 - p_t), from logits: nothing is lost where p_t rounds to 1
        away = torch.logsumexp(logits.masked_fill(own, -torch.inf), 2) - torch.logsumexp(logits, 2)
        return replace(reached, loss=self.weight * reached.loss - away.mean(1))

    def memory(self, state: State) -> Memory:
        """Nothing: a plain gradient step."""
        return dict.fromkeys(state, ())

    def update(self, state: State, gradients: State, memory: Memory, step: Tensor, settings: StepSettings) -> State:
        """Along the gradient, by `growth` times the present norm or `learning_rate`, whichever is longer."""
        return {"delta": climbed(state["delta"], gradients["delta"], self.growth, settings.learning_rate)}


def climbed(delta: Tensor, gradient: Tensor, growth: float, least: float) -> Tensor:
    """Patterns ``(unit, ...)`` a step along their gradients: `growth` times their present norm or `least`, whichever is longer."""
    delta = delta.detach()
    present = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    length = (growth * present).clamp_min(least)
    steep = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return (delta - (length / steep).view(-1, *[1] * (delta.ndim - 1)) * gradient).clamp(-1, 1)


@dataclass(frozen=True)
class ReverseEngineering(Detector):
    """The detector's settings.

    Attributes:
        search: how hard the units that are judged are searched; `learning_rate` is the least length of a step.
        perturbation: the additive family and its norm.
        growth: length of a step, as a share of the present norm.
        pairs: also search source-target pairs.
        scout_samples: images of the source class that a pair is scouted on.
        most_pairs: at most so many pairs are scouted; of more, those of the targets that the first pass finds most
            suspicious and of as many random targets.
        training_samples: images a class that the first term of Eq. 9 is taken over.
        weight: lambda of Eq. 9.
        held_out: on at most so many unseen clean samples a pattern is validated.
    """

    name: ClassVar[str] = NAME
    traits: ClassVar[Traits] = Traits(Family.ADDED)
    search: SearchConfig = CLIMB
    perturbation: Additive = field(default_factory=Additive)
    growth: float = 0.1
    pairs: bool = True
    scout_samples: int = 8
    most_pairs: int = 400
    training_samples: int = 64
    weight: float = 1.0
    held_out: int = 500

    def work(self, classes: int, sources: int, references: int) -> Sequence[Work]:
        """Every class; pairs where they are searched, all scouted; and the one for all."""
        steps, size = min(self.search.steps, USUAL_STEPS["added"]), self.search.samples
        every = Work(classes, steps, size, task=NAME)
        pairs = Work(classes, steps, size, task=f"{NAME} pairs")
        shared = Work(1, steps, min(max(size, 2 * classes), MOST_IMAGES), task=f"{NAME} untargeted")
        lighter = [replace(w, samples=max(1, w.samples // 2)) for w in (every, pairs, shared)]
        on_every, on_pairs, on_shared = (on_all_references([w], references) for w in lighter)
        scouted = (*self.scouting(classes, sources, references), *on_pairs, pairs) if self.pairs else ()
        return (*on_every, every, *scouted, *on_shared, shared)

    def scouting(self, classes: int, sources: int, references: int) -> Sequence[Work]:
        """All pairs, or as many as are scouted at most."""
        pairs = min(classes * max(1, sources - 1), self.most_pairs)
        steps = min(self.search.steps, USUAL_STEPS["added"])
        own = Work(pairs, steps, self.scout_samples, task=f"{NAME} scouts")
        return (*on_all_references([own], references), own)

    def run(self, at_hand: AtHand) -> Evidence | Skipped:
        """Every target from all classes; then the most suspicious pair of every target."""
        if at_hand.training is not None:
            at_hand = replace(at_hand, search_samples=at_hand.training)  # RE: D_s and D_t are the training set's
        targets, sources = targets_and_sources(at_hand)
        if not targets:
            return one_class(NAME)
        norm = self.perturbation.norm
        found = self._judged(at_hand, [Unit(t) for t in targets], Search.FULL)
        if self.pairs:
            found += self._pairs(at_hand, targets, sources, found)
        found += shared_trigger(
            NAME,
            at_hand,
            Climb(self.perturbation, growth=self.growth, weight=self.weight),
            self.search,
            norm,
            drawn_as=NAME,
            held_out=self.held_out,
        )
        pairs = [View(norm, search=Search.PAIR, weight=PAIRS)] if self.pairs else []
        views = compared([View(norm), *pairs, shared_view(norm)], bool(at_hand.references), NATURE)
        settings = self.settings() | {"references": len(at_hand.references), "training": at_hand.training is not None}
        return Evidence(NAME, settings, norm, norm, "low", tuple(found), with_values(views, found), self.traits)

    def _pairs(
        self, at_hand: AtHand, targets: Sequence[int], sources: Sequence[int], first: Sequence[UnitEvidence]
    ) -> list[UnitEvidence]:
        """All pairs scouted; of every target the most suspicious one in full, the others as they were scouted."""
        norm, relative = self.perturbation.norm, bool(at_hand.references)
        ranks = [rank(u, norm, Search.FULL, relative) for u in first]
        scouts = self.scouted(at_hand, targets, sources, first, ranks)
        chosen = most_suspicious_of_each_target(scouts, [rank(u, norm, Search.SCOUT, relative) for u in scouts])
        judged = self._judged(at_hand, chosen, Search.PAIR, " pairs", self.search, self._scouting)
        full = {u.unit: u for u in judged}
        return [
            replace(full[u.unit], measurements=(*u.measurements, *full[u.unit].measurements)) if u.unit in full else u
            for u in scouts
        ]

    def scouted(
        self,
        at_hand: AtHand,
        targets: Sequence[int],
        sources: Sequence[int],
        first: Sequence[UnitEvidence],
        ranks: Sequence[float],
    ) -> list[UnitEvidence]:
        """All pairs of sources and targets on a few images each.

        Args:
            at_hand: what there is.
            targets: classes to lead to; of too many, those that a first pass finds most suspicious and random others.
            sources: classes to lead from.
            first: that first pass.
            ranks: by what it is ranked.
        """
        most = max(2, self.most_pairs // max(1, at_hand.subject.classes - 1))
        if len(targets) > most:
            targets = front_and_random(first, ranks, most // 2, most - most // 2, at_hand.run, NAME)
        units = [Unit(t, s) for t in targets for s in sources if s != t]
        stage = f" scouts of {self.scout_samples}" + (" on the training set" if at_hand.training is not None else "")
        return self._judged(at_hand, units, Search.SCOUT, stage, self._scouting, self._scouting, held_out=0)

    @property
    def _scouting(self) -> SearchConfig:
        return replace(self.search, samples=self.scout_samples)

    def _judged(
        self,
        at_hand: AtHand,
        units: Sequence[Unit],
        terms: Search,
        stage: str = "",
        config: SearchConfig | None = None,
        on_references: SearchConfig | None = None,
        held_out: int | None = None,
    ) -> list[UnitEvidence]:
        """Units searched on the subject and on every reference; no statistic where no pattern was needed."""
        config = config or self.search
        plain = Climb(self.perturbation, growth=self.growth, weight=self.weight)
        objective = plain
        if at_hand.training is not None:
            labelled = labelled_images(at_hand.training, at_hand.subject.classes, self.training_samples, at_hand.run)
            objective = replace(plain, labelled=labelled.to(at_hand.subject.device))
        found = search_with_references(
            NAME + stage,
            at_hand,
            units,
            objective,
            config,
            on_references or replace(config, samples=max(1, config.samples // 2)),
            self.perturbation.norm,
            terms,
            self.held_out if held_out is None else held_out,
            drawn_as=NAME,
            plain=plain,
        )
        return [u if np.abs(u.trigger["delta"]).max() > 0 else replace(u, measurements=()) for u in found]


@dataclass(frozen=True)
class Inference:
    """What RE's inference (sec. 4.2.2) says of a model.

    Attributes:
        judgement: Eq. 10-11 over the pairs.
        target: t-hat, the class with the least p-value.
        source: s-hat, the source of the smallest pattern that leads there; None where only all sources together were
            searched.
        pattern: v-hat ``(channels, height, width)``.
    """

    judgement: PairJudgement
    target: int | None
    source: int | None
    pattern: np.ndarray | None = field(repr=False)


def infer(evidence: Evidence, classes: int, theta: float = 0.05) -> Inference:
    """The paper's own inference from this detector's evidence: attacked or not, target, source, pattern.

    It reads the scouted pairs, all searched on equal terms; where no pairs were, the searches from all classes.

    Args:
        evidence: of `ReverseEngineering`.
        classes: of the subject.
        theta: the paper's level.
    """
    norm = evidence.paper_statistic
    by_pair = any(u.measurement(norm, Search.SCOUT) is not None for u in evidence.units)
    norms = np.full((classes, classes if by_pair else 1), np.nan)
    units = {}
    for unit in evidence.units:
        if (unit.unit.source is not None) != by_pair or unit.unit.shared or not unit.measurements:
            continue
        place = (unit.unit.target, unit.unit.source or 0)
        norms[place] = unit.value(norm, Search.SCOUT if by_pair else None)
        units[place] = unit
    judgement = gamma_order(norms, theta)
    if judgement.target is None or judgement.source is None:
        return Inference(judgement, None, None, None)
    best = units[judgement.target, judgement.source]
    return Inference(judgement, judgement.target, best.unit.source, best.trigger["delta"])


def labelled_images(training: Samples, classes: int, n: int, run: RunContext, drawn_as: str = NAME) -> Tensor:
    """D_t of Eq. 9, ``(class, n, channels, height, width)``: of every class n images, drawn again where there are fewer.

    A class without images gets those of other classes: they are not of it already, so Eq. 9's first term is about 0.

    Args:
        training: the training set, or a part of it.
        classes: of the subject.
        n: images a class.
        run: the seed.
        drawn_as: the name under which randomness is drawn.
    """
    rows = []
    for c in range(classes):
        own = np.flatnonzero(training.labels == c)
        pool = own if len(own) else np.arange(len(training.labels))
        rows.append(np.resize(run.numpy_generator(drawn_as, c, "labelled").permutation(pool), n))
    return torch.from_numpy(training.images[np.stack(rows)])
