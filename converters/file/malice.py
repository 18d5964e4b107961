"""Is a file hostile? Known-bad content is named, before any framework sees the file; nothing is executed, imported or unpacked.

Hostile is what no model needs and every attack on model files uses: a pickle that calls for programs, code, other files or the
network (pickle_scan.py), wherever it lies (raw, joblib and its compressions, PyTorch's zip, tar and older files, npy and npz); a
description with bytecode or a loader (Keras); operations of a SavedModel or of TorchScript that run Python or touch files; an
archive whose names lead out of its folder. What only *can* run code, such as a class of one's own in a pickle, is not called
hostile: it is opened in the sandbox or refused, and says so.

A file in which nothing is found may still be hostile: this is a list of what is known.
"""

from __future__ import annotations

import bz2
import io
import json
import lzma
import mmap
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from onnxspect.converters.errors import HostileError, OnnxspectError
from onnxspect.converters.file.dangerous_names import TENSORFLOW, harm
from onnxspect.converters.file.pickle_scan import MOST_OPCODES, looks_like_pickle, scan
from onnxspect.converters.sandbox.safe_open import open_regular
from onnxspect.converters.text import printable

#: Bytes of one member, or of what a compressed file unpacks to, that are looked at.
MOST_BYTES = 128 << 20
#: Bytes that all archives of a file unpack to, and opcodes of all its pickles, at most: some twenty seconds.
ALL_BYTES, ALL_OPCODES = 1 << 30, 3_000_000
#: Members of an archive that are looked at, and how deep archives lie in each other.
MOST_MEMBERS, MOST_DEPTH = 20_000, 3
_HINT = "it was not loaded; ask whoever made it for the weights alone (safetensors), or for an ONNX file"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ARRAY = b"\x93NUMPY"
_LAMBDA = re.compile(rb'"class_name"\s*:\s*"(?:Lambda|__lambda__)"|"function_type"\s*:\s*"lambda"')
_NAME = re.compile(rb'"name"\s*:\s*"([^"\\]{1,80})"')
_SCRIPT = re.compile(rb"\b(torch\.(?:from_file|save|load)|os\.(?:system|popen)|subprocess\.\w+|__import__|PythonOp)\b")
_EXPRESSION = re.compile(rb"(?<![\w.])(__import__|os\.system|os\.popen|subprocess\.\w+|eval\(|exec\()")
_FLEX = re.compile(b"Flex(" + "|".join(sorted(TENSORFLOW, key=len, reverse=True)).encode() + rb")\x00")
_OPERATION = re.compile(
    b"|".join(b"\x12" + bytes([len(name)]) + name.encode() for name in sorted(TENSORFLOW, key=len, reverse=True)),
    re.DOTALL,
)


@dataclass
class _Budget:
    """What may still be spent on a file; beyond it only known names are searched for, and then nothing.

    Attributes:
        content: that archives unpack to.
        opcodes: of pickles.
    """

    content: int = field(default_factory=lambda: ALL_BYTES)
    opcodes: int = field(default_factory=lambda: ALL_OPCODES)

    def read(self, stream: IO[bytes]) -> bytes:
        """The rest of a stream, as far as the budget goes."""
        data = stream.read(max(min(MOST_BYTES, self.content), 0))
        self.content -= len(data)
        return data


def refuse_hostile(path: Path, shown: str = "") -> None:
    """Refuse a file, or a model's folder, with known-bad content.

    Args:
        path: of the file; what cannot be read is left to whoever opens it.
        shown: what errors call it; its path by default.

    Raises:
        HostileError: naming what was found, and where.
    """
    shown = shown or printable(str(path), 200)
    try:
        offences = list(dict.fromkeys(islice(_offences(Path(path)), 1000)))
    except (OnnxspectError, OSError):
        return
    if offences:
        more = f" and {len(offences) - 5} more" if len(offences) > 5 else ""
        raise HostileError(
            f"{shown}: hostile file: {'; '.join(offences[:5])}{more}; it was not run", _HINT, str(path), tuple(offences)
        )


def _offences(path: Path) -> Iterator[str]:
    if path.is_dir():
        yield from _of_folder(path)
    else:
        with os.fdopen(open_regular(path), "rb") as file:
            yield from _of_file(file)


def _of_folder(folder: Path) -> Iterator[str]:
    for name in ("saved_model.pb", "keras_metadata.pb"):
        if (folder / name).is_file() and not (folder / name).is_symlink():
            with os.fdopen(open_regular(folder / name), "rb") as file:
                yield from _graph(file.read(MOST_BYTES)) if name == "saved_model.pb" else _layers(file.read(MOST_BYTES))


def _of_file(file: IO[bytes]) -> Iterator[str]:
    """By the first bytes alone; an ONNX file costs no more than those."""
    head = file.read(4096)
    file.seek(0)
    if any(head[at : at + 8] == _HDF5 for at in (0, 512, 1024, 2048)):
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield from _layers(data)
        return
    if head[4:8] == b"TFL3":
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield from _flex(data)
        return
    size = os.fstat(file.fileno()).st_size
    archived = head.startswith(b"PK") or head[257:262] == b"ustar"
    if archived or _starts(head):
        budget = _Budget()
        if archived and size > MOST_BYTES:
            yield from _zipped(file, "", 0, budget)
        else:
            yield from _look(file.read(MOST_BYTES), "", 0, budget)


def _starts(head: bytes) -> bool:
    return head.startswith(_ARRAY) or _compression(head) is not None or looks_like_pickle(head)


def _look(data: bytes, where: str, depth: int, budget: _Budget) -> Iterator[str]:
    """What is hostile in some bytes of whatever kind, that lie `where` in the file."""
    if depth > MOST_DEPTH:
        return
    if data.startswith(b"PK"):
        yield from _zipped(io.BytesIO(data), where, depth, budget)
    elif data[257:262] == b"ustar":
        yield from _tarred(io.BytesIO(data), depth, budget)
    elif data.startswith(_ARRAY):
        start = _objects(data)
        if start:
            yield from _pickled(data[start:], where, depth, budget)
    elif _compression(data) is not None:
        yield from _look(_unpacked(data, budget), where, depth + 1, budget)
    elif looks_like_pickle(data[:4096]):
        yield from _pickled(data, where, depth, budget)


def _pickled(data: bytes, where: str, depth: int, budget: _Budget) -> Iterator[str]:
    found = scan(data, min(MOST_OPCODES, budget.opcodes))
    budget.opcodes -= found.opcodes
    for g in found.harmful:
        place = f"{where}, byte {g.at}" if where else f"byte {g.at}"
        yield f"its pickle calls {printable(g.full, 120)} ({place}), which {g.harm}"
    for inner in found.within:
        yield from _look(inner, where, depth + 1, budget)


def _zipped(file: IO[bytes], where: str, depth: int, budget: _Budget) -> Iterator[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()[:MOST_MEMBERS]
            names = {m.filename.rsplit("/", 1)[-1] for m in members}
            for member in members:
                link = stat.S_ISLNK(member.external_attr >> 16)
                yield from _escaping(member.filename, link)
            for member in members:
                yield from _member(archive, member, names, where, depth, budget)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, RuntimeError, struct.error, EOFError):
        # PyTorch's own reader forgives what zipfile does not, and stores its pickles uncompressed.
        file.seek(0)
        for g in scan(b"\xff" + file.read(MOST_BYTES)).harmful:
            yield f"a damaged archive whose pickle calls {printable(g.full, 120)}, which {g.harm}"


def _member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, names: set[str], where: str, depth: int, budget: _Budget
) -> Iterator[str]:
    inside = printable(f"{where}/{member.filename}" if where else member.filename, 120)
    last = member.filename.rsplit("/", 1)[-1]
    try:
        with archive.open(member) as stream:
            head = stream.read(4096)
            kinds = (".py", ".json")
            if not (_starts(head) or head.startswith(b"PK") or last.endswith(kinds)):
                return
            data = head + budget.read(stream)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError):
        # Its check sum is wrong: a reader that does not look at it would unpickle all the same.
        for g in scan(b"\xff" + _raw(archive, member)).harmful:
            yield f"{inside}, with a wrong check sum, calls {printable(g.full, 120)}, which {g.harm}"
        return
    if last.endswith(".py") and "constants.pkl" in names:
        for match in sorted(set(_SCRIPT.findall(data))):
            yield f"its TorchScript code calls {printable(match.decode('latin-1'))} ({inside})"
    elif last == "config.json" and "model.weights.h5" in names:
        yield from _description(data)
    elif last == "schema.json":
        yield from _typed(data)
    elif last.endswith(".json"):
        for match in sorted(set(_EXPRESSION.findall(data))):
            yield f"an expression in it calls {printable(match.decode('latin-1'))} ({inside})"
    else:
        yield from _look(data, inside, depth + 1, budget)


def _raw(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    file = archive.fp
    if file is None:
        return b""
    file.seek(member.header_offset)
    return file.read(min(member.compress_size + 4096, MOST_BYTES))


def _tarred(file: IO[bytes], depth: int, budget: _Budget) -> Iterator[str]:
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member, _ in zip(archive, range(MOST_MEMBERS), strict=False):
                yield from _escaping(member.name, member.issym() or member.islnk(), member.linkname)
                if member.isdev():
                    yield f"the archive makes a device or FIFO, {printable(member.name)}"
                stream = archive.extractfile(member) if member.isfile() and member.size <= MOST_BYTES else None
                if stream is not None:
                    yield from _look(budget.read(stream), printable(member.name, 120), depth + 1, budget)
    except (tarfile.TarError, OSError, ValueError, EOFError, RecursionError, KeyError, OverflowError):
        return


def _escaping(name: str, link: bool, target: str = "") -> Iterator[str]:
    """A member whose name, or whose link, leads out of the folder that an archive is unpacked in."""
    for path in (name, target if link else ""):
        parts = path.replace("\\", "/").split("/")
        if path.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", path) or ".." in parts:
            yield f"the archive's member {printable(path)} leads out of its folder"
    if link and not target:
        yield f"the archive's member {printable(name)} is a link"


def _objects(data: bytes) -> int:
    """Where the pickle of an array of Python objects begins; 0 for an array of numbers."""
    length, size = (2, "<H") if data[6:7] == b"\x01" else (4, "<I")
    if len(data) < 8 + length:
        return 0
    start = 8 + length + int(struct.unpack(size, data[8 : 8 + length])[0])
    header = data[8 + length : start]
    return start if re.search(rb"['\"][|<>=]?O\d*['\"]", header) else 0


def _compression(head: bytes) -> str | None:
    """How joblib, or a shell, has compressed a file."""
    if head[:2] in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"):
        return "zlib"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"BZh"):
        return "bz2"
    return "lzma" if head.startswith((b"\xfd7zXZ\x00", b"\x5d\x00\x00")) else None


def _unpacked(data: bytes, budget: _Budget) -> bytes:
    """The first MOST_BYTES of what a compressed file holds, or as much of it as is whole."""
    kind = _compression(data)
    engine: Any = {
        "zlib": lambda: zlib.decompressobj(),
        "gzip": lambda: zlib.decompressobj(wbits=31),
        "bz2": bz2.BZ2Decompressor,
        "lzma": lambda: lzma.LZMADecompressor(memlimit=1 << 30),
    }[str(kind)]()
    made = bytearray()
    most = min(MOST_BYTES, budget.content)
    if most <= 0:  # zlib takes nought for no limit
        return b""
    try:
        for start in range(0, len(data), 1 << 16):
            made += engine.decompress(data[start : start + (1 << 16)], most - len(made))
            while len(made) < most and len(getattr(engine, "unconsumed_tail", b"")):
                made += engine.decompress(engine.unconsumed_tail, most - len(made))
            if engine.eof or len(made) >= most:
                break
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError):
        pass  # cut short or damaged: what came before is looked at all the same
    budget.content -= len(made)
    return bytes(made)


def _layers(data: Any) -> Iterator[str]:
    """Lambda layers in a description that lies somewhere in a file (HDF5 keeps it as one text)."""
    for match, _ in zip(_LAMBDA.finditer(data), range(100), strict=False):
        name = _NAME.search(data, match.end(), match.end() + 4096)
        shown = printable(name.group(1).decode("utf-8", "replace"), 60) if name else "?"
        yield f"layer {shown} is a Lambda: it holds Python bytecode, which runs when the file is loaded"


def _description(text: bytes) -> Iterator[str]:
    """A Keras description: Lambda layers, and modules that do harm."""
    for item in _objects_of(text):
        inner = item.get("config")
        name = printable(str(item.get("name") or (inner.get("name") if isinstance(inner, dict) else "") or "?"), 60)
        if item.get("class_name") in ("Lambda", "__lambda__") or item.get("function_type") == "lambda":
            yield f"layer {name} is a Lambda: it holds Python bytecode, which runs when the file is loaded"
        for key in ("registered_name", "class_name", "config"):
            module, function = item.get("module"), item.get(key)
            if isinstance(module, str) and isinstance(function, str) and harm(module, function):
                yield f"layer {name} calls {printable(f'{module}.{function}', 120)}, which {harm(module, function)}"


def _typed(text: bytes) -> Iterator[str]:
    """A skops schema: types and functions that do harm."""
    for item in _objects_of(text):
        module, name = item.get("__module__"), item.get("__class__")
        content = item.get("content")
        if isinstance(content, dict):
            module = content.get("module_path", module)
            name = content.get("function", name)
        if isinstance(module, str) and isinstance(name, str) and harm(module, name):
            yield f"its schema calls {printable(f'{module}.{name}', 120)}, which {harm(module, name)}"


def _objects_of(text: bytes) -> Iterator[dict[str, Any]]:
    """Every object of a JSON document, the outermost first; none where it is no JSON."""
    try:
        queue: list[Any] = [json.loads(text)]
    except (ValueError, RecursionError):
        return
    while queue:
        item = queue.pop()
        if isinstance(item, dict):
            yield item
            queue += item.values()
        elif isinstance(item, list):
            queue += item


def _flex(data: Any) -> Iterator[str]:
    """TensorFlow's operations in a TensorFlow Lite file, by the names under which its Flex delegate runs them."""
    for name in sorted({m.group(1).decode() for m in _FLEX.finditer(data)}):
        yield f"its graph holds {name}, which {TENSORFLOW[name]}"


def _graph(data: bytes) -> Iterator[str]:
    """Operations of a SavedModel by their field in NodeDef (op = 2)."""
    for name in sorted({m.group()[2:].decode() for m in _OPERATION.finditer(data)}):
        yield f"its graph holds {name}, which {TENSORFLOW[name]}"
