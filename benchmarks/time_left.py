"""Whether the time that a scan says is left is right: what it says on the way, beside what it took in the end.

python benchmarks/time_left.py MODEL:CLEAN.npz[:PRESET] ... [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detection import made_with

from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.run import RunContext, Silent

#: Shares of a scan's time at which what it says is looked at.
AT = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass
class Heard(Silent):
    """Keeps when what was said.

    Attributes:
        said: (seconds since the start, seconds that are left).
    """

    started: float = field(default_factory=time.perf_counter)
    said: list[tuple[float, float]] = field(default_factory=list)

    def time_left(self, seconds: float | None) -> None:
        """Kept, where it is known."""
        if seconds is not None:
            self.said.append((time.perf_counter() - self.started, seconds))


def rows_of(said: Sequence[tuple[float, float]], seconds: float) -> list[dict[str, float]]:
    """For each share of the time the first thing that was said from then on: the whole scan by that, over what it took.

    Args:
        said: see `Heard`.
        seconds: what the scan took.
    """
    rows = []
    for share in AT:
        heard = next(((at, left) for at, left in said if at >= share * seconds), None)
        if heard is not None:
            at, left = heard
            rows.append({"share": share, "at": round(at, 1), "left": round(left, 1), "whole": (at + left) / seconds})
    return rows


def measured(model: Path, data: Path, preset: str, seed: int) -> dict[str, Any]:
    """One scan with its own references."""
    heard = Heard()
    with tempfile.TemporaryDirectory(prefix="onnxspect-") as folder:
        report = scan(model, data, Path(folder) / "run", preset, run=RunContext(seed, observer=heard)).report
    seconds = time.perf_counter() - heard.started
    return {
        "model": model.name,
        "classes": len(report["classes"]),
        "preset": preset,
        "seconds": round(seconds, 1),
        "said": rows_of(heard.said, seconds),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", metavar="MODEL:DATA[:PRESET]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args(arguments)
    rows = []
    for text in asked.scans:
        model, data, preset = (*text.split(":"), "standard")[:3]
        rows.append(measured(Path(model), Path(data), preset, asked.seed))
        said = " ".join(f"{r['share']:.0%} {r['whole']:.2f}" for r in rows[-1]["said"])
        print(f"{rows[-1]['model']:36} {preset:9} {rows[-1]['seconds']:7.0f} s  {said}", flush=True)
    result = {
        "benchmark": "time_left",
        "seed": asked.seed,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[1], 1),
        **made_with(),
        "scans": rows,
    }
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
