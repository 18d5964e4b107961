"""The objectives by hand: what is lost, what counts as there, what images are free to do, and Adam's step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import OPERATION_32
from torch import Tensor

from onnxspect.engine.search.objective import Measured, ReachTarget, ReachTogether, leave_class
from onnxspect.engine.search.perturbation import MaskPattern
from onnxspect.engine.search.search import SearchConfig
from onnxspect.engine.subject.subject import InputSpec, Subject

#: Two units of three images, which carry their own logits: a picture of one row of classes.
UNITS, N, K = 2, 3, 4
LOGITS = torch.tensor(
    [
        [[3.0, 1.0, 0.0, -1.0], [2.0, 0.0, 2.5, 1.0], [0.0, 0.5, 4.0, 1.0]],
        [[0.0, 1.0, 0.0, 2.0], [1.0, 5.0, 2.0, 1.0], [2.0, 0.0, 1.0, 7.0]],
    ]
)
SHOWN = Subject(lambda x: x.flatten(1), InputSpec(), (1, 1, K), K, name="what it is given")
IMAGES = LOGITS.view(UNITS, N, 1, 1, K)
NOTHING = torch.zeros(UNITS, dtype=torch.long)


class _Unchanged(MaskPattern):
    """A perturbation that changes nothing and costs its unit's number, so that a measurement is of the images as they are."""

    def apply(self, state: dict[str, Tensor], images: Tensor) -> Tensor:
        return images

    def cost(self, state: dict[str, Tensor]) -> Tensor:
        return state["number"]


STATE = {"number": torch.arange(1.0, UNITS + 1)}


def measured(objective: ReachTarget, targets: Tensor, constants: dict[str, Tensor] | None = None) -> Measured:
    fixed = objective.constants(SHOWN, IMAGES) if constants is None else constants
    return objective.measure(SHOWN, STATE, fixed, IMAGES, targets, torch.ones(UNITS))


@given(st.integers(0, 2**31 - 1))
def test_leaving_a_class_is_the_log_of_all_the_rest(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(UNITS, N, K, generator=rng)
    own = torch.randint(0, K, (UNITS, N), generator=rng)
    likely = torch.softmax(logits.double(), 2)
    expected = -torch.log(1 - likely.gather(2, own[..., None])[..., 0])
    torch.testing.assert_close(leave_class(logits, own).double(), expected, rtol=OPERATION_32, atol=OPERATION_32)


def test_reaching_a_target() -> None:
    targets = torch.tensor([2, 3])
    found = measured(ReachTarget(_Unchanged()), targets)
    likely = torch.log_softmax(LOGITS, 2)
    torch.testing.assert_close(found.loss, torch.stack([-likely[0, :, 2].mean(), -likely[1, :, 3].mean()]))
    assert found.success.tolist() == pytest.approx([2 / 3, 2 / 3])
    assert found.cost.tolist() == [1.0, 2.0]
    assert ReachTarget(_Unchanged()).constants(SHOWN, IMAGES) == {}
    assert ReachTarget(_Unchanged()).at_target(SHOWN, IMAGES, targets).tolist() == pytest.approx([2 / 3, 2 / 3])
    assert not ReachTarget(_Unchanged()).bound


def test_leaving_whatever_class() -> None:
    """Own is what the images are answered with as they are; success is the share that is answered with anything else."""
    objective = ReachTarget(_Unchanged(), untargeted=True)
    own = objective.constants(SHOWN, IMAGES)["own"]
    assert own.tolist() == [[0, 2, 2], [3, 1, 3]]
    assert objective.at_target(SHOWN, IMAGES, NOTHING).tolist() == [0.0, 0.0]
    left = torch.tensor([[1, 2, 0], [3, 1, 0]])
    found = measured(objective, NOTHING, {"own": left})
    torch.testing.assert_close(found.loss, leave_class(LOGITS, left).mean(1))
    assert found.success.tolist() == pytest.approx([2 / 3, 1 / 3])


def test_images_are_free_to_go_anywhere_but_where_they_are() -> None:
    free = ReachTogether(_Unchanged(), excluded=(3,)).constants(SHOWN, IMAGES)["free"]
    assert free.shape == (UNITS, N, K)
    expected = torch.ones(UNITS, N, K)
    expected[..., 3] = 0.0  # excluded
    for unit, own in enumerate([[0, 2, 2], [3, 1, 3]]):
        for image, answer in enumerate(own):
            expected[unit, image, answer] = 0.0
    assert torch.equal(free, expected)


@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_going_together_by_the_formula(sharpness: float) -> None:
    """-(1/b) log sum over t of exp(b mean_i log p_t), over the classes that at least half of the images are free to go to."""
    free = torch.tensor(
        [[[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]], [[1, 1, 0, 1], [0, 1, 1, 1], [0, 1, 1, 0]]], dtype=torch.float32
    )
    found = measured(ReachTogether(_Unchanged(), sharpness=sharpness), NOTHING, {"free": free})
    likely = torch.log_softmax(LOGITS.double(), 2).numpy()
    answers = LOGITS.argmax(2).numpy()
    for unit in range(UNITS):
        losses, shares = [], []
        for t in range(K):
            rows = free[unit, :, t].numpy() > 0
            if rows.sum() < N / 2:
                continue
            losses.append(sharpness * likely[unit, rows, t].mean())
            shares.append((answers[unit, rows] == t).mean())
        expected = -np.log(np.exp(losses).sum()) / sharpness
        assert float(found.loss[unit]) == pytest.approx(expected, rel=OPERATION_32)
        assert float(found.success[unit]) == pytest.approx(max(shares))
    assert found.cost.tolist() == [1.0, 2.0]


def test_a_class_that_few_can_be_led_to_is_no_destination() -> None:
    """Of four images exactly half is enough, and one is not; where none is left nothing was reached."""
    logits = torch.tensor([[[0.0, 9.0, 0.0]] * 4])
    subject = Subject(lambda x: x.flatten(1), InputSpec(), (1, 1, 3), 3, name="what it is given")
    state = {"number": torch.ones(1)}
    shares = []
    for able in (1, 2):
        free = torch.zeros(1, 4, 3)
        free[0, :able, 1] = 1.0
        free[0, :, 0] = 1.0
        found = ReachTogether(_Unchanged()).measure(
            subject, state, {"free": free}, logits.view(1, 4, 1, 1, 3), NOTHING[:1], torch.ones(1)
        )
        shares.append(float(found.success))
    assert shares == [0.0, 1.0]


def one_image(free: list[float], logits: Tensor) -> Measured:
    subject = Subject(lambda x: x.flatten(1), InputSpec(), (1, 1, len(free)), len(free), name="what it is given")
    constants = {"free": torch.tensor([[free]])}
    images = logits.view(1, 1, 1, 1, -1)
    return ReachTogether(_Unchanged()).measure(
        subject, {"number": torch.ones(1)}, constants, images, NOTHING[:1], torch.ones(1)
    )


def test_one_image_goes_alone() -> None:
    assert float(one_image([1.0, 1.0, 0.0], torch.tensor([0.0, 2.0, 1.0])).success) == 1.0


def test_where_no_class_is_left_nothing_is_reached() -> None:
    assert float(one_image([0.0, 0.0, 0.0], torch.tensor([0.0, 2.0, 1.0])).success) == 0.0


def test_a_class_that_none_can_be_led_to_has_no_slope() -> None:
    """Its mean is over no image, and must not make the others' gradient no number."""
    logits = torch.tensor([0.0, 2.0, 1.0], requires_grad=True)
    found = one_image([1.0, 1.0, 0.0], logits)
    (slope,) = torch.autograd.grad(found.loss.sum(), logits)
    assert bool(slope.isfinite().all())
    assert bool(slope.any())


def test_going_together_starts_from_nothing() -> None:
    assert ReachTogether(_Unchanged()).at_target(SHOWN, IMAGES, NOTHING).tolist() == [0.0, 0.0]


@given(st.integers(0, 2**31 - 1), st.floats(0.01, 0.5), st.floats(0.1, 0.9), st.floats(0.5, 0.999))
def test_the_step_is_adams(seed: int, rate: float, b1: float, b2: float) -> None:
    """Three steps of torch's own Adam, which is written otherwise."""
    rng = torch.Generator().manual_seed(seed)
    start = torch.randn(2, 5, generator=rng, dtype=torch.float64)
    gradients = torch.randn(3, 2, 5, generator=rng, dtype=torch.float64)
    theirs = start.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([theirs], lr=rate, betas=(b1, b2))
    objective = ReachTarget(MaskPattern())
    state = {"x": start.clone()}
    memory = objective.memory(state)
    settings = SearchConfig(learning_rate=rate, betas=(b1, b2))
    for i, gradient in enumerate(gradients):
        theirs.grad = gradient.clone()
        optimiser.step()
        state = objective.update(state, {"x": gradient}, memory, torch.tensor(i + 1.0, dtype=torch.float64), settings)
    torch.testing.assert_close(state["x"], theirs.detach())
