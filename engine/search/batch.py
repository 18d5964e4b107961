"""The loop over gradient steps for one batch of units, on whatever device.

All that a step reads and writes are tensors that stay where they are (`_Loop`), so that the same step can be run by the host,
operation by operation, or be recorded once as a CUDA graph and replayed (engine/subject/stepper.py). A step asks the host
nothing: the host polls every so many steps which units are done (`Pace`). A unit that is done changes no more, and when enough
are, the others are packed together. On a CPU, where asking costs nothing, the host polls after every step.

Searched in a fast format (engine/subject/precision.py), a batch ends with `judge`: cost and success of every best state are
measured again in IEEE float32, and only that counts. A state that no longer satisfies the constraint has at most `WIN_BACK`
steps in float32 to satisfy it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxspect.engine.judge.evidence import Unit
from onnxspect.engine.search.objective import Measured, Memory, Objective
from onnxspect.engine.search.perturbation import State
from onnxspect.engine.subject.stepper import make_stepper
from onnxspect.engine.subject.subject import Subject

#: Steps in float32 that a best state, found in a fast format, has to satisfy the constraint again.
WIN_BACK = 40


@dataclass(frozen=True)
class SearchConfig:
    """How hard to search.

    Attributes:
        steps: at most so many gradient steps a unit.
        samples: images a unit is searched on (fewer where there are fewer).
        learning_rate, betas: Adam's; 0.1 and (0.5, 0.9) are the published Neural Cleanse code's.
        success: share of the images that must reach the target for a state to count (Neural Cleanse, Wang et al., 2019: 99 %).
        multiplier: lambda to start from.
        patience: successes (failures) in a row after which lambda rises (falls).
        raise_by: the factor it rises by; it falls by raise_by ** 1.5.
        settle: a unit stops when its best cost improved by less than `tolerance` over so many steps.
        tolerance: relative improvement that counts as one.
        stop_at_success: a unit is done as soon as it meets the constraint (RE's stopping rule); `settle` then does
            not apply, and the budget is the only other end.
    """

    steps: int = 400
    samples: int = 64
    learning_rate: float = 0.1
    betas: tuple[float, float] = (0.5, 0.9)
    success: float = 0.99
    multiplier: float = 1e-3
    patience: int = 5
    raise_by: float = 1.5
    settle: int = 40
    tolerance: float = 0.01
    stop_at_success: bool = False


@dataclass(frozen=True)
class UnitResult:
    """What the search found for one unit.

    Attributes:
        unit: the unit.
        cost: of the cheapest state that satisfied the constraint; inf where none did.
        success: share of the search images that this state sent to the target (of the last state where none did).
        steps: gradient steps taken.
        converged: the stopping rule was met within the budget.
        diverged: the loss became NaN or infinite and stayed so.
        trigger: arrays by name, without a unit axis.
        seconds: its share of the wall time.
        multiplier: lambda at the end.
        unneeded: as many of the search images as must reach the target are there without any perturbation: whatever was found,
            its size says nothing.
    """

    unit: Unit
    cost: float
    success: float
    steps: int
    converged: bool
    diverged: bool
    trigger: dict[str, np.ndarray] = field(repr=False)
    seconds: float = 0.0
    multiplier: float = 0.0
    unneeded: bool = False

    @property
    def found(self) -> bool:
        """Whether any state satisfied the constraint."""
        return bool(np.isfinite(self.cost))


@dataclass(frozen=True)
class Pace:
    """How often the host polls a batch, and when it packs it anew.

    Attributes:
        poll_every: steps from one poll to the next.
        pack_at: the units that are left are packed together when they are at most this share of those that there were.
    """

    poll_every: int
    pack_at: float

    @property
    def at_once(self) -> bool:
        """Whether a unit leaves the batch at the very step at which it is done."""
        return self.poll_every == 1 and self.pack_at >= 1

    @classmethod
    def of(cls, device: str) -> Pace:
        """After every step on a CPU; on a GPU, whose queue a poll empties, after sixteen."""
        return cls(1, 1.0) if device == "cpu" else cls(16, 0.5)

    @classmethod
    def of_few(cls, device: str) -> Pace:
        """For a few steps that may end at once, and are slow beside a look: in float32 on a GPU."""
        return cls(1, 1.0) if device == "cpu" else cls(2, 0.75)


@dataclass
class _Loop:
    """The tensors of a batch. The leading axis is the unit, but for `pool` (images) and `step` (none).

    Attributes:
        pool: distinct images ``(image, channels, height, width)``.
        index: ``(unit, n)``, each unit's images in the pool.
        place: position of the unit among those that the search began with.
        state, best: now, and the cheapest that satisfied the constraint.
        memory: of the update rule.
        step: number of steps taken, float64.
        reference: best cost when it last improved by `tolerance`, at step `reference_step`.
        streak: successes in a row if positive, failures if negative.
        fell: lambda was too high at least once: the constraint has been felt.
        broken: steps in a row with a loss that is not finite.
        active: not done; `settled` and `steps` are those of the moment when the unit was done.
    """

    pool: Tensor
    index: Tensor
    place: Tensor
    targets: Tensor
    state: State
    best: State
    constants: State
    memory: Memory
    step: Tensor
    multiplier: Tensor
    best_cost: Tensor
    best_success: Tensor
    last_success: Tensor
    reference: Tensor
    reference_step: Tensor
    streak: Tensor
    fell: Tensor
    broken: Tensor
    active: Tensor
    settled: Tensor
    steps: Tensor

    @classmethod
    def start(
        cls, pool: Tensor, index: Tensor, targets: Tensor, state: State, constants: State, memory: Memory
    ) -> _Loop:
        """Before the first step."""
        zeros = torch.zeros(len(index), device=pool.device)
        never = torch.full_like(zeros, torch.inf)
        return cls(
            pool=pool,
            index=index,
            place=torch.arange(len(index), device=pool.device),
            targets=targets,
            state=state,
            best={k: v.detach().clone() for k, v in state.items()},
            constants=constants,
            memory=memory,
            step=torch.zeros((), dtype=torch.float64, device=pool.device),
            multiplier=zeros.clone(),
            best_cost=never,
            best_success=zeros.clone(),
            last_success=zeros.clone(),
            reference=never.clone(),
            reference_step=zeros.clone(),
            streak=zeros.clone(),
            fell=zeros.bool(),
            broken=zeros.clone(),
            active=torch.ones_like(zeros, dtype=torch.bool),
            settled=zeros.bool(),
            steps=zeros.clone(),
        )

    def images(self) -> Tensor:
        """``(unit, n, channels, height, width)``, gathered from the pool."""
        return self.pool[self.index]

    def rows(self, rows: Tensor) -> _Loop:
        """Some of the units, in tensors of their own."""
        return _Loop(**{f.name: _taken(getattr(self, f.name), rows, f.name) for f in fields(self)})


def _taken(value: Any, rows: Tensor, name: str) -> Any:
    if name in ("pool", "step"):
        return value
    if isinstance(value, Tensor):
        return value[rows]
    return {k: tuple(m[rows] for m in v) if isinstance(v, tuple) else v.detach()[rows] for k, v in value.items()}


def _joined(parts: Sequence[_Loop]) -> _Loop:
    """The units of all parts, in the order that the search began with."""
    if len(parts) == 1:
        return parts[0]
    order = torch.cat([p.place for p in parts]).argsort()

    def together(name: str) -> Any:
        values = [getattr(p, name) for p in parts]
        if name in ("pool", "step"):
            return values[-1]
        if isinstance(values[0], Tensor):
            return torch.cat(values)[order]
        return {
            k: tuple(torch.cat([v[k][i] for v in values])[order] for i in range(len(first)))
            if isinstance(first, tuple)
            else torch.cat([v[k] for v in values])[order]
            for k, first in values[0].items()
        }

    return _Loop(**{f.name: together(f.name) for f in fields(_Loop)})


def _along(units: Tensor, like: Tensor) -> Tensor:
    """A mask ``(unit,)`` in the shape that it chooses rows of `like` with."""
    return units.view(-1, *[1] * (like.ndim - 1))


class Batch:
    """One batch of units under search.

    Args:
        subject: the classifier.
        units: what is searched.
        pool: distinct images ``(image, channels, height, width)``, on the subject's device.
        index: ``(unit, n)``, each unit's images in the pool.
        objective: what is optimised.
        config: how hard.
        generators: one a unit, of its start.
        pace: how often the host polls; by default as the device has it.
    """

    def __init__(
        self,
        subject: Subject,
        units: Sequence[Unit],
        pool: Tensor,
        index: Tensor,
        objective: Objective,
        config: SearchConfig,
        generators: Sequence[torch.Generator],
        pace: Pace | None = None,
    ) -> None:
        self.subject, self.units, self.objective, self.config = subject, units, objective, config
        self.pace = pace or Pace.of(subject.device)
        images = pool[index]
        state = {k: v.to(pool.device) for k, v in objective.start(subject, images, generators).items()}
        targets = torch.tensor([u.target for u in units], device=pool.device)
        constants = objective.constants(subject, images)
        self._unneeded = objective.at_target(subject, images, targets) >= config.success
        self._loop = _Loop.start(pool, index, targets, state, constants, objective.memory(state))
        self._loop.multiplier.fill_(config.multiplier)

    def run(self) -> None:
        """All steps of all units."""
        self._loop = self._run(self._loop, self.config, self.pace)

    def judge(self) -> None:
        """Measure every best state again in the precision that holds now; win back those that fall short."""
        end = self._loop
        found = torch.isfinite(end.best_cost)
        if not bool(found.any()):
            return
        # Some objectives hook gradients: they are measured as in a step, and the graph is dropped.
        again = self._measure(end, {k: v.detach().requires_grad_(True) for k, v in end.best.items()})
        end.best_cost = torch.where(found, again.cost.detach(), end.best_cost)
        end.best_success = torch.where(found, again.success, end.best_success)
        lost = found & ~(again.success >= self.config.success)
        del again
        if bool(lost.any()):
            self._win_back(lost)

    def _win_back(self, lost: Tensor) -> None:
        """A few steps more for the units `lost`, from their best states, until each meets the constraint again."""
        end, config = self._loop, self.config
        short = end.rows(lost)
        restarted = _Loop.start(
            end.pool, short.index, short.targets, short.best, short.constants, self.objective.memory(short.best)
        )
        restarted.multiplier.copy_(short.multiplier / config.raise_by**1.5)
        won = self._run(
            restarted, replace(config, steps=WIN_BACK, stop_at_success=True), Pace.of_few(self.subject.device)
        )
        end.best_cost[lost], end.best_success[lost] = won.best_cost, won.best_success
        end.last_success[lost] = won.last_success
        end.steps[lost] += won.steps
        for name, tensor in end.best.items():
            tensor[lost] = won.best[name]

    def results(self) -> list[UnitResult]:
        """Of every unit, in the order of the units; without seconds."""
        end = self._loop
        found = torch.isfinite(end.best_cost)
        state = {k: torch.where(_along(found, v), end.best[k], v.detach()) for k, v in end.state.items()}
        arrays = {k: v.float().cpu().numpy() for k, v in self.objective.trigger(state).items()}
        cost, steps, multiplier = (v.tolist() for v in (end.best_cost, end.steps, end.multiplier))
        success = torch.where(found, end.best_success, end.last_success).tolist()
        unneeded = self._unneeded.tolist()
        converged, diverged = (end.settled & found).tolist(), (end.broken >= self.config.patience).tolist()
        return [
            UnitResult(
                unit=unit,
                cost=cost[i],
                success=success[i],
                steps=int(steps[i]),
                converged=converged[i],
                diverged=diverged[i],
                trigger={k: a[i].copy() for k, a in arrays.items()},
                multiplier=multiplier[i],
                unneeded=unneeded[i],
            )
            for i, unit in enumerate(self.units)
        ]

    def _run(self, loop: _Loop, config: SearchConfig, pace: Pace) -> _Loop:
        """The loop's units when all are done, in their order."""
        ended: list[_Loop] = []
        taken = 0
        while True:
            images = loop.images() if self.subject.device == "cpu" else None
            step = make_stepper(
                partial(self._step, loop, config, pace, images),
                self.subject.module,
                self.subject.device,
                config.steps - taken,
            )
            units = left = len(loop.active)
            while taken < config.steps and (left == units or left > pace.pack_at * units):
                for _ in range(min(pace.poll_every, config.steps - taken)):
                    step()
                    taken += 1
                left = int(loop.active.sum())
            del step  # and with it what a recorded step holds in memory
            if not left or taken == config.steps:
                return _joined([*ended, loop])
            ended.append(loop.rows(~loop.active))
            loop = loop.rows(loop.active)

    def _measure(self, loop: _Loop, state: State, images: Tensor | None = None) -> Measured:
        """The objective at `state`, differentiable with respect to it."""
        pixels = loop.images() if images is None else images
        return self.objective.measure(self.subject, state, loop.constants, pixels, loop.targets, loop.multiplier)

    def _step(self, loop: _Loop, config: SearchConfig, pace: Pace, images: Tensor | None) -> None:
        """One gradient step of every unit that is not done; asks the host nothing."""
        leaves = {k: v.detach().requires_grad_(True) for k, v in loop.state.items()}
        found = self._measure(loop, leaves, images)
        losses = found.loss + loop.multiplier * found.cost
        gradients = torch.autograd.grad(losses.sum(), list(leaves.values()))
        with torch.no_grad():
            loop.step.add_(1)
            active = None if pace.at_once else loop.active
            finite = torch.isfinite(losses)
            _put(loop.broken, torch.where(finite, torch.zeros_like(loop.broken), loop.broken + 1), active)
            _remember(loop, config, found, finite, active)
            _adapt(loop, config, found.success, active)
            clean = {  # a gradient that is not finite moves nothing
                k: torch.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0) for k, g in zip(leaves, gradients, strict=True)
            }
            moved = self.objective.update(loop.state, clean, loop.memory, loop.step, config)
            for name, tensor in moved.items():
                _put(loop.state[name], tensor, active)
            if config.stop_at_success:
                settled = torch.isfinite(loop.best_cost)
            else:  # the best cost has stopped improving after lambda had been pushed too high at least once
                settled = loop.fell & (loop.step - loop.reference_step >= config.settle)
            _put(loop.settled, settled, active)
            _put(loop.steps, loop.step.float().expand_as(loop.steps), active)
            loop.active &= ~(settled | (loop.broken >= config.patience))


def _put(there: Tensor, value: Tensor, active: Tensor | None) -> None:
    """Write `value` where it stays, for the units that are not done (all, where None)."""
    there.copy_(value if active is None else torch.where(_along(active, there), value, there))


def _remember(loop: _Loop, config: SearchConfig, found: Measured, finite: Tensor, active: Tensor | None) -> None:
    """Keep the cheapest state that satisfies the constraint."""
    better = (found.success >= config.success) & finite & (found.cost < loop.best_cost)
    if active is not None:
        better &= active
    for name, tensor in loop.state.items():
        best = loop.best[name]
        best.copy_(torch.where(_along(better, tensor), tensor, best))
    loop.best_cost.copy_(torch.where(better, found.cost, loop.best_cost))
    loop.best_success.copy_(torch.where(better, found.success, loop.best_success))
    improved = loop.best_cost < loop.reference * (1 - config.tolerance)
    improved |= torch.isfinite(loop.best_cost) & ~torch.isfinite(loop.reference)
    loop.reference.copy_(torch.where(improved, loop.best_cost, loop.reference))
    loop.reference_step.copy_(torch.where(improved, loop.step.float(), loop.reference_step))
    _put(loop.last_success, found.success, active)


def _adapt(loop: _Loop, config: SearchConfig, success: Tensor, active: Tensor | None) -> None:
    """The dynamic multiplier, both directions."""
    ok = success >= config.success
    streak = torch.where(ok, loop.streak.clamp(min=0) + 1, loop.streak.clamp(max=0) - 1)
    up, down = streak >= config.patience, streak <= -config.patience
    multiplier = torch.where(up, loop.multiplier * config.raise_by, loop.multiplier)
    multiplier = torch.where(down, multiplier / config.raise_by**1.5, multiplier)
    _put(loop.multiplier, multiplier, active)
    _put(loop.fell, loop.fell | (down & torch.isfinite(loop.best_cost)), active)
    _put(loop.streak, torch.where(up | down, torch.zeros_like(streak), streak), active)
