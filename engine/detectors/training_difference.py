"""Training difference: what do a class's training samples have that clean samples of the class have not, and what does it do?

Whoever has the training set *and* clean samples of the same classes need not search for a trigger at all: poisoned samples
are many, they all carry it, and clean samples do not, so it is in the difference of two means. For each class z

    d_z = mean of the training samples labelled z - mean of the clean samples of z,

which is (share of poisoned samples) times (trigger), wherever the label is right (CL, SIG): there no search for the smallest
change and no patch that must take samples out of the class finds anything, since these samples belong to it. Where
labels were changed the poisoned samples also bring along the content of *their* classes. So each class gets these
candidates:

* d_z times `SCALES`: a third of the class poisoned makes a third of the trigger;
* the same of d_z without content: d_z minus its best fit (non-negative least squares) by the differences of the other
  classes' means from z's own, which is what samples with a wrong label bring;
* where a pixel value is held by a share of the training samples that is larger by `FOREIGN` than among clean ones: that value
  put there. A trigger that replaces pixels is there to the pixel.

Each is put on clean images of *other* classes, and the share of them that goes to z is the statistic; beside it that of the one
source class that is led best, for attacks with chosen sources. They are compared with
what chance gives: the difference between a bootstrap sample of z's clean images and all of them, treated in the same way
(`DRAWS` times, the largest counts). This is the noise of d_z itself, and a network that any noise leads to one class shows
it there (docs/decisions.md).

Where a class stands out, the trigger-bearing samples are separated from the others (trigger_bearing.py), and what *they* have
in
common is shown as its trigger: at its true size, not at some multiple of a noisy mean.

No gradient, no search: seconds. The idea of comparing training data with clean data is old (the data inspection
baseline of DTInspector, Wang et al., 2022, sec. 4.2 F, compares two groups by KL divergence; spectral signatures, Tran
et al., 2018, search for a direction without a clean set); that the difference is stamped, and judged by where it leads,
is this project's.

What it cannot detect: rare poison (two in a hundred of a class are below the noise of fifty clean samples; dtinspector
is for that); triggers that differ from image to image; all-to-all, where every class stands out and none from the
others. A training set that differs from the clean samples by nature (another camera) has differences, but these do not
lead other classes' images to one class.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy  # its parts are loaded where they are first used

from onnxspect.engine.detectors.base import AtHand, Detector, Work
from onnxspect.engine.detectors.shares import angle
from onnxspect.engine.detectors.training_set import check_agreement, check_training_set
from onnxspect.engine.detectors.trigger_bearing import (
    centred,
    divided,
    foreign,
    matched_filters,
    shared_pixels,
    some_of,
    trigger_of,
)
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.evidence import Evidence, Skipped, Unit, UnitEvidence, View
from onnxspect.engine.judge.measurement import measured
from onnxspect.engine.judge.null_model import FEWEST_CLASSES
from onnxspect.engine.judge.traits import Family, Traits
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import stamp

NAME = "training-difference"
#: How many times a difference is added: the trigger is 1 / (share of poisoned samples) times as strong.
SCALES = (2.0, 4.0)
#: A pixel value, of `LEVELS`, is foreign where a share of the training samples holds it that is by so much larger than that of
#: the clean ones, and by so many standard errors.
LEVELS, FOREIGN, SURE = 32, 0.1, 3.0
#: Bootstrap samples of a class's clean images: the differences that chance makes.
DRAWS = 4
#: A candidate that leads a smaller share of images to the class does nothing.
NOTHING = 0.1
#: Share of the pixels up to which a trigger that replaces them is a patch, and not another way to write an added pattern.
LOCAL = 0.25
#: A candidate stands out from what chance does from this angle on; of those that do and work as well, within `AS_GOOD`, the
#: first is the class's trigger: the most local, the least strong.
STANDS_OUT, AS_GOOD = 0.2, 0.1
#: Deviation of `excess_angle` among clean classes, at least, and of `source_angle`.
CLASS_NOISE, SOURCE_NOISE = 0.12, 0.25
#: Weight of the view of single sources beside that of all: what works from all classes works from each.
SINGLE = 0.25
#: Where a class stands out its trigger-bearing samples are searched (trigger_bearing.py), against so many samples of other
#: classes. What these have in common is the class's trigger, where it works this much as well as the best candidate: it
#: has its true size.
NATURAL, FAITHFUL = 1000, 0.8
#: What leads a smaller share of all images there, and at least that of one class, works from that class.
WHOLE = 0.5
#: Images of a class that say whether a trigger works on it.
OF_SOURCE = 10
#: Training samples on which it is tested whether the labels are this model's.
KNOWN = 1000
#: Training samples of a class that are used, at most.
MOST = 2000


@dataclass(frozen=True)
class TrainingDifference(Detector):
    """The detector's settings.

    Attributes:
        fewest: clean samples that a class needs, and five times as many training samples.
        tested: clean images of other classes that candidates are put on, at most.
    """

    name: ClassVar[str] = NAME
    traits: ClassVar[Traits] = Traits(Family.SAMPLES, references=False, training_set=True, smallest=False)
    fewest: int = 5
    tested: int = 300

    def __post_init__(self) -> None:
        if min(self.fewest, self.tested) < 1:
            raise OnnxspectError("fewest and tested are at least 1")

    def work(self, classes: int, sources: int, references: int) -> Sequence[Work]:
        """Next to nothing: no gradient is taken."""
        return (Work(classes, 1, 1, task=NAME),)

    def run(self, at_hand: AtHand) -> Evidence | Skipped:
        """Compare every class that has enough samples of both kinds; finished in seconds, so nothing is kept on the way.

        Raises:
            OnnxspectError: the training set is not this model's.
        """
        if at_hand.training is None:
            return Skipped(NAME, "it compares the training set with clean samples; give it with --train")
        subject, training, run = at_hand.subject, at_hand.training, at_hand.run
        check_training_set(training, subject)
        some = training.take(np.sort(run.numpy_generator(NAME, "known").permutation(len(training))[:KNOWN]))
        check_agreement(subject.predict(some.images).argmax(1), some.labels, subject)
        clean = at_hand.search_samples.joined(at_hand.held_out)
        judged = [
            z
            for z in at_hand.targets
            if (clean.labels == z).sum() >= self.fewest and (training.labels == z).sum() >= 5 * self.fewest
        ]
        if len(judged) < FEWEST_CLASSES:
            return Skipped(
                NAME,
                f"only {len(judged)} of {subject.classes} classes have {self.fewest} clean samples and "
                f"{5 * self.fewest} training samples (at least {FEWEST_CLASSES} classes are needed)",
            )
        means = {z: clean.images[clean.labels == z].mean(0) for z in judged}
        run.observer.start(NAME, len(judged))
        units = []
        for z in judged:
            unit = self._compare(z, training, clean, means, at_hand)
            units.append(unit)
            run.observer.advance(NAME, f"class {z}: leads {unit.value('success'):.0%} of others there")
        run.observer.finish(NAME)
        views = [View("excess_angle", "high", log=False, noise=CLASS_NOISE, typical=CLASS_NOISE)]
        if any(u.measurement("source_angle") is not None for u in units):
            views.append(
                View("source_angle", "high", log=False, noise=SOURCE_NOISE, typical=SOURCE_NOISE, weight=SINGLE)
            )
        return Evidence(
            NAME, self.settings(), "excess_angle", "success", "high", tuple(units), tuple(views), self.traits
        )

    def _compare(
        self, z: int, training: Samples, clean: Samples, means: Mapping[int, np.ndarray], at_hand: AtHand
    ) -> UnitEvidence:
        """How far the class's candidates stand out from what chance does, and the one that works best."""
        started = time.perf_counter()
        subject, rng = at_hand.subject, at_hand.run.numpy_generator(NAME, z)
        own = training.images[some_of(np.flatnonzero(training.labels == z), MOST, training.images[0].size, rng)]
        genuine = clean.images[clean.labels == z]
        d = difference(own, genuine)
        # Others' images of the half that preprocessing and references have not seen, where there are any.
        source = at_hand.held_out if (at_hand.held_out.labels != z).any() else clean
        rows = rng.permutation(np.flatnonzero(source.labels != z))[: self.tested]
        others = _Others(subject, source.images[rows], source.labels[rows], z)

        found = candidates(own, genuine, z, means)
        led = {n: others.led(c) for n, c in found.items()}
        chance = {n: np.zeros_like(each) for n, each in led.items()}
        if max(each.max() for each in led.values()) > NOTHING:
            for _ in range(DRAWS):
                drawn = candidates(genuine[rng.integers(0, len(genuine), len(genuine))], genuine, z, means)
                chance = {n: np.maximum(c, others.led(drawn[n])) for n, c in chance.items()}
        # Of several sources the one that is led best counts, and what chance does to any of them.
        whole = {n: (float(led[n][0]), float(chance[n][0])) for n in found}
        single = {n: (float(led[n][1:].max()), float(chance[n][1:].max())) for n in found if len(others.sources)}
        statistics = {"excess_angle": max(map(_excess, whole.values()))}
        statistics |= {"source_angle": max(map(_excess, single.values()))} if single else {}
        from_one = bool(single) and max(a for a, _ in whole.values()) < WHOLE <= max(a for a, _ in single.values())
        counted = single if from_one else whole
        best = _working(counted)
        trigger, shown = found[best], led[best]
        if max(statistics.values()) >= STANDS_OUT:
            for exact in self._common_trigger(z, own, d, training, clean, at_hand):
                now = others.led(exact)
                if (now[1:].max() if from_one else now[0]) >= FAITHFUL * counted[best][0]:
                    trigger, shown = exact, now
                    break
        partial = len(shown) > 1 and bool(shown[0] < WHOLE <= shown[1:].max())
        success = float(shown[1:].max() if partial else shown[0])
        return UnitEvidence(
            unit=Unit(z, others.sources[int(shown[1:].argmax())] if partial else None),
            measurements=measured(success=whole[best][0], chance=whole[best][1], **statistics),
            found=True,
            converged=True,
            steps=0,
            search_success=success,
            held_out_success=success,
            held_out=len(rows),
            trigger=trigger | {"difference": d},
            seconds=time.perf_counter() - started,
        )

    def _common_trigger(
        self, z: int, own: np.ndarray, d: np.ndarray, training: Samples, clean: Samples, at_hand: AtHand
    ) -> list[dict[str, np.ndarray]]:
        """What the trigger-bearing samples have in common: pixels replaced, and what is added; none where there are none."""
        rng = at_hand.run.numpy_generator(NAME, z, "natural")
        natural = training.take(some_of(np.flatnonzero(training.labels != z), NATURAL, own[0].size, rng))
        scores = matched_filters(d, centred(natural.images, natural.labels)) @ own.reshape(len(own), -1).T
        best, division = divided(scores, at_hand.run.key(NAME, z) % 2**31)
        carry = division.above(scores[best])
        if not carry.any():
            return []
        means = {int(c): natural.images[natural.labels == c].mean(0) for c in np.unique(natural.labels)}
        mask, pattern = shared_pixels(own[carry], clean.images)
        for c in np.unique(clean.labels):  # a pixel may be one class's own, whatever the samples' content
            mask &= foreign(pattern, clean.images[clean.labels == c])
        replaced = [{"mask": mask.astype(np.float32), "pattern": pattern}] if mask.any() else []
        return [*replaced, {"delta": trigger_of(own[carry], own[~carry], means, z)}]


class _Others:
    """Clean images of other classes, and where a trigger leads them.

    Attributes:
        sources: the classes that have `OF_SOURCE` of them at least.
    """

    def __init__(self, subject: Subject, images: np.ndarray, labels: np.ndarray, label: int) -> None:
        self._subject, self._images, self._label = subject, images, label
        self.sources = [int(c) for c in np.unique(labels) if (labels == c).sum() >= OF_SOURCE]
        self._groups = [np.ones(len(labels), bool), *(labels == c for c in self.sources)]
        self._before = self._answers(images)

    def led(self, trigger: Mapping[str, np.ndarray]) -> np.ndarray:
        """Share of the images that go to the label and do not go there anyway: of all, then of each source ``(1 + sources,)``."""
        after = self._answers(stamp(self._images, trigger))
        return np.array([max(0.0, after[g].mean() - self._before[g].mean()) for g in self._groups])

    def _answers(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self._subject.predict(images).argmax(1) == self._label)


def _excess(led: tuple[float, float]) -> float:
    """How far a share stands out from what chance does: on the angles' scale."""
    share, chance = led
    return angle(share) - angle(chance) if share > NOTHING else 0.0


def _working(led: Mapping[str, tuple[float, float]]) -> str:
    """The candidate that works best, of those that stand out; of several that work as well the first.

    What convicts is what stands out most from chance; it need not be what works best.
    """
    standing = min(STANDS_OUT, max(map(_excess, led.values())))
    able = {n: angle(each[0]) for n, each in led.items() if _excess(each) >= standing}
    return next(n for n, works in able.items() if works >= max(able.values()) - AS_GOOD)


def difference(own: np.ndarray, genuine: np.ndarray) -> np.ndarray:
    """Mean of the training samples ``(n, channels, height, width)`` minus that of the clean ones: d_z, float32."""
    return np.asarray(own.mean(0, dtype=np.float64) - genuine.mean(0, dtype=np.float64), np.float32)


def candidates(
    own: np.ndarray, genuine: np.ndarray, label: int, means: Mapping[int, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """Triggers that may be in the difference, by what is done; the one to prefer first.

    Pixels that are replaced stand first where they are few, else last.

    Args:
        own: training samples labelled `label` ``(n, channels, height, width)`` in [0, 1].
        genuine: clean samples of that class.
        label: the class.
        means: class -> mean clean image.
    """
    d = difference(own, genuine)
    rest = without_content(d, label, means)
    replaced = {"replaced": foreign_values(own, genuine)}
    added = {f"{name} x {s:g}": {"delta": s * v} for s in SCALES for name, v in (("all", d), ("without content", rest))}
    return replaced | added if replaced["replaced"]["mask"].mean() <= LOCAL else added | replaced


def without_content(d: np.ndarray, label: int, means: Mapping[int, np.ndarray]) -> np.ndarray:
    """The difference less what samples of other classes with this label would bring: nnls by the classes' means."""
    others = [(m - means[label]).ravel() for c, m in means.items() if c != label]
    if not others:
        return d
    basis = np.stack(others, 1).astype(np.float64)
    shares, _ = scipy.optimize.nnls(basis, d.ravel().astype(np.float64))
    return np.asarray(d - (basis @ shares).reshape(d.shape), np.float32)


def foreign_values(own: np.ndarray, genuine: np.ndarray) -> dict[str, np.ndarray]:
    """Pixel values that many more training samples than clean ones have: `mask` ``(1, height, width)`` and `pattern`.

    For every value of every channel the one of `LEVELS` whose share is larger by most; the mask is where that is `FOREIGN` in
    any channel.
    """
    most = np.zeros(own.shape[1:], np.float32)
    pattern = np.zeros(own.shape[1:], np.float32)
    given, usual = (np.round(x * (LEVELS - 1)).astype(np.uint8) for x in (own, genuine))
    for level in range(LEVELS):
        share = (given == level).mean(0, dtype=np.float32)
        excess = share - (usual == level).mean(0, dtype=np.float32)
        error = np.sqrt(share * (1 - share) * (1 / len(given) + 1 / len(usual)))
        excess[excess < SURE * error] = 0
        larger = excess > most
        most[larger], pattern[larger] = excess[larger], level / (LEVELS - 1)
    mask = np.asarray((most > FOREIGN).any(0, keepdims=True), np.float32)
    return {"mask": mask, "pattern": pattern}
