"""Writing a model the way another one lies on disk: the same tensors in data files beside it, split the same way.

The counterpart of external_data.py, for patched files: what was external in the original is external in the patched
file, in as many data files, at the same offsets (ONNX's specification, docs/ExternalData.md). The data files take new
names, derived from the new model's, so that the original's are never touched. What a patch added stays inside.

Nothing is copied to be written: the model without its external tensors is built from the rest, and each tensor's bytes
go from the message to the file, one tensor at a time. The files are complete on disk before the first takes its name,
and the model takes its own last.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import TensorProto

from onnxspect.converters.errors import OnnxspectError, unwritable
from onnxspect.converters.file.external_data import MOST_BYTES, ExternalFile, tensors
from onnxspect.converters.file.onnx_file import OnnxFile
from onnxspect.converters.text import printable, readable_bytes
from onnxspect.converters.whole import Part, remove

#: Where a copy says that a tensor lies whose data it did not take along.
KEPT = "onnxspect/kept"
#: Alignment where offsets have to be new: the page size that memory mapping needs, which onnx's writers use as well.
_PAGE = 4096
#: Numbers that data files are given, at most.
_MOST_FILES = 200
#: Gaps between tensors that are kept for the sake of the offsets, for each tensor (some writers align to 64 KiB).
_GAP = 1 << 16


@dataclass(frozen=True)
class Placement:
    """Where a tensor lies.

    Attributes:
        file: index of the data file.
        offset: in it, in bytes.
        length: in bytes.
    """

    file: int
    offset: int
    length: int


@dataclass(frozen=True)
class Written:
    """A model on disk.

    Attributes:
        paths: the files, the model last.
        sha256: of the model's own file, in hexadecimal. Whoever may write a file need not be allowed to read it afterwards.
    """

    paths: tuple[Path, ...]
    sha256: str


def is_kept(tensor: TensorProto) -> bool:
    """Whether a copy of a model left this tensor's data with the original."""
    return any(e.key == "location" and e.value == KEPT for e in tensor.external_data)


def data_file_names(name: str, pieces: Sequence[ExternalFile], first: int = 0) -> tuple[str, ...]:
    """Names of the data files beside a model called `name`, one for each location that `pieces` has.

    Args:
        name: of the model.
        pieces: what lies outside of it.
        first: the number of the first; 0 for the plain names, without a number where there is only one file.
    """
    stem = re.sub(r"[^\w.\- ]", "_", name, flags=re.ASCII)
    count = len({p.location for p in pieces})
    first = first or (0 if count == 1 else 1)
    return tuple(f"{stem}.{i}.data" if i else f"{stem}.data" for i in range(first, first + count))


def _targets(out: Path, pieces: Sequence[ExternalFile]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """(the data files to write, those that are there already).

    A model that lies at `out` may name the latter: they stay until the new one has taken its place, and so old and new model
    each have their own data at every moment.
    """
    numbered = {i: out.with_name(*data_file_names(out.name, pieces[:1], i)) for i in range(_MOST_FILES)}
    there = {i: path for i, path in numbered.items() if os.path.lexists(path)}
    count = len({p.location for p in pieces})
    free = (
        i for i in range(_MOST_FILES) if not there.keys() & set(range(max(i, count > 1), max(i, count > 1) + count))
    )
    first = next(free, 0)
    return tuple(out.with_name(n) for n in data_file_names(out.name, pieces, first)), tuple(there.values())


def write_like(model: onnx.ModelProto, original: OnnxFile, out: Path) -> Written:
    """Write `model` to `out`; tensors that are external in `original` go to data files beside it.

    Args:
        model: with all tensors inside it, or those of `original` kept out of it (oversized.copied); not changed.
        original: the file that it was made of; without external data, one file is written.
        out: replaced if it exists, whole: its data files get names that are free, and the old ones are removed behind it.

    Returns:
        what was written.

    Raises:
        OnnxspectError: a file cannot be written or is one of the original's, or the model without its external tensors
            is over 2 GiB; what was there before is untouched.
    """
    pieces = original.external
    targets, replaced = _targets(out, pieces) if pieces else ((), ())
    _refuse_taken((*targets, out), original)
    stored = {t.name: t for t in original.proto.graph.initializer}
    inside = {t.name: stored[t.name] if is_kept(t) else t for t in tensors(model)}
    named = Counter(t.name for t in tensors(model))
    # Two tensors of one name cannot be distinguished, so both stay inside.
    outside = {p.tensor: p for p in pieces if named[p.tensor] == 1 and p.length == len(inside[p.tensor].raw_data)}
    places = _places(outside, pieces, inside)
    light = without_data(model, places, [target.name for target in targets])
    for tensor in light.graph.initializer:
        if is_kept(tensor):
            tensor.CopyFrom(stored[tensor.name])
    size = light.ByteSize()
    if size > MOST_BYTES:
        raise OnnxspectError(
            f"{printable(str(out), 200)}: the model takes {readable_bytes(size)}, over the 2 GiB of an ONNX file",
            "save the original with external data first",
        )
    files: list[dict[int, TensorProto]] = [{} for _ in targets]
    for name, place in places.items():
        files[place.file][place.offset] = inside[name]
    data = [(target, _content(file)) for target, file in zip(targets, files, strict=True) if file]
    _refuse_taken(replaced, original)
    content = light.SerializeToString()
    _write_all([*data, (out, iter([(0, content)]))])
    for path in replaced:
        remove(path)
    return Written((*(target for target, _ in data), out), hashlib.sha256(content).hexdigest())


def _refuse_taken(targets: Sequence[Path], original: OnnxFile) -> None:
    own = [original.path, *(original.path.parent / p.location for p in original.external)]
    own = [path for path in own if path.exists()]
    for target in targets:
        shown = printable(str(target), 200)
        if target.exists() and any(target.samefile(path) for path in own):
            raise OnnxspectError(f"{shown}: would overwrite the original", "choose another -o")
        if target.exists() and not target.is_file():
            raise OnnxspectError(f"{shown}: exists and is not a file", "choose another -o")


def _places(
    outside: Mapping[str, ExternalFile], pieces: Sequence[ExternalFile], inside: Mapping[str, TensorProto]
) -> dict[str, Placement]:
    """Where each tensor goes: its old offset, or behind the others where that is taken by other bytes."""
    locations = sorted({p.location for p in pieces})
    found: dict[str, Placement] = {}
    for index, location in enumerate(locations):
        here = sorted((p for p in outside.values() if p.location == location), key=lambda p: (p.offset, p.length))
        length = sum(p.length for p in here)
        keeps = max((p.offset + p.length for p in here), default=0) <= length + _GAP * (len(here) + 1)
        end, moved = 0, []
        shared: dict[tuple[int, int], str] = {}
        for piece in here:
            first = shared.get((piece.offset, piece.length))
            if first is not None and inside[first].raw_data == inside[piece.tensor].raw_data:
                found[piece.tensor] = found[first]
            elif keeps and piece.offset >= end:
                found[piece.tensor] = Placement(index, piece.offset, piece.length)
                end = piece.offset + piece.length
                shared[piece.offset, piece.length] = piece.tensor
            else:
                moved.append(piece)
        for piece in moved:
            offset = -(-end // _PAGE) * _PAGE
            found[piece.tensor] = Placement(index, offset, piece.length)
            end = offset + piece.length
    return found


def without_data(model: onnx.ModelProto, places: Mapping[str, Placement], names: Sequence[str]) -> onnx.ModelProto:
    """A copy in which the placed tensors point to their data files; their bytes are not copied on the way.

    Args:
        model: not changed.
        places: of initializers of the main graph, by name.
        names: of the data files that `places` counts.
    """
    light = onnx.ModelProto()
    if len(UnknownFieldSet(model)) or len(UnknownFieldSet(model.graph)):
        light.CopyFrom(model)  # fields of a later onnx, which only a whole copy keeps
    else:
        _copy_fields(model, light, {"graph"})
        _copy_fields(model.graph, light.graph, {"initializer"})
        for tensor in model.graph.initializer:
            copied = light.graph.initializer.add()
            if tensor.name in places:
                _copy_fields(tensor, copied, {"raw_data"})
            else:
                copied.CopyFrom(tensor)
    for tensor in tensors(light):
        place = places.get(tensor.name)
        if place is None:
            continue
        tensor.ClearField("raw_data")
        del tensor.external_data[:]
        tensor.data_location = TensorProto.EXTERNAL
        facts = {"location": names[place.file], "offset": place.offset, "length": place.length}
        for key, value in facts.items():
            tensor.external_data.add(key=key, value=str(value))
    return light


def _copy_fields(source: Message, target: Message, but: set[str]) -> None:
    for field, value in source.ListFields():
        if field.name in but:
            continue
        if hasattr(value, "MergeFrom"):  # a message, or a repeated field
            getattr(target, field.name).MergeFrom(value)
        else:
            setattr(target, field.name, value)


def _content(file: Mapping[int, TensorProto]) -> Iterator[tuple[int, bytes]]:
    for offset in sorted(file):
        yield offset, file[offset].raw_data


def _write_all(files: Sequence[tuple[Path, Iterator[tuple[int, bytes]]]]) -> None:
    """Write files from (offset, bytes) pieces under temporary names; when all are on disk, give them theirs, in order."""
    parts: list[Part] = []
    try:
        for path, content in files:
            try:
                part = Part(path)
                parts.append(part)
                for offset, data in content:
                    part.file.write(bytes(offset - part.file.tell()))
                    part.file.write(data)
                part.finish()
            except OSError as error:
                raise unwritable(path, error) from error
        for part in parts:
            try:
                part.place()
            except OSError as error:
                raise unwritable(part.target, error) from error
    finally:
        for part in parts:
            part.discard()
