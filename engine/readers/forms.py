"""Which form a path has, and who reads it: the registry of readers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.readers import archive, cifar, columns, folder, idx, manifest, matlab, npz, tfrecord
from onnxspect.engine.readers.others import refuse_named
from onnxspect.engine.readers.reader import FORMS, Asked, Reader

#: Opens one form; None where the path is of another.
Opener = Callable[[Path, Asked], Reader | None]
#: In the order in which they are asked. A folder of images by class, and an npz, take what is left: their errors say most.
FOLDERS: tuple[Opener, ...] = (
    cifar.open_folder,
    idx.open_folder,
    columns.open_folder,
    tfrecord.open_folder,
    manifest.open_folder,
    folder.open_folder,
)
FILES: tuple[Opener, ...] = (
    manifest.open_file,
    columns.open_file,
    tfrecord.open_file,
    matlab.open_file,
    idx.open_file,
    archive.open_file,
    npz.open_file,
)


def open_reader(path: str | Path, asked: Asked | None = None) -> Reader:
    """The reader of a data set, by what the path holds.

    Args:
        path: see `reader.FORMS`.
        asked: classes, and which part.

    Raises:
        OnnxspectError: nothing there, of no form that is read, or damaged.
    """
    text = str(path)
    if text.startswith(("hf:", "https:/", "http:/", "s3:/", "gs:/", "ftp:/")):
        raise _remote(text)
    path, asked = Path(path), asked or Asked()
    if not _exists(path):
        raise OnnxspectError(f"{path}: no such file or folder", f"give {FORMS}")
    if not (path.is_dir() or path.is_file()):
        raise OnnxspectError(f"{path}: neither a regular file nor a folder", "give a file or a folder")
    if path.is_file():
        refuse_named(path)
    for opener in FOLDERS if path.is_dir() else FILES:
        found = opener(path, asked)
        if found is not None:
            return found
    raise OnnxspectError(f"{path}: not a data set of a form that is read", f"give {FORMS}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _remote(text: str) -> OnnxspectError:
    scheme, _, rest = text.partition(":")
    address = f"{scheme}://{rest.lstrip('/')}"  # a Path has made one slash of two
    shown = printable(address, 200)
    if scheme == "hf" or rest.lstrip("/").startswith("huggingface.co/"):
        name = printable(rest.lstrip("/").removeprefix("huggingface.co/").removeprefix("datasets/"), 200)
        way = f"huggingface-cli download --repo-type dataset {name} --local-dir data, then --data data"
    else:
        way = f"curl -LO {shown}, then give the file"
    return OnnxspectError(f"{shown}: onnxspect stays off the network", f"fetch it first: {way}")
