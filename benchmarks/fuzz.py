"""Seeded mutants of everything that this project parses itself, or steers a parser through: `make fuzz`.

    python benchmarks/fuzz.py --seconds 3600 --kept tests/fuzz_kept

A target is a parser with seeds, and with what must hold for any bytes: the right class of error or a result, nothing else, and for
the pickle scanner that it sees every name which the unpickler itself would import. Mutant number i of a target depends on the seed
and on i alone. An input that breaks a promise is kept under its digest; tests/test_fuzz.py replays what is kept, and some mutants,
on every run. (The graphs inside ONNX files have a fuzzer of their own, fuzz_onnx_file.py, which also runs them.)
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import pickle
import random
import sqlite3
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxspect.cli.options import preprocessing_options
from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file.malice import refuse_hostile
from onnxspect.converters.file.onnx_file import Limits, check_onnx
from onnxspect.converters.file.pickle_scan import scan
from onnxspect.converters.file.wire_scan import outer_fields, parse_bound
from onnxspect.converters.text import visible
from onnxspect.engine.report import as_html, as_sarif, as_text, signature
from onnxspect.engine.report.document import as_json
from onnxspect.engine.report.result import Report
from onnxspect.engine.run_folder import FILE
from onnxspect.engine.store import Ledger
from onnxspect.engine.stored_report import checked, digest
from onnxspect.engine.subject.finished_scan import FinishedScan

#: What a mutator puts in: edges of numbers, opcodes, marks of formats, texts that readers trip over.
TOKENS = (
    *(b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xff" * 8, b"\x80" * 9 + b"\x01"),
    *(
        b"\x80\x04",
        b"\x93",
        b"\x94",
        b"R",
        b".",
        b"c",
        b"\n",
        b"(",
        b"cposix\nsystem\n",
        b"\x8c\x05posix",
        b"h\x00",
        b"0",
        b"2",
    ),
    *(b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"ustar", b"../", b"\x93NUMPY", b"TFL3", b"\x89HDF\r\n\x1a\n"),
    *(b"null", b"true", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'""', b'"\\ud800"', b"\x1b[2J", b"[/]", b"$\\frac{$"),
    *(b"9" * 40, b",", b"0.5", b"inf", b"-0.0", b"1_0", "٣".encode()),
)


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        name: its folder among the kept inputs.
        seeds: inputs that it takes, to start from.
        check: raises whatever a broken promise is; the folder is a scratch one.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    check: Callable[[bytes, Path], None]


def mutant(seeds: list[bytes], seed: int, i: int) -> bytes:
    """Mutant number i."""
    rng = random.Random(f"{seed}/{i}")
    data, other = bytearray(rng.choice(seeds)), rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(data) + 1)
        length = min(rng.choice((1, 2, 4, 8, 64)), len(data) - at)
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = b""
        elif kind == 2:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 3:
            token = rng.choice(TOKENS)
            data[at : at + len(token)] = token
        elif kind == 4:
            data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
        elif kind == 5:
            start = rng.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + rng.choice((1, 8, 64, 512))]
        else:
            del data[rng.randrange(len(data) + 1) :]
    return bytes(data)


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


def _onnx(data: bytes, folder: Path) -> None:
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
        _one_line(error)


# --- reports, ledgers, signatures -----------------------------------------------------------------------------------------------


def _report() -> dict[str, Any]:
    from run_folder_support import whole_report

    return whole_report()


def _reports() -> list[bytes]:
    return [json.dumps(_report()).encode(), as_json(_report() | {"reasons": ["ü\u202e"]}).encode()]


def _stored(data: bytes, folder: Path) -> None:
    text = data.decode("utf-8", "replace")
    for attempt in (text, _with_its_digest(text)):
        try:
            report = checked(attempt)
        except ValueError as error:
            if "\n" in str(error) and len(str(error)) > 2000:
                raise AssertionError("an error of many lines") from error
            continue
        for shown in (Report(report, folder).text(), as_html.render(report, folder), as_json(as_sarif.render(report))):
            if any(not c.isprintable() and c != "\n" for c in shown):
                raise AssertionError("a character that a terminal obeys")
        as_text.render(report)
        signature._canonical(report)


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


def _ledger(data: bytes, folder: Path) -> None:
    (folder / FILE).write_bytes(data)
    for read in (FinishedScan.read, _whole):
        try:
            read(folder)
        except OnnxspectError as error:
            _one_line(error)


def _whole(folder: Path) -> None:
    with Ledger(folder) as ledger:
        ledger.report()


def _signed(data: bytes, folder: Path) -> None:
    path = folder / "report.json"
    path.write_bytes(data)
    try:
        signature.read(path)
    except OnnxspectError as error:
        _one_line(error)


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


def _pickle(data: bytes, _: Path) -> None:
    found = scan(data)
    seen = {g.full for g in found.globals}
    missed = imported(data) - seen
    if missed and "?.?" not in seen:
        raise AssertionError(f"the unpickler imports {sorted(missed)[:3]}, the scanner sees {sorted(seen)[:5]}")


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


def _archive(data: bytes, folder: Path) -> None:
    path = folder / "model.bin"
    path.write_bytes(data)
    try:
        refuse_hostile(path)
    except OnnxspectError as error:
        _one_line(error)


# --- options --------------------------------------------------------------------------------------------------------------------


@preprocessing_options
def _spec(*, spec: Any) -> Any:
    """What a command gets of the options."""
    return spec


def _options(data: bytes, _: Path) -> None:
    parts = [*data.decode("utf-8", "replace").split("|"), "", "", ""]
    try:
        scale = float(parts[0]) if parts[0] else None
    except ValueError:
        scale = None
    try:
        _spec(scale=scale, mean=parts[1] or None, std=parts[2] or None, channel_order=parts[3] or None)
    except OnnxspectError as error:
        _one_line(error)


def _one_line(error: OnnxspectError) -> None:
    """An error is for one line: what the door of the terminal escapes, and no more than a reader takes in."""
    if len(visible(str(error))) > 4000:
        raise AssertionError(f"an error of {len(str(error))} characters")
    if error.message.startswith("unexpected failure"):
        raise error


TARGETS = (
    Target("onnx", _models, _onnx),
    Target("report", _reports, _stored),
    Target("ledger", _ledgers, _ledger),
    Target("signed", _reports, _signed),
    Target("pickle", _pickles, _pickle),
    Target("archive", _archives, _archive),
    Target("options", lambda: [b"255|0.485,0.456,0.406|0.229,0.224,0.225|BGR", b"1|0|1|RGB", b"|0.5|0.5|"], _options),
)


def broken(target: Target, data: bytes) -> BaseException | None:
    """What an input does that no input may; None for what is as promised."""
    with tempfile.TemporaryDirectory(prefix="onnxspect-fuzz-") as scratch:
        try:
            target.check(data, Path(scratch))
        except sqlite3.Error as error:
            return error
        except Exception as error:
            return error
    return None


def main() -> int:
    """All targets in turn until the time is over; status 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--target", choices=[t.name for t in TARGETS], action="append")
    parser.add_argument(
        "--kept", type=Path, default=Path("tests/fuzz_kept"), help="where inputs go that break a promise"
    )
    arguments = parser.parse_args()
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    chosen = [t for t in TARGETS if not arguments.target or t.name in arguments.target]
    seeds = {t.name: t.seeds() for t in chosen}
    until, done, found = time.monotonic() + arguments.seconds, 0, 0
    print(f"seed {arguments.seed}", flush=True)
    while time.monotonic() < until:
        for target in chosen:
            for i in range(done, done + 100):
                data = mutant(seeds[target.name], arguments.seed, i)
                error = broken(target, data)
                if error is None:
                    continue
                found += 1
                path = arguments.kept / target.name / hashlib.sha256(data).hexdigest()[:16]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                print(
                    f"{target.name} {i}: kept as {path}", *traceback.format_exception(error)[-3:], sep="\n", flush=True
                )
        done += 100
    print(f"{done} mutants of each of {len(chosen)} targets, {found} broke a promise")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
