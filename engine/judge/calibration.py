"""A model beside a bank of clean models: a p-value that believes in no law, and P(backdoored).

The null models turn evidence into a score, -log10 of the p-value of the most suspicious class, and `suspicion.py` weighs it together with how
much less than usual the class takes. Whatever these are worth, they are compared here with those of clean models that were scanned in the same way:

* *Less what is usual.* What is usual at the difficulty of the task is taken off first, where the bank knows of it (`difficulty.py`).

* *Rank.* With n clean models of the same kind, p = (1 + number of them at least as suspicious) / (n + 1): valid for any
  law as long as the model is exchangeable with them (conformal p-values; Vovk et al., 2005).
* *Tail.* Beyond all of the bank the rank says no more than 1 / (n + 1). A generalised Pareto law (Pickands, 1975) fitted to the
  excesses over the bank's 80th percentile goes on from there; its uncertainty is shown as an interval (a parametric bootstrap). Where the
  law says more than the rank, it stands: the largest of n says little of how large the next one is.
* *Hard tasks.* Of easy tasks clean models vary little: they add to the bank's number and nothing to its tail, and a model of a hard
  task, ranked among all, would gain by them. So no p-value is smaller than among those clean models of the kind whose task is at least
  as hard as the median one, where these are enough.
* *Kind.* What matters is the number of classes, the detectors that may name a class, and the number of clean samples a class: each in
  coarse steps. With fewer than FEWEST models of a kind the tail is too uncertain: then the bank does not cover the model.
* *Not covered.* With enough models of other kinds the larger of two p-values is taken, the null model's and its score's rank among all
  (suspicions of different kinds are not comparable); with fewer the null model's stands alone. Either is said in the report.

P(backdoored) needs infected models as well: log odds = logit(prior) + log of the likelihood ratio of the suspicion, which is fitted as a logistic
curve to the bank's clean and infected models that the same detectors scanned, with Platt's targets (Platt, 1999); it does not fall with it. Of models
that are not covered the curve is the score's. Without enough of both sorts there is none.

The bank ships as a small file that `benchmarks/derive.py` makes from committed evidence of the tuning half.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any

import numpy as np
import scipy  # its `stats` takes a second to import: it is loaded where it is first used
from scipy import special

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.difficulty import Difficulty
from onnxspect.engine.judge.suspicion import Weights

SCHEMA = "onnxspect-bank/4"
FILE = "bank.json"
#: With so many clean models of a kind ranks and the tail beyond them hold the level of the verdict. History: docs/decisions.md.
FEWEST = 60
#: So many models of either sort a likelihood ratio is fitted to, at least.
FEWEST_OF_EACH = 30
#: A tail is fitted to the excesses over this share of the bank's scores.
TAIL_FROM = 0.8
#: Draws of the bootstrap, and the error of the interval that they give.
_DRAWS, _ERROR = 200, 0.05
#: Steps of the number of classes, and of clean samples a class, within which models are of one kind.
CLASSES, SAMPLES = (4, 10, 20, 50, 200), (5, 10, 50)
#: Share of models that are taken to be infected, where the user does not say.
PRIOR = 0.1
#: What makes scores comparable: a step of the number of classes, the detectors, a step of samples a class.
_Kind = tuple[int, tuple[str, ...], int]


@dataclass(frozen=True)
class Scored:
    """One scanned model.

    Attributes:
        classes: of the model.
        detectors: those that may name a class, by name, in order.
        samples: clean samples in all; 0 where that is not known.
        score: -log10 of the null model's p-value of its most suspicious class.
        suspicion: of its most suspicious class (suspicion.py).
        difficulty: of its task, an error rate (difficulty.py); None where it is not known.
    """

    classes: int
    detectors: tuple[str, ...]
    samples: int
    score: float
    suspicion: float
    difficulty: float | None = None

    @property
    def kind(self) -> _Kind:
        """What makes scores comparable."""
        per_class = self.samples / max(1, self.classes)
        return (
            _step(self.classes, CLASSES),
            self.detectors,
            _step(per_class, SAMPLES) if self.samples else len(SAMPLES),
        )


def _step(value: float, edges: Sequence[int]) -> int:
    return sum(value >= e for e in edges)


@dataclass(frozen=True)
class LikelihoodRatio:
    """The logarithm of P(x | infected) / P(x | clean) = intercept + slope * x, x a score or a suspicion.

    Attributes:
        intercept, slope: of the curve; the slope is not negative.
        clean, infected: how many models it was fitted to.
    """

    intercept: float
    slope: float
    clean: int
    infected: int

    @classmethod
    def fitted(cls, clean: Sequence[float], infected: Sequence[float]) -> LikelihoodRatio | None:
        """By logistic regression with Platt's targets; None for too few models of either sort."""
        if min(len(clean), len(infected)) < FEWEST_OF_EACH:
            return None
        x = np.array([*clean, *infected], np.float64)
        high, low = (len(infected) + 1) / (len(infected) + 2), 1 / (len(clean) + 2)
        y = np.array([low] * len(clean) + [high] * len(infected))

        def loss(w: np.ndarray) -> float:
            z = w[0] + w[1] * x
            return float((np.logaddexp(0, z) - y * z).sum())

        found = scipy.optimize.minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=[(None, None), (0, None)])
        # The curve's odds are the bank's: its own shares are taken out.
        return cls(
            float(found.x[0] - math.log(len(infected) / len(clean))), float(found.x[1]), len(clean), len(infected)
        )

    def probability(self, x: float, prior: float) -> float:
        """P(backdoored)."""
        return float(special.expit(special.logit(prior) + self.intercept + self.slope * x))

    @classmethod
    def described(cls, row: Mapping[str, Any] | None) -> LikelihoodRatio | None:
        """Of its fields as plain JSON values."""
        return None if row is None else cls(**row)


@dataclass(frozen=True)
class Calibration:
    """What a bank says of a scanned model.

    Attributes:
        version: of the bank.
        models: clean models of the same kind; or, where that does not cover the model, all.
        covered: whether there are enough of the same kind.
        note: what follows from it, in a sentence.
        p_value: of the model by the bank; None where the bank says nothing.
        interval: of that, where it was continued beyond the bank: 95 %.
        prior: share of models that are taken to be infected.
        p_backdoored: P(backdoored) with that; None where the bank does not suffice.
    """

    version: str
    models: int
    covered: bool
    note: str
    p_value: float | None = None
    interval: tuple[float, float] | None = None
    prior: float = PRIOR
    p_backdoored: float | None = None


@dataclass(frozen=True)
class Bank:
    """What is known of models whose truth is known.

    Attributes:
        version: a digest of what it was made from.
        clean: clean models, as all of today's detectors scanned them.
        weights: how suspicions are made, by kind; where there are none for a model its score is its suspicion.
        by_score: what a score says of being infected; None where too few models were known.
        by_suspicion: what a suspicion says of it, for each of the weights; None where too few models were known.
        earlier: the same clean models as fewer detectors scanned them: other kinds, but no further models.
    """

    version: str
    clean: tuple[Scored, ...]
    weights: tuple[Weights, ...] = ()
    by_score: LikelihoodRatio | None = None
    by_suspicion: tuple[LikelihoodRatio | None, ...] = ()
    earlier: tuple[Scored, ...] = ()

    def describe(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "schema": SCHEMA,
            "version": self.version,
            "weights": [w.describe() for w in self.weights],
            "by_score": None if self.by_score is None else dict(vars(self.by_score)),
            "by_suspicion": [None if odds is None else dict(vars(odds)) for odds in self.by_suspicion],
            **{
                name: [[s.classes, list(s.detectors), s.samples, s.score, s.suspicion, s.difficulty] for s in some]
                for name, some in (("clean", self.clean), ("earlier", self.earlier))
            },
        }

    @classmethod
    def described(cls, document: Mapping[str, Any]) -> Bank:
        """What `describe` wrote.

        Raises:
            OnnxspectError: it is of another schema.
        """
        if document.get("schema") != SCHEMA:
            raise OnnxspectError(f"a bank of scores of the schema {document.get('schema')!r:.60}, not {SCHEMA}")
        clean, earlier = (
            tuple(
                Scored(int(k), tuple(d), int(n), float(s), float(e), None if h is None else float(h))
                for k, d, n, s, e, h in document[name]
            )
            for name in ("clean", "earlier")
        )
        return cls(
            str(document["version"]),
            clean,
            tuple(map(Weights.described, document["weights"])),
            LikelihoodRatio.described(document["by_score"]),
            tuple(map(LikelihoodRatio.described, document["by_suspicion"])),
            earlier,
        )

    def suspicions(
        self,
        detectors: Sequence[str],
        log10_p: np.ndarray,
        eases: Mapping[str, np.ndarray],
        transfers: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """The suspicion of each class ``(class,)`` as this bank weighs; the scores themselves where it does not.

        Args:
            detectors: that may name a class, by name, in order.
            log10_p, eases, transfers: see `Weights.suspicions`.
        """
        i = self._weighed(len(log10_p), detectors)
        return -log10_p if i is None else self.weights[i].suspicions(log10_p, eases, transfers)

    def covers(self, scored: Scored) -> bool:
        """Whether there are enough clean models of the same kind for their ranks to be p-values."""
        return len(self._own(scored)) >= FEWEST

    def p_value(self, scored: Scored) -> float:
        """The p-value of a class or model: never less than the null model's where the bank does not cover it."""
        own = self._own(scored)
        plain = float(10**-scored.score)
        if len(own) >= FEWEST:
            return self._ranked(scored)[0]
        if len(self.clean) < FEWEST:
            return plain
        return max(plain, beyond(scored.score, [s.score for s in self.clean])[0])

    def calibration(self, scored: Scored, prior: float = PRIOR) -> Calibration:
        """What it says of a model, beside `p_value`."""
        own = self._own(scored)
        n, odds, x = len(own), self.by_score, scored.score
        if n >= FEWEST:
            p, interval = self._ranked(scored)
            note = f"p-values are ranks among {n} clean models of the same kind"
            if (i := self._weighed(scored.classes, scored.detectors)) is not None:
                odds, x = self.by_suspicion[i] if i < len(self.by_suspicion) else None, scored.suspicion
                note += _harder(self.weights[i].difficulty, scored.difficulty)
        elif len(self.clean) >= FEWEST:
            p, interval = beyond(scored.score, [s.score for s in self.clean])
            note = (
                f"the bank has {_models(n)} of this kind (at least {FEWEST}): p-values are the more careful of the null "
                f"model's and the rank among all {len(self.clean)}"
            )
        else:
            return Calibration(
                self.version,
                n,
                False,
                f"the bank has {_models(n)} of this kind, and {len(self.clean)} in all (at least {FEWEST}): p-values are the "
                "null model's, which no bank of clean models has confirmed",
                prior=prior,
            )
        probability = None if odds is None else odds.probability(x, prior)
        covered = n >= FEWEST
        return Calibration(
            self.version, n if covered else len(self.clean), covered, note, p, interval, prior, probability
        )

    def _weighed(self, classes: int, detectors: Sequence[str]) -> int | None:
        """Which of the weights models with so many classes are weighed by that these detectors scanned; None where there are none."""
        return next((i for i, w in enumerate(self.weights) if w.apply_to(classes, detectors)), None)

    def _ranked(self, scored: Scored) -> tuple[float, tuple[float, float] | None]:
        """(p-value, interval) among the clean models of its kind, and among those of hard tasks: the larger one."""
        i = self._weighed(scored.classes, scored.detectors)
        law = None if i is None else self.weights[i].difficulty
        if law is not None and scored.difficulty is not None and (compared := self._less_usual(scored, law)):
            x = float(law.beyond(np.array(scored.suspicion), np.array(scored.difficulty)))
            return max((beyond(x, some) for some in compared), key=lambda found: found[0])
        return beyond(scored.suspicion, [s.suspicion for s in self._own(scored)])

    def _less_usual(self, scored: Scored, law: Difficulty) -> list[np.ndarray]:
        """Suspicions of its kind's clean models less what is usual: of all, and of hard tasks; those of which there are enough."""
        if scored.kind not in self._beyond:  # every class of a model asks for them
            known = [(s.suspicion, s.difficulty) for s in self._own(scored) if s.difficulty is not None]
            suspicions, difficulties = np.array(known, np.float64).reshape(-1, 2).T
            less = law.beyond(suspicions, difficulties)
            hard = difficulties >= np.median(difficulties) if len(difficulties) else difficulties > 0
            self._beyond[scored.kind] = [some for some in (less, less[hard]) if len(some) >= FEWEST]
        return self._beyond[scored.kind]

    @cached_property
    def _beyond(self) -> dict[_Kind, list[np.ndarray]]:
        """What `_less_usual` has found, by kind."""
        return {}

    def _own(self, scored: Scored) -> list[Scored]:
        """Its clean models of the same kind."""
        return self._by_kind.get(scored.kind, [])

    @cached_property
    def _by_kind(self) -> dict[_Kind, list[Scored]]:
        """Its clean models by kind: every class of a model asks for its own."""
        found: dict[_Kind, list[Scored]] = {}
        for one in (*self.clean, *self.earlier):
            found.setdefault(one.kind, []).append(one)
        return found


def _harder(law: Difficulty | None, difficulty: float | None) -> str:
    """What to say of a task that is harder than any that the law was fitted to; "" of others."""
    if law is None or difficulty is None or difficulty <= law.hardest:
        return ""
    return f"; this task is harder than theirs (errors {difficulty:.0%}, theirs at most {law.hardest:.0%})"


def _models(n: int) -> str:
    return f"{n} clean model{'s' * (n != 1)}"


@lru_cache(maxsize=1)
def shipped() -> Bank:
    """The bank that comes with the package."""
    return Bank.described(json.loads(resources.files(__package__).joinpath(FILE).read_text()))


def beyond(score: float, clean: Sequence[float] | np.ndarray) -> tuple[float, tuple[float, float] | None]:
    """(p-value of a score among clean models', its 95 % interval where it is larger than all of theirs).

    Below the largest of theirs it is the rank, or what the law of the tail says where that is more; above, what the law says.

    Args:
        score: of the model.
        clean: of clean models, at least one.
    """
    known = np.sort(np.asarray(clean, np.float64))
    n = len(known)
    rank = (1 + int((known >= score).sum())) / (n + 1)
    threshold = float(np.quantile(known, TAIL_FROM))
    excesses = known[known > threshold] - threshold
    if score <= threshold or n < FEWEST or len(excesses) < 5 or np.ptp(excesses) == 0:
        return rank, None
    share = (len(excesses) + 1) / (n + 1)
    shape, scale = _pareto(excesses[None])
    far = score - threshold
    p = share * float(_tail(shape, scale, far)[0])
    if score <= known[-1]:
        return max(rank, p), None
    uniform = np.random.default_rng(n).random((_DRAWS, len(excesses)))
    again = _pareto(scale * (np.log(1 / uniform) if shape[0] == 0 else (uniform ** -shape[0] - 1) / shape[0]))
    low, high = (share * float(np.quantile(_tail(*again, far), q)) for q in (_ERROR / 2, 1 - _ERROR / 2))
    return p, (min(low, p), max(high, p))


def _pareto(excesses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(shape, scale), ``(sample,)`` each, of samples ``(sample, n)``: probability-weighted moments (Hosking and Wallis, 1987).

    A tail that ends, which few excesses suggest by chance, is taken as exponential; one without a mean is not fitted.
    """
    ordered = np.sort(excesses, axis=1)
    n = ordered.shape[1]
    first, second = ordered.mean(1), (ordered * (n - 1 - np.arange(n)) / (n - 1)).mean(1)
    shape = np.clip(2 - first / np.maximum(first - 2 * second, 1e-12 * first), 0.0, 0.9)
    return shape, first * (1 - shape)


def _tail(shape: np.ndarray, scale: np.ndarray, excess: float) -> np.ndarray:
    """The share of excesses beyond one: (1 + shape x / scale)^(-1 / shape), exp(-x / scale) where the shape is 0."""
    power = np.where(shape > 1e-9, shape, 1.0)
    heavy = (1 + power * excess / scale) ** (-1 / power)
    return np.asarray(np.where(shape > 1e-9, heavy, np.exp(-excess / scale)))
