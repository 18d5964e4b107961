"""The one search, on a tiny model whose smallest triggers are known by construction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import CLASSES, PATCH, SIDE, quadrant_images, quadrant_weights
from hypothesis import given
from hypothesis import strategies as st
from tolerances import OPERATION_32, SEARCHED_COST, SEARCHED_PIXEL, SUM_32
from torch import Tensor, nn

from onnxspect.engine.detectors.held_out import held_out_validation
from onnxspect.engine.errors import Kind, OnnxspectError
from onnxspect.engine.run import RunContext
from onnxspect.engine.search import search as search_module
from onnxspect.engine.search.objective import Measured, ReachTarget, cross_entropy, laid_out
from onnxspect.engine.search.perturbation import MaskPattern, State
from onnxspect.engine.search.search import (
    PIXEL_BY_PIXEL,
    SearchConfig,
    Unit,
    UnitResult,
    choose_images,
    plan,
    search,
    units_at_once,
)
from onnxspect.engine.subject.memory import plan_memory
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.trigger import stamp

SHAPE = (1, SIDE, SIDE)
CONFIG = SearchConfig(steps=250, samples=24, settle=40)
ALL = [Unit(t) for t in range(CLASSES)]
TARGET = 2


def linear(target: int | None = TARGET, change: Callable[[Tensor], Tensor] = lambda logits: logits) -> Subject:
    """The tiny classifier, its logits passed through `change`."""
    weights = torch.from_numpy(quadrant_weights(target))
    return Subject(lambda x: change(x.flatten(1) @ weights), InputSpec(), SHAPE, CLASSES, name="tiny")


def run_search(
    subject: Subject, batches: list[tuple[Unit, ...]], config: SearchConfig = CONFIG, seed: int = 0
) -> list[UnitResult]:
    samples = quadrant_images(12)
    found = search(subject, samples, batches, MaskPattern(), config, RunContext(seed=seed), "test")
    return [r for results in found for r in results]


@pytest.fixture(scope="module")
def together() -> list[UnitResult]:
    return run_search(linear(), [tuple(ALL)])


def test_finds_the_planted_patch(together: list[UnitResult]) -> None:
    found = together[TARGET]
    assert found.found
    assert found.converged
    assert not found.diverged
    mask = found.trigger["mask"][0]
    assert mask.shape == (SIDE, SIDE)
    assert mask[PATCH].sum() > 0.7 * mask.sum()
    assert (mask[PATCH] > 0.5).sum() >= 2
    inside = np.zeros((SIDE, SIDE), bool)
    inside[PATCH] = True
    assert mask[PATCH].max() > mask[~inside].max()
    # The pattern is the checkerboard where the mask counts: bright where the weight is positive.
    pattern = found.trigger["pattern"][0][PATCH]
    assert pattern[0, 0] > 0.9
    assert pattern[1, 1] > 0.9


def test_the_planted_class_is_the_cheapest(together: list[UnitResult]) -> None:
    others = [r.cost for r in together if r.unit.target != TARGET]
    assert all(np.isfinite(others))
    assert together[TARGET].cost < 0.6 * min(others)


def test_results_say_what_the_trigger_does(together: list[UnitResult]) -> None:
    """Cost and success are those of the very trigger that is handed over, measured again from outside."""
    subject, samples, run = linear(), quadrant_images(12), RunContext()
    for result in together:
        assert result.cost == pytest.approx(result.trigger["mask"].sum(), rel=SUM_32)
        rows = choose_images(result.unit, samples, CONFIG.samples, run, "test")
        answers = subject.predict(stamp(samples.images[rows], result.trigger)).argmax(1)
        assert (answers == result.unit.target).mean() == pytest.approx(result.success)
        assert result.success >= CONFIG.success
        assert 0 < result.steps <= CONFIG.steps


def test_the_trigger_carries_over_to_unseen_images(together: list[UnitResult]) -> None:
    unseen = quadrant_images(20, seed=99)
    for result in together:
        rows = unseen.labels != result.unit.target
        answers = linear().predict(stamp(unseen.images[rows], result.trigger)).argmax(1)
        assert (answers == result.unit.target).mean() > 0.9


def test_a_unit_alone_gives_what_it_gives_in_a_batch(together: list[UnitResult]) -> None:
    """float32: a batched matrix product may differ in its last bits, and hundreds of steps carry that on."""
    for result in together:
        (alone,) = run_search(linear(), [(result.unit,)])
        assert alone.found == result.found
        assert alone.cost == pytest.approx(result.cost, rel=SEARCHED_COST)
        np.testing.assert_allclose(alone.trigger["mask"], result.trigger["mask"], atol=SEARCHED_PIXEL)


def test_twice_the_same_bits(together: list[UnitResult]) -> None:
    for a, b in zip(together, run_search(linear(), [tuple(ALL)]), strict=True):
        assert replace(a, seconds=0.0, trigger={}) == replace(b, seconds=0.0, trigger={})
        for name in a.trigger:
            assert a.trigger[name].tobytes() == b.trigger[name].tobytes()


def test_order_of_the_batches_does_not_matter() -> None:
    forward = run_search(linear(), [(u,) for u in ALL])
    backward = run_search(linear(), [(u,) for u in reversed(ALL)])
    for a, b in zip(forward, reversed(backward), strict=True):
        assert a.unit == b.unit
        assert a.cost == b.cost
        assert a.trigger["mask"].tobytes() == b.trigger["mask"].tobytes()


def test_another_seed_draws_something_else(together: list[UnitResult]) -> None:
    other = run_search(linear(), [tuple(ALL)], seed=1)
    assert any(
        not np.array_equal(a.trigger["pattern"], b.trigger["pattern"]) for a, b in zip(together, other, strict=True)
    )
    assert min(other, key=lambda r: r.cost).unit.target == TARGET


def test_global_random_state_is_neither_used_nor_moved(together: list[UnitResult]) -> None:
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    again = run_search(linear(), [tuple(ALL)])
    assert torch.equal(torch.get_rng_state(), before)
    assert [r.cost for r in again] == [r.cost for r in together]


def test_finished_units_leave_the_batch() -> None:
    sizes: list[int] = []
    plain = linear()

    def watched(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return plain.module(x)

    subject = replace(plain, module=watched)
    assert subject.images_at_once > 0  # measured by two passes of its own
    sizes.clear()
    results = run_search(subject, [tuple(ALL)])
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1
    # Every unit was evaluated exactly as often as it says, on all of its images, and once without a perturbation.
    assert sum(sizes) == CONFIG.samples * sum(r.steps + 1 for r in results)


def test_images_that_are_there_already_need_no_trigger() -> None:
    """A model that answers one class whatever it sees: how small that class's trigger is says nothing, and has no statistic."""
    offset = torch.tensor([0.0, 0.0, 0.0, 1e6])
    subject = linear(change=lambda logits: logits + offset)
    results = run_search(subject, [tuple(ALL)], replace(CONFIG, steps=80))
    assert [r.unneeded for r in results] == [False, False, False, True]
    assert results[3].found
    validated = held_out_validation(subject, results[3], quadrant_images(4), "l1")
    assert validated.measurements == ()
    assert not any(r.unneeded for r in run_search(linear(), [tuple(ALL)]))


def test_a_class_that_cannot_be_reached() -> None:
    offset = torch.tensor([0.0, 0.0, 0.0, -1e6])
    results = run_search(linear(change=lambda logits: logits + offset), [tuple(ALL)], replace(CONFIG, steps=80))
    lost = results[3]
    assert not lost.found
    assert lost.cost == np.inf
    assert lost.success == 0.0
    assert lost.steps == 80
    assert not lost.converged
    assert not lost.diverged
    assert all(r.found for r in results[:3])


def test_nan_ends_a_unit_early() -> None:
    results = run_search(linear(change=lambda logits: logits * torch.nan), [tuple(ALL)])
    for result in results:
        assert result.diverged
        assert not result.found
        assert not result.converged
        assert result.steps == CONFIG.patience
        assert result.cost == np.inf


def test_nan_of_one_unit_leaves_the_others_alone() -> None:
    """Where the pattern of one unit makes the model overflow, the others of its batch go on as if it were not there."""
    samples = quadrant_images(12)
    n = CONFIG.samples

    def spoil_first(logits: Tensor) -> Tensor:
        if len(logits) != 2 * n:
            return logits
        return torch.cat([logits[:n] * torch.nan, logits[n:]])

    subject = linear(change=spoil_first)
    run = RunContext()
    (pair,) = list(search(subject, samples, [(Unit(0), Unit(TARGET))], MaskPattern(), CONFIG, run, "test"))
    assert pair[0].diverged
    assert pair[0].steps == CONFIG.patience
    assert pair[1].found
    assert pair[1].cost == pytest.approx(run_search(linear(), [(Unit(TARGET),)])[0].cost, rel=SEARCHED_COST)


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_the_budget_is_kept(steps: int) -> None:
    calls = 0

    def counted(logits: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return logits

    subject = linear(change=counted)
    assert subject.images_at_once > 0  # measured by two passes of its own
    calls = 0
    for result in run_search(subject, [tuple(ALL)], replace(CONFIG, steps=steps)):
        assert result.steps == steps
        assert not result.converged
    assert calls == steps + 1  # and one look at the images as they are


def test_the_models_parameters_are_left_alone() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    before = [p.detach().clone() for p in module.parameters()]
    run_search(Subject.from_module(module, SHAPE), [(Unit(0),)], replace(CONFIG, steps=10))
    for p, q in zip(module.parameters(), before, strict=True):
        assert torch.equal(p, q)
        assert p.grad is None


def labelled(labels: list[int]) -> Samples:
    return Samples(np.zeros((len(labels), *SHAPE), np.float32), np.array(labels, np.int64))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 4), st.integers(1, 20), st.integers(0, 9))
def test_chosen_images(labels: list[int], target: int, n: int, seed: int) -> None:
    samples, run = labelled(labels), RunContext(seed=seed)
    others = [k for k in labels if k != target]
    if not others:
        with pytest.raises(OnnxspectError, match=f"any class but {target}") as caught:
            choose_images(Unit(target), samples, n, run, "d")
        assert caught.value.kind is Kind.INCONCLUSIVE
        return
    rows = choose_images(Unit(target), samples, n, run, "d")
    chosen = samples.labels[rows]
    assert target not in chosen
    assert len(set(rows.tolist())) == len(rows) == min(n, len(others))
    # Class by class in turn: no class is short of one while it has images left and another has two more.
    for c in set(others):
        for d in set(others):
            if (chosen == c).sum() < others.count(c):
                assert (chosen == d).sum() <= (chosen == c).sum() + 1
    np.testing.assert_array_equal(rows, choose_images(Unit(target), samples, n, run, "d"))


def test_chosen_images_of_one_source() -> None:
    samples = labelled([0, 1, 2, 0, 1, 2])
    rows = choose_images(Unit(2, source=1), samples, 10, RunContext(), "d")
    assert sorted(rows.tolist()) == [1, 4]
    with pytest.raises(OnnxspectError, match="class 7"):
        choose_images(Unit(2, source=7), samples, 10, RunContext(), "d")


def test_one_sample_a_class_is_enough() -> None:
    samples = quadrant_images(1)
    found = search(linear(), samples, [(u,) for u in ALL], MaskPattern(), CONFIG, RunContext(), "test")
    results = [r for results in found for r in results]
    assert all(r.found for r in results)
    assert min(results, key=lambda r: r.cost).unit.target == TARGET


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[[1.0, 2.0, 0.5]], [[0.0, 0.0, 0.0]]])
    loss = cross_entropy(logits, torch.tensor([1, 2]))
    expected = np.log(np.exp([1.0, 2.0, 0.5]).sum()) - 2.0
    np.testing.assert_allclose(loss.numpy(), [[expected], [np.log(3)]], rtol=OPERATION_32)


def test_plan() -> None:
    assert plan(ALL, 3) == [tuple(ALL[:3]), (ALL[3],)]
    assert plan([], 3) == []
    assert [u for b in plan(ALL, 1) for u in b] == ALL


def test_one_unit_at_a_time_on_a_cpu() -> None:
    assert units_at_once(linear(), 1000, 64) == 1


@pytest.mark.parametrize(("images", "samples"), [(100, 24), (12, 24), (100, 200)])
def test_as_many_on_a_gpu_as_its_memory_is_planned_for(
    images: int, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the samples no more count than there are images."""
    subject, kept = replace(linear(), device="cuda:0"), 64
    object.__setattr__(subject, "kept_bytes", kept)
    found = set()
    for memory in map(int, np.geomspace(1e5, 1e9, 80)):
        monkeypatch.setattr(search_module, "total_memory", lambda device, memory=memory: {"cuda:0": memory}[device])
        planned = plan_memory(memory, kept, 4 * SIDE * SIDE, min(images, samples)).units
        assert units_at_once(subject, images, samples) == planned
        found.add(planned)
    assert len(found) > 2


class _Told(ReachTarget):
    """Notes the multipliers that it is given first."""

    first: ClassVar[list[float]] = []

    def measure(
        self, subject: Subject, state: State, constants: State, images: Tensor, targets: Tensor, multiplier: Tensor
    ) -> Measured:
        self.first.append(float(multiplier[0]))
        return super().measure(subject, state, constants, images, targets, multiplier)


@pytest.mark.parametrize(
    ("height", "width", "share"), [(8, 8, 1.0), (64, 64, 1.0), (64, 128, 1 / 2), (192, 64, 1 / 3), (128, 16, 1.0)]
)
def test_a_pixel_of_a_large_picture_costs_less(height: int, width: int, share: float) -> None:
    """The cost is a sum over pixels, and twice the side has four times as many."""
    assert PIXEL_BY_PIXEL == 64
    subject = Subject(lambda x: x.flatten(1)[:, :2], InputSpec(), (1, height, width), 2, name="two pixels")
    images = np.random.default_rng(0).random((8, 1, height, width), np.float32)
    samples = Samples.from_arrays(images, np.arange(8) % 2)
    _Told.first.clear()
    config = replace(CONFIG, steps=1, samples=4, multiplier=0.25)
    list(search(subject, samples, [(Unit(0),)], _Told(MaskPattern()), config, RunContext(), "test"))
    assert _Told.first[0] == pytest.approx(0.25 * share)


def test_unit_keys() -> None:
    assert Unit(3).key == "any->3"
    assert Unit(3, 0).key == "0->3"
    assert len({Unit(a, b).key for a in range(12) for b in [None, *range(12)]}) == 12 * 13


@pytest.mark.parametrize("channels", [1, 3])
def test_the_layout_changes_no_value(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(4, channels, 6, 5, generator=generator, requires_grad=True)
    out = laid_out(pixels)
    assert torch.equal(out, pixels)
    assert out.stride()[1] == 1  # channels last, for one channel too
    (gradient,) = torch.autograd.grad((out * out).sum(), [pixels])
    torch.testing.assert_close(gradient, 2 * pixels.detach())
