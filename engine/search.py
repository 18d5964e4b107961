"""The one search: every detector's optimisation, and the only place where gradients are taken for inspection.

For each unit u (a target class, or a source-target pair) it minimises

    loss_u(state) + lambda_u * cost_u(state)

over the state of an Objective (objective.py), subject to its success rate being at least `success` (002, Eq. 3). All
units of a batch advance together; each has its own update memory, multiplier, best-so-far and stopping rule, all as
tensors, and leaves the batch when it is done. The samples of a unit are fixed, so a step is a full-batch step: success is
exact at every step, and the multiplier reacts within `patience` steps instead of within epochs.

The multiplier moves both ways (002's published code): up by `raise_by` after `patience` successes in a row, down by
`raise_by ** 1.5` after as many failures. `best` is the cheapest state that *satisfied* the constraint.

Determinism: what a unit draws depends on (seed, detector, unit) only. Batching changes the last bits of a
convolution, so the composition of a batch is part of the plan: `plan` cuts the units into batches in advance, a batch
is the unit of work that the store commits, and a resumed run runs unfinished batches whole. On a CPU a batch is one
unit, since batching was measured not to pay there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.evidence import Unit
from onnxspect.engine.objective import Objective, ReachTarget
from onnxspect.engine.perturbation import Perturbation
from onnxspect.engine.run import RunContext
from onnxspect.engine.samples import Samples
from onnxspect.engine.subject import Subject


@dataclass(frozen=True)
class SearchConfig:
    """How hard to search.

    Attributes:
        steps: at most so many gradient steps a unit.
        samples: images a unit is searched on (fewer where there are fewer).
        learning_rate, betas: Adam's; 0.1 and (0.5, 0.9) are the published Neural Cleanse code's.
        success: share of the images that must reach the target for a state to count (002: 99 %).
        multiplier: lambda to start from.
        patience: successes (failures) in a row after which lambda rises (falls).
        raise_by: the factor it rises by; it falls by raise_by ** 1.5.
        settle: a unit stops when its best cost improved by less than `tolerance` over so many steps.
        tolerance: relative improvement that counts as one.
        stop_at_success: a unit is done as soon as it meets the constraint (000's stopping rule); `settle` then does
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


#: More images at a time make a GPU no faster.
IN_FLIGHT = 8192
#: Which images a unit is searched on: their indices, most wanted first.
Choose = Callable[[Unit], np.ndarray]


def plan(units: Sequence[Unit], at_once: int) -> list[tuple[Unit, ...]]:
    """Cut `units` into batches of `at_once`, in order."""
    return [tuple(units[i : i + at_once]) for i in range(0, len(units), at_once)]


def units_at_once(subject: Subject, images: int, samples: int) -> int:
    """How many units to run together: one on a CPU; on a GPU as many as fit its memory, up to IN_FLIGHT images.

    Args:
        subject: the classifier.
        images: how many there are.
        samples: how many of them a unit is searched on.
    """
    if subject.device == "cpu":
        return 1
    return max(1, min(IN_FLIGHT, subject.images_at_once) // max(1, min(images, samples)))


def choose_images(unit: Unit, samples: Samples, n: int, run: RunContext, detector: str) -> np.ndarray:
    """Indices of the images a unit is searched on: of its source class, or of all classes but the target.

    Drawn class by class in turn, so that n images represent the classes evenly.
    """
    rng = run.numpy_generator(detector, unit.key, "images")
    classes = [unit.source] if unit.source is not None else [c for c in np.unique(samples.labels) if c != unit.target]
    by_class = np.argsort(samples.labels, kind="stable")
    edges = np.searchsorted(samples.labels[by_class], [(c, c + 1) for c in classes])
    queues = [rng.permutation(by_class[first:last]) for first, last in edges]
    order = rng.permutation(len(queues))
    rounds = max((len(q) for q in queues), default=0)
    picked: list[int] = []
    for r in range(rounds):
        picked += [int(queues[i][r]) for i in order if r < len(queues[i])]
        if len(picked) >= n:
            break
    if not picked:
        what = f"class {unit.source}" if unit.source is not None else f"any class but {unit.target}"
        raise OnnxspectError(f"no clean samples of {what} to search on", inconclusive=True)
    return np.array(picked[:n])


def search(
    subject: Subject,
    samples: Samples,
    batches: Sequence[tuple[Unit, ...]],
    objective: Objective | Perturbation,
    config: SearchConfig,
    run: RunContext,
    detector: str,
    choose: Choose | None = None,
) -> Iterator[list[UnitResult]]:
    """Search every batch of units; yield its results as soon as the batch is done.

    Args:
        subject: the classifier.
        samples: clean images to search on.
        batches: what `plan` made (without those that an earlier run finished).
        objective: what is optimised; a Perturbation stands for ReachTarget with it.
        config: how hard.
        run: the seed.
        detector: the name under which randomness is drawn.
        choose: which images a unit is searched on; `choose_images` by default.

    Raises:
        OnnxspectError: a unit has no images to search on.
    """
    aim = objective if isinstance(objective, Objective) else ReachTarget(objective)
    for batch in batches:
        if choose is not None:
            rows = [choose(u)[: config.samples] for u in batch]
        else:
            rows = [choose_images(u, samples, config.samples, run, detector) for u in batch]
        n = min(map(len, rows))
        images = torch.from_numpy(np.stack([samples.images[r[:n]] for r in rows])).to(subject.device)
        generators = [run.torch_generator(detector, u.key, "start") for u in batch]
        yield _Batch(subject, batch, images, aim, config, generators).run()


class _Batch:
    """The loop's state for one batch of units; `alive` maps rows of the tensors to positions in the batch."""

    def __init__(
        self,
        subject: Subject,
        units: tuple[Unit, ...],
        images: Tensor,
        objective: Objective,
        config: SearchConfig,
        generators: Sequence[torch.Generator],
    ) -> None:
        n_units, device = len(units), images.device
        self.subject, self.units, self.objective, self.config = subject, units, objective, config
        self.images = images
        self.state = {k: v.to(device) for k, v in objective.start(subject, images, generators).items()}
        self.constants = objective.constants(subject, images)
        self.memory = objective.memory(self.state)
        self.targets = torch.tensor([u.target for u in units], device=device)
        self.unneeded = objective.at_target(subject, images, self.targets) >= config.success
        self.best = {k: v.detach().clone() for k, v in self.state.items()}
        self.alive = torch.arange(n_units, device=device)
        zeros = torch.zeros(n_units, device=device)
        self.multiplier = torch.full_like(zeros, config.multiplier)
        self.best_cost = torch.full_like(zeros, torch.inf)
        self.best_success = zeros.clone()
        self.last_success = zeros.clone()
        self.reference = torch.full_like(zeros, torch.inf)  # best cost when it last improved by `tolerance`
        self.reference_step = zeros.clone()
        self.streak = zeros.clone()  # successes in a row if positive, failures if negative
        self.fell = zeros.bool()  # lambda was too high at least once: the constraint has been felt
        self.broken = zeros.clone()  # steps in a row with a loss that is not finite

    def run(self) -> list[UnitResult]:
        """All steps; results in the order of the units."""
        started = time.perf_counter()
        results: dict[int, UnitResult] = {}
        for step in range(1, self.config.steps + 1):
            done = self._step(step)
            if step == self.config.steps:
                done = torch.ones_like(done)
            if bool(done.any()):
                converged = self._settled(step)
                for row in torch.nonzero(done).flatten().tolist():
                    results[int(self.alive[row])] = self._result(row, step, bool(converged[row]))
                if bool(done.all()):
                    break
                self._keep(~done)
        share = (time.perf_counter() - started) / len(self.units)
        return [replace(results[i], seconds=share) for i in range(len(self.units))]

    def _step(self, step: int) -> Tensor:
        """One gradient step of every unit that is alive; returns which of them are done."""
        for tensor in self.state.values():
            tensor.requires_grad_(True)
        found = self.objective.measure(
            self.subject, self.state, self.constants, self.images, self.targets, self.multiplier
        )
        losses = found.loss + self.multiplier * found.cost
        gradients = torch.autograd.grad(losses.sum(), list(self.state.values()))
        with torch.no_grad():
            finite = torch.isfinite(losses)
            self.broken = torch.where(finite, torch.zeros_like(self.broken), self.broken + 1)
            self._remember(found.success, found.cost, finite, step)
            self._adapt(found.success)
            clean = {  # a gradient that is not finite moves nothing
                k: torch.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0)
                for k, g in zip(self.state, gradients, strict=True)
            }
            self.state = self.objective.update(self.state, clean, self.memory, step, self.config)
        return self._settled(step) | (self.broken >= self.config.patience)

    def _remember(self, success: Tensor, cost: Tensor, finite: Tensor, step: int) -> None:
        satisfied = (success >= self.config.success) & finite
        better = satisfied & (cost < self.best_cost)
        for name, tensor in self.state.items():
            where = better.view(-1, *[1] * (tensor.ndim - 1))
            self.best[name] = torch.where(where, tensor.detach(), self.best[name])
        self.best_cost = torch.where(better, cost, self.best_cost)
        self.best_success = torch.where(better, success, self.best_success)
        improved = self.best_cost < self.reference * (1 - self.config.tolerance)
        improved |= torch.isfinite(self.best_cost) & ~torch.isfinite(self.reference)
        self.reference = torch.where(improved, self.best_cost, self.reference)
        self.reference_step = torch.where(improved, torch.full_like(self.reference_step, step), self.reference_step)
        self.last_success = success

    def _adapt(self, success: Tensor) -> None:
        """The dynamic multiplier, both directions."""
        c = self.config
        ok = success >= c.success
        self.streak = torch.where(ok, self.streak.clamp(min=0) + 1, self.streak.clamp(max=0) - 1)
        up, down = self.streak >= c.patience, self.streak <= -c.patience
        self.multiplier = torch.where(up, self.multiplier * c.raise_by, self.multiplier)
        self.multiplier = torch.where(down, self.multiplier / c.raise_by**1.5, self.multiplier)
        self.fell |= down & torch.isfinite(self.best_cost)
        self.streak = torch.where(up | down, torch.zeros_like(self.streak), self.streak)

    def _settled(self, step: int) -> Tensor:
        """Units whose best cost has stopped improving after lambda had been pushed too high at least once."""
        if self.config.stop_at_success:
            return torch.isfinite(self.best_cost)
        return self.fell & (step - self.reference_step >= self.config.settle)

    def _result(self, row: int, step: int, converged: bool) -> UnitResult:
        found = bool(torch.isfinite(self.best_cost[row]))
        state = {k: (self.best if found else self.state)[k][row : row + 1].detach() for k in self.state}
        trigger = {k: v[0].float().cpu().numpy() for k, v in self.objective.trigger(state).items()}
        return UnitResult(
            unit=self.units[int(self.alive[row])],
            cost=float(self.best_cost[row]),
            success=float(self.best_success[row] if found else self.last_success[row]),
            steps=step,
            converged=converged and found,
            diverged=bool(self.broken[row] >= self.config.patience),
            trigger=trigger,
            multiplier=float(self.multiplier[row]),
            unneeded=bool(self.unneeded[row]),
        )

    def _keep(self, rows: Tensor) -> None:
        """Drop the finished units from every tensor."""
        self.state = {k: v.detach()[rows] for k, v in self.state.items()}
        self.best = {k: v[rows] for k, v in self.best.items()}
        self.constants = {k: v[rows] for k, v in self.constants.items()}
        self.memory = {k: tuple(m[rows] for m in kept) for k, kept in self.memory.items()}
        for name in (
            "images",
            "targets",
            "unneeded",
            "alive",
            "multiplier",
            "best_cost",
            "best_success",
            "last_success",
        ):
            setattr(self, name, getattr(self, name)[rows])
        for name in ("reference", "reference_step", "streak", "fell", "broken"):
            setattr(self, name, getattr(self, name)[rows])
