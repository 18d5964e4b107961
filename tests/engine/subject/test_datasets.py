"""Samples in every form that a caller may have them: the same pixels and labels come out of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import CLASSES, SIDE, quadrant_images
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.subject.datasets import Data, samples_from
from onnxspect.engine.subject.samples import Samples

BYTES = np.round(quadrant_images(3).images * 255).astype(np.uint8)
EXPECTED = Samples.from_arrays(BYTES, quadrant_images(3).labels)
LABELS = EXPECTED.labels
NAMES = ("ne", "nw", "se", "sw")


class Pictures(Dataset[tuple[Image.Image, int]]):
    """As torchvision's data sets without a transform: PIL images, and the names of the classes."""

    classes: ClassVar = list(NAMES)

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(BYTES[index, 0]), int(LABELS[index])


class Stream(IterableDataset[tuple[np.ndarray, int]]):
    """Without a length."""

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        return iter([(image, int(label)) for image, label in zip(BYTES, LABELS, strict=True)])


class Feature:
    """A ClassLabel of Hugging Face."""

    names: ClassVar = list(NAMES)


class HuggingFace:
    """What is used of a Hugging Face Dataset: columns, features, rows."""

    column_names = ("img", "label")
    features: ClassVar = {"img": object(), "label": Feature()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter([{"img": i, "label": label} for i, label in Pictures()])  # type: ignore[attr-defined]


TENSORS = TensorDataset(torch.from_numpy(BYTES), torch.from_numpy(LABELS))
FORMS: dict[str, Data] = {
    "samples": EXPECTED,
    "arrays": (BYTES, LABELS),
    "arrays, channels last": (BYTES.transpose(0, 2, 3, 1), LABELS.tolist()),
    "tensors": [torch.from_numpy(BYTES).requires_grad_(False), torch.from_numpy(LABELS)],
    "mapping": {"images": BYTES, "labels": LABELS},
    "torch data set": TENSORS,
    "torch data set of pictures": Pictures(),
    "torch stream": Stream(),
    "torch loader": DataLoader(TENSORS, batch_size=5),
    "Hugging Face": HuggingFace(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form: str) -> None:
    found = samples_from(FORMS[form], (1, SIDE, SIDE))
    np.testing.assert_array_equal(found.images, EXPECTED.images)
    np.testing.assert_array_equal(found.labels, LABELS)
    assert found.sha256 == EXPECTED.sha256


def test_a_path_is_read_as_before(tmp_path: Path) -> None:
    np.savez(tmp_path / "clean.npz", images=BYTES, labels=LABELS)
    found = samples_from(tmp_path / "clean.npz")
    assert (found.sha256, found.path) == (EXPECTED.sha256, str(tmp_path / "clean.npz"))


@pytest.mark.parametrize("form", ["torch data set of pictures", "Hugging Face"])
def test_class_names_are_taken_along(form: str) -> None:
    assert samples_from(FORMS[form]).names == NAMES


def test_floats_stay_what_they_are() -> None:
    data = TensorDataset(torch.from_numpy(EXPECTED.images), torch.from_numpy(LABELS))
    assert samples_from(data).sha256 == EXPECTED.sha256


def test_resizing() -> None:
    with pytest.raises(OnnxspectError, match="the samples: images are 8x8 with 1 channel, the model takes 4x4"):
        samples_from((BYTES, LABELS), (1, 4, 4))
    assert samples_from((BYTES, LABELS), (1, 4, 4), resize=True).shape == (1, 4, 4)
    with pytest.raises(OnnxspectError, match="image 0: 8x8, the model takes 4x4"):
        samples_from(Pictures(), (1, 4, 4))
    assert samples_from(Pictures(), (3, 4, 4), resize=True).shape == (3, 4, 4)  # pictures are brought to its channels


REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": (None, "samples cannot be had from a NoneType"),
    "a number": (3, "samples cannot be had from a int"),
    "bytes": (b"PK", "samples cannot be had from a bytes"),
    "three arrays": ((BYTES, LABELS, LABELS), "samples cannot be had from a tuple of 3"),
    "images alone": (BYTES, "images without labels"),
    "a mapping": ({"x": BYTES}, "without `images` and `labels` (found x)"),
    "no pairs": ([1.5, 2.5, 3.5], "samples cannot be had from a list of 3"),
    "a data set of images": (TensorDataset(torch.from_numpy(BYTES)), "not an (image, label) pair"),
    "text for images": (iter([("a cat", 0)]), "image 0 is a str"),
    "text for labels": (iter([(BYTES[0], "cat")]), "its label is 'cat', not one class index"),
    "one-hot labels": (iter([(BYTES[0], np.eye(CLASSES)[0])]), "not one class index"),
    "sizes that differ": (iter([(BYTES[0], 0), (BYTES[0][:, :4], 1)]), "images must be of one size"),
    "nothing in it": (iter([]), "a data set without a sample"),
    "normalised": ((EXPECTED.images * 4 - 2, LABELS), "not [0, 1]"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_samples_is_told_what_is(form: str) -> None:
    data, said = REFUSED[form]
    with pytest.raises(OnnxspectError) as caught:
        samples_from(data)
    assert said in str(caught.value)
    assert caught.value.hint


def test_columns_of_other_names() -> None:
    other = HuggingFace()
    other.column_names = ("picture", "kind")
    with pytest.raises(OnnxspectError, match=r"found picture, kind.*name them: images"):
        samples_from(other)
