"""Maximum margin: on linear models, where the largest margin is a sum of weights, and on bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from conftest import CLASSES, SIDE, quadrant_images, quadrant_weights
from scipy.optimize import linprog
from tolerances import SUM_32
from torch import Tensor

from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.max_margin import STATISTIC, Margin, MaxMargin
from onnxspect.engine.judge.evidence import Evidence, Skipped
from onnxspect.engine.judge.verdict import decide
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject

SHAPE = (1, SIDE, SIDE)
DETECTOR = MaxMargin(search=replace(MaxMargin().search, steps=40), objective=Margin(starts=4))


def at_hand(subject: Subject, samples: Samples | None = None, seed: int = 0) -> AtHand:
    given = samples or quadrant_images(2)
    return AtHand(subject, given, given, RunContext(seed=seed))


def linear(weights: np.ndarray) -> Subject:
    """Logits ``x @ weights``."""
    matrix = torch.from_numpy(np.asarray(weights, np.float32))
    return Subject(lambda x: x.flatten(1) @ matrix, InputSpec(), SHAPE, matrix.shape[1], name="linear")


def margins(found: Evidence | Skipped) -> np.ndarray:
    assert isinstance(found, Evidence), found
    return np.array([u.statistics.get(STATISTIC, np.nan) for u in found.units])


def test_quadrants_by_hand() -> None:
    """Own quadrant white, the others black: 16 pixels of weight 1."""
    np.testing.assert_allclose(margins(DETECTOR.run(at_hand(linear(quadrant_weights())))), 16, rtol=SUM_32)


def test_against_the_exact_optimum_of_a_linear_program() -> None:
    """max s over x in [0, 1]^d and s with s <= (w_t - w_j) x for every rival j."""
    weights = np.random.default_rng(0).normal(size=(SIDE * SIDE, CLASSES))
    found = margins(DETECTOR.run(at_hand(linear(weights))))
    for target in range(CLASSES):
        rivals = [j for j in range(CLASSES) if j != target]
        constraints = np.hstack([(weights[:, rivals] - weights[:, [target]]).T, np.ones((len(rivals), 1))])
        best = linprog(
            np.append(np.zeros(SIDE * SIDE), -1.0),
            A_ub=constraints,
            b_ub=np.zeros(len(rivals)),
            bounds=[(0, 1)] * (SIDE * SIDE) + [(None, None)],
        )
        assert 0.93 * -best.fun <= found[target] <= -best.fun * (1 + SUM_32)


def planted(classes: int = 8, strength: float = 40.0) -> Subject:
    """Random linear classes of like margins, class 3 with two pixels that alone outweigh everything."""
    weights = np.random.default_rng(1).normal(size=(SIDE * SIDE, classes))
    weights[:2, 3] += [strength, -strength]
    return linear(weights)


def test_a_planted_class_has_the_largest_margin_and_is_suspicious_but_not_named() -> None:
    evidence = DETECTOR.run(at_hand(planted()))
    assert isinstance(evidence, Evidence)
    found = margins(evidence)
    assert found.argmax() == 3
    assert evidence.units[3].statistics["gamma_log10_p"] < -3
    assert min(u.statistics["gamma_log10_p"] for u in evidence.units if u.unit.target != 3) > -2
    verdict = decide([evidence], 8)
    assert verdict.targets == ()
    assert any("finds class 3 suspicious" in r for r in verdict.reasons)
    assert decide([replace(evidence, traits=replace(evidence.traits, convicts=True))], 8).targets == (3,)


def test_without_the_plant_nothing_is_suspicious() -> None:
    evidence = DETECTOR.run(at_hand(planted(strength=0.0)))
    assert isinstance(evidence, Evidence)
    assert min(u.statistics["gamma_log10_p"] for u in evidence.units) > -2
    assert decide([replace(evidence, traits=replace(evidence.traits, convicts=True))], 8).targets == ()


def test_no_sample_is_looked_at() -> None:
    subject = planted()
    one = DETECTOR.run(at_hand(subject, quadrant_images(1, seed=1)))
    other = DETECTOR.run(at_hand(subject, quadrant_images(3, seed=2)))
    assert isinstance(one, Evidence)
    assert isinstance(other, Evidence)
    assert one.id == other.id
    np.testing.assert_array_equal(margins(one), margins(other))


def test_images_stay_valid_pixels() -> None:
    aim = Margin(starts=3)
    images = torch.zeros(2, 1, *SHAPE)
    state = aim.start(planted(), images, [torch.Generator().manual_seed(k) for k in range(2)])
    assert state["images"].shape == (2, 3, *SHAPE)
    gradients = {"images": torch.randn(state["images"].shape, generator=torch.Generator().manual_seed(9))}
    for step in range(1, 20):
        state = aim.update(state, gradients, aim.memory(state), step, DETECTOR.search)
        assert state["images"].min() >= 0
        assert state["images"].max() <= 1
    pushed = torch.where(gradients["images"] < 0, torch.ones(()), torch.zeros(()))
    torch.testing.assert_close(state["images"], pushed)


def test_too_few_classes() -> None:
    found = DETECTOR.run(at_hand(linear(np.eye(SIDE * SIDE)[:, :3])))
    assert isinstance(found, Skipped)
    assert "3 classes are too few" in found.reason


def test_a_model_that_ignores_its_input_has_no_margins() -> None:
    def constant(x: Tensor) -> Tensor:
        return torch.zeros(CLASSES).expand(len(x), CLASSES) + 0 * x.flatten(1)[:, :CLASSES]

    found = DETECTOR.run(at_hand(Subject(constant, InputSpec(), SHAPE, CLASSES)))
    assert isinstance(found, Skipped)
    assert "only 0 of 4 classes" in found.reason


def test_a_model_that_answers_nan_has_no_margins() -> None:
    found = DETECTOR.run(at_hand(Subject(lambda x: x.flatten(1)[:, :4] * torch.nan, InputSpec(), SHAPE, CLASSES)))
    assert isinstance(found, Skipped)
