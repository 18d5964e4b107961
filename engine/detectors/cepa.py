"""CEPA (Li et al., 2024): perturbations of each image that have one effect in common inside the network.

For each target class t, images of the other classes are perturbed, each by its own delta_x, until 90 % of them are
classified as t, while the embeddings f(x + delta_x) - f(x) at a tap are to agree (their mean is mu, Eq. 2; their
standard deviation about it sigma). A backdoor, however it is put into an image (patch, blend, warp), has such a
common effect; adversarial perturbations to a class without one do not (CEPA, sec. 3). Every unit reports

* `delta_norm`: mean of ||delta_x||, what the images need;
* `sigma_ratio`: sigma / ||mu||, the paper's consensus statistic;
* `mu_norm`: ||mu||, the paper's second statistic;

and all three relative to the same on the clean reference networks (reference.py), where there are any.

**Two forms.** `form="paper"` is Eq. 1 with the automatic lambda and the stopping rule of sec. 4.1; its views are
sigma_ratio (low) and mu_norm (high). The default, `form="consensus"`, turns the problem round: agreement is built
into every step (common_embedding.py, `Consensus`), the search stops as soon as 90 % of the images reach the class,
and what is judged is how *little* it took, relative to what the same class takes on the references. Why:

* In the paper's form agreement is a penalty that competes with success. Each image's own adversarial perturbation
  reaches the class first, at a fraction of the trigger's size; the controller then keeps lambda where it was, and
  sigma / ||mu|| depends on the way there and not on the class.
* Under forced agreement the size is the statistic that separates targets from other classes. sigma / ||mu|| does not (a
  naturally compact class, Fashion-MNIST's bag, has the least ratio on clean networks too), and ||mu|| does at the first
  tap only: a mu is small because the delta is. They are reported, and not judged. The figures: docs/decisions.md.
* Classes differ by nature, hence the references.
* One tap at a quarter of the depth is the default: a second one at half of it separates the same models less clearly,
  and doubles the multiplicity correction.
* Targets are searched from all other classes. Pairs are an option: on a model whose backdoor leads from one class
  only, its pair was the smallest of 90 relative to a clean network, but not by more than 90 pairs show by
  chance.

Several taps are searched in one run. Each is a view of its own; the verdict takes the most extreme and corrects for the
choice. Where a unit is among the front-runners, its mu is carried to unseen images by Eq. 3, and the share of these
that reach the class is its success on held-out samples.

Departures beside these: the perturbation found is shrunk by one common factor as far as 90 % still reach the class,
since a step overshoots by a few per cent; images are the same for all taps and references, so that what is compared
differs by the network alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from onnxspect.engine.detectors.base import (
    NATURE,
    USUAL_STEPS,
    AtHand,
    Detector,
    Work,
    against_references,
    compared,
    on_all_references,
    present_classes,
    rank,
)
from onnxspect.engine.detectors.held_out import as_found
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.evidence import Evidence, Skipped, Unit, UnitEvidence, View
from onnxspect.engine.judge.measurement import Search, measured
from onnxspect.engine.judge.traits import Family, Traits
from onnxspect.engine.search.common_embedding import PIXEL, CarryOver, CommonEmbedding, Consensus, SampleWise
from onnxspect.engine.search.embedding import Embedding, choose_taps, embed, embedded, perturbing
from onnxspect.engine.search.search import SearchConfig, UnitResult, choose_images, plan, search, units_at_once
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.samples import Samples

NAME = "cepa"
#: What the mean perturbation of an inner tensor is kept as.
INNER = "inner_delta"
STATISTICS = ("delta_norm", "sigma_ratio", "mu_norm")
#: Standard deviation of pixels that the first step's length is meant for (0.3 is common: MNIST 0.31, Fashion-MNIST 0.35).
_PIXEL_DEVIATION = 0.3
#: Deviation of log delta_norm over draws of 36 images. History: docs/decisions.md.
NOISE = 0.05
#: Halvings of the interval in which the smallest sufficient scale of a perturbation is searched.
_HALVINGS = 7

#: Sizes of the default form: CEPA's 90 %; first step and growth reach an l2 norm of 40 in 70 steps.
CONSENSUS = SearchConfig(
    steps=70, samples=36, learning_rate=0.05, success=0.9, multiplier=0.0, stop_at_success=True, patience=10_000
)
#: CEPA, sec. 4.1: 90 %, lambda from 0.01, by 1.5 after 5 iterations, 50 iterations without a smaller mean norm.
PAPER = SearchConfig(
    steps=400,
    samples=90,
    learning_rate=0.01,
    betas=(0.9, 0.999),
    success=0.9,
    multiplier=0.01,
    patience=5,
    raise_by=1.5,
    settle=50,
    tolerance=0.0,
)


@dataclass(frozen=True)
class Cepa(Detector):
    """The detector's settings.

    Attributes:
        search: how hard each unit is searched.
        form: "consensus" or "paper".
        taps: where the common effect is searched: names of ONNX values, indices, or depths in [0, 1] (see
            embedding.choose_taps).
        pairs: a unit for each (source, target) pair instead of one for each target with all other classes as sources.
        perturb_at: name of the ONNX value that is perturbed; the pixels by default.
        bounds: smallest and largest valid value of what is perturbed; None for a tensor without a range, as with
            `perturb_at`.
        own: weight of each image's own direction in a step (form "consensus").
        carried: so many front-runners a tap have their mu carried to unseen images.
        held_out: to so many of them.
        carry_steps: steps of Eq. 3.
        strength: a unit's search is taken on to so many times its size before its mu is carried (form "consensus"): as
            far as the class takes on the references, but not less than the first nor more than the second.
    """

    name: ClassVar[str] = NAME
    traits: ClassVar[Traits] = Traits(Family.SAMPLE_WISE)
    search: SearchConfig = CONSENSUS
    form: str = "consensus"
    taps: tuple[str | int | float, ...] = (0.25,)
    pairs: bool = False
    perturb_at: str = ""
    bounds: tuple[float, float] | None = PIXEL
    own: float = 0.2
    carried: int = 2
    held_out: int = 40
    carry_steps: int = 40
    strength: tuple[float, float] = (2.5, 4.0)

    def __post_init__(self) -> None:
        if self.form not in ("consensus", "paper"):
            raise OnnxspectError(f"unknown form of CEPA {self.form!r}", "consensus or paper")
        if not self.taps:
            raise OnnxspectError("CEPA needs a tap", "name one, or leave the default")

    @classmethod
    def paper(cls, **settings: object) -> Cepa:
        """The detector as the paper has it: ten images a class, all of sec. 4.1's numbers."""
        return cls(**({"search": PAPER, "form": "paper"} | settings))  # type: ignore[arg-type]

    def work(self, classes: int, sources: int, references: int) -> Sequence[Work]:
        """Every class at every tap, and the front-runners carried to unseen images."""
        usual = min(self.search.steps, USUAL_STEPS["cepa"])
        own = [
            Work(classes * len(self.taps), usual, self.search.samples, task=NAME),
            Work(self.carried * len(self.taps), usual + self.carry_steps, self.held_out, task=f"{NAME} carried"),
        ]
        return (*on_all_references(own, references), *own)

    def run(self, at_hand: AtHand) -> Evidence | Skipped:
        """Search every target (or pair) at every tap; carry the front-runners' mu to unseen images."""
        present = present_classes(at_hand.search_samples)
        classes = at_hand.targets
        pairs: list[tuple[int | None, int]]
        if self.pairs:
            pairs = [(s, t) for t in classes for s in sorted(present) if s != t]
        else:
            pairs = [(None, t) for t in classes if present - {t}]
        if not pairs:
            return Skipped(NAME, "the clean samples are all of one class, so there is none to perturb towards another")
        if self.perturb_at:
            at_hand = _from_inside(at_hand, self.perturb_at)
        taps = [embed(at_hand.subject, name) for name in choose_taps(at_hand.subject, self.taps)]
        baselines = self._baselines(taps, pairs, at_hand)
        if at_hand.references_alone:
            return Skipped(NAME, "only the references were to be searched")
        found = []
        for tap in taps:
            units = [Unit(target, source, tap.tap) for source, target in pairs]
            searched = self._searched(tap, units, at_hand, at_hand.ledger, self._ledger_name)
            extended = _relative(searched, baselines.get(tap.tap, []))
            found += self._validated(tap, extended, at_hand)
        return self._evidence(found, taps, any(baselines.values()), len(at_hand.references))

    @property
    def _ledger_name(self) -> str:
        parts = [NAME, *(["paper"] if self.form == "paper" else []), *([self.perturb_at] if self.perturb_at else [])]
        return " ".join(parts)

    def _evidence(
        self, found: list[UnitEvidence], taps: Sequence[Embedding], relative: bool, references: int
    ) -> Evidence:
        if self.form == "paper":
            views = [View(s, tail, t.tap) for t in taps for s, tail in (("sigma_ratio", "low"), ("mu_norm", "high"))]
            shown = "sigma_ratio"
        else:
            views = [View("delta_norm", "low", t.tap, noise=NOISE) for t in taps]
            shown = "delta_norm"
        views = compared(views, relative, NATURE)
        settings = self.settings() | {"tap names": [t.tap for t in taps]}
        if relative:
            settings |= {"references": references}
        return Evidence(self.name, settings, shown, shown, "low", tuple(found), tuple(views), self.traits)

    def _objective(self, tap: Embedding, least: float = 0.0) -> SampleWise:
        if self.form == "paper":
            return CommonEmbedding(tap, self._bounds)
        return Consensus(tap, self._bounds, self.own, least=least)

    @property
    def _bounds(self) -> tuple[float, float] | None:
        return None if self.perturb_at else self.bounds

    def _config(self, samples: Samples) -> SearchConfig:
        return replace(self.search, learning_rate=self.search.learning_rate * _scale(samples, self._bounds))

    def _baselines(
        self, taps: Sequence[Embedding], pairs: Sequence[tuple[int | None, int]], at_hand: AtHand
    ) -> dict[str, list[tuple[UnitEvidence, ...]]]:
        """For each tap the same units on each reference, at the reference's own tap of about the same depth."""
        found: dict[str, list[tuple[UnitEvidence, ...]]] = {}
        for i, reference in enumerate(at_hand.references):
            known: dict[str, tuple[UnitEvidence, ...]] = {}
            for tap in taps:
                (name,) = choose_taps(reference, [tap.depth])
                if name not in known:
                    units = [Unit(target, source, name) for source, target in pairs]
                    ledger_name = f"{self._ledger_name} on reference {i}"
                    known[name] = self._searched(
                        embed(reference, name), units, at_hand, at_hand.reference_ledger, ledger_name
                    )
                found.setdefault(tap.tap, []).append(known[name])
        return found

    def _searched(
        self, tap: Embedding, units: Sequence[Unit], at_hand: AtHand, ledger: Ledger | None, name: str
    ) -> tuple[UnitEvidence, ...]:
        """Search what the ledger lacks, commit each batch as it is done, return all in order."""
        run, subject, samples = at_hand.run, tap.subject, at_hand.search_samples
        done = ledger.units(name) if ledger is not None else {}
        task = f"{name} at {tap.tap}"
        config = self._config(samples)
        batches = plan(units, units_at_once(subject, len(samples), config.samples))
        waiting = [b for b in batches if any(u.key not in done for u in b)]
        choose = self._choose(samples, at_hand)
        run.observer.start(task, len(units), sum(u.key in done for u in units))
        for results in search(subject, samples, waiting, self._objective(tap), config, run, NAME, choose):
            finished = [self._measured(tap, r, samples.images[choose(r.unit)[: config.samples]]) for r in results]
            if ledger is not None:
                ledger.commit(name, finished)
            done |= {e.unit.key: e for e in finished}
            for e in finished:
                value = e.value("delta_norm")
                run.observer.advance(
                    task, f"class {e.unit.target}: " + ("none found" if np.isnan(value) else f"{value:.3g}")
                )
        run.observer.finish(task)
        return tuple(done[u.key] for u in units)

    def _choose(self, samples: Samples, at_hand: AtHand) -> Callable[[Unit], np.ndarray]:
        """The images of a unit: the same at every tap and on every reference."""
        return lambda u: choose_images(Unit(u.target, u.source), samples, self.search.samples, at_hand.run, NAME)

    def _measured(self, tap: Embedding, result: UnitResult, images: np.ndarray) -> UnitEvidence:
        """A finished unit as evidence: its statistics, mu, the mean perturbation, and one image with its own."""
        delta = result.trigger["delta"]
        images = images[: len(delta)]
        statistics: dict[str, float] = {}
        success, shift = result.success, np.zeros(tap.shape, np.float32)
        if result.found and not result.unneeded:
            if self.form == "consensus":
                delta, success = _shrunk(tap, images, delta, result.unit.target, self.search.success)
            shift, statistics = _statistics(tap, images, delta)
        kept = {
            "mu": shift,
            # Of an inner tensor it is no change of pixels, which could be stamped and drawn.
            INNER if self.perturb_at else "delta": delta.mean(0),
            "example": images[0].astype(np.float32),
            "example_perturbed": (images[0] + delta[0]).astype(np.float32),
        }
        return as_found(result, measured(**statistics), search_success=success, trigger=kept)

    def _validated(self, tap: Embedding, units: Sequence[UnitEvidence], at_hand: AtHand) -> list[UnitEvidence]:
        """The units, the front-runners with the success of their mu on unseen images."""
        if self.form == "consensus":
            relative = any((m := u.measurement("delta_norm")) and m.relative is not None for u in units)
            ranks = [rank(u, "delta_norm", Search.FULL, relative) for u in units]
        else:
            ranks = [rank(u, "sigma_ratio", Search.FULL, False) for u in units]
        able = [units[i] for i in np.argsort(ranks, kind="stable") if np.isfinite(ranks[i])]
        chosen = {u.unit.key for u in able[: self.carried]}
        extended = []
        for unit in units:
            if unit.unit.key in chosen and unit.held_out_success is None:
                carried = self.carry(tap, unit, at_hand.held_out, at_hand)
                if carried is not None:
                    unit = replace(unit, held_out_success=carried[0], held_out=carried[1])
                    if at_hand.ledger is not None:
                        at_hand.ledger.commit(self._ledger_name, [unit])
            extended.append(unit)
        return extended

    def carry(self, tap: Embedding, unit: UnitEvidence, samples: Samples, at_hand: AtHand) -> tuple[float, int] | None:
        """Eq. 3: perturb unseen images so that their embeddings move by the unit's mu.

        In the default form the search stopped where 90 % of its own images just reach the class, and a mean effect that
        just suffices for them does not for others. So the search goes on first, to the size that the class takes on
        clean networks, within `strength`: a backdoor's mu must lead unseen images to the class at no more than that.

        Args:
            tap: where the unit was searched.
            unit: a unit that was found.
            samples: images that the search never saw.
            at_hand: what the search had.

        Returns:
            (share of them that reach the unit's target, how many they are); None where there are none.
        """
        target, source = unit.unit.target, unit.unit.source
        able = np.flatnonzero(samples.labels != target if source is None else samples.labels == source)
        if not len(able):
            return None
        images = choose_images(Unit(target, source), samples, self.held_out, at_hand.run, f"{NAME} held out")
        shift, size = self._stronger(tap, unit, at_hand)
        objective = CarryOver(
            tap,
            self._bounds,
            shift=torch.from_numpy(shift.reshape(-1)).to(tap.subject.device),
            reach=2 * size,
            steps=self.carry_steps,
        )
        config = SearchConfig(steps=self.carry_steps, samples=self.held_out, success=0.0, multiplier=0.0, settle=10**6)
        found = search(
            tap.subject, samples, [(unit.unit,)], objective, config, at_hand.run, NAME, choose=lambda _: images
        )
        (result,) = next(found)
        return round(result.success * len(images)) / len(images), len(images)

    def _stronger(self, tap: Embedding, unit: UnitEvidence, at_hand: AtHand) -> tuple[np.ndarray, float]:
        """(mu, mean norm of the deltas) of the unit's search gone on as far as `strength` says."""
        measurement = unit.measurement("delta_norm")
        if measurement is None:
            raise ValueError(f"unit {unit.unit.key} was not found: there is no mu to validate")
        size = measurement.value
        if self.form == "paper":
            return unit.trigger["mu"], size
        samples = at_hand.search_samples
        choose = self._choose(samples, at_hand)
        config = replace(self._config(samples), steps=unit.steps + self.carry_steps)
        least, most = self.strength
        times = min(max(1 / (measurement.relative or 1.0), least), most)
        objective = self._objective(tap, times * size)
        (result,) = next(search(tap.subject, samples, [(unit.unit,)], objective, config, at_hand.run, NAME, choose))
        delta = result.trigger["delta"]
        mu, statistics = _statistics(tap, samples.images[choose(unit.unit)[: len(delta)]], delta)
        return mu, statistics["delta_norm"]


PRESETS: Mapping[str, Cepa] = {
    "quick": Cepa(search=replace(CONSENSUS, samples=27)),
    "standard": Cepa(),
    "thorough": Cepa(taps=(0.25, 0.5), search=replace(CONSENSUS, samples=72), held_out=100),
}


def _from_inside(at_hand: AtHand, value: str) -> AtHand:
    """What is at hand, seen from an internal tensor on; the references have no such tensor."""
    subject = at_hand.subject
    return replace(
        at_hand,
        subject=perturbing(subject, value),
        search_samples=embedded(subject, value, at_hand.search_samples),
        held_out=embedded(subject, value, at_hand.held_out) if len(at_hand.held_out) else at_hand.held_out,
        references=(),
    )


def _scale(samples: Samples, bounds: tuple[float, float] | None) -> float:
    """How much larger than pixels the values of a tensor without a range are."""
    return 1.0 if bounds is not None else max(float(samples.images.std()), 1e-6) / _PIXEL_DEVIATION


def _shrunk(
    tap: Embedding, images: np.ndarray, delta: np.ndarray, target: int, success: float
) -> tuple[np.ndarray, float]:
    """The perturbations times the smallest common factor with which enough images reach the target; and how many do."""

    def share(factor: float) -> float:
        answers = tap.subject.predict(images + np.float32(factor) * delta).argmax(1)
        return float((answers == target).mean())

    low, high, reached = 0.0, 1.0, share(1.0)
    if reached < success:  # rounding, at the very edge
        return delta, reached
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        now = share(middle)
        if now >= success:
            high, reached = middle, now
        else:
            low = middle
    return (np.float32(high) * delta).astype(np.float32), reached


def _statistics(tap: Embedding, images: np.ndarray, delta: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """(mu, the statistics) of perturbations; sigma and mu as in CEPA, sec. 3."""

    def embeddings(pixels: np.ndarray) -> Tensor:
        with torch.no_grad():
            return tap(torch.from_numpy(np.ascontiguousarray(pixels)).to(tap.subject.device)).double().cpu()

    shift = embeddings(images + delta) - embeddings(images)
    mu = shift.mean(0)
    sigma = float((shift - mu).square().sum(1).mean().sqrt())
    length = float(mu.norm())
    statistics = {
        "delta_norm": float(np.linalg.norm(delta.reshape(len(delta), -1).astype(np.float64), axis=1).mean()),
        "mu_norm": length,
    }
    if length > 0:
        statistics["sigma_ratio"] = sigma / length
    return mu.float().numpy().reshape(tap.shape), statistics


def _relative(found: Sequence[UnitEvidence], baselines: Sequence[Sequence[UnitEvidence]]) -> list[UnitEvidence]:
    """The units with what each statistic is on the references."""
    units = list(found)
    for name in STATISTICS if baselines else ():
        units = against_references(units, baselines, name)
    return units
