"""DTInspector (Wang et al., 2022): does a patch learned on confident samples transfer to the others?

A model with a backdoor is especially confident of its poisoned training samples. So for each class z (sec. 3.1) the
training samples that are predicted z are sorted by confidence; a patch (M, P) is learned that takes most of the
confident ones, D_h, away from z (Eq. 1):

    max over M, P of  sum_{x in D_h} f(g(x'), e^z) - lambda |M|_1,   x' = (1 - M) x + M P,

with f the square of z's probability (to be driven to zero) and lambda moved so that about 95 % leave z. The *transfer
ratio* (sec. 3.3) is the share of the least confident ones, D_l, that leave z with the same patch. In a clean class the
patch is a universal adversarial perturbation and takes D_l along; in an infected class it has only destroyed the trigger,
which D_l does not have. The paper's rule is in `paper_rule`, the paper's settings are `DTInspector.paper()`.

Departures, and why. All were measured on the project's zoo (small networks, 15,000 training images); what was measured
of the settings is in docs/decisions.md.

* The loss is ``-log(1 - p_z)`` and not ``p_z ** 2``. Where p_z is 1 but for rounding, which is just where poisoned samples
  are, the square has no gradient.
* Confidence is the logarithm of the odds, which has no ties, of the sample *with clean images laid over it* (confidence.py).
  By confidence alone, D_h of a 0.2 % attack, or of one with a single source class, is hardly poisoned: the observation
  that the paper builds on does not hold there.
* The patch must take 40 % of D_h, and not 95 %, and only the 40 % that leave most easily count in the loss: D_h is rarely
  all poisoned, and a patch that must take its clean samples as well is one that transfers.
* K is 32 and not 50: the rarest poison that is searched for is about 30 samples, and D_h must hold a good part of it.
  The next K are unseen peers, which measure how well the patch transfers to its own kind (`peer_ratio`, reported).
* The trigger is *restored*: the median of the samples that left the class, under the patch's mask or wherever they are all
  alike (`restored_triggers`), is stamped on clean images of other classes. In an infected class it leads them into z. A class
  is judged by the transfer ratio, and by the larger of the two angles of `both_angle`, which is small only where the patch
  spares the others *and* the restored trigger works: there are clean classes whose patches transfer badly (a thin digit 1; a
  pullover at 0.34), but theirs restore nothing. Shares are judged on the scale arcsin(sqrt(r)), whose noise is known, so that
  0.94 among nine ratios of 1 is no outlier.
* In `both_angle` the transfer ratio is the lesser of two, the second taken on samples of the second quarter by confidence. The
  least confident samples of a network of 65 % accuracy leave with any patch: on CIFAR-10 with a 7x7 square 64 to 81 %
  of D_l left the infected class and 84 to 98 % the others, of the second quarter 3 to 6 % and 36 % or more. It does not
  do alone: there are clean classes of which the second quarter stays (a digit 1). For the same reason a patch that is
  *added* is no second opinion: it shows a sinusoid that no mask destroys (6 % of D_l leave; clean classes 48 % and
  more), and a digit 1 at 23 %.

What it cannot detect: poisoned samples that the model is *less* confident of than of others (an additive 6x6 chessboard
from three
source classes: none among the 50 most confident); a trigger that no patch destroys which does not destroy clothes as well
(a reflection: all of D_h is poisoned, and the patch takes a third of the clean samples along).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import scipy  # its `stats` takes a second to import: it is loaded where it is first used
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor
from torch.nn import functional

from onnxspect.converters.lowering.taps import cuts
from onnxspect.engine.detectors.base import AtHand, Detector, Work, search_units
from onnxspect.engine.detectors.confidence import choose_partners, log_odds, superimposed
from onnxspect.engine.detectors.held_out import as_found
from onnxspect.engine.detectors.shares import angle, angle_noise
from onnxspect.engine.detectors.training_set import check_agreement, check_training_set
from onnxspect.engine.detectors.trigger_bearing import foreign, shared_pixels
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.evidence import Evidence, Skipped, Unit, UnitEvidence, View
from onnxspect.engine.judge.measurement import measured
from onnxspect.engine.judge.null_model import FEWEST_CLASSES, MAD_TO_SIGMA
from onnxspect.engine.judge.traits import Family, Traits
from onnxspect.engine.search.embedding import embed
from onnxspect.engine.search.objective import Measured, Objective
from onnxspect.engine.search.perturbation import MaskPattern, Perturbation, State
from onnxspect.engine.search.search import SearchConfig, UnitResult
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import stamp

NAME = "dtinspector"
#: DTInspector, sec. 3.3: an anomaly index above this is an outlier, unless all ratios are above ALL_LEAVE.
PAPER_INDEX, ALL_LEAVE = 3.5, 0.9
#: Deviation of the transfer ratio's angle among clean classes, at least: where nine ratios are 1, the tenth may be a half.
CLASS_NOISE = 0.15
#: Deviation of `both_angle` among clean classes, where a restored trigger takes clean images along, too. History:
#: docs/decisions.md.
RESTORED_NOISE = 0.12
#: Partners by which all samples of a large class are ranked first.
SCREENING_PARTNERS = 2
#: A pixel counts as covered by a patch where the mask is above this.
COVERED = 0.1


@dataclass(frozen=True)
class LeaveClass(Objective):
    """One perturbation for all images of a unit, which are to leave the unit's class: Eq. 1.

    Attributes:
        perturbation: the family of input changes.
        loss: "odds" for ``-log(1 - p_z)``, "square" for the paper's ``p_z ** 2``.
        share: of the images, those that leave the class most easily; only they count in the loss.
    """

    perturbation: Perturbation = field(default_factory=MaskPattern)
    loss: str = "odds"
    share: float = 1.0

    def start(self, subject: Subject, images: Tensor, generators: Sequence[torch.Generator]) -> State:
        """The perturbation's own."""
        channels, height, width = images.shape[2:]
        return self.perturbation.start((channels, height, width), generators)

    def measure(
        self, subject: Subject, state: State, constants: State, images: Tensor, targets: Tensor, multiplier: Tensor
    ) -> Measured:
        """Mean loss over the images that count, the perturbation's cost, the share that is no longer of the class."""
        units, n = images.shape[:2]
        logits = subject(self.perturbation.apply(state, images).flatten(0, 1)).view(units, n, -1)
        left = (logits.detach().argmax(2) != targets[:, None]).float().mean(1)
        own = targets[:, None, None].expand(units, n, 1)
        if self.loss == "square":
            each = logits.softmax(2).gather(2, own).squeeze(2).square()
        else:
            rest = logits.scatter(2, own, -torch.inf).logsumexp(2)
            each = functional.softplus(logits.gather(2, own).squeeze(2) - rest)  # -log(1 - p), from the log odds
        counted = max(1, int(np.ceil(self.share * n)))
        if counted < n:
            each = each.sort(1).values[:, :counted]
        return Measured(each.mean(1), self.perturbation.cost(state), left)

    def trigger(self, state: State) -> dict[str, Tensor]:
        """The perturbation's own."""
        return self.perturbation.trigger(state)


@dataclass(frozen=True)
class DTInspector(Detector):
    """The detector's settings.

    Attributes:
        search: how hard each class is searched; `samples` is the size K of D_h and of its unseen peers, D_l has 2 K;
            `success` is the share of D_h that the patch must take out of the class.
        perturbation: the patch family, Eq. 1.
        loss: "odds" or "square", see LeaveClass.
        ranking: how D_h is chosen: "superimposed" or "confidence", see confidence.py.
        partners: clean images that are laid over each sample for "superimposed".
        ranked: of a class with more samples, so many are ranked by all partners: those that `SCREENING_PARTNERS` of them rank first.
        fewest: a class with fewer than three times as many samples is not judged.
        held_out: on at most so many clean samples the restored trigger is tried.
        data_inspection: also measure the KL divergence of the paper's data-inspection baseline (sec. 4.2 F).
    """

    name: ClassVar[str] = NAME
    traits: ClassVar[Traits] = Traits(
        Family.SAMPLES,
        references=False,
        leads_to_target=False,
        validated=False,  # the ratio itself is measured on samples that no patch saw
    )
    search: SearchConfig = field(
        default_factory=lambda: SearchConfig(steps=160, samples=32, success=0.4, settle=15, tolerance=0.05)
    )
    perturbation: MaskPattern = field(default_factory=MaskPattern)
    loss: str = "odds"
    ranking: str = "superimposed"
    partners: int = 8
    ranked: int = 1000
    fewest: int = 10
    held_out: int = 300
    data_inspection: bool = False

    def __post_init__(self) -> None:
        if self.loss not in ("odds", "square"):
            raise OnnxspectError(f"unknown loss {self.loss!r}", "odds or square")
        if self.ranking not in ("superimposed", "confidence"):
            raise OnnxspectError(f"unknown ranking {self.ranking!r}", "superimposed or confidence")
        if min(self.search.samples, self.partners, self.ranked, self.fewest) < 1:
            raise OnnxspectError("samples, partners, ranked and fewest are at least 1")

    @classmethod
    def paper(cls) -> DTInspector:
        """The paper's own settings (sec. 4.1): K = 50 by confidence alone, 95 % of D_h, p_z squared, lambda 1e-4.

        Its loss is what fails on confident models; ``replace(DTInspector.paper(), loss="odds")`` mends just that.
        """
        search = SearchConfig(steps=400, samples=50, success=0.95, multiplier=1e-4)
        return cls(search=search, loss="square", ranking="confidence")

    def work(self, classes: int, sources: int, references: int) -> Sequence[Work]:
        """Every class, all steps."""
        return (Work(classes, self.search.steps, self.search.samples, task=NAME),)

    def run(self, at_hand: AtHand) -> Evidence | Skipped:
        """Search a patch for every class with enough samples; measure which other samples it takes out of the class.

        Without a training set the clean samples stand for it. They hold no poisoned sample, so a backdoor can show only
        where the model is confident of a class for a reason that its confident samples share by accident: the evidence
        then raises no more than a suspicion (`Traits.convicts` is False), and `settings` says "samples": "clean".

        Raises:
            OnnxspectError: the training set is not this model's: shapes, labels, or an accuracy no better than chance.
        """
        subject, run = at_hand.subject, at_hand.run
        samples = at_hand.search_samples if at_hand.training is None else at_hand.training
        if at_hand.training is not None:
            check_training_set(samples, subject)
        logits = subject.predict(samples.images)
        if not np.isfinite(logits).all():
            return Skipped(NAME, "the model answers NaN or infinity on some samples: no confidence to rank by")
        if len(logits) > 1 and np.ptp(logits, axis=0).max() == 0:
            return Skipped(
                NAME, "the model answers the same whatever its input: no sample is more certain than another"
            )
        predicted = logits.argmax(1)
        if at_hand.training is not None:
            check_agreement(predicted, samples.labels, subject)
        confidence = log_odds(logits, predicted)
        judged = [z for z in _classes_with(predicted, confidence, 3 * self.fewest) if z in at_hand.targets]
        if len(judged) < FEWEST_CLASSES:
            return Skipped(NAME, self._too_few(predicted, confidence, subject.classes))
        size = min(self.search.samples, min(int((predicted == z).sum()) for z in judged) // 3)
        notes: tuple[str, ...] = ()
        if size < self.search.samples:
            notes = (f"groups of {size} instead of {self.search.samples}: a class has no more samples",)
            run.observer.notice(f"{NAME}: {notes[0]}")
        groups = _Groups(self, at_hand, samples, predicted, confidence, size)
        config = replace(self.search, samples=size)
        objective = LeaveClass(self.perturbation, self.loss, config.success)
        found = search_units(
            NAME,
            subject,
            replace(at_hand, search_samples=samples),
            at_hand.ledger,
            [Unit(target=z) for z in judged],
            objective,
            config,
            "l1",
            choose=lambda unit: groups.confident(unit.target)[0],
            as_evidence=lambda result: self._validate(result, groups, at_hand),
        )
        extended = _with_paper_rule(found, 2 * size)
        settings = self.settings() | {
            "samples": "clean" if at_hand.training is None else "training set",
            "group size": size,
        }
        views: tuple[View, ...] = (
            View("transfer_angle", "low", log=False, noise=max(CLASS_NOISE, angle_noise(2 * size))),
            View("both_angle", "low", log=False, noise=RESTORED_NOISE),
        )
        views = views if len(groups.clean) else views[:1]
        return Evidence(
            NAME,
            settings,
            "transfer_angle",
            "transfer_ratio",
            "low",
            extended,
            views,
            replace(self.traits, convicts=at_hand.training is not None),
            notes=notes,
        )

    def _validate(self, result: UnitResult, groups: _Groups, at_hand: AtHand) -> UnitEvidence:
        """The unit as evidence: whom the patch takes out of the class, and whom its restored trigger takes into it."""
        subject, z = at_hand.subject, result.unit.target
        statistics: dict[str, float] = {}
        if result.found:
            learned, peers = groups.confident(z)
            images = groups.samples.images
            statistics["l1"] = result.cost
            statistics["transfer_ratio"] = float(
                leaves(subject, images[groups.least_confident(z)], result.trigger, z).mean()
            )
            statistics["transfer_angle"] = angle(statistics["transfer_ratio"])
            statistics["middle_ratio"] = float(leaves(subject, images[groups.middle(z)], result.trigger, z).mean())
            statistics["peer_ratio"] = float(leaves(subject, images[peers], result.trigger, z).mean())
            others = groups.clean.images[groups.clean.labels != z]
            if len(others):
                own = groups.pool.images[groups.pool.labels == z]
                before = (subject.predict(others).argmax(1) == z).mean()
                after = [
                    (subject.predict(stamp(others, restored)).argmax(1) == z).mean()
                    for restored in restored_triggers(subject, images[learned], result.trigger, z, own)
                ]
                statistics["restored_success"] = float(max(after) - before)
                restored_angle = angle(max(0.0, statistics["restored_success"]))
                spared = angle(min(statistics["transfer_ratio"], statistics["middle_ratio"]))
                statistics["both_angle"] = max(spared, np.pi / 2 - restored_angle)
        if self.data_inspection:
            divergence = groups.divergence(z)
            statistics |= {} if divergence is None else {"kl": divergence}
        # Not validated: the patch leads away from its class; what leads into it is `restored_success`.
        return as_found(result, measured(**statistics))

    def _too_few(self, predicted: np.ndarray, confidence: np.ndarray, classes: int) -> str:
        """Why there is nothing to compare."""
        enough = [z for z in range(classes) if (predicted == z).sum() >= 3 * self.fewest]
        if len(enough) >= FEWEST_CLASSES:
            flat = [z for z in enough if np.ptp(confidence[predicted == z]) == 0]
            return f"the model is equally sure of all samples of {len(flat)} classes: there is no ranking to learn from"
        return (
            f"only {len(enough)} of {classes} classes are predicted for at least {3 * self.fewest} samples each "
            f"(at least {FEWEST_CLASSES} classes are needed); give more training samples"
        )


class _Groups:
    """The groups of samples: for each class the most confident, their unseen peers, the least confident; clean samples.

    What is expensive to find is found once, and only for classes that a resumed run has not finished.
    """

    def __init__(
        self,
        settings: DTInspector,
        at_hand: AtHand,
        samples: Samples,
        predicted: np.ndarray,
        confidence: np.ndarray,
        size: int,
    ) -> None:
        self.settings, self.subject, self.run = settings, at_hand.subject, at_hand.run
        self.samples, self.predicted, self.confidence, self.size = samples, predicted, confidence, size
        self.pool = at_hand.search_samples
        rows = at_hand.run.numpy_generator(NAME, "held out").permutation(len(at_hand.held_out))
        self.clean = at_hand.held_out.take(np.sort(rows[: settings.held_out]))
        self._features = features_of(at_hand.subject) if settings.data_inspection else None
        self._confident: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def confident(self, z: int) -> tuple[np.ndarray, np.ndarray]:
        """The K most confident samples of class z, D_h, and the next K, which no patch sees."""
        if z not in self._confident:
            rows = self._ordered(z)[: 2 * self.size]
            self._confident[z] = rows[: self.size], rows[self.size :]
        return self._confident[z]

    def least_confident(self, z: int) -> np.ndarray:
        """D_l: the 2 K least confident samples of class z that are not among the confident ones."""
        return self._rest(z)[: 2 * self.size]

    def middle(self, z: int) -> np.ndarray:
        """2 K samples of class z from the second quarter by confidence, without the confident ones."""
        rows = self._rest(z)
        quarter = rows[len(rows) // 4 : max(len(rows) // 2, len(rows) // 4 + 1)]
        return quarter[np.linspace(0, len(quarter) - 1, min(2 * self.size, len(quarter))).round().astype(int)]

    def _rest(self, z: int) -> np.ndarray:
        """Samples of class z that are not among the confident ones, the least confident first."""
        rows = np.flatnonzero(self.predicted == z)
        rows = rows[np.argsort(self.confidence[rows], kind="stable")]
        return rows[~np.isin(rows, np.concatenate(self.confident(z)))]

    def _ordered(self, z: int) -> np.ndarray:
        """Samples of class z, the most confident first."""
        rows = np.flatnonzero(self.predicted == z)
        rng = self.run.numpy_generator(NAME, z, "partners")
        if self.settings.ranking == "confidence" or (self.pool.labels == z).all():
            return rows[np.argsort(-self.confidence[rows], kind="stable")]
        laid_over = self.pool.images[choose_partners(self.pool.labels, z, self.settings.partners, rng)]
        if len(rows) > self.settings.ranked:  # all are screened with fewer partners, which decides the ones to rank
            first = superimposed(self.subject, self.samples.images[rows], z, laid_over[:SCREENING_PARTNERS])
            rows = np.sort(rows[np.argsort(-first, kind="stable")[: self.settings.ranked]])
        certain = superimposed(self.subject, self.samples.images[rows], z, laid_over)
        return rows[np.argsort(-certain, kind="stable")]

    def divergence(self, z: int) -> float | None:
        """KL divergence of the mean representation of D_h from that of D_l (sec. 4.2 F); None without a graph."""
        if self._features is None:
            return None
        images = self.samples.images
        high, low = (self._features(images[r]).mean(0) for r in (self.confident(z)[0], self.least_confident(z)))
        return float((softmax(high) * (log_softmax(high) - log_softmax(low))).sum())


def features_of(subject: Subject) -> Callable[[np.ndarray], np.ndarray] | None:
    """Pixels ``(n, channels, height, width)`` to the values ``(n, features)`` float64 at the last cut before the last layer.

    None where the subject is a live module without a graph, or its graph has no such cut.
    """
    if subject.lowered is None:
        return None
    before = [tap for tap in cuts(subject.lowered) if tap.depth < 1]
    if not before:
        return None
    embedding = embed(subject, before[-1].name)

    def features(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            given = torch.from_numpy(np.ascontiguousarray(pixels)).to(subject.device)
            return np.asarray(embedding(given).double().cpu().numpy())

    return features


def restored_triggers(
    subject: Subject, images: np.ndarray, patch: Mapping[str, np.ndarray], label: int, clean: np.ndarray
) -> list[dict[str, np.ndarray]]:
    """What the patch may have destroyed, from the images that it takes out of the class: as masks with their median image.

    One mask is the patch's own. If these images are poisoned and it lies where their trigger is, this is as much of the
    trigger as mattered. The other one is of all pixels that the images share (trigger_bearing.py): a trigger that replaces pixels is
    there to the pixel, also where the patch spoils only a corner of it. (Of a 7x7 and a 22x22 square on CIFAR-10 it is the
    49 and the 484 pixels, and no pixel at all in the clean classes.) Neither has the pixels that clean images of the class
    have as well (the upper stroke of a 7). Clean images of other classes that get the trigger go to `label`. The
    paper uses the patch alone.

    Args:
        subject: the classifier.
        images: D_h ``(n, channels, height, width)``.
        patch: `mask` and `pattern`.
        label: the class.
        clean: clean images of that class, possibly none.
    """
    left = leaves(subject, images, patch, label)
    own = images[left] if left.any() else images
    shared, pattern = shared_pixels(own, clean)
    masks = (patch["mask"] > COVERED) & foreign(pattern, clean), shared
    return [{"mask": m.astype(np.float32), "pattern": pattern} for m in masks]


@dataclass(frozen=True)
class PaperRule:
    """Sec. 3.3 for all classes.

    Attributes:
        index: MAD anomaly index of each transfer ratio ``(class,)``, positive where it is low; NaN where there is none.
        infected: indices of the classes that the rule calls infected, the most extreme first.
    """

    index: np.ndarray
    infected: tuple[int, ...]


def paper_rule(ratios: np.ndarray, group: int) -> PaperRule:
    """The paper's decision: MAD index above 3.5, and not all ratios above 90 %; any number of classes at once.

    A median absolute deviation of less than half a sample in the group is rounding, and taken to be that: where most
    ratios are 1 the paper's index is infinite.

    Args:
        ratios: transfer ratio of each class ``(class,)``, NaN where there is none.
        group: how many samples a ratio is measured on.
    """
    ratios = np.asarray(ratios, np.float64)
    known = np.isfinite(ratios)
    index = np.full(len(ratios), np.nan)
    if known.any():
        median = np.median(ratios[known])
        deviation = MAD_TO_SIGMA * max(float(scipy.stats.median_abs_deviation(ratios[known])), 0.5 / group)
        index[known] = (median - ratios[known]) / deviation
    if not known.any() or ratios[known].min() > ALL_LEAVE:
        return PaperRule(index, ())
    flagged = np.flatnonzero(np.nan_to_num(index, nan=-np.inf) > PAPER_INDEX)
    return PaperRule(index, tuple(int(k) for k in flagged[np.argsort(-index[flagged], kind="stable")]))


def _with_paper_rule(units: Sequence[UnitEvidence], group: int) -> tuple[UnitEvidence, ...]:
    """`paper_index` and `paper_infected` (0 or 1) added to each unit that has a ratio; the same for `kl`, if measured."""
    rule = paper_rule(Evidence.values(units, "transfer_ratio"), group)
    extended = []
    for i, unit in enumerate(units):
        if unit.measurement("transfer_ratio") is not None:
            said = measured(paper_index=float(rule.index[i]), paper_infected=float(i in rule.infected))
            unit = replace(unit, measurements=(*unit.measurements, *said))
        extended.append(unit)
    return tuple(extended)


def leaves(subject: Subject, images: np.ndarray, patch: Mapping[str, np.ndarray], label: int) -> np.ndarray:
    """Which images ``(n, channels, height, width)`` are not of class `label` with the patch on ``(n,)``; their share is the
    transfer ratio of sec. 3.3."""
    left: np.ndarray = subject.predict(stamp(images, patch)).argmax(1) != label
    return left


def _classes_with(predicted: np.ndarray, confidence: np.ndarray, fewest: int) -> list[int]:
    """The classes that at least `fewest` samples are predicted as, not all with the same confidence."""
    judged = []
    for z in np.unique(predicted):
        own = confidence[predicted == z]
        if len(own) >= fewest and np.ptp(own) > 0:
            judged.append(int(z))
    return judged
