"""Data that people bring and that are not read: what each is, and the one thing to do.

Told by names and by first bytes; nothing is opened further.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.readers.pixels import SUFFIXES

_BY_CLASS = "one sub-folder a class, images inside"
_READ = "PNG, JPEG, BMP, GIF, WebP, TIFF and PPM are read"
_AS_NPZ = "load it where it was made, and save it: np.savez('data.npz', images=x, labels=y)"
#: Words of JSON files that describe pictures for other purposes.
_BOXES = re.compile(rb'"(annotations|bbox|segmentation|categories)"\s*:')
_WEBDATASET = {".cls", ".json", ".txt"}


def refuse_named(path: Path) -> None:
    """Refuse a file of a kind that is known by name and not read.

    Raises:
        OnnxspectError: it is one; says what to do.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return  # whoever reads it says so
    found = _named(path, head)
    if found is not None:
        raise OnnxspectError(f"{path}: {found[0]}", found[1])


def _named(path: Path, head: bytes) -> tuple[str, str] | None:
    ending = path.suffix.lower()
    if head.startswith(b"\x89HDF\r\n\x1a\n") and ending != ".mat":
        return "an HDF5 file, which is not read as data", _AS_NPZ
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return (
            "a pickle, which is not opened: it can run code",
            f"give CIFAR's folder and not one of its files; of others, {_AS_NPZ}",
        )
    if ending == ".json" or (head.lstrip()[:1] in (b"{", b"[") and _BOXES.search(head)):
        if _BOXES.search(head):
            return (
                "annotations of boxes or masks (COCO and the like), not one label an image",
                f"sort the images into folders: {_BY_CLASS}",
            )
        if ending == ".json":
            return (
                "one JSON document",
                'write it as JSON lines (.jsonl), one object an image: {"file_name": ..., "label": ...}',
            )
    if ending in SUFFIXES:
        return "one picture, not a set", f"give its folder: {_BY_CLASS}"
    if head.startswith(b"%PDF") or ending in (".xlsx", ".docx", ".pptx"):
        return "a document, not a set of images", f"give the images themselves: {_BY_CLASS}"
    if ending == ".rec":
        return "a RecordIO file of MXNet", f"unpack it into folders: {_BY_CLASS}"
    return None


def without_folders(path: Path, names: Sequence[str]) -> OnnxspectError:
    """Why a folder without class folders is no set by class."""
    held = {n.lower() for n in names}
    pictures = [n for n in names if PurePosixPath(n).suffix.lower() in SUFFIXES]
    if "data.mdb" in held:
        return OnnxspectError(
            f"{path}: an LMDB store, which is not read", f"unpack it into folders ({_BY_CLASS}), or save it as npz"
        )
    if pictures:
        return OnnxspectError(
            f"{path}: its {len(pictures)} images lie side by side, and nothing says their classes",
            f"sort them into folders ({_BY_CLASS}), or lay a labels.csv beside them, with the columns file_name and label",
        )
    if not names:
        return OnnxspectError(f"{path}: an empty folder", f"{_BY_CLASS}; or give the file that the set is in")
    return OnnxspectError(f"{path}: no class folders in it", _BY_CLASS)


def without_images(path: Path, files: Sequence[str], folders: int) -> OnnxspectError:
    """Why a folder of folders has no images that are read."""
    kinds = Counter(PurePosixPath(f).suffix.lower() for f in files if "/" in f)
    kind, count = kinds.most_common(1)[0] if kinds else ("", 0)
    if kind == ".npy":
        return OnnxspectError(f"{path}: its {folders} folders hold arrays ({count} .npy files), not pictures", _AS_NPZ)
    held = f": they hold {count} {printable(kind, 20)} files" if kind else ""
    hint = (
        "convert them to JPEG or PNG" if kind in (".heic", ".heif", ".avif", ".dcm", ".jxl", ".jp2", ".svg") else _READ
    )
    return OnnxspectError(f"{path}: no images in its {folders} folders that are read{held}", hint)


def not_by_class(where: str, paths: Sequence[str]) -> OnnxspectError:
    """Why pictures of an archive or folder are not by class."""
    endings = {PurePosixPath(p).suffix.lower() for p in paths}
    lists = [p for p in paths if PurePosixPath(p).suffix.lower() in (".csv", ".tsv", ".jsonl")]
    if lists and endings & SUFFIXES:
        return OnnxspectError(
            f"{where}: pictures and a list of them ({printable(lists[0], 60)}), which is not read inside an archive",
            "unpack it, and give the list",
        )
    if endings & SUFFIXES and endings & _WEBDATASET and len({PurePosixPath(p).stem for p in paths}) < len(paths):
        return OnnxspectError(
            f"{where}: a shard of WebDataset: a picture and its label side by side",
            f"unpack it into folders: {_BY_CLASS}",
        )
    if any("data_batch" in p or "test_batch" in p for p in paths):
        return OnnxspectError(f"{where}: CIFAR as it is downloaded", "unpack it, and give its folder")
    if any("idx3-ubyte" in p for p in paths):
        return OnnxspectError(f"{where}: MNIST's own files", "unpack it, and give its folder")
    return OnnxspectError(f"{where}: no images in class folders", _BY_CLASS)
