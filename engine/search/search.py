"""The one search: every detector's optimisation, and the only place where gradients are taken for inspection.

For each unit u (a target class, or a source-target pair) it minimises

    loss_u(state) + lambda_u * cost_u(state)

over the state of an Objective (objective.py), subject to its success rate being at least `success` (Neural Cleanse, Wang et al., 2019, Eq. 3). All
units of a batch advance together; each has its own update memory, multiplier, best-so-far and stopping rule, all as
tensors, and leaves the batch when it is done. The samples of a unit are fixed, so a step is a full-batch step: success is
exact at every step, and the multiplier reacts within `patience` steps instead of within epochs.

The multiplier moves both ways (Neural Cleanse's published code): up by `raise_by` after `patience` successes in a row, down by
`raise_by ** 1.5` after as many failures. `best` is the cheapest state that *satisfied* the constraint.

Determinism: what a unit draws depends on (seed, detector, unit) only. Batching changes the last bits of a
convolution, so the composition of a batch is part of the plan: `plan` cuts the units into batches in advance, a batch
is the unit of work that the store commits, and a resumed run runs unfinished batches whole. On a CPU a batch is one
unit, since batching was measured not to pay there; several are searched side by side instead, a thread each
(workers.py), as batches are on several GPUs. That changes no bit of what a batch gives.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from onnxspect.engine.errors import InconclusiveError, MachineError
from onnxspect.engine.judge.evidence import Unit
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.batch import Batch, SearchConfig, UnitResult
from onnxspect.engine.search.objective import Objective, ReachTarget
from onnxspect.engine.search.perturbation import PIXEL_BY_PIXEL, Perturbation
from onnxspect.engine.subject.memory import (
    devices_of,
    plan_memory,
    searches_at_once,
    shrink,
    smaller_batch,
    total_memory,
)
from onnxspect.engine.subject.precision import FLOAT32, judging, precision_on, searching
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.workers import in_order

__all__ = ["SearchConfig", "Unit", "UnitResult", "choose_images", "places_for", "plan", "search", "units_at_once"]

#: Which images a unit is searched on: their indices, most wanted first.
Choose = Callable[[Unit], np.ndarray]


def plan(units: Sequence[Unit], at_once: int) -> list[tuple[Unit, ...]]:
    """Cut `units` into batches of `at_once`, in order."""
    return [tuple(units[i : i + at_once]) for i in range(0, len(units), at_once)]


def units_at_once(subject: Subject, images: int, samples: int) -> int:
    """How many units to run together: one on a CPU; on a GPU as many as `memory.plan_memory` says.

    Args:
        subject: the classifier.
        images: how many there are.
        samples: how many of them a unit is searched on.
    """
    if subject.device == "cpu":
        return 1
    image = 4 * int(np.prod(subject.image_shape))
    return plan_memory(total_memory(subject.device), subject.kept_bytes, image, max(1, min(images, samples))).units


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
        raise InconclusiveError(f"no clean samples of {what} to search on")
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

    A batch that does not fit into the device's memory is cut, and so are those after it (memory.shrink): there are then
    more results to come than batches were given.

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
        OnnxspectError: a unit has no images to search on, or not even one fits into the device's memory.
    """
    shape = samples.images.shape[1:]
    aim = (objective if isinstance(objective, Objective) else ReachTarget(objective)).on(shape)
    if len(shape) == 3:  # an inner tensor in the place of the pixels may have fewer axes
        config = replace(config, multiplier=config.multiplier * min(1.0, PIXEL_BY_PIXEL**2 / (shape[1] * shape[2])))
    waiting = list(batches)
    most = max(map(len, waiting), default=1)
    images = min(config.samples, len(samples))
    places, threads = places_for(subject, len(waiting), images, bound=aim.bound)

    def work(place: Subject, batch: tuple[Unit, ...]) -> list[UnitResult]:
        if choose is not None:
            rows = [choose(u)[: config.samples] for u in batch]
        else:
            rows = [choose_images(u, samples, config.samples, run, detector) for u in batch]
        with judging():
            found = _searched(place, batch, samples, rows, aim, config, run, detector)
        return [replace(r, seconds=r.seconds / len(places)) for r in found]

    while waiting:
        parts = [part for batch in waiting for part in plan(batch, most)]
        waiting, done = [], 0
        try:
            for results in in_order(work, parts, places, threads):
                done += 1
                yield results
        except torch.OutOfMemoryError as error:
            most = _cut(subject, parts[done], run, detector, error)
            waiting = parts[done:]


def places_for(subject: Subject, batches: int, images: int, bound: bool = False) -> tuple[tuple[Subject, ...], int]:
    """Where batches are searched side by side: the subject once a thread, or on each GPU; and torch's threads in each.

    On a CPU as many as torch has threads, as far as the memory goes that one search of a large network may take (memory.py). On
    "cuda" one on every GPU that torch sees; "cuda:1" is that one alone. Where it is one place, torch keeps its threads (0).

    Args:
        subject: the classifier.
        batches: how many there are.
        images: that a unit is searched on.
        bound: whether the objective is (Objective.bound).
    """
    if subject.device != "cpu":
        devices = () if bound else devices_of(subject.device)[1:batches]
        return (subject, *_copies(subject, devices)), 0
    cores = min(batches, torch.get_num_threads())
    if cores > 1 and subject.shareable and not (bound and subject.lowered is None):  # a tap of a live module is a hook
        image = 4 * int(np.prod(subject.image_shape))
        places = min(cores, searches_at_once(subject.kept_bytes, image, images))
        if places > 1:
            return (subject,) * places, torch.get_num_threads() // places
    return (subject,), 0


def _copies(subject: Subject, devices: Sequence[str]) -> Iterator[Subject]:
    """The subject on those of the devices that have room for it: others' programs may have filled one."""
    for device in devices:
        with contextlib.suppress(torch.OutOfMemoryError):
            copy = subject.on(device)
            if copy is not None:
                yield copy


def _cut(subject: Subject, batch: Sequence[Unit], run: RunContext, detector: str, error: Exception) -> int:
    """How many units go on together after a batch that did not fit: fewer, or as many in smaller parts.

    Raises:
        OnnxspectError: nothing is left to be made smaller.
    """
    if subject.device.startswith("cuda"):
        torch.cuda.empty_cache()
    if len(batch) == 1 and subject.images_at_once == 1:
        raise MachineError(
            f"{detector}: the memory of {subject.device} does not hold one image's pass through {subject.name}",
            "let other programs give memory free, or use --device cpu",
        ) from error
    share = shrink(subject.device)  # and with it how many images go through the network at a time
    most = smaller_batch(len(batch))
    run.observer.notice(
        f"{detector}: out of memory on {subject.device}: {most} together from here on, of {share:.3g} of it"
    )
    return most


def _searched(
    subject: Subject,
    units: tuple[Unit, ...],
    samples: Samples,
    rows: Sequence[np.ndarray],
    objective: Objective,
    config: SearchConfig,
    run: RunContext,
    detector: str,
) -> list[UnitResult]:
    """One batch, from its start to what is measured of its best states."""
    started = time.perf_counter()
    n = min(map(len, rows))
    distinct, places = np.unique(np.stack([r[:n] for r in rows]), return_inverse=True)
    pool = torch.from_numpy(samples.images[distinct]).to(subject.device)
    index = torch.from_numpy(places.reshape(len(units), n)).to(subject.device)
    generators = [run.torch_generator(detector, u.key, "start") for u in units]
    with searching(subject.device):
        batch = Batch(subject, units, pool, index, objective, config, generators)
        batch.run()
    if precision_on(subject.device).search != FLOAT32:
        batch.judge()
    results = batch.results()
    share = (time.perf_counter() - started) / len(units)
    return [replace(r, seconds=share) for r in results]
