"""Patterns estimated on the training set, and the choice among several to one class (RE, Xiang et al., 2020, Eq. 7-11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from onnxspect.engine.cleansing.by_trigger import REMOVE, Classify, Found, best_pattern
from onnxspect.engine.cleansing.divided import ROUNDS, DividedClimb, at_best_strength, division, most_of
from onnxspect.engine.detectors.base import AtHand, search_units
from onnxspect.engine.detectors.reverse_engineering import Climb, ReverseEngineering, infer, labelled_images
from onnxspect.engine.errors import InconclusiveError
from onnxspect.engine.judge.evidence import Evidence, Unit, UnitEvidence
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.search import search
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.activations import TrainingSet, file_classifier
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import Trigger
from onnxspect.engine.version import tool_version

#: Samples of a target class on which its patterns are compared.
JUDGED = 1000
#: Chooses among patterns to one class.
Choose = Callable[[Sequence[Found]], Found]


def chooser(subject: Subject, training: TrainingSet, part: Samples, as_written: bool, run: RunContext) -> Choose:
    """What chooses among patterns to one class: the one that fits the training set, estimated again on it.

    Args:
        subject: the model.
        training: the suspect set.
        part: some samples of every class of it.
        as_written: leave out the second estimate.
        run: the seed.
    """

    def choose(candidates: Sequence[Found]) -> Found:
        rows = np.flatnonzero(training.labels == candidates[0].trigger.target)
        if not len(rows):
            return min(candidates, key=lambda f: f.trigger.size)
        rng = run.numpy_generator("cleanse", candidates[0].trigger.target, "judged")
        judged = training.take(rng.permutation(rows)[:JUDGED]).images
        judged = judged[rng.permutation(len(judged))]
        best = best_pattern(candidates, judged, classify)
        return best if as_written else estimate_again(best, judged, subject, part, classify, run)

    def classify(images: np.ndarray) -> np.ndarray:
        return asked.run(images)[0]

    asked = file_classifier(subject)
    return choose


def estimate_patterns(
    subject: Subject, part: Samples, targets: Sequence[int] | None, folder: Path, run: RunContext, choose: Choose
) -> list[Found]:
    """The patterns of RE estimated on a part of the training set itself (Eq. 9, Algorithm 1).

    Args:
        subject: the model.
        part: some training samples of every class.
        targets: target classes where they are known; else Eq. 10-11 find one, or none.
        folder: where finished units are kept.
        run: seed and observer.
        choose: among the patterns to one class.
    """
    detector = ReverseEngineering(held_out=0)
    nothing = part.take(np.zeros(0, int))
    names = {"model": subject.file.sha256 if subject.file else subject.name, "train": part.sha256, "seed": run.seed}
    with Ledger(folder / "search", names | {"targets": list(targets or ()), "tool": tool_version()}) as ledger:
        at_hand = AtHand(subject, part, nothing, run, ledger, training=part)
        if targets is None:
            evidence = detector.run(at_hand)
            if not isinstance(evidence, Evidence):
                raise InconclusiveError(
                    f"{REMOVE}: {evidence.reason}", "name other detectors of poisoned samples, or --target"
                )
            judged = infer(evidence, subject.classes)
            if not judged.judgement.paper_flag or judged.target is None:
                return []
            to_target = [u for u in evidence.units if u.unit.target == judged.target]
            return [choose([as_found(u) for u in to_target if u.found and u.measurements])]
        labelled = labelled_images(part, subject.classes, detector.training_samples, run, drawn_as="cleanse")
        labelled = labelled.to(subject.device)
        found = []
        for target in targets:
            sources = sorted(set(part.labels.tolist()) - {target})
            units = [Unit(target), *(Unit(target, s) for s in sources)]
            climb = Climb(detector.perturbation, growth=detector.growth, weight=detector.weight, labelled=labelled)
            norm = detector.perturbation.norm
            done = search_units(REMOVE, subject, at_hand, ledger, units, climb, detector.search, norm, held_out=0)
            able = [u for u in done if u.found and float(np.abs(u.trigger["delta"]).max()) > 0]
            if able:
                found.append(choose([as_found(u) for u in able]))
        return found


def estimate_again(
    found: Found, judged: np.ndarray, subject: Subject, part: Samples, classify: Classify, run: RunContext
) -> Found:
    """The pattern climbed again on D_t as the last one divides it; see cleansing/divided.py.

    The last one that could be had, where the set cannot be divided or the climb does not get there.

    Args:
        found: the best pattern so far.
        judged: training samples labelled to its target, in random order.
        subject: the model.
        part: training samples of every class; those of the pattern's source are D_s.
        classify: the model in onnxruntime.
        run: the seed.
    """
    detector = ReverseEngineering()
    config = replace(detector.search, samples=most_of(judged))
    unit = Unit(found.trigger.target, found.trigger.source)
    for number in range(ROUNDS):
        parts = division(found, judged, classify)
        if parts is None:
            return found
        left, stayed = (torch.from_numpy(judged[rows]).to(subject.device) for rows in parts)
        every = left.expand(subject.classes, *left.shape)  # a climb takes its labelled images by class
        climb = Climb(detector.perturbation, growth=detector.growth, weight=detector.weight, labelled=every)
        aim = DividedClimb(climb, detector.perturbation, stayed)
        name = f"{REMOVE} divided {number}"
        (result,) = next(search(subject, part, [(unit,)], aim, config, run, name))
        if not result.found or not np.abs(result.trigger["delta"]).max() > 0:
            return found
        found = at_best_strength(
            replace(found, trigger=replace(found.trigger, arrays=dict(result.trigger))), judged, classify
        )
    return found


def as_found(unit: UnitEvidence) -> Found:
    """A unit's trigger.

    Raises:
        OnnxspectError: it is none in pixels.
    """
    return Found(Trigger.kept(unit.unit.target, unit.trigger, unit.unit.source))
