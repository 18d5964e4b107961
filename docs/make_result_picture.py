"""Makes docs/result.png, the README's picture: python docs/make_result_picture.py [RUN_FOLDER].

It is the picture that a scan of the shipped infected model writes of its trigger, as it is. Without a run folder that scan (preset
quick, the shipped samples) is done first: a minute or a few.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from onnxspect import scan
from onnxspect.models import zoo
from onnxspect.models.manifest import sha256_of

MODEL = "fashion_mnist_badnets"
PICTURE = Path(__file__).parent / "result.png"


def picture_of(run_folder: Path) -> bytes:
    """The picture of the trigger that a finished scan of the shipped infected model found.

    Raises:
        ValueError: the run is of another model, or did not find one backdoor.
    """
    report = json.loads((run_folder / "report.json").read_text(encoding="utf-8"))
    if report["model"]["sha256"] != sha256_of(zoo.path(MODEL)):
        raise ValueError(f"{run_folder}: not a scan of the shipped {MODEL}")
    if len(report["targets"]) != 1:
        raise ValueError(f"{run_folder}: the scan names {len(report['targets'])} classes")
    return (run_folder / f"trigger-class-{report['targets'][0]}.png").read_bytes()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "run"
        if len(sys.argv) == 1:
            scan(zoo.path(MODEL), zoo.path("fashion_mnist_test"), folder, preset="quick")
        PICTURE.write_bytes(picture_of(folder))
