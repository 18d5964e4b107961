"""Ways that further clean images take, looked at as long as there is time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from piecewise import CHANNELS, HIGH, LOW, Looked, model
from torch import Tensor

from onnxspect.converters.lowering.forcing import Led
from onnxspect.converters.lowering.further import untaken
from onnxspect.converters.lowering.place import Place
from onnxspect.converters.lowering.regimes import Way


@pytest.fixture(scope="module")
def looked() -> Looked:
    generator = torch.Generator().manual_seed(0)
    return Looked(
        model((0.01 * torch.rand(CHANNELS, 1, 3, 3, generator=generator)).numpy(), np.full(CHANNELS, 0.05), "Clip")
    )


def way_that_white_takes(looked: Looked) -> Way:
    """Channel 5, which a white image takes a little beyond where the dark ones leave it."""
    mask = torch.zeros_like(looked.at(LOW)[0], dtype=torch.bool)
    mask[:, 5] = True
    limit = 0.99 * looked.at(HIGH)[0]
    assert bool((limit > looked.at(LOW)[0])[mask].all())
    place = Place(looked.source, mask, limit, "up", 1, looked.node, mask.float())
    return Way(looked.node, 5, Led(1.0, 0), place, None, 1e-3)


@pytest.mark.parametrize(
    ("most", "white", "left"),
    [
        pytest.param(float("inf"), 12, False, id="an image takes it"),
        pytest.param(24.0, 12, False, id="in time"),
        pytest.param(4.0, 12, True, id="too late"),
        pytest.param(float("inf"), None, True, id="none takes it"),
    ],
)
def test_a_way_that_a_further_image_takes_is_let_go(looked: Looked, most: float, white: int | None, left: bool) -> None:
    images: list[Tensor] = [HIGH if i == white else LOW for i in range(20)]
    way = way_that_white_takes(looked)
    assert untaken(looked.program, looked.logits, [way], images, most) == ([way] if left else [])
