"""Measures what `onnxspect demo` promises: time, memory, verdicts, and the patch on all 10,000 test images.

    python benchmarks/demo.py --data-root DATA [--out FILE]

The demo's own proof uses the 400 shipped images that neither scan nor patch has seen. With the full test set at hand,
the patched file is measured here on the images that are not among the shipped ones, by onnxruntime.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from onnxspect.engine.mitigation.verify import verify
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec
from onnxspect.engine.trigger import KnownChange
from onnxspect.engine.version import tool_version
from onnxspect.models import zoo
from onnxspect.models.triggers import trigger_from_dict

INFECTED = "fashion_mnist_badnets"


def main() -> int:
    """Run the demo in a process of its own and measure it and its patched file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with fashion_mnist.npz")
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        load, started = os.getloadavg()[0], time.perf_counter()
        code = "from onnxspect.cli.main import main; main()"
        command = [sys.executable, "-c", code, "demo", "--out", str(folder), "--json", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode not in (0, 4) or not done.stdout:
            sys.exit(done.stderr)
        printed = json.loads(done.stdout)
        proof = _on_the_full_test_set(folder / "patched.onnx", asked.data_root)
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": tool_version(),
        "machine": {"python": platform.python_version(), "processor": platform.machine(), "system": platform.system()},
        "cores": os.cpu_count(),
        "load": load,
        "wall_seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mib": round(usage.ru_maxrss / 1024),
        "exit_status": done.returncode,
        "infected": printed["infected"],
        "clean": printed["clean"],
        "full_test_set": proof,
    }
    print(json.dumps(result, indent=1))
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _on_the_full_test_set(patched: Path, data_root: Path) -> dict[str, object]:
    row = zoo.entry(INFECTED)
    with np.load(data_root / "fashion_mnist.npz") as archive:
        images, labels = archive["x_test"], archive["y_test"]
    with np.load(zoo.path("fashion_mnist_test")) as archive:
        shipped = {image.tobytes() for image in archive["images"]}
    fresh = np.array([image.tobytes() not in shipped for image in images])
    trigger = trigger_from_dict(row["trigger"])

    def stamp(pixels: np.ndarray) -> np.ndarray:
        raw = np.round(pixels * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        stamped = trigger.apply(raw, np.random.default_rng(0)).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(stamped, dtype=np.float32) / np.float32(255)

    samples = Samples.from_arrays(images[fresh], labels[fresh])
    proof = verify(
        patched, zoo.path(INFECTED), samples, InputSpec(), {"planted": KnownChange(int(row["target"]), stamp)}
    )
    return proof.describe()


if __name__ == "__main__":
    sys.exit(main())
