"""Warps, blends and squares: valid pixels, small changes, each image its own, nothing global."""

from __future__ import annotations

import torch
from tolerances import OPERATION_32

from onnxspect.engine.mitigation.augmentation import blended, squared, warped


def images(n: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 16, 20, generator=torch.Generator().manual_seed(seed))


def test_warps_move_pixels_and_no_further_than_the_bound() -> None:
    """On a ramp of pixel columns a warp by at most d pixels changes a value by at most d steps of the ramp."""
    ramp = torch.linspace(0, 1, 32).expand(8, 1, 32, 32).contiguous()
    moved = warped(ramp, torch.Generator().manual_seed(0), most=2.0)
    step = 1 / 31
    change = (moved - ramp).abs().amax((1, 2, 3))
    # Bicubic interpolation may overshoot its control points by a quarter.
    assert float(change.max()) <= 2.0 * 1.25 * step
    assert float(change.max()) > 0.3 * step
    assert len(set(change.tolist())) == len(change)  # each image has its own field and strength
    assert torch.equal(
        warped(ramp, torch.Generator().manual_seed(0), most=0.0).round(decimals=5), ramp.round(decimals=5)
    )


def test_a_plain_image_is_the_same_however_it_is_warped() -> None:
    plain = torch.full((4, 3, 16, 16), 0.25)
    torch.testing.assert_close(warped(plain, torch.Generator().manual_seed(3)), plain)


def test_blends_stay_valid_and_weak() -> None:
    base, others = images(), images(9, seed=1)
    mixed = blended(base, others, torch.Generator().manual_seed(0), most=0.25)
    assert mixed.min() >= 0
    assert mixed.max() <= 1
    assert float((mixed - base).abs().max()) <= 0.25 + OPERATION_32
    assert ((mixed - base).abs().amax((1, 2, 3)) > 0).all()


def test_a_blend_is_a_replacement_or_an_addition_of_one_other_image() -> None:
    base, other = torch.full((40, 1, 4, 4), 0.5), torch.full((1, 1, 4, 4), 0.5)
    mixed = blended(base, other, torch.Generator().manual_seed(0), most=0.2)
    kept = (mixed - base).abs().amax((1, 2, 3)) < OPERATION_32  # (1 - w) 0.5 + w 0.5
    brighter = mixed.amax((1, 2, 3)) > 0.5 + OPERATION_32  # 0.5 + w 0.5
    assert (kept | brighter).all()
    assert 5 < int(brighter.sum()) < 35


def test_a_square_is_one_small_block_of_black_and_white_and_each_image_has_its_own() -> None:
    base = torch.full((200, 3, 32, 40), 0.25)
    changed = squared(base, torch.Generator().manual_seed(0), (3, 6))
    boxes, plain = set(), 0
    for image in changed:
        touched = (image != 0.25).any(0).nonzero()
        top, left = touched.min(0).values.tolist()
        bottom, right = touched.max(0).values.tolist()
        assert bottom - top == right - left
        assert 3 <= bottom - top + 1 <= 6
        block = image[:, top : bottom + 1, left : right + 1]
        assert set(block.unique().tolist()) <= {0.0, 1.0}
        plain += bool((block == block[0, 0, 0]).all())
        boxes.add((top, left, bottom))
        image[:, top : bottom + 1, left : right + 1] = 0.25
    assert torch.equal(changed, base)  # nothing else was touched
    assert len(boxes) > 150
    assert plain >= 100  # half of them and more are white or black all over


def test_nothing_global_is_touched_and_the_same_bits_come_out_twice() -> None:
    base, before = images(), torch.get_rng_state()
    kept = base.clone()
    for change in (warped, lambda x, g: blended(x, x, g), squared):
        first, second = (change(base, torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(first, second)
        assert not torch.equal(first, base)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(base, kept)
