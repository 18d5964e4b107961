"""The loop over steps: how often the host looks, what happens when memory runs out, and how much is planned at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CLASSES, SIDE, quadrant_images, quadrant_weights
from hypothesis import given
from hypothesis import strategies as st
from tolerances import NETWORK_32, SEARCHED_COST, SUM_32
from torch import Tensor

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.evidence import Unit
from onnxspect.engine.run import RunContext, Silent
from onnxspect.engine.search.batch import Batch, Pace, SearchConfig, UnitResult
from onnxspect.engine.search.objective import ReachTarget
from onnxspect.engine.search.perturbation import MaskPattern
from onnxspect.engine.search.search import choose_images, plan, search
from onnxspect.engine.subject import memory
from onnxspect.engine.subject.memory import (
    COPIES,
    GPU_SHARE,
    IMAGE_SHARE,
    IN_FLIGHT,
    STATE_IMAGES,
    memory_share,
    plan_memory,
    smaller_batch,
)
from onnxspect.engine.subject.subject import InputSpec, Subject

ALL = [Unit(t) for t in range(CLASSES)]
CONFIG = SearchConfig(steps=90, samples=12, settle=12)
GIB = 2**30


def linear(forward: object = None) -> Subject:
    weights = torch.from_numpy(quadrant_weights(2))
    plain = lambda x: x.flatten(1) @ weights
    return Subject(forward or plain, InputSpec(), (1, SIDE, SIDE), CLASSES, name="tiny")  # type: ignore[arg-type]


def searched(pace: Pace, config: SearchConfig = CONFIG) -> list[UnitResult]:
    samples, run = quadrant_images(12), RunContext()
    rows = np.stack([choose_images(u, samples, config.samples, run, "test") for u in ALL])
    distinct, places = np.unique(rows, return_inverse=True)
    batch = Batch(
        linear(),
        ALL,
        torch.from_numpy(samples.images[distinct]),
        torch.from_numpy(places.reshape(rows.shape)),
        ReachTarget(MaskPattern()),
        config,
        [run.torch_generator("test", u.key, "start") for u in ALL],
        pace,
    )
    batch.run()
    return batch.results()


@pytest.mark.parametrize("stop_at_success", [False, True])
@pytest.mark.parametrize("pace", [Pace(1, 0.0), Pace(7, 1.0), Pace(16, 0.5), Pace(1000, 0.5)])
def test_how_often_the_host_looks_changes_nothing(pace: Pace, stop_at_success: bool) -> None:
    """A unit that is done stays as it was at that moment, however long it is carried along."""
    config = replace(CONFIG, stop_at_success=stop_at_success)
    for seldom, always in zip(searched(pace, config), searched(Pace(1, 1.0), config), strict=True):
        assert replace(seldom, trigger={}, cost=0.0) == replace(always, trigger={}, cost=0.0)
        # float32: a matrix product of a larger batch may differ in its last bits
        assert seldom.cost == pytest.approx(always.cost, rel=NETWORK_32)
        np.testing.assert_allclose(seldom.trigger["mask"], always.trigger["mask"], atol=SEARCHED_COST)


def test_judging_wins_back_what_falls_short() -> None:
    """A best state that no longer leads all images to the target goes on until it does, and costs what it then costs."""
    samples, run = quadrant_images(12), RunContext()
    rows = np.stack([choose_images(u, samples, 12, run, "test") for u in ALL])
    generators = [run.torch_generator("test", u.key, "start") for u in ALL]
    pool, index = torch.from_numpy(samples.images), torch.from_numpy(rows)
    batch = Batch(linear(), ALL, pool, index, ReachTarget(MaskPattern()), CONFIG, generators)
    batch.run()
    before = batch.results()
    for tensor in batch._loop.best.values():  # as if a coarser format had flattered it
        tensor.mul_(0.5)
    batch._loop.best["mask"].sub_(1.5)
    batch.judge()
    for a, b in zip(before, batch.results(), strict=True):
        assert b.found
        assert b.success >= CONFIG.success
        assert b.steps > a.steps
        assert b.cost == pytest.approx(b.trigger["mask"].sum(), rel=SUM_32)


class Failing:
    """A network whose memory runs out at its n-th pass."""

    def __init__(self, nth: int, units: int | None = None) -> None:
        self.nth, self.calls, self.units = nth, 0, units
        self.weights = torch.from_numpy(quadrant_weights(2))

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.nth or (self.units is not None and len(x) > self.units * 12):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return x.flatten(1) @ self.weights


@pytest.fixture
def shares() -> Iterator[list[float]]:
    halved: list[float] = []
    with memory_share("cpu", 1.0, lambda _, share: halved.append(share)):
        yield halved
    assert memory._share == {}


def results(subject: Subject, batches: list[tuple[Unit, ...]], steps: int = 8) -> list[list[UnitResult]]:
    assert subject.kept_bytes > 0  # measured by two passes of its own
    config = replace(CONFIG, steps=steps)
    return list(search(subject, quadrant_images(12), batches, MaskPattern(), config, RunContext(), "test"))


@pytest.mark.parametrize("nth", range(3, 13))
def test_memory_that_runs_out_at_any_pass_halves_the_batch_and_goes_on(nth: int, shares: list[float]) -> None:
    found = results(linear(Failing(nth)), [tuple(ALL)])
    cut = nth <= 2 + 1 + 8  # two passes measured, one of the images as they are, eight steps searched
    assert [len(f) for f in found] == ([2, 2] if cut else [4])
    assert shares == ([0.5] if cut else [])
    assert [r.unit for f in found for r in f] == ALL


def test_batches_behind_one_that_did_not_fit_are_cut_as_it_was(shares: list[float]) -> None:
    units = [Unit(t, None, str(i)) for i in range(4) for t in range(CLASSES)]
    network = Failing(0, units=2)
    found = results(linear(network), plan(units, 8))
    assert [len(f) for f in found] == [2] * 8
    assert shares == [0.5, 0.25]
    assert [r.unit for f in found for r in f] == units
    # A resumed scan plans with what is left and cuts the same batches.
    assert plan(units, smaller_batch(smaller_batch(8))) == [tuple(r.unit for r in f) for f in found]


def test_one_unit_that_did_not_fit_goes_on_in_smaller_parts(shares: list[float]) -> None:
    network = Failing(5)
    subject = linear(network)
    before = subject.images_at_once
    found = results(subject, [(Unit(0),), (Unit(1),)])
    assert [[r.unit for r in f] for f in found] == [[Unit(0)], [Unit(1)]]
    assert subject.images_at_once < before
    assert shares[-1] < 1


def test_a_later_batch_that_did_not_fit_is_searched_from_there_on(shares: list[float]) -> None:
    """Those before it are done, and are not searched again."""
    units = [(Unit(0), Unit(1)), (Unit(2), Unit(3))]
    found = results(
        linear(Failing(2 + 9 + 3)), units
    )  # two passes measured, nine of the first batch, some of the second
    assert [[r.unit for r in f] for f in found] == [[Unit(0), Unit(1)], [Unit(2)], [Unit(3)]]
    assert shares == [0.5]


@pytest.mark.usefixtures("shares")
def test_memory_that_never_suffices_is_an_error_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Failing(0)
    subject = linear(network)
    assert subject.kept_bytes > 0
    monkeypatch.setattr(network, "units", 0)
    with pytest.raises(OnnxspectError, match="does not hold one image") as caught:
        results(subject, [tuple(ALL)])
    assert "--device cpu" in caught.value.hint
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.usefixtures("shares")
def test_the_observer_hears_of_it() -> None:
    notices: list[str] = []

    class Heard(Silent):
        def notice(self, text: str) -> None:
            notices.append(text)

    subject = linear(Failing(5))
    assert subject.kept_bytes > 0
    run = RunContext(observer=Heard())
    list(search(subject, quadrant_images(12), [tuple(ALL)], MaskPattern(), replace(CONFIG, steps=4), run, "test"))
    assert len(notices) == 1
    assert "out of memory" in notices[0]


@given(
    st.integers(2, 141),
    st.integers(1, 2**32),
    st.integers(1, 4 * 3 * 512 * 512),
    st.integers(1, 512),
)
def test_the_plan_never_takes_more_than_its_shares(gib: int, kept: int, image: int, samples: int) -> None:
    found = plan_memory(gib * GIB, kept, image, samples)
    assert found.units >= 1
    assert found.units & (found.units - 1) == 0
    assert found.images >= 1
    if found.images > 1:
        assert found.images * kept <= GPU_SHARE * gib * GIB
    if found.units > 1:
        assert found.units * samples <= min(IN_FLIGHT, found.images)
        assert found.units * (COPIES * samples + STATE_IMAGES) * image <= IMAGE_SHARE * gib * GIB
    half = plan_memory(gib * GIB // 2, kept, image, samples)
    assert half.units <= found.units
    assert half.images <= found.images


@pytest.mark.parametrize(
    ("gib", "kept_mib", "side", "samples", "units", "images"),
    [  # a wide ResNet-18 at 32 pixels; EfficientNet-Lite0 and a ResNet-50 at 224
        (2, 2.2, 32, 48, 8, 465),
        (8, 2.2, 32, 48, 32, 1861),
        (79, 2.2, 32, 48, 128, 18385),
        (141, 2.2, 32, 48, 128, 32814),
        (2, 60, 224, 24, 1, 17),
        (16, 60, 224, 24, 4, 136),
        (79, 60, 224, 24, 16, 674),
        (79, 107, 224, 24, 8, 378),
        (141, 107, 224, 48, 8, 674),
    ],
)
def test_plans_for_invented_memories(
    gib: int, kept_mib: float, side: int, samples: int, units: int, images: int
) -> None:
    found = plan_memory(gib * GIB, int(kept_mib * 2**20), 4 * 3 * side * side, samples)
    assert (found.units, found.images) == (units, images)


def test_a_smaller_batch_is_half_of_a_power_of_two() -> None:
    assert [smaller_batch(n) for n in (1, 2, 3, 4, 5, 8, 10, 128)] == [1, 1, 2, 2, 4, 4, 8, 64]
