"""Perturbations: valid pixels whatever the optimiser does, Eq. 2 to the letter, and one generator a unit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tolerances import OPERATION_32, REORDERED_64, SUM_32

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.search.perturbation import NORMS, Additive, Displacement, MaskPattern
from onnxspect.engine.trigger import stamp

SHAPE = (3, 4, 5)
states = hnp.arrays(np.float32, (2, 3, 4, 5), elements=st.floats(-1e4, 1e4, width=32))
pixels = hnp.arrays(np.float32, (2, 6, 3, 4, 5), elements=st.floats(0, 1, width=32))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


@given(states, states, pixels)
def test_pixels_stay_valid_for_any_state(mask: np.ndarray, pattern: np.ndarray, images: np.ndarray) -> None:
    state = {"mask": torch.from_numpy(mask[:, :1].copy()), "pattern": torch.from_numpy(pattern)}
    out = MaskPattern().apply(state, torch.from_numpy(images))
    assert out.shape == images.shape
    assert bool(((out >= 0) & (out <= 1)).all())
    for value in MaskPattern().trigger(state).values():
        assert bool(((value >= 0) & (value <= 1)).all())


@given(states, states, pixels)
def test_equation_2_and_cost(mask: np.ndarray, pattern: np.ndarray, images: np.ndarray) -> None:
    kind = MaskPattern()
    state = {"mask": torch.from_numpy(mask[:, :1].copy()), "pattern": torch.from_numpy(pattern)}
    m = (np.tanh(mask[:, :1].astype(np.float64)) + 1) / 2
    d = (np.tanh(pattern.astype(np.float64)) + 1) / 2
    expected = (1 - m[:, None]) * images + m[:, None] * d[:, None]
    np.testing.assert_allclose(kind.apply(state, torch.from_numpy(images)).numpy(), expected, atol=OPERATION_32)
    np.testing.assert_allclose(kind.cost(state).numpy(), m.sum((1, 2, 3)), rtol=OPERATION_32, atol=SUM_32)


def test_the_trigger_stamps_what_the_search_applied() -> None:
    kind = MaskPattern()
    state = kind.start(SHAPE, generators(1, 2))
    images = torch.rand(2, 7, *SHAPE, generator=torch.Generator().manual_seed(3))
    applied = kind.apply(state, images).numpy()
    trigger = {k: v.numpy() for k, v in kind.trigger(state).items()}
    for u in range(2):
        stamped = stamp(images[u].numpy(), {k: v[u] for k, v in trigger.items()})
        np.testing.assert_allclose(stamped, applied[u], atol=OPERATION_32)


def test_start_depends_on_the_units_own_generator_only() -> None:
    together = MaskPattern().start(SHAPE, generators(5, 6, 7))
    assert {k: tuple(v.shape) for k, v in together.items()} == {"mask": (3, 1, 4, 5), "pattern": (3, 3, 4, 5)}
    alone = MaskPattern().start(SHAPE, generators(6))
    reordered = MaskPattern().start(SHAPE, generators(7, 6))
    for name in together:
        assert torch.equal(together[name][1:2], alone[name])
        assert torch.equal(together[name][[2, 1]], reordered[name])
        assert not torch.equal(together[name][0], together[name][1])


def test_start_draws_nothing_from_global_state() -> None:
    before = torch.get_rng_state()
    MaskPattern().start(SHAPE, generators(5))
    assert torch.equal(torch.get_rng_state(), before)


def test_start_mask_is_where_the_search_starts() -> None:
    kind = MaskPattern(start_mask=0.25)
    mask = kind.trigger(kind.start((1, 40, 40), generators(0)))["mask"]
    assert abs(float(mask.median()) - 0.25) < 0.01


def test_cost_and_pixels_are_differentiable() -> None:
    kind = MaskPattern()
    state = {k: v.requires_grad_() for k, v in kind.start(SHAPE, generators(1, 2)).items()}
    total = kind.apply(state, torch.full((2, 3, *SHAPE), 0.5)).square().sum() + kind.cost(state).sum()
    for gradient in torch.autograd.grad(total, list(state.values())):
        assert bool((gradient != 0).all())


def test_cost_of_one_unit_has_no_gradient_in_another() -> None:
    kind = MaskPattern()
    state = {k: v.requires_grad_() for k, v in kind.start(SHAPE, generators(1, 2)).items()}
    (gradient,) = torch.autograd.grad(kind.cost(state)[0], [state["mask"]])
    assert bool((gradient[0] != 0).all())
    assert bool((gradient[1] == 0).all())


def test_stamp_replaces_by_the_mask() -> None:
    images = np.full((2, 1, 2, 2), 0.4, np.float32)
    mask = np.array([[[1.0, 0.5], [0.0, 0.0]]], np.float32)
    stamped = stamp(images, {"mask": mask, "pattern": np.ones((1, 2, 2), np.float32)})
    np.testing.assert_allclose(stamped[0, 0], [[1.0, 0.7], [0.4, 0.4]], rtol=OPERATION_32)
    assert stamped.dtype == np.float32
    assert (images == np.float32(0.4)).all()


def test_stamp_adds_and_clips() -> None:
    images = np.array([0.0, 0.4, 0.9], np.float32).reshape(1, 1, 1, 3)
    stamped = stamp(images, {"delta": np.array([-0.5, 0.1, 0.5], np.float32).reshape(1, 1, 3)})
    np.testing.assert_allclose(stamped.ravel(), [0.0, 0.5, 1.0], rtol=OPERATION_32)
    assert stamped.dtype == np.float32


@given(st.sampled_from(sorted(NORMS)), states, pixels)
def test_additive_pixels_cost_and_stamp(norm: str, delta: np.ndarray, images: np.ndarray) -> None:
    """RE (Xiang et al., 2020), Eq. 1, written out; valid pixels whatever the optimiser does; what is handed over is what was applied."""
    kind, state = Additive(norm), {"delta": torch.from_numpy(delta)}
    v = np.clip(delta.astype(np.float64), -1, 1)
    applied = kind.apply(state, torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(applied, np.clip(images + v[:, None], 0, 1), atol=OPERATION_32)
    removed = kind.remove(state, torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(removed, np.clip(images - v[:, None], 0, 1), atol=OPERATION_32)
    order = {"l2": 2, "l1": 1, "linf": np.inf}[norm]
    expected = [np.linalg.norm(x.ravel(), order) for x in v]
    np.testing.assert_allclose(kind.cost(state).numpy(), expected, rtol=SUM_32, atol=REORDERED_64)
    trigger = {k: t.numpy() for k, t in kind.trigger(state).items()}
    for u in range(2):
        np.testing.assert_allclose(stamp(images[u], {"delta": trigger["delta"][u]}), applied[u], atol=OPERATION_32)


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_additive_starts_at_no_change_and_can_leave_it(norm: str) -> None:
    kind = Additive(norm)
    state = {k: v.requires_grad_() for k, v in kind.start(SHAPE, generators(1, 2)).items()}
    images = torch.rand(2, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kind.apply(state, images), images)
    loss = kind.apply(state, images).sum() + kind.cost(state).sum()
    (gradient,) = torch.autograd.grad(loss, [state["delta"]])
    assert bool(torch.isfinite(gradient).all())
    assert bool((gradient > 0).all())


def test_additive_refuses_an_unknown_norm() -> None:
    with pytest.raises(OnnxspectError, match="l3") as caught:
        Additive("l3")
    assert "l2" in str(caught.value.hint)


def test_a_displacement_starts_at_none_and_costs_what_it_moves() -> None:
    shape = (1, 28, 56)
    kind = Displacement().on(shape)
    state = kind.start(shape, generators(1, 2))
    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(3))
    np.testing.assert_array_equal(kind.apply(state, images).numpy(), images.numpy())
    moved = {"field": torch.full_like(state["field"], 3.0)}
    np.testing.assert_allclose(kind.cost(moved).numpy(), 3 * 2**0.5, rtol=OPERATION_32)  # hundredths of the side
    np.testing.assert_allclose(kind.trigger(moved)["displacement"].numpy(), 3 * 0.28, rtol=OPERATION_32)  # pixels
    beyond = {"field": torch.full_like(state["field"], 1e6)}
    assert float(kind.trigger(beyond)["displacement"].max()) == pytest.approx(kind.most * 0.28)


def test_a_displacement_stamps_what_the_search_applied() -> None:
    shape = (3, 12, 16)
    kind = Displacement().on(shape)
    generator = torch.Generator().manual_seed(3)
    state = {k: torch.randn(v.shape, generator=generator) * 8 for k, v in kind.start(shape, generators(1, 2)).items()}
    images = torch.rand(2, 7, *shape, generator=generator)
    applied, trigger = kind.apply(state, images).numpy(), kind.trigger(state)
    for u in range(2):
        stamped = stamp(images[u].numpy(), {k: v[u].numpy() for k, v in trigger.items()})
        np.testing.assert_allclose(stamped, applied[u], atol=OPERATION_32)


def test_the_cost_of_no_displacement_has_a_gradient() -> None:
    state = {"field": torch.zeros(1, 2, 4, 5, requires_grad=True)}
    (gradient,) = torch.autograd.grad(Displacement().cost(state).sum(), [state["field"]])
    assert bool((gradient == 0).all())
