"""Which files a command's worker may read and write: those that the command line names, each by its role.

The roles are listed here, by command and parameter; a test holds the list to the commands.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxspect.cli import listening
from onnxspect.converters.errors import OnnxspectError, unwritable

#: What a parameter names: a model, or data, each with what lies beside it (weights; labels, and the images of a list); a file or
#: folder to read; a run folder to read, or to read and add to; a folder to write into; a file to write; a policy, which is read,
#: and so are the samples that it names; what is the parent's alone.
MODEL, DATA, READ, RUN, KEPT_RUN, FOLDER, OUTPUT, POLICY, UNUSED = (
    "model", "data", "read", "run", "kept run", "folder", "output", "policy", "not the worker's"
)  # fmt: skip
ROLES: dict[str, dict[str, str]] = {
    "scan": {
        "classes": READ,
        "model": MODEL,
        "data": DATA,
        "train": DATA,
        "out": FOLDER,
        "outputs": OUTPUT,
        "policy_file": POLICY,
        "shelf": READ,
        "cache": UNUSED,
    },
    "references": {"classes": READ, "request": READ, "data": DATA, "train": DATA, "out": FOLDER},
    "convert": {"source": MODEL, "output": OUTPUT},
    "info": {"model": MODEL, "data": DATA},
    "patch": {
        "classes": READ,
        "model": MODEL,
        "run_folder": KEPT_RUN,
        "data": DATA,
        "output": OUTPUT,
        "report": OUTPUT,
    },
    "verify": {
        "classes": READ,
        "model": MODEL,
        "against": MODEL,
        "data": DATA,
        "run_folder": RUN,
        "triggers": READ,
        "rescan_out": FOLDER,
        "report": OUTPUT,
    },
    "diff": {"a": MODEL, "b": MODEL},
    "cleanse": {
        "classes": READ,
        "model": MODEL,
        "train": DATA,
        "run_folder": RUN,
        "truth": READ,
        "retrain": OUTPUT,
        "out": FOLDER,
    },
    "certify": {"data": DATA, "model": MODEL, "suspect": DATA, "out": FOLDER},
    "report": {"source": RUN, "sign": READ, "verify_key": READ, "outputs": OUTPUT, "policy_file": READ},
    "view": {"folder": RUN},
    "data": {"classes": READ, "data": DATA, "pictures": OUTPUT},
    "demo": {"out": FOLDER},
}
#: `--classes` is a file or the names themselves; names are no path that exists, so nothing is opened for them.
OR_WORDS = frozenset({"classes"})
#: Folders that a command writes into where no option says another.
DEFAULT_FOLDERS = {
    "scan": "runs",
    "cleanse": "cleansed",
    "certify": "certificate",
    "references": "references",
    "demo": "demo",
}
#: And where it reads runs.
DEFAULT_RUNS = {"view": "runs"}
#: Beside a model that holds so many things, data files are not looked for.
_MOST_BESIDE = 20_000
_CUDA = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "dxg")
_CUDA_READ = (
    *("/proc/driver/nvidia", "/proc/devices", "/proc/modules", "/proc/sys/kernel", "/sys/bus/pci", "/sys/devices"),
    *("/sys/module", "/etc/nvidia", "/usr/lib/wsl"),
)
_MACHINE_READ = ("/sys/devices", "/sys/bus/pci", "/sys/class/drm", "/sys/fs/cgroup", "/proc/version", "/etc/os-release")


@dataclass(frozen=True)
class Output:
    """A file to write: the worker writes beside it into a folder of its own, and the supervisor renames.

    Attributes:
        target: the file's name, absolute.
        staging: the folder; None where it could not be made.
        errno: why not.
    """

    target: Path
    staging: Path | None
    errno: int = 0

    def allows(self, name: str) -> bool:
        """Whether a file of that name belongs to the output: itself, its facts, its external data."""
        own = self.target.name
        return name in (own, f"{own}.json") or self.allows_data(name)

    def allows_data(self, name: str) -> bool:
        """Whether it is a name of its external data, as converters/file/external_layout.py gives them."""
        stem = re.sub(r"[^\w.\- ]", "_", self.target.name, flags=re.ASCII)
        return re.fullmatch(rf"{re.escape(stem)}(\.\d+)?\.data", name) is not None


@dataclass
class Places:
    """What the worker of a command may touch.

    Attributes:
        readable, writable, devices: absolute paths.
        device: that the command is to compute on, where there are `devices`.
        outputs: files to write.
        made: folders that were made for it, the innermost last; those left empty are removed at the end.
        listening: the socket that it answers on; None for all but `view`.
    """

    readable: list[str] = field(default_factory=list)
    writable: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    device: str = "cuda"
    outputs: list[Output] = field(default_factory=list)
    made: list[Path] = field(default_factory=list)
    listening: socket.socket | None = None


def prepare(command: str, given: Mapping[str, Any]) -> Places:
    """Make what the worker will write into, and say what it may touch.

    Raises:
        OnnxspectError: a folder cannot be made.
    """
    places = Places(readable=list(_MACHINE_READ))
    for name, role in ROLES[command].items():
        value = given.get(name)
        if value is None and role == FOLDER:
            value = DEFAULT_FOLDERS.get(command)
        if value is None and role == RUN:
            value = DEFAULT_RUNS.get(command)
        for text in value if isinstance(value, tuple) else (value,) if value is not None else ():
            _add(places, role, Path(text))
    if command == "view":
        places.listening = listening.bound(_port(given.get("port")))
    if given.get("factory"):
        places.readable.append(os.getcwd())  # noqa: PTH109  # the user's own code is looked for there
    if given.get("device", "cpu") != "cpu" and "device" in given:
        _add_cuda(places)
        places.device = given["device"] if str(given["device"]).startswith("cuda:") else "cuda"
    return places


def _port(given: object) -> int:
    """As it was given, which nobody has checked yet; 0 for what is none, so that the command says it."""
    text = str(given)
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) and int(text) < 1 << 16 else 0


def _add(places: Places, role: str, path: Path) -> None:
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  # links stay links: the kernel follows them once
    if role == POLICY:
        places.readable += [str(absolute), *_named_by(path)]
    if role in (READ, RUN, MODEL, DATA, KEPT_RUN):
        places.readable.append(str(absolute))
    if role in (MODEL, DATA) and not absolute.is_dir():
        places.readable += _beside(absolute)
    if role == KEPT_RUN and absolute.is_dir():
        places.writable.append(str(absolute))
    if role == FOLDER:
        _make(places, path, absolute)
        places.writable.append(str(absolute))
    if role == OUTPUT:
        places.outputs.append(_staged(places, absolute))


def _named_by(policy: Path) -> list[str]:
    """The samples that a policy names; of one that cannot be read none, and the worker says why."""
    from onnxspect.engine.report.policy import read

    with contextlib.suppress(OnnxspectError):
        found = read(policy)
        return [os.path.abspath(p) for p in (found.data, found.train) if p is not None]  # noqa: PTH100
    return []


def _beside(file: Path) -> list[str]:
    """What a model's weights or a list's images may lie in: all beside the file that is not hidden. Either may name any of them.

    Where everybody keeps everything (the home folder, those above it, the temporary one), folders beside the file are left out.
    """
    shared = {Path.home(), *Path.home().parents, Path(tempfile.gettempdir())}
    folders = file.parent not in shared
    with contextlib.suppress(OSError), os.scandir(file.parent) as entries:
        found: list[str] = []
        for entry in entries:
            if entry.name.startswith(".") or entry.is_symlink() or (entry.is_dir() and not folders):
                continue
            found.append(entry.path)
            if len(found) > _MOST_BESIDE:
                return []
        return found
    return []


def _make(places: Places, shown: Path, folder: Path) -> None:
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        for one in reversed(missing):
            one.mkdir(exist_ok=True)
            places.made.append(one)
        if not folder.is_dir():
            folder.mkdir()  # says what is in its place
    except OSError as error:
        raise unwritable(shown, error, "choose another --out", "cannot be made a folder") from error


def _staged(places: Places, target: Path) -> Output:
    try:
        staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=".onnxspect-"))
    except OSError as error:
        return Output(target, None, error.errno or 0)
    places.writable.append(str(staging))
    return Output(target, staging)


def _add_cuda(places: Places) -> None:
    devices = list(Path("/dev").glob("nvidia[0-9]*"))
    if not devices and not Path("/dev/dxg").exists():
        return
    devices += [Path("/dev") / name for name in _CUDA if (Path("/dev") / name).exists()]
    devices += list(Path("/dev/nvidia-caps").glob("*"))
    places.devices += [str(p) for p in devices]
    places.readable += _CUDA_READ
