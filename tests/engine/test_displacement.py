"""Displacing pixels: against grid_sample, by hand, numpy beside torch, and the gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tolerances import OPERATION_32, SUM_32
from torch.nn import functional

from onnxspect.engine.displacement import displaced, displaced_each

HEIGHT, WIDTH = 6, 9
fields = hnp.arrays(np.float32, (2, HEIGHT, WIDTH), elements=st.floats(-20, 20, width=32))
pixels = hnp.arrays(np.float32, (2, 3, HEIGHT, WIDTH), elements=st.floats(0, 1, width=32))


@given(pixels, fields)
def test_as_grid_sample_has_it(images: np.ndarray, field: np.ndarray) -> None:
    rows = (torch.arange(HEIGHT)[:, None] + torch.from_numpy(field[0])) * 2 / (HEIGHT - 1) - 1
    columns = (torch.arange(WIDTH)[None] + torch.from_numpy(field[1])) * 2 / (WIDTH - 1) - 1
    grid = torch.stack([columns, rows], -1)[None].expand(len(images), -1, -1, -1)
    expected = functional.grid_sample(torch.from_numpy(images), grid, padding_mode="border", align_corners=True)
    np.testing.assert_allclose(
        displaced(images, field), expected.numpy(), atol=1e-4
    )  # its places are fractions of a side


@given(pixels, fields, fields)
def test_each_unit_by_its_own_field_as_numpy_does_it(images: np.ndarray, one: np.ndarray, two: np.ndarray) -> None:
    both = torch.from_numpy(np.stack([one, two]))
    for given_images in (torch.from_numpy(images)[None], torch.from_numpy(np.stack([images, images]))):
        found = displaced_each(given_images, both).numpy()
        for row, field in zip(found, (one, two), strict=True):
            np.testing.assert_allclose(row, displaced(images, field), atol=OPERATION_32)
    assert found.min() >= images.min() - OPERATION_32
    assert found.max() <= images.max() + OPERATION_32


def test_whole_pixels_by_hand() -> None:
    images = np.random.default_rng(0).uniform(0, 1, (2, 1, HEIGHT, WIDTH)).astype(np.float32)
    np.testing.assert_array_equal(displaced(images, np.zeros((2, HEIGHT, WIDTH), np.float32)), images)
    down = np.stack([np.full((HEIGHT, WIDTH), 2.0), np.zeros((HEIGHT, WIDTH))]).astype(np.float32)
    found = displaced(images, down)
    np.testing.assert_array_equal(found[:, :, :-2], images[:, :, 2:])
    np.testing.assert_array_equal(
        found[:, :, -2:], np.repeat(images[:, :, -1:], 2, 2)
    )  # beyond the edge the edge goes on


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1)])
def test_pictures_of_one_row_or_column(size: tuple[int, int]) -> None:
    images = np.random.default_rng(0).uniform(0, 1, (2, 3, *size)).astype(np.float32)
    field = np.full((2, *size), 0.5, np.float32)
    np.testing.assert_allclose(
        displaced(images, field),
        displaced_each(torch.from_numpy(images)[None], torch.from_numpy(field)[None])[0].numpy(),
        atol=SUM_32,
    )


def test_gradients_against_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 2, 1, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    # Away from whole pixels, where the gradient jumps, and inside the picture.
    field = (torch.rand(2, 2, 4, 5, generator=generator, dtype=torch.float64) * 0.6 + 0.2).requires_grad_(True)
    assert torch.autograd.gradcheck(displaced_each, (images, field))
