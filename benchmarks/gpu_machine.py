"""The machine of the GPU benchmark: cards, memory in use, processor, and what its Python lacks. Standard library only."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any


def hardware() -> dict[str, Any]:
    """Cards and driver as nvidia-smi names them, the processor and its threads."""
    machine: dict[str, Any] = {
        "processor": processor(),
        "threads": os.cpu_count(),
        "system": platform.platform(),
        "cards": [],
    }
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        machine["cards"] = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return machine


def processor() -> str:
    """Its model's name where the system tells it, else its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


@contextlib.contextmanager
def card_memory() -> Iterator[Callable[[], float]]:
    """Watches the first card; the value tells the most memory in MiB in use since, beyond what was in use before.

    What nvidia-smi counts is what the driver gave: weights, activations, the allocator's reserve and 0.5 GiB of CUDA's own.
    0 where there is no nvidia-smi.
    """
    query = ["nvidia-smi", "-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    if shutil.which("nvidia-smi") is None:
        yield lambda: 0.0
        return
    with tempfile.TemporaryFile("w+") as log:
        before = megabytes(subprocess.run(query, capture_output=True, text=True, check=False).stdout)
        watching = subprocess.Popen([*query, "-lms", "200"], stdout=log, stderr=subprocess.DEVNULL, text=True)

        def most() -> float:
            log.seek(0)
            return max(0.0, max(megabytes(log.read()), default=0.0) - min(before, default=0.0))

        try:
            yield most
        finally:
            watching.kill()
            watching.wait()


def megabytes(text: str) -> list[float]:
    """The numbers in nvidia-smi's answer, one a line; others are no numbers."""
    return [float(line) for line in text.splitlines() if line.strip().replace(".", "", 1).isdigit()]


def unpack_wheels(folder: Path, site: Path) -> list[str]:
    """Unpack those wheels whose package this Python lacks, and onnxspect's in any case; returns their file names.

    A wheel of pure files and libraries is a zip file to be put on the path (as `pip install --target` does); none of these has scripts
    that anyone calls.

    Raises:
        SystemExit: a missing package's wheel is for another Python.
    """
    site.mkdir(parents=True, exist_ok=True)
    unpacked = []
    for wheel in sorted(folder.glob("*.whl")):
        name, tag = wheel.name.split("-")[0], wheel.name.split("-")[-3]
        if name != "onnxspect" and has(name):
            continue
        own = (f"cp{sys.version_info.major}{sys.version_info.minor}", "py3", "abi3", "py2.py3")
        if tag not in own:
            sys.exit(f"{name} is missing, and {wheel.name} is not for Python {platform.python_version()}")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        unpacked.append(wheel.name)
    return unpacked


def has(package: str) -> bool:
    """Whether this Python has a package, by its distribution's name."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
