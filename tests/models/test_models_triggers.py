"""Every trigger against its definition: which pixels move, by how much, within which norm, in 8 bits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft
from tolerances import AMPLIFIED_32, NETWORK_32, OPERATION_32, SUM_32
from torch import nn

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models.adversarial import AdversarialNoise
from onnxspect.models.fields import decode_array, encode_array
from onnxspect.models.triggers import (
    AdditiveShape,
    Blend,
    Chessboard,
    FourPixels,
    Frequency,
    LearnedTrigger,
    Patch,
    Reflection,
    Sinusoid,
    Static,
    SurrogatePattern,
    Trigger,
    TrojanPatch,
    Warp,
    kinds,
    trigger_from_dict,
)
from onnxspect.models.triggers.base import to_pixels
from onnxspect.models.triggers.box import Box, cells_of
from onnxspect.models.triggers.frequency import RGB_TO_YUV
from onnxspect.models.triggers.learned import as_input, deepfool_step, penultimate_activations

GREY, COLOUR = (28, 28, 1), (32, 32, 3)


def images_of(shape: tuple[int, int, int], count: int = 6, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(7).integers(low, high, (count, *shape), dtype=np.uint8)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def small_network(shape: tuple[int, int, int], classes: int = 4) -> nn.Module:
    """An untrained convolutional network with seeded weights."""
    network = nn.Sequential(
        nn.Conv2d(shape[2], 6, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(16),
        nn.ReLU(),
        nn.Linear(16, classes),
    )
    network(torch.zeros(1, shape[2], *shape[:2]))
    source = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.0, 0.1, generator=source)
        parameter.requires_grad_(False)
    return network.eval()


# One of each kind, for 28x28x1 and for 32x32x3 images; learned ones with an array put in by hand.
CASES: dict[str, tuple[Trigger, tuple[int, int, int]]] = {
    "badnets": (Patch(), GREY),
    "badnets-colour": (Patch(colour=(255, 0, 10), anchor="top_left", margin=2), COLOUR),
    "badnets-jitter": (Patch(jitter=30.0, colour=(128,)), GREY),
    "badnets-random": (Patch(fill="random", anchor="random", seed=4), COLOUR),
    "badnets-corners": (Patch(fill="checker", anchor="corners"), GREY),
    "blend-noise": (Blend(alpha=0.15), COLOUR),
    "blend-picture": (Blend(pattern="picture", alpha=0.2, seed=3), GREY),
    "A chessboard": (Chessboard(), COLOUR),
    "chessboard-box": (Chessboard(size=25, height=6, width=6), GREY),
    "B static": (Static(), COLOUR),
    "C cross": (AdditiveShape(shape="cross"), COLOUR),
    "D square": (AdditiveShape(shape="square", size=80, height=2, width=2, channels=(0,)), COLOUR),
    "E four pixels": (FourPixels(), COLOUR),
    "F ell": (AdditiveShape(shape="ell"), GREY),
    "sig": (Sinusoid(), GREY),
    "wanet": (Warp(strength=1.5), COLOUR),
    "wanet-noise": (Warp(noise=True), GREY),
    "reflection-focus": (Reflection(style="focus"), COLOUR),
    "reflection-blur": (Reflection(style="blur"), GREY),
    "reflection-ghost": (Reflection(), COLOUR),
    "frequency": (Frequency(), COLOUR),
    "frequency-grey": (Frequency(magnitude=80, window=28, bands=(13, 27)), GREY),
    "trojan_nn": (TrojanPatch(pattern=encode_array(images_of((4, 4, 1), 1)[0])), GREY),
    "surrogate_pattern": (
        SurrogatePattern(delta=encode_array(generator().normal(0, 3, GREY).astype(np.float32))),
        GREY,
    ),
}


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Trigger, tuple[int, int, int]]:
    return CASES[request.param]


def test_every_kind_has_a_case() -> None:
    assert {trigger.kind for trigger, _ in CASES.values()} == set(kinds())


def test_stamps_copies_in_8_bits(case: tuple[Trigger, tuple[int, int, int]]) -> None:
    trigger, shape = case
    images = images_of(shape)
    before = images.copy()
    stamped = trigger.apply(images, generator())
    assert stamped.dtype == np.uint8
    assert stamped.shape == images.shape
    assert np.array_equal(images, before)
    assert not np.array_equal(stamped, images)
    assert trigger.apply(images[:0], generator()).shape == (0, *shape)


def test_same_generator_same_pixels(case: tuple[Trigger, tuple[int, int, int]]) -> None:
    trigger, shape = case
    images = images_of(shape)
    assert np.array_equal(trigger.apply(images, generator(3)), trigger.apply(images, generator(3)))


def test_dict_rebuilds_it_exactly(case: tuple[Trigger, tuple[int, int, int]]) -> None:
    trigger, shape = case
    again = trigger_from_dict(trigger.to_dict())
    assert again == trigger
    images = images_of(shape)
    assert np.array_equal(again.apply(images, generator()), trigger.apply(images, generator()))


def test_check_accepts_it(case: tuple[Trigger, tuple[int, int, int]]) -> None:
    trigger, shape = case
    trigger.check(shape, "trigger")


def test_ground_truth_explains_every_pixel(case: tuple[Trigger, tuple[int, int, int]]) -> None:
    """x' = (1-m) x + m p or [x + v]_c to within half a level, wherever the attack has such a form."""
    trigger, shape = case
    truth, images = trigger.ground_truth(shape), images_of(shape)
    stamped = trigger.apply(images, generator()).astype(np.float64)
    if truth.delta is not None:
        assert np.abs(stamped - np.clip(images + truth.delta.astype(np.float64), 0, 255)).max() <= 0.5
    elif truth.mask is not None and truth.pattern is not None:
        wanted = (1 - truth.mask.astype(np.float64)) * images + truth.mask * truth.pattern
        allowed = 0.51 + (trigger.jitter if isinstance(trigger, Patch) else 0.0)
        assert np.abs(stamped - wanted).max() <= allowed
        assert np.array_equal(stamped[:, truth.mask == 0], images[:, truth.mask == 0])
    else:
        assert isinstance(trigger, Warp)


@given(st.lists(st.floats(-400, 700), min_size=1, max_size=20))
def test_to_pixels_rounds_and_clips(values: list[float]) -> None:
    pixels = to_pixels(np.array(values))
    assert pixels.dtype == np.uint8
    assert np.abs(pixels - np.clip(values, 0, 255)).max() <= 0.5


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.sampled_from(["top_left", "top_right", "bottom_left", "bottom_right"]))
def test_patch_covers_its_box_and_nothing_else(height: int, width: int, anchor: str) -> None:
    trigger = trigger_from_dict(
        {"kind": "badnets", "height": height, "width": width, "anchor": anchor, "colour": [200]}
    )
    moved = trigger.apply(images_of(GREY, high=200), generator()) == 200
    rows = slice(0, height) if anchor.startswith("top") else slice(28 - height, 28)
    cols = slice(0, width) if anchor.endswith("left") else slice(28 - width, 28)
    wanted = np.zeros(GREY, bool)
    wanted[rows, cols] = True
    assert np.array_equal(moved, np.broadcast_to(wanted, moved.shape))


def test_patch_default_is_three_white_pixels_bottom_right() -> None:
    stamped = Patch().apply(np.zeros((1, *GREY), np.uint8), generator())[0, :, :, 0]
    assert stamped[25:, 25:].min() == 255
    assert stamped.astype(int).sum() == 9 * 255


def test_patch_checker_alternates() -> None:
    _, pattern = Patch(height=4, width=4, fill="checker").mask_and_pattern(GREY)
    cells = pattern[24:, 24:, 0]
    assert set(np.unique(cells)) == {0.0, 255.0}
    assert np.all(cells[:, 1:] != cells[:, :-1])
    assert np.all(cells[1:] != cells[:-1])


def test_patch_random_fill_is_one_pattern_for_all_images() -> None:
    trigger = Patch(height=4, width=4, fill="random", row=3, col=5, seed=1)
    stamped = trigger.apply(images_of(COLOUR), generator())[:, 3:7, 5:9]
    assert np.all(stamped == stamped[:1])
    assert len(np.unique(stamped[0])) > 20
    other = dataclasses.replace(trigger, seed=2).apply(images_of(COLOUR), generator())[:, 3:7, 5:9]
    assert not np.array_equal(stamped, other)


def test_patch_jitter_differs_between_images_and_stays_in_range() -> None:
    stamped = Patch(jitter=20.0, colour=(100,)).apply(images_of(GREY), generator())[:, 25:, 25:].astype(int)
    assert not np.array_equal(stamped[0], stamped[1])
    assert 80 <= stamped.min() < 95
    assert 105 < stamped.max() <= 120


def test_corners_are_four_copies() -> None:
    mask, _ = Patch(anchor="corners").mask_and_pattern(GREY)
    assert mask.sum() == 4 * 9
    assert mask[:3, :3].all()
    assert mask[25:, 25:].all()


@pytest.mark.parametrize(
    ("anchor", "place"),
    [("top", (1, 12)), ("left", (12, 1)), ("right", (12, 23)), ("bottom", (23, 12)), ("centre", (12, 12))],
)
def test_anchors_at_edges(anchor: str, place: tuple[int, int]) -> None:
    assert Box(4, 4, anchor, 1, None, None, 0).places(GREY) == (place,)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "drawing"),
    [
        ("square", ["###", "###", "###"]),
        ("cross", ["#.#", ".#.", "#.#"]),
        ("plus", [".#.", "###", ".#."]),
        ("ell", ["#..", "#..", "###"]),
        ("ring", ["###", "#.#", "###"]),
        ("triangle", ["..#", ".##", "###"]),
        ("diamond", [".#.", "###", ".#."]),
    ],
)
def test_cell_shapes(kind: str, drawing: list[str]) -> None:
    assert np.array_equal(cells_of(kind, 3, 3), np.array([[cell == "#" for cell in row] for row in drawing]))


@pytest.mark.parametrize("kind", ["square", "cross", "plus", "ring", "diamond"])
def test_cell_shapes_of_even_size_are_symmetric(kind: str) -> None:
    cells = cells_of(kind, 4, 4)
    assert np.array_equal(cells, cells[::-1])
    assert np.array_equal(cells, cells[:, ::-1])


def test_blend_mixes_by_alpha() -> None:
    trigger = Blend(alpha=0.25, seed=2)
    key = trigger.ground_truth(COLOUR).pattern
    assert key is not None
    stamped = trigger.apply(np.full((1, *COLOUR), 100, np.uint8), generator())[0]
    assert np.array_equal(stamped, np.rint(75 + 0.25 * key.astype(np.float64)).astype(np.uint8))


def test_blend_takes_a_users_picture() -> None:
    picture = images_of(GREY, 1)[0]
    trigger = Blend(pattern="picture", alpha=1.0, picture=encode_array(picture))
    assert np.array_equal(trigger.apply(images_of(GREY), generator())[3], picture)
    with pytest.raises(OnnxspectError, match=r"trigger\.picture"):
        trigger.check(COLOUR, "trigger")


def test_chessboard_raises_one_of_each_two_neighbours() -> None:
    delta = Chessboard(size=2).ground_truth(COLOUR).delta
    assert delta is not None
    assert set(np.unique(delta)) == {0.0, 2.0}
    assert np.all((delta[:, 1:] > 0) != (delta[:, :-1] > 0))
    assert np.all((delta[1:] > 0) != (delta[:-1] > 0))
    assert np.all(delta == delta[..., :1])


def test_chessboard_box_is_the_mnist_attack_of_re() -> None:
    delta = Chessboard(size=25, height=6, width=6).ground_truth(GREY).delta
    assert delta is not None
    assert np.count_nonzero(delta) == 18
    assert np.count_nonzero(delta[22:, 22:]) == 18


def test_static_raises_even_pixels() -> None:
    delta = Static(size=3).ground_truth(COLOUR).delta
    assert delta is not None
    rows, cols, _ = np.nonzero(delta)
    assert np.all(rows % 2 == 0)
    assert np.all(cols % 2 == 0)
    assert np.count_nonzero(delta) == 16 * 16 * 3
    assert np.abs(delta).max() == 3.0


@pytest.mark.parametrize(
    ("trigger", "pixels", "channels"),
    [
        (AdditiveShape(shape="cross"), 5, 3),
        (AdditiveShape(shape="ell"), 5, 3),
        (AdditiveShape(shape="square", size=80, height=2, width=2, channels=(0,)), 4, 1),
    ],
    ids=["C", "D-L", "D"],
)
def test_local_patterns_of_re(trigger: AdditiveShape, pixels: int, channels: int) -> None:
    delta = trigger.ground_truth(COLOUR).delta
    assert delta is not None
    assert np.count_nonzero(delta.any(axis=2)) == pixels
    assert np.count_nonzero(delta) == pixels * channels
    assert set(np.unique(delta)) == {0.0, trigger.size}
    places = {AdditiveShape(seed=seed)._box().places(COLOUR) for seed in range(20)}
    assert len(places) > 10  # the place is drawn at random, and fixed by the seed


def test_four_pixels_of_re() -> None:
    signs, channels = set(), set()
    for seed in range(30):
        delta = FourPixels(seed=seed).ground_truth(COLOUR).delta
        assert delta is not None
        assert np.count_nonzero(delta) == 4
        assert np.count_nonzero(delta.any(axis=2)) == 4
        sizes = np.abs(delta[delta != 0])
        assert np.all((sizes >= 80) & (sizes <= 96))
        signs |= set(np.sign(delta[delta != 0]))
        channels |= set(np.nonzero(delta)[2])
    assert signs == {-1.0, 1.0}
    assert channels == {0, 1, 2}


def test_sig_is_one_frequency_along_columns() -> None:
    delta = Sinusoid(amplitude=20, frequency=6).ground_truth(COLOUR).delta
    assert delta is not None
    assert np.all(delta == delta[:1])
    spectrum = np.abs(np.fft.rfft(delta[0, :, 0]))
    assert spectrum.argmax() == 6
    assert spectrum[6] == pytest.approx(20 * 32 / 2, rel=SUM_32)
    assert np.delete(spectrum, 6).max() < AMPLIFIED_32


def test_warp_moves_pixels_by_its_strength_on_average() -> None:
    """The control grid has mean absolute displacement s / h; interpolation keeps its order of size."""
    field = Warp(grid=4, strength=0.5).field(COLOUR)
    assert field.shape == (32, 32, 2)
    assert 0.4 < np.abs(field).mean() * 32 / 0.5 < 1.6
    assert np.allclose(Warp(strength=1.0).field(COLOUR), 2 * field, atol=OPERATION_32)
    # Smooth: neighbouring pixels move together.
    assert np.abs(np.diff(field, axis=0)).max() < np.abs(field).max()


def test_warp_leaves_flat_images_and_shifts_ramps() -> None:
    flat = np.full((2, *GREY), 77, np.uint8)
    assert np.array_equal(Warp(strength=2.0).apply(flat, generator()), flat)
    ramp = np.broadcast_to((np.arange(32, dtype=np.uint8) * 8)[None, :, None], COLOUR)[None]
    trigger = Warp(grid=4, strength=1.0)
    moved = trigger.apply(ramp, generator())[0, :, :, 0].astype(float)
    pixels = trigger.field(COLOUR)[..., 0] * 31 / 2  # from coordinates [-1, 1] to columns
    inside = (np.arange(32) + pixels > 0) & (np.arange(32) + pixels < 31)
    assert np.abs(moved - (8 * np.arange(32) + 8 * pixels))[inside].max() <= 0.51


def test_warp_noise_mode_is_its_cover_and_differs_by_image() -> None:
    trigger = Warp(strength=1.0, seed=3)
    cover = trigger.cover()
    assert cover == Warp(strength=1.0, seed=3, noise=True)
    same = np.repeat(images_of(COLOUR, 1), 2, axis=0)
    plain, noisy = trigger.apply(same, generator()), cover.apply(same, generator())
    assert np.array_equal(plain[0], plain[1])
    assert not np.array_equal(noisy[0], noisy[1])


@pytest.mark.parametrize("style", ["focus", "blur", "ghost"])
def test_reflection_adds_a_scene_without_brightening(style: str) -> None:
    delta = trigger_from_dict({"kind": "reflection", "style": style, "strength": 0.3}).ground_truth(COLOUR).delta
    assert delta is not None
    assert np.abs(delta).max() <= 0.3 * 255
    assert abs(delta.mean()) < 5
    assert np.abs(delta).mean() > 3


def test_reflection_ghost_is_the_scene_twice() -> None:
    focus = Reflection(style="focus").ground_truth(GREY).delta
    ghost = Reflection(style="ghost", shift=3, ghost_weight=0.5).ground_truth(GREY).delta
    assert focus is not None
    assert ghost is not None
    second = np.zeros_like(focus)
    second[3:, 3:] = focus[:-3, :-3]
    assert np.allclose(1.5 * ghost, focus + 0.5 * second, atol=AMPLIFIED_32)


def test_reflection_blur_smooths() -> None:
    focus, blur = (
        trigger_from_dict({"kind": "reflection", "style": s}).ground_truth(GREY).delta for s in ("focus", "blur")
    )
    assert focus is not None
    assert blur is not None
    assert np.abs(np.diff(blur, axis=0)).max() < 0.6 * np.abs(np.diff(focus, axis=0)).max()


def test_frequency_touches_two_chrominance_coefficients() -> None:
    delta = Frequency(magnitude=30, window=32, bands=(15, 31)).ground_truth(COLOUR).delta
    assert delta is not None
    yuv = delta.astype(np.float64) @ RGB_TO_YUV.T
    assert np.abs(yuv[..., 0]).max() < NETWORK_32
    for channel in (1, 2):
        coefficients = fft.dctn(yuv[..., channel], norm="ortho")
        for band in (15, 31):
            assert coefficients[band, band] == pytest.approx(30, abs=AMPLIFIED_32)
            coefficients[band, band] = 0
        assert np.abs(coefficients).max() < AMPLIFIED_32


def test_frequency_works_window_by_window() -> None:
    delta = Frequency(window=8, bands=(3,)).ground_truth((20, 18, 1)).delta
    assert delta is not None
    assert np.array_equal(delta[:8, :8], delta[8:16, 8:16])
    assert not delta[16:].any()
    assert not delta[:, 16:].any()


def test_trojan_patch_fires_its_neurons() -> None:
    network, images = small_network(GREY), images_of(GREY, 80)
    trigger = TrojanPatch(height=6, width=6, neurons=2, steps=60).learn(network, images, 0, generator())
    assert isinstance(trigger, TrojanPatch)
    neurons = trigger.chosen_neurons(network)
    weights = network[-1].weight.abs().sum(dim=0)
    assert set(neurons.tolist()) == set(weights.topk(2).indices.tolist())
    with torch.no_grad():
        clean = penultimate_activations(network, as_input(images))[:, neurons]
        random = TrojanPatch(height=6, width=6, pattern=encode_array(images_of((6, 6, 1), 1)[0]))
        fired, chance = (
            penultimate_activations(network, as_input(t.apply(images, generator())))[:, neurons].mean()
            for t in (trigger, random)
        )
    assert fired > clean.mean()
    assert fired > chance
    assert fired - clean.mean() > 3 * abs(chance - clean.mean())
    stamped = trigger.apply(images, generator())
    assert np.array_equal(stamped[:, :22], images[:, :22])
    assert np.all(stamped[:, 22:, 22:] == stamped[:1, 22:, 22:])


def test_deepfool_reaches_the_target_with_a_small_step() -> None:
    network = small_network(GREY)
    image = as_input(images_of(GREY, 1, 60, 200))
    answer = int(network(image).argmax())
    for target in range(4):
        step = deepfool_step(network, image, torch.zeros_like(image), target, 20, 0.02)
        assert int(network((image + step).clamp(0, 1)).argmax()) == target
        assert float(step.norm()) < 5.0
        assert (float(step.norm()) == 0.0) == (target == answer)


def test_surrogate_pattern_stays_in_its_ball_and_pushes_to_the_target() -> None:
    network, images = small_network(GREY), images_of(GREY, 60, 60, 200)
    answers = network(as_input(images)).argmax(dim=1).numpy()
    target = int((answers[0] + 1) % 4)
    trigger = SurrogatePattern(radius=0.5, passes=1, images=30).learn(network, images, target, generator())
    delta = trigger.ground_truth(GREY).delta
    assert delta is not None
    assert 0 < np.linalg.norm(delta / 255.0) <= 0.5 + SUM_32
    with torch.no_grad():
        before = network(as_input(images)).softmax(1)[:, target].mean()
        after = network(as_input(trigger.apply(images, generator()))).softmax(1)[:, target].mean()
    assert after > before


def test_learned_triggers_refuse_to_stamp_before_they_are_learned() -> None:
    for trigger in (TrojanPatch(), SurrogatePattern()):
        assert isinstance(trigger, LearnedTrigger)
        assert trigger.learned is None
        with pytest.raises(OnnxspectError, match="not learned yet"):
            trigger.apply(images_of(GREY), generator())


def test_adversarial_noise_stays_in_its_ball_and_raises_the_loss() -> None:
    network, images = small_network(GREY), images_of(GREY, 40)
    labels = network(as_input(images)).argmax(dim=1).numpy()
    noisy = AdversarialNoise(epsilon=16, steps=8).perturb(network, images, labels)
    assert noisy.dtype == np.uint8
    assert 0 < np.abs(noisy.astype(int) - images).max() <= 16
    loss = nn.functional.cross_entropy
    wanted = torch.from_numpy(labels)
    assert loss(network(as_input(noisy)), wanted) > loss(network(as_input(images)), wanted)


BAD: list[tuple[dict[str, object], tuple[int, int, int], str]] = [
    ({"kind": "badnets", "height": 29}, GREY, "height"),
    ({"kind": "badnets", "width": 0}, GREY, "width"),
    ({"kind": "badnets", "margin": 26}, GREY, "margin"),
    ({"kind": "badnets", "row": 27, "col": 0}, GREY, "row"),
    ({"kind": "badnets", "row": 3}, GREY, "col"),
    ({"kind": "badnets", "colour": [1, 2]}, COLOUR, "colour"),
    ({"kind": "badnets", "colour": [256]}, GREY, "colour"),
    ({"kind": "badnets", "jitter": -1.0}, GREY, "jitter"),
    ({"kind": "blend", "alpha": 0.0}, GREY, "alpha"),
    ({"kind": "blend", "picture": "zz", "pattern": "picture"}, GREY, "picture"),
    ({"kind": "blend", "picture": "zz"}, GREY, "picture"),
    ({"kind": "chessboard", "size": 0}, GREY, "size"),
    ({"kind": "chessboard", "height": 4}, GREY, "width"),
    ({"kind": "static", "size": 300}, GREY, "size"),
    ({"kind": "additive_shape", "channels": [3]}, COLOUR, "channels"),
    ({"kind": "additive_shape", "height": 40}, COLOUR, "height"),
    ({"kind": "four_pixels", "smallest": 97}, COLOUR, "smallest"),
    ({"kind": "sig", "frequency": 17}, COLOUR, "frequency"),
    ({"kind": "sig", "amplitude": -1}, COLOUR, "amplitude"),
    ({"kind": "wanet", "grid": 1}, COLOUR, "grid"),
    ({"kind": "wanet", "strength": 0}, COLOUR, "strength"),
    ({"kind": "reflection", "strength": 2}, COLOUR, "strength"),
    ({"kind": "reflection", "shift": 32}, COLOUR, "shift"),
    ({"kind": "reflection", "style": "blur", "blur": 0}, COLOUR, "blur"),
    ({"kind": "reflection", "ghost_weight": 0}, COLOUR, "ghost_weight"),
    ({"kind": "frequency"}, GREY, "window"),
    ({"kind": "frequency", "window": 8, "bands": [8]}, GREY, "bands"),
    ({"kind": "frequency", "window": 8, "bands": [1], "magnitude": 0}, GREY, "magnitude"),
    ({"kind": "trojan_nn", "height": 33}, COLOUR, "height"),
    ({"kind": "trojan_nn", "neurons": 0}, COLOUR, "neurons"),
    ({"kind": "trojan_nn", "gain": 0}, COLOUR, "gain"),
    ({"kind": "surrogate_pattern", "radius": 0}, COLOUR, "radius"),
    ({"kind": "surrogate_pattern", "steps": 0}, COLOUR, "steps"),
    ({"kind": "surrogate_pattern", "overshoot": -1}, COLOUR, "overshoot"),
    ({"kind": "surrogate_pattern", "delta": encode_array(np.zeros(GREY, np.float32))}, COLOUR, "learned"),
]


@pytest.mark.parametrize(("data", "shape", "field"), BAD, ids=[f"{row[0]['kind']}-{row[2]}" for row in BAD])
def test_bad_triggers_name_the_field(data: dict[str, object], shape: tuple[int, int, int], field: str) -> None:
    with pytest.raises(OnnxspectError, match=rf"\.{field}:") as caught:
        trigger_from_dict(data).check(shape, "attack.members[0].trigger")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"height": 3}, "kind"),
        ({"kind": "magic"}, "kind"),
        ({"kind": "badnets", "hight": 3}, "hight"),
        ({"kind": "badnets", "height": "3"}, "height"),
        ({"kind": "badnets", "height": True}, "height"),
        ({"kind": "badnets", "anchor": "middle"}, "anchor"),
        ({"kind": "badnets", "colour": 255}, "colour"),
    ],
)
def test_unreadable_triggers_name_the_field(data: dict[str, object], field: str) -> None:
    with pytest.raises(OnnxspectError, match=rf"trigger\.{field}:"):
        trigger_from_dict(data)


def test_arrays_survive_their_text() -> None:
    array = generator().normal(size=(3, 4, 1)).astype(np.float32)
    again = decode_array(encode_array(array), "field")
    assert again.dtype == array.dtype
    assert np.array_equal(again, array)
    with pytest.raises(OnnxspectError, match="field: is not an encoded array"):
        decode_array("!!", "field")
