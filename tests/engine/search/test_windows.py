"""Opaque windows: what fills them, where they lie, and what is read off them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from onnxspect.engine.search.windows import FillWindows, around, everywhere, shortfall, stamped
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.trigger import Trigger

SHAPE, CLASSES = (2, 9, 7), 5


def linear() -> Subject:
    """A linear classifier with weights of its own for every pixel."""
    weights = torch.randn(int(np.prod(SHAPE)), CLASSES, generator=torch.Generator().manual_seed(3))
    return Subject(lambda x: x.flatten(1) @ weights, InputSpec(), SHAPE, CLASSES, name="linear")


def images(units: int, n: int) -> torch.Tensor:
    return torch.rand(units, n, *SHAPE, generator=torch.Generator().manual_seed(4))


def test_each_window_is_the_trigger_that_it_is_stamped_as() -> None:
    subject, pixels, targets = linear(), images(2, 3), torch.tensor([1, 4])
    objective = FillWindows(3, ((0, 0), (6, 4), (2, 1)))
    content = torch.randn(2, 3, SHAPE[0], 3, 3, generator=torch.Generator().manual_seed(5))
    loss, success = objective.each(subject, {"content": content}, objective.constants(subject, pixels), pixels, targets)
    for u in range(2):
        for p, place in enumerate(objective.places):
            trigger = Trigger.kept(int(targets[u]), stamped(place, content[u, p].numpy(), SHAPE[1:]))
            assert trigger.mask.sum() == 9
            logits = subject(torch.from_numpy(trigger.apply(pixels[u].numpy())))
            expected = functional.cross_entropy(logits, targets[u].expand(3))
            torch.testing.assert_close(loss[u, p], expected, rtol=1e-5, atol=1e-5)
            assert float(success[u, p]) == pytest.approx(float((logits.argmax(1) == targets[u]).float().mean()))


def test_windows_of_one_unit_do_not_see_each_other() -> None:
    subject, pixels, targets = linear(), images(1, 4), torch.tensor([2])
    places = ((0, 0), (1, 1), (5, 3))
    both = FillWindows(3, places)
    state = {"content": torch.randn(1, 3, SHAPE[0], 3, 3, generator=torch.Generator().manual_seed(6)).requires_grad_()}
    together = both.measure(subject, state, both.constants(subject, pixels), pixels, targets, torch.zeros(1))
    assert together.success.shape == together.loss.shape == (1,)
    assert float(together.cost) == pytest.approx(float(together.loss.detach()))
    [gradient] = torch.autograd.grad(together.loss.sum(), [state["content"]])
    for p, place in enumerate(places):
        alone = FillWindows(3, (place,))
        one = {"content": state["content"].detach()[:, p : p + 1].clone().requires_grad_()}
        found = alone.measure(subject, one, alone.constants(subject, pixels), pixels, targets, torch.zeros(1))
        torch.testing.assert_close(torch.autograd.grad(found.loss.sum(), [one["content"]])[0][:, 0], gradient[:, p])


def test_a_search_begins_where_another_ended() -> None:
    content = np.full((2, SHAPE[0], 3, 3), 0.25, np.float32)
    begun = FillWindows(3, ((0, 0), (1, 1)), begin=content).start(linear(), images(3, 2), [torch.Generator()] * 3)
    assert begun["content"].shape == (3, 2, SHAPE[0], 3, 3)
    assert (begun["content"] == 0.25).all()
    plain = FillWindows(3, ((0, 0),)).start(linear(), images(1, 2), [torch.Generator()])
    assert (plain["content"] == 0).all()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(2, 12))
def test_windows_cover_every_pixel_and_stay_inside(height: int, width: int, side: int) -> None:
    side = min(side, height, width)
    places = everywhere((height, width), side)
    seen = np.zeros((height, width), int)
    for top, left in places:
        assert 0 <= top <= height - side
        assert 0 <= left <= width - side
        seen[top : top + side, left : left + side] += 1
    assert (seen > 0).all()
    assert len(set(places)) == len(places)
    # A patch of their side lies with half its width and height in one of them, wherever it is.
    rows, columns = ({p[i] for p in places} for i in (0, 1))
    assert max(np.diff(sorted(rows)), default=0) <= (side + 1) // 2
    assert max(np.diff(sorted(columns)), default=0) <= (side + 1) // 2


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(3, 30), st.integers(3, 30), st.integers(1, 6), st.integers(1, 3), st.integers(0, 3), st.data())
def test_neighbours_lie_around_and_inside(
    height: int, width: int, side: int, apart: int, steps: int, data: st.DataObject
) -> None:
    side = min(side, height, width)
    place = (data.draw(st.integers(0, height - side)), data.draw(st.integers(0, width - side)))
    found = around([place], (height, width), side, apart, steps)
    assert place in found
    assert found == tuple(sorted(set(found)))
    for top, left in found:
        assert abs(top - place[0]) <= apart * steps
        assert abs(left - place[1]) <= apart * steps
        assert 0 <= top <= height - side
        assert 0 <= left <= width - side


def test_the_shortfall_goes_on_below_zero() -> None:
    logits = torch.tensor([[[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]], [[1.0, 1.0, 4.0], [0.0, 0.0, -3.0]]])
    torch.testing.assert_close(shortfall(logits, torch.tensor([0, 2])), torch.tensor([[-1.0, 5.0], [-3.0, 3.0]]))
