"""A folder with one sub-folder a class, images inside, at any depth."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from onnxspect.converters.sandbox.walk import walk
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.readers.labels import labels_of, listed, numbered, of_words
from onnxspect.engine.readers.limits import limits
from onnxspect.engine.readers.listing import Listing, by_folder, listing
from onnxspect.engine.readers.others import without_folders, without_images
from onnxspect.engine.readers.pixels import SUFFIXES
from onnxspect.engine.readers.reader import Asked


def open_folder(path: Path, asked: Asked) -> Listing:
    """A folder of images by class: the last form that is tried, so that what is wrong is said.

    Raises:
        OnnxspectError: no class folders, or no images in them.
    """
    try:
        classes = [p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
        if not classes:
            raise without_folders(path, [p.name for p in path.iterdir()])
        files = list(_files(path))
    except OSError as error:
        raise OnnxspectError(
            f"{path}: cannot be read ({error.strerror or error})", "make it readable for the user who runs onnxspect"
        ) from error
    if not any(Path(f).suffix.lower() in SUFFIXES and "/" in f for f in files):
        raise without_images(path, files, len(classes))
    found = by_folder(files, asked.training, str(path))
    said = list(found.notes)
    stepped = {f.split("/")[0] for f in found.files} != set(found.words)
    every = () if stepped else classes
    empty = sorted(set(every) - set(found.words))
    if empty:
        said.append(f"class folders without an image: {listed(empty)}")
    labelled = of_words(found.words, asked.classes, str(path), every)
    order = _in_order(found.files, found.words)
    files = [found.files[i] for i in order]
    digest = hashlib.sha256()
    for name in files:
        stat = (path / name).stat()
        digest.update(f"{name}\x1f{stat.st_size}\x1f{stat.st_mtime_ns}\x1f".encode(errors="surrogateescape"))
    labelled = type(labelled)(labelled.labels[order], labelled.names, labelled.ordered, labelled.notes)
    return listing("a folder of images by class", path, files, labelled, path.joinpath, digest.hexdigest(), said)


def _files(path: Path) -> Iterator[str]:
    """Regular files below, relative, with "/"; class folders that are links are entered, links below are not."""
    count = 0
    for top in sorted(path.iterdir()):
        if top.name.startswith("."):
            continue
        if top.is_file():
            yield top.name
        elif top.is_dir():
            for folder, below, names in walk(top):
                below[:] = sorted(b for b in below if not b.startswith("."))
                count += len(names)
                limits().check_files(count, str(path))
                inside = Path(folder)
                yield from ((inside / n).relative_to(path).as_posix() for n in sorted(names) if (inside / n).is_file())


def _in_order(files: tuple[str, ...], words: tuple[str, ...]) -> list[int]:
    """By class, numbers by their value, then by name."""
    rank = (
        labels_of(sorted(set(words)))
        if numbered(sorted(set(words)))
        else {w: i for i, w in enumerate(sorted(set(words)))}
    )
    return sorted(range(len(files)), key=lambda i: (rank[words[i]], files[i]))
