"""The loop's rules against the same rules by hand, one unit and one number at a time (Neural Cleanse, Wang et al., 2019, published code):
when lambda rises and falls, which state is kept, when a unit is done, and what is reported of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import CLASSES, SIDE
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import OPERATION_32
from torch import Tensor

from onnxspect.engine.judge.evidence import Unit
from onnxspect.engine.search.batch import Batch, Pace, SearchConfig, UnitResult
from onnxspect.engine.search.objective import Measured, Objective
from onnxspect.engine.search.perturbation import State
from onnxspect.engine.subject.subject import InputSpec, Subject

SUBJECT = Subject(lambda x: x.flatten(1)[:, :CLASSES], InputSpec(), (1, SIDE, SIDE), CLASSES, name="is not asked")
CONFIG = SearchConfig(steps=40, samples=1, success=0.75, multiplier=0.5, patience=2, settle=4, tolerance=0.1)
PACES = [Pace(1, 1.0), Pace(3, 0.5), Pace(7, 0.0)]


@dataclass(frozen=True)
class Moment:
    """What the objective says at one state: its cost, the share of images at the target, and whether the loss is a number."""

    cost: float
    success: float
    finite: bool = True


Script = Sequence[Moment]


class _Scripted(Objective):
    """A state is the number of the step that led to it; what is measured there stands in a script."""

    def __init__(self, scripts: Sequence[Script], at_target: float = 0.0, gradient: float = 1.0) -> None:
        self._scripts, self._there, self._gradient = scripts, at_target, gradient
        self.gradients: list[float] = []

    def start(self, subject: Subject, images: Tensor, generators: Sequence[torch.Generator]) -> State:
        # Which script is a unit's goes with it when units are packed together.
        return {"at": torch.stack([torch.zeros(len(images)), torch.arange(float(len(images)))], 1)}

    def at_target(self, subject: Subject, images: Tensor, targets: Tensor) -> Tensor:
        return torch.full((len(targets),), self._there)

    def measure(
        self, subject: Subject, state: State, constants: State, images: Tensor, targets: Tensor, multiplier: Tensor
    ) -> Measured:
        at = state["at"]
        here = [self._scripts[int(unit)][int(step)] for step, unit in at.detach().tolist()]
        loss = torch.tensor([0.0 if m.finite else math.nan for m in here]) + self._gradient * at[:, 0]
        cost = torch.tensor([m.cost for m in here]) + 0 * at[:, 0]
        return Measured(loss, cost, torch.tensor([m.success for m in here]))

    def update(self, state: State, gradients: State, memory: object, step: Tensor, settings: object) -> State:
        self.gradients += gradients["at"][:, 0].tolist()
        return {"at": state["at"] + torch.tensor([1.0, 0.0])}

    def trigger(self, state: State) -> State:
        return state


def searched(objective: Objective, units: int, config: SearchConfig, pace: Pace) -> list[UnitResult]:
    pool = torch.zeros(1, 1, SIDE, SIDE)
    some = [Unit(i % CLASSES) for i in range(units)]
    batch = Batch(
        SUBJECT,
        some,
        pool,
        torch.zeros(units, 1, dtype=torch.long),
        objective,
        config,
        [torch.Generator() for _ in some],
        pace,
    )
    batch.run()
    return batch.results()


def by_hand(script: Script, config: SearchConfig) -> dict[str, object]:
    """The same unit, as the published loop is written: plain numbers, one step after the other."""
    multiplier, wins, losses = config.multiplier, 0, 0
    best, kept, best_success, reference, at_reference = math.inf, None, 0.0, math.inf, 0
    fell, broken, settled, step, last = False, 0, False, 0, 0.0
    while step < config.steps and not settled and broken < config.patience:
        now = script[step]
        step += 1
        last = now.success
        broken = 0 if now.finite else broken + 1
        there = now.success >= config.success
        if there and now.finite and now.cost < best:
            best, kept, best_success = now.cost, step - 1, now.success
        if best < (1 - config.tolerance) * reference:
            reference, at_reference = best, step
        wins, losses = (wins + 1, 0) if there else (0, losses + 1)
        if wins == config.patience:
            multiplier, wins = multiplier * config.raise_by, 0
        if losses == config.patience:
            multiplier, losses = multiplier / config.raise_by**1.5, 0
            fell = fell or math.isfinite(best)
        settled = math.isfinite(best) if config.stop_at_success else fell and step - at_reference >= config.settle
    found = math.isfinite(best)
    return {
        "cost": best,
        "kept": kept if found else step,  # without a success it is the state at which the unit ended
        "success": best_success if found else last,
        "steps": step,
        "converged": settled and found,
        "diverged": broken >= config.patience,
        "multiplier": multiplier,
    }


def said(result: UnitResult) -> dict[str, object]:
    return {
        "cost": result.cost,
        "kept": int(result.trigger["at"][0]),
        "success": result.success,
        "steps": result.steps,
        "converged": result.converged,
        "diverged": result.diverged,
        "multiplier": result.multiplier,
    }


moments = st.builds(
    Moment,
    cost=st.floats(0.125, 8, width=32),
    success=st.sampled_from([0.0, 0.5, 0.75, 1.0]),
    finite=st.sampled_from([True] * 9 + [False]),
)
#: Stretches of one answer, so that streaks are as long as patience and settling ask.
scripts = st.lists(st.tuples(moments, st.integers(1, 6)), min_size=CONFIG.steps, max_size=CONFIG.steps).map(
    lambda runs: [replace(m, cost=m.cost / (1 + i)) for m, times in runs for i in range(times)][: CONFIG.steps + 1]
)


@settings(max_examples=60)
@given(
    st.lists(scripts, min_size=1, max_size=5),
    st.sampled_from(PACES),
    st.booleans(),
    st.integers(1, 3),
    st.integers(1, 6),
)
def test_every_rule_is_that_of_the_published_loop(
    several: list[list[Moment]], pace: Pace, stop: bool, patience: int, settle: int
) -> None:
    several = [[*s, *s[-1:] * (CONFIG.steps + 1 - len(s))] for s in several]
    config = replace(CONFIG, stop_at_success=stop, patience=patience, settle=settle)
    for script, result in zip(several, searched(_Scripted(several), len(several), config, pace), strict=True):
        expected = by_hand(script, config)
        assert said(result) == pytest.approx(expected, rel=OPERATION_32)


@pytest.mark.parametrize("gradient", [math.inf, -math.inf, math.nan])
def test_a_gradient_that_is_no_number_moves_nothing(gradient: float) -> None:
    scripted = _Scripted([[Moment(1, 1)] * 4], gradient=gradient)
    searched(scripted, 1, replace(CONFIG, steps=1, patience=9), PACES[0])
    assert scripted.gradients == [0.0]


@pytest.mark.parametrize(("there", "unneeded"), [(0.5, False), (0.75, True), (1.0, True)])
def test_a_target_that_the_images_reach_by_themselves_is_said(there: float, unneeded: bool) -> None:
    (result,) = searched(_Scripted([[Moment(1, 1)] * 9], at_target=there), 1, replace(CONFIG, steps=3), PACES[0])
    assert result.unneeded is unneeded


def test_what_is_published_is_the_default() -> None:
    """Wang et al.'s code: patience 5, lambda times 1.5 and divided by 1.5 ** 1.5, Adam at 0.1 with (0.5, 0.9), 99 % of the images."""
    config = SearchConfig()
    assert (config.patience, config.raise_by, config.success) == (5, 1.5, 0.99)
    assert (config.learning_rate, config.betas, config.multiplier) == (0.1, (0.5, 0.9), 1e-3)


@pytest.mark.parametrize(("device", "pace", "few"), [("cpu", (1, 1.0), (1, 1.0)), ("cuda:1", (16, 0.5), (2, 0.75))])
def test_a_cpu_is_looked_at_after_every_step(device: str, pace: tuple[int, float], few: tuple[int, float]) -> None:
    assert Pace.of(device) == Pace(*pace)
    assert Pace.of_few(device) == Pace(*few)
    assert Pace(1, 1.0).at_once
    assert not Pace(2, 1.0).at_once
    assert not Pace(1, 0.5).at_once
