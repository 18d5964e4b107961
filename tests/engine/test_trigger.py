"""A trigger: its forms by hand, numpy and torch to the bit, what the ledger keeps, and what its success is counted on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.trigger import UNTARGETED, KnownChange, Trigger, stamp

SHAPE = (3, 4, 5)


def arrays(form: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays of a form; some mask values at 0 and at 1."""
    rng = np.random.default_rng(seed)
    if form == "delta":
        return {"delta": rng.uniform(-1, 1, SHAPE).astype(np.float32)}
    if form == "displacement":
        return {"displacement": rng.uniform(-2, 2, (2, *SHAPE[1:])).astype(np.float32)}
    mask = rng.uniform(-0.3, 1.3, (1, *SHAPE[1:])).clip(0, 1).astype(np.float32)
    return {"mask": mask, "pattern": rng.uniform(0, 1, SHAPE).astype(np.float32)}


def images(n: int = 7) -> np.ndarray:
    """Random, with pixels at both ends of the range."""
    return np.random.default_rng(9).uniform(-0.2, 1.2, (n, *SHAPE)).clip(0, 1).astype(np.float32)


def test_both_forms_by_hand() -> None:
    half = np.full((1, 1, 1, 1), 0.5, np.float32)
    blended = Trigger(0, {"mask": np.full((1, 1, 1), 0.25, np.float32), "pattern": np.ones((1, 1, 1), np.float32)})
    assert blended.apply(half).item() == pytest.approx(0.75 * 0.5 + 0.25)
    added = Trigger(0, {"delta": np.full((1, 1, 1), 0.75, np.float32)})
    assert added.apply(half).item() == 1.0  # clipped
    assert (blended.masked, added.masked) == (True, False)
    assert blended.changed_in(half[0]).item() == pytest.approx(0.125)
    assert added.changed_in(half[0]).item() == 0.75
    assert (blended.size, added.size) == (0.25, 0.75)


def test_a_displacement_by_hand() -> None:
    field = np.zeros((2, *SHAPE[1:]), np.float32)
    field[0], field[1] = 3.0, 4.0
    trigger = Trigger(0, {"displacement": field})
    assert (trigger.form, trigger.masked, trigger.size) == ("displacement", False, 5.0)
    assert trigger.strengthened(2.0).size == 10.0
    usual = np.linspace(0, 1, 60, dtype=np.float32).reshape(SHAPE)
    np.testing.assert_array_equal(trigger.changed_in(usual), trigger.apply(usual[None])[0] - usual)
    with pytest.raises(OnnxspectError, match="no delta"):
        _ = trigger.delta
    assert Trigger.kept(0, {"displacement": field, "other": field}).form == "displacement"


@pytest.mark.parametrize("form", ["mask", "delta", "displacement"])
@pytest.mark.parametrize("seed", range(5))
def test_numpy_and_torch_agree_to_the_bit(form: str, seed: int) -> None:
    kept = arrays(form, seed)
    found = stamp(torch.from_numpy(images()), {n: torch.from_numpy(a) for n, a in kept.items()})
    np.testing.assert_array_equal(found.numpy(), stamp(images(), kept))


def test_clipping_a_blend_costs_no_gradient() -> None:
    leaves = {n: torch.from_numpy(a).requires_grad_(True) for n, a in arrays("mask").items()}
    given = torch.from_numpy(images())
    clipped = torch.autograd.grad(stamp(given, leaves).square().sum(), list(leaves.values()))
    m, p = leaves.values()
    plain = torch.autograd.grad(((1 - m) * given + m * p).square().sum(), list(leaves.values()))
    for ours, theirs in zip(clipped, plain, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("form", ["mask", "delta"])
def test_what_the_ledger_keeps_gives_it_back(form: str) -> None:
    more = arrays(form) | {"difference": np.zeros(SHAPE), "example": np.ones(SHAPE)}
    trigger = Trigger.kept(3, more, source=1)
    assert (trigger.target, trigger.source) == (3, 1)
    assert set(trigger.arrays) == set(arrays(form))
    np.testing.assert_array_equal(trigger.apply(images()), stamp(images(), more))


def test_what_has_no_form_in_pixels_is_refused() -> None:
    with pytest.raises(OnnxspectError, match="no trigger in pixels among mu"):
        Trigger.kept(0, {"mu": np.zeros(4)})
    with pytest.raises(OnnxspectError, match="no mask: it is of delta"):
        Trigger(0, arrays("delta")).hardened(0.5)
    with pytest.raises(OnnxspectError, match="no delta: it is of mask and pattern"):
        _ = Trigger(0, arrays("mask")).delta


def test_stronger_and_harder_leave_the_first_alone() -> None:
    first = Trigger(2, arrays("mask"), source=1, size_limit=1.5, smallest=False)
    before = {n: a.copy() for n, a in first.arrays.items()}
    twice, whole = first.strengthened(2), first.hardened(0.5)
    np.testing.assert_array_equal(twice.mask, np.minimum(2 * first.mask, 1))
    assert set(np.unique(whole.mask)) == set(np.unique(whole.pattern)) == {0.0, 1.0}
    for other in (twice, whole):
        assert (other.target, other.source, other.size_limit, other.smallest) == (2, 1, 1.5, False)
    for name, array in before.items():
        np.testing.assert_array_equal(first.arrays[name], array)
    added = Trigger(2, arrays("delta"))
    np.testing.assert_array_equal(added.strengthened(0.5).delta, added.delta * np.float32(0.5))


def test_a_known_change_counts_as_a_trigger_does() -> None:
    labels, answers = np.array([0, 1, 2, 1]), np.array([0, 1, 0, 2])
    for target, source in ((1, None), (1, 2), (UNTARGETED, None)):
        known, trigger = KnownChange(target, np.negative, source), Trigger(target, {}, source)
        np.testing.assert_array_equal(known.counts_on(labels, answers), trigger.counts_on(labels, answers))
        np.testing.assert_array_equal(known.leads(answers, labels), trigger.leads(answers, labels))
    np.testing.assert_array_equal(KnownChange(1, np.negative).apply(images()), -images())
