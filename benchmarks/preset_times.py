"""What each preset takes on one model, reference networks and all, in processor seconds of one thread.

python benchmarks/preset_times.py MODEL --data CLEAN.npz [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from detection import made_with

from onnxspect.engine.detectors.registry import PRESETS
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.run import RunContext


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="npz with clean samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for preset in PRESETS:
        with tempfile.TemporaryDirectory(prefix="onnxspect-") as folder:
            started = time.process_time()
            report = scan(asked.model, asked.data, Path(folder) / "run", preset, run=RunContext(asked.seed)).report
            ran = [d for d in report["detectors"] if d["status"] == "ran"]
            rows.append(
                {
                    "preset": preset,
                    "cpu_seconds": round(time.process_time() - started, 1),
                    "gradient_steps": sum(d["budget"]["gradient_steps"] for d in ran),
                    "detectors": [d["name"] for d in ran],
                    "verdict": report["verdict"],
                    "targets": report["targets"],
                }
            )
        print(rows[-1], flush=True)
    result = {
        "benchmark": "preset_times",
        "model": asked.model.name,
        "samples": report["data"]["samples"],
        "seed": asked.seed,
        **made_with(),
        "presets": rows,
    }
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
