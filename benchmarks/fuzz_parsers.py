"""Fuzz targets: what this project parses itself (the wire of ONNX, reports, ledgers, pickles, archives, options).

For the pickle scanner more must hold: it sees every name which the unpickler itself would import.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
from fuzz_target import REFUSED, TAKEN, Target, refused
from onnx import TensorProto, helper, numpy_helper

from onnxspect.cli.options import preprocessing_options
from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file.malice import refuse_hostile
from onnxspect.converters.file.onnx_file import Limits, check_onnx
from onnxspect.converters.file.pickle_scan import scan
from onnxspect.converters.file.wire_scan import outer_fields, parse_bound
from onnxspect.engine.report import formats, signature
from onnxspect.engine.report.as_json import render as to_json
from onnxspect.engine.report.result import Report
from onnxspect.engine.run_folder import FILE
from onnxspect.engine.store import Ledger
from onnxspect.engine.stored_report import checked, digest
from onnxspect.engine.subject.finished_scan import FinishedScan

# --- ONNX: the wire, and the checks before any child ----------------------------------------------------------------------------


def _models() -> list[bytes]:
    weight = numpy_helper.from_array(np.arange(8, dtype=np.float32).reshape(4, 2), "w")
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["n", 1, 2, 2]), ("y", ["n", 2]))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    outside = onnx.ModelProto.FromString(model.SerializeToString())
    tensor = outside.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", "32")):
        tensor.external_data.add(key=key, value=value)
    return [model.SerializeToString(), outside.SerializeToString()]


def _onnx(data: bytes, folder: Path) -> str:
    outer_fields(io.BytesIO(data), len(data))
    try:
        bound = parse_bound(data, onnx.ModelProto.DESCRIPTOR, 1 << 28)
    except OnnxspectError:
        bound = -1
    if bound >= 0 and bound < len(data):
        raise AssertionError("a bound below the size of the file")
    try:
        check_onnx(data, folder / "model.onnx", Limits(), "model.onnx")
    except OnnxspectError as error:
        return refused(error)
    return TAKEN


# --- reports, ledgers, signatures -----------------------------------------------------------------------------------------------


def _report() -> dict[str, Any]:
    from run_folder_support import whole_report

    return whole_report()


def _reports() -> list[bytes]:
    return [json.dumps(_report()).encode(), to_json(_report() | {"reasons": ["ü\u202e"]}).encode()]


def _stored(data: bytes, folder: Path) -> str:
    ended = REFUSED
    text = data.decode("utf-8", "replace")
    for attempt in (text, _with_its_digest(text)):
        try:
            report = checked(attempt)
        except ValueError as error:
            if "\n" in str(error) and len(str(error)) > 2000:
                raise AssertionError("an error of many lines") from error
            continue
        shown = [formats.render(form, report, folder) for form in formats.FORMATS]
        ElementTree.fromstring(shown[formats.FORMATS.index("junit")])
        for text in (*shown, Report(report, folder).text()):
            if any(not c.isprintable() and c != "\n" for c in text):
                raise AssertionError("a character that a terminal obeys")
        signature._canonical(report)
        ended = TAKEN
    return ended


def _with_its_digest(text: str) -> str:
    """The same with a digest that fits, where it is an object at all: past that check, to what lies behind it."""
    try:
        document = json.loads(text)
        return json.dumps(document | {"digest": digest(document)}) if isinstance(document, dict) else text
    except (ValueError, RecursionError):
        return text


def _ledgers() -> list[bytes]:
    from run_folder_support import finished

    with tempfile.TemporaryDirectory() as place:
        return [(finished(Path(place) / "run") / FILE).read_bytes()]


def _ledger(data: bytes, folder: Path) -> str:
    (folder / FILE).write_bytes(data)
    ended = TAKEN
    for read in (FinishedScan.read, _whole):
        try:
            read(folder)
        except OnnxspectError as error:
            ended = refused(error)
    return ended


def _whole(folder: Path) -> None:
    with Ledger(folder) as ledger:
        ledger.report()


def _signed(data: bytes, folder: Path) -> str:
    path = folder / "report.json"
    path.write_bytes(data)
    try:
        signature.read(path)
    except OnnxspectError as error:
        return refused(error)
    return TAKEN


# --- pickles and archives -------------------------------------------------------------------------------------------------------


class _Inert:
    """What the unpickler of the comparison gets for every name: it takes all calls and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return object.__new__(cls)

    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return self

    def __setstate__(self, _: Any) -> None:
        return

    def append(self, _: Any) -> None:
        """Items of a list are dropped."""

    def extend(self, _: Any) -> None:
        """Items of a list are dropped."""

    def __setitem__(self, _: Any, __: Any) -> None:
        return


class _Lines(io.BytesIO):
    """Bytes whose last line must have its end, as Python's other unpickler, the fast one, wants it."""

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        if not line.endswith(b"\n"):
            raise EOFError("a line without an end")
        return line


def imported(data: bytes) -> set[str]:
    """The names that Python's unpickler asks for until it stops or breaks off; it gets none of them.

    The one written in Python: the other allocates its memo by the largest index that a file names.
    """
    asked: set[str] = set()

    class Watching(pickle._Unpickler):  # type: ignore[name-defined]
        def find_class(self, module: str, name: str) -> type:
            asked.add(f"{module}.{name}")
            return _Inert

        def persistent_load(self, _: Any) -> None:
            return None

        def get_extension(self, _: int) -> None:
            raise ValueError("the registry is empty")

    with contextlib.suppress(Exception):  # it breaks off; what it asked for before counts
        Watching(_Lines(data)).load()
    return asked


def _pickles() -> list[bytes]:
    call = b"cposix\nsystem\nX\x02\x00\x00\x00id\x85R."
    return [
        b"\x80\x02" + call,
        call,
        b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x85R.",
        b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94h\x00h\x01\x93\x8c\x02id\x85R.",
        b"(Vid\niposix\nsystem\n.",
        *(
            pickle.dumps({"a": [1, 2.5, "text", b"bytes"], "b": np.arange(3), "c": {1: (2, 3)}}, p)
            for p in (0, 2, 4, 5)
        ),
    ]


def _pickle(data: bytes, _: Path) -> str:
    found = scan(data)
    seen = {g.full for g in found.globals}
    missed = imported(data) - seen
    if missed and "?.?" not in seen:
        raise AssertionError(f"the unpickler imports {sorted(missed)[:3]}, the scanner sees {sorted(seen)[:5]}")
    return TAKEN


def _archives() -> list[bytes]:
    call = _pickles()[0]
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", call)
        archive.writestr("config.json", json.dumps({"class_name": "Lambda"}))
        archive.writestr("code/net.py", "def forward(self, x): return x")
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        info = tarfile.TarInfo("pickle")
        info.size = len(call)
        tar.addfile(info, io.BytesIO(call))
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(118) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + call
    tflite = b"\x1c\x00\x00\x00TFL3" + bytes(40) + b"FlexWriteFile\x00"
    hdf5 = b"\x89HDF\r\n\x1a\n" + bytes(40) + b'"class_name": "Lambda", "config": {"name": "a"}'
    return [zipped.getvalue(), tarred.getvalue(), npy, tflite, hdf5]


def _archive(data: bytes, folder: Path) -> str:
    path = folder / "model.bin"
    path.write_bytes(data)
    try:
        refuse_hostile(path)
    except OnnxspectError as error:
        return refused(error)
    return TAKEN


# --- options --------------------------------------------------------------------------------------------------------------------


@preprocessing_options
def _spec(*, spec: Any) -> Any:
    """What a command gets of the options."""
    return spec


def _options(data: bytes, _: Path) -> str:
    parts = [*data.decode("utf-8", "replace").split("|"), "", "", ""]
    try:
        scale = float(parts[0]) if parts[0] else None
    except ValueError:
        scale = None
    try:
        _spec(scale=scale, mean=parts[1] or None, std=parts[2] or None, channel_order=parts[3] or None)
    except OnnxspectError as error:
        return refused(error)
    return TAKEN


TARGETS = (
    Target("onnx", _models, _onnx),
    Target("report", _reports, _stored),
    Target("ledger", _ledgers, _ledger),
    Target("signed", _reports, _signed),
    Target("pickle", _pickles, _pickle),
    Target("archive", _archives, _archive),
    Target("options", lambda: [b"255|0.485,0.456,0.406|0.229,0.224,0.225|BGR", b"1|0|1|RGB", b"|0.5|0.5|"], _options),
)
