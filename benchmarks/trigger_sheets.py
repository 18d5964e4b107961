"""A contact sheet for every trigger: clean images, the same ones stamped, and the difference.

    python benchmarks/trigger_sheets.py --out docs/triggers [--manifest benchmarks/results/zoo_small.json]

Grey images are from the shipped Fashion-MNIST part, colour ones are drawn. Triggers that were learned on a model are
taken from a zoo's manifest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from onnxspect.models import zoo
from onnxspect.models.randomness import keyed_generator
from onnxspect.models.triggers import ImageShape, Trigger, trigger_from_dict
from onnxspect.models.triggers.pictures import drawn_picture

GREY: ImageShape = (28, 28, 1)
COLOUR: ImageShape = (32, 32, 3)
CELL, GAP, LABEL = 96, 4, 76  # pixels: a cell, the space between cells, the column of row names
LEARNED = ("trojan_nn", "surrogate_pattern")

SHEETS: dict[str, Callable[[ImageShape], dict[str, object]]] = {
    "badnets_square": lambda _: {"kind": "badnets"},
    "badnets_noisy": lambda _: {"kind": "badnets", "fill": "random", "height": 5, "width": 5, "anchor": "random"},
    "badnets_jitter": lambda _: {"kind": "badnets", "jitter": 60.0, "colour": [128], "height": 6, "width": 6},
    "badnets_checker_corners": lambda _: {"kind": "badnets", "fill": "checker", "anchor": "corners"},
    "badnets_triangle": lambda _: {"kind": "badnets", "shape": "triangle", "height": 7, "width": 7},
    "badnets_ring": lambda _: {"kind": "badnets", "shape": "ring", "height": 7, "width": 7, "anchor": "centre"},
    "blend_noise": lambda _: {"kind": "blend", "pattern": "noise", "alpha": 0.15},
    "blend_picture": lambda _: {"kind": "blend", "pattern": "picture", "alpha": 0.2, "seed": 5},
    "re_a_chessboard": lambda _: {"kind": "chessboard"},
    "re_b_static": lambda _: {"kind": "static"},
    "re_c_cross": lambda _: {"kind": "additive_shape", "shape": "cross", "seed": 1},
    "re_d_square": lambda _: {
        "kind": "additive_shape",
        "shape": "square",
        "size": 80.0,
        "height": 2,
        "width": 2,
        "channels": [0],
        "seed": 2,
    },
    "re_e_four_pixels": lambda _: {"kind": "four_pixels", "seed": 3},
    "re_f_ell": lambda _: {"kind": "additive_shape", "shape": "ell", "seed": 4},
    "sig": lambda _: {"kind": "sig"},
    "wanet": lambda _: {"kind": "wanet", "strength": 1.0, "seed": 7},
    "wanet_noise_mode": lambda _: {"kind": "wanet", "strength": 1.0, "seed": 7, "noise": True},
    "reflection_focus": lambda _: {"kind": "reflection", "style": "focus", "seed": 8},
    "reflection_blur": lambda _: {"kind": "reflection", "style": "blur", "seed": 8},
    "reflection_ghost": lambda _: {"kind": "reflection", "style": "ghost", "seed": 8},
    "frequency": lambda shape: {
        "kind": "frequency",
        "window": min(shape[:2]),
        "bands": [min(shape[:2]) // 2 - 1, min(shape[:2]) - 1],
    },
}


def grey_images() -> np.ndarray:
    """One image of each of the first five classes."""
    with np.load(zoo.path("fashion_mnist_test"), allow_pickle=False) as archive:
        images, labels = archive["images"], archive["labels"]
    return np.stack([images[np.flatnonzero(labels == label)[0]] for label in range(5)])


def colour_images() -> np.ndarray:
    """Three drawn pictures."""
    return np.stack([drawn_picture(COLOUR, seed) for seed in (21, 22, 23)])


def rows_of(trigger: Trigger, images: np.ndarray) -> tuple[list[np.ndarray], float]:
    """Clean, stamped and difference images uint8 ``(n, h, w, c)``, and what the difference was multiplied by."""
    stamped = trigger.apply(images, keyed_generator(0, "sheet"))
    difference = stamped.astype(np.float64) - images
    gain = float(max(1, int(100 / max(float(np.abs(difference).max()), 1.0))))
    shown = np.clip(np.rint(127 + np.clip(gain * difference, -127, 128)), 0, 255).astype(np.uint8)
    return [images, stamped, shown], gain


def sheet(triggers: list[tuple[Trigger, np.ndarray]]) -> Image.Image:
    """Three rows; the images of all given (trigger, images) pairs side by side."""
    columns = sum(len(images) for _, images in triggers)
    width = LABEL + columns * (CELL + GAP)
    canvas = Image.new("RGB", (width, 3 * (CELL + GAP) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    left, gains = LABEL, []
    for trigger, images in triggers:
        rows, gain = rows_of(trigger, images)
        gains.append(gain)
        for column in range(len(images)):
            for row, pictures in enumerate(rows):
                pixels = pictures[column]
                tile = Image.fromarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)
                tile = tile.resize((CELL, CELL), Image.Resampling.NEAREST)
                canvas.paste(tile, (left, GAP + row * (CELL + GAP)))
            left += CELL + GAP
    names = ["clean", "stamped", "difference\nx " + ", ".join(f"{gain:.0f}" for gain in dict.fromkeys(gains))]
    for row, name in enumerate(names):
        draw.multiline_text((2, GAP + row * (CELL + GAP) + CELL // 2 - 10), name, fill="black")
    return canvas


def learned_triggers(manifest: Path) -> dict[str, Trigger]:
    """The first learned trigger of each kind in a zoo's manifest."""
    found: dict[str, Trigger] = {}
    for row in json.loads(manifest.read_text(encoding="utf-8"))["models"]:
        for member in row["attack"]["members"] if row["attack"] else []:
            kind = member["trigger"]["kind"]
            if kind in LEARNED and kind not in found:
                found[kind] = trigger_from_dict(member["trigger"])
    return found


def main() -> None:
    """Write one PNG for every trigger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/triggers"))
    parser.add_argument("--manifest", type=Path, default=Path("benchmarks/results/zoo_small.json"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    grey, colour = grey_images(), colour_images()
    for name, describe in SHEETS.items():
        pairs = [(trigger_from_dict(describe(shape)), images) for shape, images in ((GREY, grey), (COLOUR, colour))]
        for trigger, images in pairs:
            trigger.check(images.shape[1:], name)
        save(sheet(pairs), options.out / f"{name}.png")
    for name, trigger in learned_triggers(options.manifest).items():
        save(sheet([(trigger, grey)]), options.out / f"{name}.png")


def save(picture: Image.Image, path: Path) -> None:
    """A lossless PNG, so that a test can compare it pixel by pixel."""
    picture.save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
