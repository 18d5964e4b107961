"""Hostile files of other frameworks, kind by kind: pickles that call, archives that lead out, code and links in descriptions."""

from __future__ import annotations

import functools
import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from of_tests import module_of_tests

from hostile.case import ESCAPE, FORGED, HOSTILE, REFUSED, Canary, Case
from hostile.graph_makers import written_to

containers = module_of_tests("hostile_containers")


def cases() -> list[Case]:
    """All of them."""
    return [*_pickles(), *_archives(), *_frameworks()]


# -- pickles and archives ----------------------------------------------------------------------------------------------------


def _pickles() -> list[Case]:
    kind = "pickles that call something"
    opened = ("convert",)
    others = {
        "builtins.eval": ("builtins", "eval"),
        "subprocess.Popen": ("subprocess", "Popen"),
        "runpy._run_code": ("runpy", "_run_code"),
        "torch.hub.load": ("torch.hub", "load"),
        "numpy's runstring": ("numpy.testing._private.utils", "runstring"),
        "pip's main": ("pip._internal.cli.main", "main"),
        "builtins.open": ("builtins", "open"),
        "socket.create_connection": ("socket", "create_connection"),
    }
    found = [
        Case(kind, name, written_to(lambda d=data: d, "model.pt"), opened, HOSTILE)
        for name, data in containers.HOSTILE.items()
    ]  # type: ignore[misc]
    found += [
        Case(kind, name, written_to(lambda p=pair: containers.calls(*p), "model.pkl"), opened, HOSTILE)
        for name, pair in others.items()
    ]  # type: ignore[misc]
    by_info = ("info", "info as json", "scan", "patch", "verify", "diff", "cleanse", "certify")
    found.append(Case(kind, "in a file that is called .onnx", written_to(lambda: containers.SYSTEM), by_info, REFUSED))
    found.append(
        Case(
            kind,
            "named in colours and lines of its own",
            written_to(lambda: containers.calls(f"{ESCAPE}", "x\n" + FORGED, 4), "model.pt"),
            ("convert", "info"),
            REFUSED,
        )
    )
    return found


def _archives() -> list[Case]:
    kind = "archives of models"
    opened = ("convert",)
    slips = {"up and out": "../../ran", "to an absolute path": "/tmp/ran", "through a drive": "C:\\ran"}
    found = [
        Case(kind, f"a bomb: {name}", written_to(make, "model.pt"), opened, REFUSED)
        for name, make in containers.BOMBS.items()
    ]
    found += [
        Case(kind, f"a zip that leads {name}", written_to(lambda p=path: _slip(p), "model.pt"), opened, HOSTILE)
        for name, path in slips.items()
    ]  # type: ignore[misc]
    found += [
        Case(kind, "a tar with a link to a secret", _tar_with_a_link, opened, HOSTILE),
        Case(kind, "a gibibyte of zeros in a zip", written_to(_deflated, "model.pt"), opened, REFUSED),
        Case(kind, "a zip whose directory lies", written_to(_lying_directory, "model.pt"), opened, REFUSED),
    ]
    return found


def _slip(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        info = zipfile.ZipInfo("inside")
        info.filename = name
        archive.writestr(info, "data")
    return stream.getvalue()


def _tar_with_a_link(folder: Path, canary: Canary) -> Path:
    member = tarfile.TarInfo("archive/data.pkl")
    member.type, member.linkname = tarfile.SYMTYPE, str(canary.folder / "secret")
    (folder / "model.pt").write_bytes(containers.tarred([(member, b"")]))
    return folder / "model.pt"


def _deflated() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": 1}))
        with archive.open("archive/data/0", "w") as member:
            for _ in range(1024):
                member.write(bytes(1 << 20))
    return stream.getvalue()


def _lying_directory() -> bytes:
    data = bytearray(containers.zipped(archive__data_dot_pkl=pickle.dumps({"w": 1}), archive__data__0=bytes(100)))
    place = data.rindex(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", 0xFFFFFFF0)  # its size, unpacked
    return bytes(data)


# -- files of other frameworks -----------------------------------------------------------------------------------------------


def _frameworks() -> list[Case]:
    kind = "files of other frameworks"
    opened = ("convert",)
    keras = functools.partial(_keras, containers.KERAS)
    script = {
        "m__code__net_dot_py": b'def forward(self, x):\n  y = torch.from_file("/etc/passwd", False, 10)\n  return x\n',
        "m__constants_dot_pkl": pickle.dumps(()),
        "m__data_dot_pkl": pickle.dumps({}),
    }
    program = {
        "m__models__model_dot_json": json.dumps({"range": "__import__('os').system('touch ran')"}).encode(),
        "m__archive_format": b"pt2",
    }
    skops = {
        "schema_dot_json": json.dumps(
            {"__class__": "MethodNode", "content": {"module_path": "os", "function": "system"}}
        ).encode()
    }
    deep = {"config_dot_json": b"[" * 100_000, "metadata_dot_json": b"{}", "model_dot_weights_dot_h5": b""}
    return [
        Case(kind, "a Lambda in .keras", written_to(keras, "model.keras"), opened, HOSTILE),
        Case(
            kind,
            "a loader in .keras",
            written_to(functools.partial(_keras, containers.LOADER), "model.keras"),
            opened,
            HOSTILE,
        ),
        Case(kind, "a Lambda in .h5", lambda f, c: _h5(f, c, "lambda"), ("convert", "info"), HOSTILE),
        *(
            Case(kind, f".h5 that leads out: {way}", functools.partial(_h5, way=way), opened, REFUSED)
            for way in ("link", "storage", "virtual")
        ),
        Case(kind, ".h5 of 10^12 numbers", lambda f, c: _h5(f, c, "huge"), opened, REFUSED),
        Case(
            kind,
            "a description 100,000 deep",
            written_to(lambda: containers.zipped(**deep), "model.keras"),
            opened,
            REFUSED,
        ),
        Case(
            kind,
            "TorchScript that reads a file",
            written_to(lambda: containers.zipped(**script), "model.pt"),
            opened,
            HOSTILE,
        ),
        Case(
            kind,
            "an expression in a .pt2",
            written_to(lambda: containers.zipped(**program), "model.pt2"),
            opened,
            HOSTILE,
        ),
        Case(
            kind, "a method in .skops", written_to(lambda: containers.zipped(**skops), "model.skops"), opened, HOSTILE
        ),
        Case(kind, "SavedModel with ReadFile", functools.partial(_saved_model, operation="ReadFile"), opened, HOSTILE),
        Case(
            kind,
            "SavedModel with EagerPyFunc",
            functools.partial(_saved_model, operation="EagerPyFunc"),
            opened,
            HOSTILE,
        ),
        Case(
            kind,
            "TFLite with FlexWriteFile",
            written_to(
                lambda: b"\x1c\x00\x00\x00TFL3" + bytes(40) + b"\x0d\x00\x00\x00FlexWriteFile\x00\x00", "model.tflite"
            ),
            opened,
            HOSTILE,
        ),
        Case(
            kind,
            "TFLite that is damaged",
            written_to(lambda: b"\x1c\x00\x00\x00TFL3" + bytes(range(256)) * 16, "model.tflite"),
            opened,
            REFUSED,
        ),
        Case(
            kind,
            "safetensors whose header is 2^62 long",
            written_to(lambda: struct.pack("<Q", 1 << 62) + b"{}", "model.safetensors"),
            opened,
            REFUSED,
        ),
        Case(kind, "safetensors of 10^15 numbers", written_to(_safetensors, "model.safetensors"), opened, REFUSED),
        Case(
            kind,
            "msgpack of 2^32 items",
            written_to(lambda: b"\xdd\xff\xff\xff\xff" + b"\xdd\xff\xff\xff\xff" * 1000, "model.msgpack"),
            opened,
            REFUSED,
        ),
    ]


def _keras(config: dict[str, Any]) -> bytes:
    data: bytes = containers.zipped(config_dot_json=json.dumps(config).encode(), **{"model.weights.h5": b"\x89HDF"})
    return data


def _h5(folder: Path, canary: Canary, way: str) -> Path:
    import h5py

    description = (
        containers.KERAS if way == "lambda" else {"class_name": "Sequential", "config": {"name": "s", "layers": []}}
    )
    with h5py.File(folder / "model.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(description)
        inner = file.create_group("layers/dense")
        if way == "link":
            inner["kernel"] = h5py.ExternalLink(str(canary.folder / "secret"), "data")
        elif way == "storage":
            inner.create_dataset(
                "kernel", (4,), "f4", external=[(str(canary.folder / "secret"), 0, h5py.h5f.UNLIMITED)]
            )
        elif way == "virtual":
            layout = h5py.VirtualLayout((1,), "f8")
            layout[:] = h5py.VirtualSource(str(canary.folder / "secret"), "data", shape=(1,))
            inner.create_virtual_dataset("kernel", layout)
        elif way == "huge":
            inner.create_dataset("kernel", (10**6, 10**6), "f8", chunks=(1000, 1000), compression="gzip")
    return folder / "model.h5"


def _saved_model(folder: Path, _: Canary, operation: str) -> Path:
    node = b"\x0a\x01n\x12" + bytes([len(operation)]) + operation.encode()
    (folder / "saved_model.pb").write_bytes(b"\x08\x01\x12" + bytes([len(node)]) + node)
    return folder


def _safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}).encode()
    return struct.pack("<Q", len(header)) + header + zlib.compress(bytes(100))
