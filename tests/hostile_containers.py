"""Files that call something when they are opened, in every container, and files that unpack to far more than they are.

Nothing here is ever executed.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path


def calls(module: str, name: str, protocol: int = 2) -> bytes:
    """A pickle that calls module.name("touch ran")."""
    if protocol == 0:
        return f"c{module}\n{name}\n(Vtouch ran\ntR.".encode()
    head = b"\x80" + bytes([protocol])
    argument = b"X\x09\x00\x00\x00touch ran\x85R."
    if protocol < 4:
        return head + f"c{module}\n{name}\n".encode() + argument
    texts = b"".join(b"\x8c" + bytes([len(t)]) + t.encode() + b"\x94" for t in (module, name))
    return head + texts + b"\x93\x94" + argument


SYSTEM = calls("posix", "system")


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return stream.getvalue()


def tarred(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def npy(data: bytes) -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def joblib_like() -> bytes:
    """Raw numbers between the opcodes, as joblib has them; the call comes after."""
    return (
        b"\x80\x04\x8c\x13joblib.numpy_pickle\x8c\x11NumpyArrayWrapper\x93)\x81}b" + bytes(range(256)) * 4 + SYSTEM[2:]
    )


def legacy(payload: bytes) -> bytes:
    """torch.save of before 1.6: magic number, protocol, facts of the system, then the object."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(p, 2) for p in parts) + payload + b"\x00" * 64


HOSTILE: dict[str, bytes] = {
    "raw, protocol 0": calls("posix", "system", 0),
    "raw, protocol 2": SYSTEM,
    "raw, protocol 4": calls("posix", "system", 4),
    "raw, protocol 5": calls("posix", "system", 5),
    "instance opcode": b"(Vtouch ran\niposix\nsystem\n.",
    "breaks off after the call": SYSTEM[:-1] + b"\xff\xff",
    "second pickle of two": pickle.dumps({"a": 1}) + SYSTEM,
    "torch, older file": legacy(SYSTEM),
    "torch, zip": zipped(archive__data_dot_pkl=SYSTEM, archive__version=b"3\n"),
    "torch, zip with another name": zipped(archive__data__0=SYSTEM),
    "torch, tar": tarred([(tarfile.TarInfo("sys_info"), pickle.dumps({})), (tarfile.TarInfo("pickle"), SYSTEM)]),
    "joblib": joblib_like(),
    "joblib, zlib": zlib.compress(SYSTEM),
    "joblib, gzip": gzip.compress(joblib_like()),
    "joblib, bz2": bz2.compress(SYSTEM),
    "joblib, xz": lzma.compress(SYSTEM),
    "joblib, lzma": lzma.compress(SYSTEM, lzma.FORMAT_ALONE),
    "npy with objects": npy(SYSTEM),
    "npz with objects": zipped(images_dot_npy=npy(SYSTEM)),
    "pickle in a pickle": pickle.dumps({"storage": SYSTEM}),
    "zip in a pickle": pickle.dumps([zipped(a__data_dot_pkl=SYSTEM)]),
    "zip in a zip": zipped(model_dot_pt=zipped(a__data_dot_pkl=SYSTEM)),
    "tar in gzip": gzip.compress(tarred([(tarfile.TarInfo("pickle"), SYSTEM)])),
}

KERAS = {"class_name": "Sequential", "config": {"layers": [{"class_name": "Lambda", "config": {"name": "sly"}}]}}

LOADER = {
    "config": {"layers": [{"module": "keras.utils", "class_name": "function", "config": "get_file", "name": "far"}]}
}


def many_members() -> bytes:
    """Forty members of a mebibyte each, in forty kilobytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(40):
            archive.writestr(f"{i}.json", bytes(1 << 20))
    return stream.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "zlib": lambda: zlib.compress(bytes(1 << 26), 1),
    "gzip in gzip": lambda: gzip.compress(gzip.compress(gzip.compress(bytes(1 << 24)))),
    "bz2": lambda: bz2.compress(bytes(1 << 26)),
    "xz": lambda: lzma.compress(bytes(1 << 26)),
    "stump of a zip": lambda: b"PK\x03\x04" + bytes(100),
    "many members": many_members,
    "many opcodes": lambda: b"\x80\x04" + b"N0" * 200_000,
    "a text of 2^63 bytes": lambda: b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f",
}


def nested(folder: Path, levels: int) -> None:
    """So many folders inside each other, past the longest path that there is, and a file in the innermost."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("last", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
