"""Clean samples in whatever form a caller has them: a path, Samples, arrays, a torch or a Hugging Face data set.

Nothing but numpy and Pillow is imported here: a data set of torch or of Hugging Face is known by what it can do, so that
neither needs to be installed. Images stay raw pixels in every form: integers from 0 to 255, or floats in [0, 1]. A data set whose
transforms normalise its images is refused with that advice, because how a model wants its pixels is found out by the scan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.readers.encoded import columns_of
from onnxspect.engine.readers.labels import ClassList, of_numbers
from onnxspect.engine.readers.pixels import Seen, as_array
from onnxspect.engine.subject.resizing import Resizing, fit, way_of
from onnxspect.engine.subject.samples import Samples

if TYPE_CHECKING:
    from torch.utils.data import Dataset

ACCEPTED = (
    "a path (an npz with images and labels, or a folder of images by class), Samples, a pair of arrays (images, labels), "
    "a torch Dataset or DataLoader, or a Hugging Face Dataset"
)
#: Columns of a Hugging Face data set that hold the images and the labels, by the names that such sets use.
IMAGE_COLUMNS = ("image", "img", "images", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target")


@dataclass(frozen=True)
class Source:
    """A path, and what its classes are in the order of the model's.

    Attributes:
        path: of any form that is read (readers.reader.FORMS).
        classes: the model's classes in order; None where nobody said.
    """

    path: Path
    classes: ClassList | None = None


#: What a caller may give as samples. A torch DataLoader and a Hugging Face Dataset are iterables; an array pair is a tuple.
Data: TypeAlias = "str | Path | Source | Samples | tuple[Any, Any] | Mapping[str, Any] | Iterable[Any] | Dataset[Any]"


def samples_from(
    data: Data,
    size: tuple[int, int, int] | None = None,
    resize: Resizing = False,
    classes: ClassList | None = None,
    training: bool = False,
) -> Samples:
    """Samples from any of the accepted forms.

    Args:
        data: see `ACCEPTED`. Images ``(n, height, width[, channels])`` or ``(n, channels, height, width)``, labels ``(n,)``.
        size: (channels, height, width) that the model takes; None takes any.
        resize: bring images of another size to `size` instead of refusing them, or the way to do it.
        classes: the model's classes in order, where they are known.
        training: of a path that holds a set in parts, the training part is meant.

    Raises:
        OnnxspectError: another type, or images and labels that do not fit; says which forms are accepted.
    """
    if isinstance(data, Source):
        return Samples.load(data.path, size, resize, data.classes or classes, training)
    if isinstance(data, str | Path):
        return Samples.load(data, size, resize, classes, training)
    samples = _in_memory(data, size, resize)
    if classes is None:
        return samples
    labelled = of_numbers(samples.labels, samples.names, classes, samples.path or "the samples")
    return replace(samples, labels=labelled.labels, names=labelled.names, notes=(*samples.notes, *labelled.notes))


def _in_memory(data: Data, size: tuple[int, int, int] | None, resize: Resizing) -> Samples:
    if isinstance(data, Samples):
        return data.fitted(size, resize)
    if isinstance(data, Mapping):
        if not {"images", "labels"} <= set(data):
            found = ", ".join(sorted(map(str, data))[:8]) or "nothing"
            raise OnnxspectError(f"a mapping without `images` and `labels` (found {found})", f"accepted are {ACCEPTED}")
        return Samples.from_arrays(_array(data["images"]), _array(data["labels"])).fitted(size, resize)
    if isinstance(data, tuple | list):
        if len(data) != 2 or not all(_is_array(part) for part in data):
            raise _refused(data)
        return Samples.from_arrays(_array(data[0]), _array(data[1])).fitted(size, resize)
    if isinstance(data, bytes | bytearray | memoryview):
        raise _refused(data)
    if _is_array(data):
        raise OnnxspectError("images without labels", "give the pair (images, labels)")
    if hasattr(data, "column_names") and hasattr(data, "features"):
        return _of_columns(data, size, resize)
    if _is_loader(data):
        return _of_batches(data, size, resize)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        indexed: Any = data
        items = (indexed[i] for i in range(len(indexed)))
        return _of_items(items, _names(getattr(data, "classes", ())), size, resize)
    if isinstance(data, Iterable):
        return _of_items(iter(data), _names(getattr(data, "classes", ())), size, resize)
    raise _refused(data)


def _refused(data: Any) -> OnnxspectError:
    return OnnxspectError(f"samples cannot be had from {_called(data)}", f"accepted are {ACCEPTED}")


def _called(value: Any) -> str:
    kind = type(value)
    inside = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return (
        f"a {kind.__qualname__}{inside}"
        if kind.__module__ == "builtins"
        else f"a {kind.__module__}.{kind.__qualname__}"
    )


def _is_array(value: Any) -> bool:
    """A numpy array, a torch tensor, or anything else that numpy takes as an array of numbers."""
    if isinstance(value, np.ndarray) or (hasattr(value, "__array__") and hasattr(value, "shape")):
        return True
    return isinstance(value, list) and all(isinstance(v, int) for v in value)


def _is_loader(value: Any) -> bool:
    """A torch DataLoader, or what looks like one: it is iterated in batches."""
    return hasattr(value, "batch_size") and hasattr(value, "dataset")


def _array(value: Any) -> np.ndarray:
    """An array or a tensor, on whatever device, as numpy."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value)


def _names(classes: Any) -> tuple[str, ...]:
    """Class names, as torchvision's data sets have them."""
    if isinstance(classes, tuple | list) and all(isinstance(c, str) for c in classes):
        return tuple(classes)
    return ()


def _of_columns(data: Any, size: tuple[int, int, int] | None, resize: Resizing) -> Samples:
    """A Hugging Face Dataset: one column of images, one of labels."""
    image, label = columns_of(list(data.column_names), IMAGE_COLUMNS, LABEL_COLUMNS, "a Hugging Face data set")
    names = _names(getattr(data.features.get(label), "names", ()))
    return _of_items(((row[image], row[label]) for row in data), names, size, resize)


def _of_batches(data: Any, size: tuple[int, int, int] | None, resize: Resizing) -> Samples:
    def items() -> Iterator[tuple[Any, Any]]:
        for batch in data:
            images, labels = _pair(batch)
            yield from zip(_array(images), _array(labels), strict=True)

    return _of_items(items(), _names(getattr(data.dataset, "classes", ())), size, resize)


def _of_items(
    items: Iterable[Any], names: Sequence[str], size: tuple[int, int, int] | None, resize: Resizing
) -> Samples:
    """Items (image, label), one after the other."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    way, seen = way_of(resize), Seen()
    for i, item in enumerate(items):
        image, label = _pair(item)
        where = f"image {i}"
        if isinstance(image, Image.Image):
            array = fit(as_array(image, where, seen), size, way, where, seen)
        elif _is_array(image):
            array = _array(image)
        else:
            raise OnnxspectError(
                f"{where} is {_called(image)}, not an array or a PIL image", f"accepted are {ACCEPTED}"
            )
        if images and (array.shape != images[0].shape or array.dtype != images[0].dtype):
            raise OnnxspectError(
                f"{where} is {array.dtype} of shape {array.shape}, the first one {images[0].dtype} of {images[0].shape}",
                "images must be of one size and type",
            )
        images.append(array)
        labels.append(_label(label, where))
    if not images:
        raise OnnxspectError("a data set without a sample", f"accepted are {ACCEPTED}")
    samples = Samples.from_arrays(np.stack(images), np.array(labels), names).fitted(size, resize)
    return replace(samples, notes=(*samples.notes, *seen.notes()))


def _pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        image = next((item[c] for c in IMAGE_COLUMNS if c in item), None)
        label = next((item[c] for c in LABEL_COLUMNS if c in item), None)
        if image is not None and label is not None:
            return image, label
    elif isinstance(item, tuple | list) and len(item) >= 2:
        return item[0], item[1]
    raise OnnxspectError(
        f"an item of the data set is {_called(item)}, not an (image, label) pair", f"accepted are {ACCEPTED}"
    )


def _label(value: Any, where: str) -> int:
    array = _array(value)
    if array.size != 1 or array.dtype.kind not in "uif" or float(array.reshape(())) != int(array.reshape(())):
        raise OnnxspectError(f"{where}: its label is {value!r:.60}, not one class index", "class indices count from 0")
    return int(array.reshape(()))
