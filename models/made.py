"""Data sets that are made and not downloaded: rendered characters, scikit-learn's digits, and parts and sizes of any set.

* ``glyphs-K-SIZE`` and ``glyphs-K-SIZE-rgb``: K characters (the letters first, then whatever else six DejaVu faces have in common:
  Latin, Greek, Cyrillic, signs) in SIZE x SIZE pixels, each drawn in a random face, size, place, turn and contrast, with noise.
  The faces are those that matplotlib brings, so that the pixels are the same wherever its version is.
* ``digits``: scikit-learn's 1,797 digits of 8 x 8 pixels, enlarged to 16.
* ``NAME/K``: the first K classes of a set. ``NAME@SIZE``: the set in SIZE x SIZE pixels. Both: ``NAME/K@SIZE``.
"""

from __future__ import annotations

import dataclasses
import re
import string
import unicodedata
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models.data import Dataset, load_dataset
from onnxspect.models.randomness import keyed_generator

FACES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold")
#: Images in all that are rendered of a set for training, at most 300 and at least 40 of a class; a quarter as many for testing.
RENDERED = 9000
_GLYPHS = re.compile(r"glyphs-(\d+)-(\d+)(-rgb)?")
_PART = re.compile(r"(?P<name>[^/@]+)(?:/(?P<classes>\d+))?(?:@(?P<side>\d+))?")
_SEED = 20


def load(name: str, root: Path | None) -> Dataset:
    """A made set, a named set from `root`, or a part or another size of one.

    Raises:
        OnnxspectError: no such set, or fewer classes or characters than are asked for.
    """
    whole = _PART.fullmatch(name)
    if whole is None or (not whole["classes"] and not whole["side"]):
        return _base(name, root)
    dataset = _base(whole["name"], root)
    if whole["classes"]:
        dataset = first_classes(dataset, int(whole["classes"]))
    return dataclasses.replace(resized(dataset, int(whole["side"])) if whole["side"] else dataset, name=name)


def _base(name: str, root: Path | None) -> Dataset:
    glyphs = _GLYPHS.fullmatch(name)
    if glyphs is not None:
        return rendered(name, int(glyphs[1]), int(glyphs[2]), colour=glyphs[3] is not None)
    return _digits() if name == "digits" else load_dataset(name, root)


def first_classes(dataset: Dataset, classes: int) -> Dataset:
    """The samples of the first classes alone.

    Raises:
        OnnxspectError: it does not have so many, or fewer than two are asked for.
    """
    if not 2 <= classes <= len(dataset.classes):
        raise OnnxspectError(f"{dataset.name} has {len(dataset.classes)} classes, not {classes}", "two at least")
    train, test = dataset.y_train < classes, dataset.y_test < classes
    return dataclasses.replace(
        dataset,
        x_train=dataset.x_train[train],
        y_train=dataset.y_train[train],
        x_test=dataset.x_test[test],
        y_test=dataset.y_test[test],
        classes=dataset.classes[:classes],
    )


def resized(dataset: Dataset, side: int) -> Dataset:
    """The same images in another size, bilinear."""
    return dataclasses.replace(dataset, x_train=_resized(dataset.x_train, side), x_test=_resized(dataset.x_test, side))


def _resized(images: np.ndarray, side: int) -> np.ndarray:
    size = (side, side)
    kind = Image.Resampling.BILINEAR
    found = [np.asarray(Image.fromarray(x[..., 0] if x.shape[2] == 1 else x).resize(size, kind)) for x in images]
    return np.stack(found).reshape(len(images), side, side, images.shape[3])


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images * (255 / 16)).round().astype(np.uint8)[..., None]
    images, labels = _resized(images, 16), bunch.target.astype(np.int64)
    order = keyed_generator(_SEED, "digits").permutation(len(labels))
    test, train = order[:400], order[400:]
    return Dataset("digits", images[train], labels[train], images[test], labels[test], tuple("0123456789"))


def rendered(name: str, classes: int, side: int, colour: bool) -> Dataset:
    """Characters, drawn."""
    known = characters()
    if not 2 <= classes <= len(known):
        raise OnnxspectError(f"{name}: {len(known)} characters are known, not {classes}", "two at least")
    if not 12 <= side <= 256:
        raise OnnxspectError(f"{name}: {side} pixels", "from 12 to 256")
    a_class = min(300, max(40, RENDERED // classes))
    parts = []
    for part, count in (("train", a_class), ("test", max(10, a_class // 4))):
        rng = keyed_generator(_SEED, "glyphs", part, classes, side, colour)
        images = [_drawn(c, side, colour, rng) for c in known[:classes] for _ in range(count)]
        labels = np.repeat(np.arange(classes), count)
        order = rng.permutation(len(labels))
        parts += [np.stack(images)[order], labels[order]]
    x_train, y_train, x_test, y_test = parts
    return Dataset(name, x_train, y_train, x_test, y_test, tuple(known[:classes]))


def _drawn(character: str, side: int, colour: bool, rng: np.random.Generator) -> np.ndarray:
    """One image ``(side, side, channels)`` uint8 of a character."""
    face = FACES[rng.integers(len(FACES))]
    font = _font(face, int(side * rng.uniform(0.6, 0.85)))
    layer = Image.new("L", (side, side))
    shift = rng.uniform(-0.08, 0.08, 2) * side
    ImageDraw.Draw(layer).text((side / 2 + shift[0], side / 2 + shift[1]), character, 255, font, anchor="mm")
    layer = layer.rotate(float(rng.uniform(-12, 12)), Image.Resampling.BILINEAR)
    ink = np.asarray(layer, np.float32)[..., None] / 255
    channels = 3 if colour else 1
    low, high = rng.uniform(0.0, 0.35, channels), rng.uniform(0.65, 1.0, channels)
    if rng.random() < 0.3:
        low, high = high, low
    pixels = low + (high - low) * ink + rng.normal(0, 0.03, (side, side, channels))
    return np.asarray((pixels.clip(0, 1) * 255).round(), np.uint8)


@lru_cache(maxsize=512)
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_folder() / f"{face}.ttf"), size)


def _folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(maxsize=1)
def characters() -> tuple[str, ...]:
    """Characters that all faces have and that look like no other: letters of the alphabet first, then by code point."""
    from matplotlib.ft2font import FT2Font

    common = set.intersection(*(set(FT2Font(str(_folder() / f"{f}.ttf")).get_charmap()) for f in FACES))
    able = sorted(c for c in common if unicodedata.category(chr(c))[0] in "LNS")
    first = [ord(c) for c in string.ascii_uppercase + string.ascii_lowercase + string.digits]
    found: dict[bytes, str] = {}
    for code in [*first, *(c for c in able if c not in first)]:
        layer = Image.new("L", (40, 40))
        ImageDraw.Draw(layer).text((20, 20), chr(code), 255, _font(FACES[0], 24), anchor="mm")
        found.setdefault(layer.tobytes(), chr(code))
    return tuple(found.values())


def classes_of(name: str) -> int:
    """How many classes a set has, without loading it."""
    glyphs, part = _GLYPHS.fullmatch(name), _PART.fullmatch(name)
    if glyphs is not None:
        return int(glyphs[1])
    if part is not None and part["classes"]:
        return int(part["classes"])
    return 43 if name.startswith("gtsrb") else 10
