"""Which framework's file is this? Told by its content, never by its name; nothing is executed or unpickled.

Only the first bytes are read, for zip archives the list of names too, for folders the names of their entries.
"""

from __future__ import annotations

import bz2
import contextlib
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from onnxspect.converters import plugins
from onnxspect.converters.errors import OnnxspectError, caused_by
from onnxspect.converters.file.wire_scan import outer_fields
from onnxspect.converters.sandbox.safe_open import open_regular
from onnxspect.converters.sources import others
from onnxspect.converters.text import printable


@dataclass(frozen=True)
class Format:
    """A kind of file that can be converted.

    Attributes:
        name: for the library, such as "torch-script".
        title: for people.
        module: the module of converters/sources/ that opens it, without the prefix "from_"; of an installed package's format, the
            whole name of the package's own module, with a dot in it. It has a function ``export(source) -> Exported``.
        extra: what must be installed, as in ``onnxspect[extra]``; "" for what always is.
        runs_code: whether opening it can run code, so that it is opened in a locked-in process or not at all.
        environment: variables that the child needs.
        matches: whether a file that begins with these bytes (at most 4,096) is of this format; for the formats of installed
            packages, which are asked when a file is of no other.
    """

    name: str
    title: str
    module: str
    extra: str
    runs_code: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    matches: Callable[[bytes], bool] | None = None


_KERAS = (("KERAS_BACKEND", "torch"), ("HDF5_USE_FILE_LOCKING", "FALSE"), ("HDF5_PLUGIN_PRELOAD", "::"))
_TF = (("TF_CPP_MIN_LOG_LEVEL", "3"), ("TF_ENABLE_ONEDNN_OPTS", "0"), ("HDF5_PLUGIN_PRELOAD", "::"))
_JAX = (("JAX_PLATFORMS", "cpu"),)

FORMATS = {
    f.name: f
    for f in (
        Format("onnx", "ONNX", "onnx", ""),
        Format("torch-pt2", "PyTorch exported program (.pt2)", "torch", "torch", runs_code=True),
        Format("torch-script", "TorchScript", "torch", "torch", runs_code=True),
        Format("torch-pickle", "PyTorch state dict or pickled module", "torch", "torch"),
        Format("safetensors", "safetensors", "torch", "torch"),
        Format("keras", "Keras 3 (.keras)", "keras", "keras", environment=_KERAS),
        Format("keras-h5", "Keras (.h5)", "keras", "keras", environment=_KERAS),
        Format("keras2-h5", "Keras 2 (.h5), by tf_keras", "tensorflow", "tensorflow", environment=_TF),
        Format("saved-model", "TensorFlow SavedModel", "tensorflow", "tensorflow", runs_code=True, environment=_TF),
        Format("tflite", "TensorFlow Lite", "tflite", "tensorflow", environment=_TF),
        Format("msgpack", "Flax (msgpack)", "jax", "jax", environment=_JAX),
        Format("orbax", "Orbax checkpoint", "jax", "jax", environment=_JAX),
        Format("npz", "arrays (npz)", "jax", "jax", environment=_JAX),
        Format("skops", "scikit-learn (skops)", "sklearn", "sklearn"),
        Format("pickle", "scikit-learn (pickle or joblib)", "sklearn", "sklearn", runs_code=True),
    )
}

_TORCH_LEGACY = bytes.fromhex("8a0a6cfc9c46f9206aa85019")  # torch.serialization.MAGIC_NUMBER, as pickle writes it
_HDF5 = b"\x89HDF\r\n\x1a\n"
_COMPRESSED = (
    b"\x78\x01",
    b"\x78\x5e",
    b"\x78\x9c",
    b"\x78\xda",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ\x00",
    b"\x04\x22\x4d\x18",
)
_HEAD = 4096
_MAX_ENTRIES = 100_000  # in a zip archive; a checkpoint of a large network has some thousands
_KNOWN = (
    "ONNX, PyTorch (.pt2, TorchScript, .pth, .safetensors), Keras (.keras, .h5), SavedModel, TFLite, Flax, scikit-learn"
)


def detect(path: Path) -> Format:
    """The format of a file or folder.

    Raises:
        OnnxspectError: if it does not exist, is no file or folder, or is of no format that is known.
    """
    path = Path(path)
    shown = printable(str(path), 200)
    if path.is_dir():
        return _folder(path, shown)
    with os.fdopen(open_regular(path), "rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise OnnxspectError(f"{shown}: is empty (0 bytes)", "the download or export did not finish")
    name = _by_magic(head) or _by_structure(path, head)
    if name is not None:
        return FORMATS[name]
    for format in map(brought_in, plugins.names(plugins.SOURCES)):
        if format.matches is not None and format.matches(head):
            return format
    what, way = others.of_file(path, head)
    kind = OnnxspectError if what == others.UNKNOWN else others.OtherFormatError
    raise kind(f"{shown}: {what}", way or f"known are {_KNOWN}")


def brought_in(name: str) -> Format:
    """The format of that name that an installed package brings in.

    Raises:
        OnnxspectError: there is none, or it is not made as docs/extending.md says.
    """
    format = plugins.load(plugins.SOURCES, name)
    if not isinstance(format, Format) or format.name != name or "." not in format.module:
        raise OnnxspectError(
            f"what an installed package brings in as the source format {name!r} is {format!r:.200}",
            "it must be a Format of that name, whose module is a whole name such as package.module",
        )
    return format


def _folder(path: Path, shown: str) -> Format:
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise caused_by(
            error, f"{shown}: cannot be opened: {error.strerror}", "make it readable for the user who runs onnxspect"
        ) from None
    if "saved_model.pb" in names:
        return FORMATS["saved-model"]
    if names & {"_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"}:
        return FORMATS["orbax"]
    what, way = others.of_folder(names)
    raise others.OtherFormatError(f"{shown}: {what}", way)


def _by_magic(head: bytes) -> str | None:
    if head.startswith(_HDF5) or any(head[o : o + 8] == _HDF5 for o in (512, 1024, 2048)):
        return "keras-h5"
    if head[4:8] == b"TFL3":
        return "tflite"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and len(head) > 2:
        return "torch-pickle" if head[2:14] == _TORCH_LEGACY else "pickle"
    if head.startswith(_COMPRESSED) and _begins(head) in (b"\x80", b""):
        return "pickle"  # joblib compresses what it pickles
    if len(head) > 9 and head[8:9] == b"{" and 2 <= struct.unpack("<Q", head[:8])[0] <= 100 << 20:
        return "safetensors"
    return None


def _begins(head: bytes) -> bytes:
    """The first byte of what is packed in a file; b"" where that cannot be told (lz4)."""
    unpackers: list[Callable[[], Any]] = [
        lambda: zlib.decompressobj(wbits=47),
        bz2.BZ2Decompressor,
        lzma.LZMADecompressor,
    ]
    for unpacker in unpackers:
        with contextlib.suppress(zlib.error, OSError, lzma.LZMAError, EOFError, ValueError):
            return bytes(unpacker().decompress(head, 1))
    return b""


def _by_structure(path: Path, head: bytes) -> str | None:
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    with os.fdopen(open_regular(path), "rb") as file:
        fields = outer_fields(file, os.fstat(file.fileno()).st_size)
    if fields is not None and _looks_like_onnx(fields):
        return "onnx"
    if len(head) > 1 and ((0x81 <= head[0] <= 0x8F and 0xA1 <= head[1] <= 0xBF) or head[0] in (0xDE, 0xDF)):
        return "msgpack"  # a map whose first key is a short string
    return None


def _looks_like_onnx(fields: dict[int, int]) -> bool:
    """Whether the wire types of the outermost fields are ModelProto's, with a graph among them.

    Field numbers that it does not know are passed over: protobuf allows them, and later releases may add some.
    """
    expected = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
    return fields.get(7) == 2 and all(expected.get(n, w) == w for n, w in fields.items())


def _zip(path: Path) -> str | None:
    """The format of a zip archive, by the names in it."""
    shown = printable(str(path), 200)
    with os.fdopen(open_regular(path), "rb") as file:
        entries = _zip_entries(file)
        if entries > _MAX_ENTRIES:
            raise OnnxspectError(f"{shown}: a zip archive of {entries} entries", "no model has that many")
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
            raise caused_by(
                error, f"{shown}: a damaged zip archive: {printable(str(error), 200)}", "copy or fetch it again"
            ) from None
    last = {n.rsplit("/", 1)[-1] for n in names}
    top = set(names)
    if "config.json" in top and "model.weights.h5" in top:
        return "keras"
    if "archive_format" in last or "serialized_exported_program.json" in last:
        return "torch-pt2"
    if "data.pkl" in last and "bytecode.pkl" not in last:
        return "torch-script" if "constants.pkl" in last and any("/code/" in n for n in names) else "torch-pickle"
    if "schema.json" in top:
        return "skops"
    if names and all(n.endswith(".npy") for n in names):
        return "npz"
    what, way = others.of_archive(names)
    if what:
        raise others.OtherFormatError(f"{shown}: {what}", way)
    return None


def _zip_entries(file: BinaryIO) -> int:
    """How many entries the archive says it has, without reading their list (which can be as large as the file)."""
    size = os.fstat(file.fileno()).st_size
    tail = min(size, 65_557)
    file.seek(size - tail)
    data = file.read(tail)
    file.seek(0)
    place = data.rfind(b"PK\x05\x06")
    if place < 0 or place + 22 > len(data):
        return 0
    entries, length = struct.unpack("<HI", data[place + 10 : place + 16])
    if entries == 0xFFFF or length == 0xFFFFFFFF:  # zip64: the true numbers are in a record before this one
        place = data.rfind(b"PK\x06\x06")
        if place < 0 or place + 48 > len(data):
            return 0
        entries, length = struct.unpack("<QQ", data[place + 32 : place + 48])
    return max(int(entries), int(length) // 46)
