"""Certification (Steinhardt et al., 2017) on MNIST, 1 against 7: bound and attack, fixed and data-dependent sets.

    python benchmarks/certification.py --data-root DATA [--limit 4000] [--out FILE]

Prints a table and writes JSON, and a plot a configuration beside it. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from onnxspect.engine.jobs.certify import certify
from onnxspect.engine.run import RunContext

PACKAGES = ("onnxspect", "numpy", "scipy", "clarabel")
#: set, centroids, integrity.
CONFIGURATIONS = (
    ("both", "oracle", "none"),
    ("both", "oracle", "box"),
    ("both", "data", "none"),
    ("sphere", "oracle", "none"),
    ("sphere", "oracle", "box"),
    ("slab", "oracle", "box"),
    ("sphere", "data", "none"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=4000, help="samples of each class")
    parser.add_argument("--keep", type=float, default=0.7)
    parser.add_argument("--radius", type=float, default=1.0)
    parser.add_argument("--epsilon", default="0,0.05,0.1,0.2,0.3")
    parser.add_argument("--first", type=int, default=len(CONFIGURATIONS), help="only so many configurations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/certification.json"))
    asked = parser.parse_args(arguments)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked_for = {k: getattr(asked, k) for k in ("limit", "keep", "radius", "epsilon", "seed")}
    known = json.loads(asked.out.read_text()) if asked.out.is_file() else {}
    rows: list[dict[str, Any]] = known["configurations"] if known.get("settings") == asked_for else []
    fractions = [float(f) for f in asked.epsilon.split(",")]
    with np.load(asked.data_root / "mnist.npz") as archive, tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "clean.npz"
        np.savez(data, images=archive["x_train"], labels=archive["y_train"])
        for kind, centroids, integrity in CONFIGURATIONS[: asked.first]:
            name = f"{kind}-{centroids}-{integrity}"
            if any(r["name"] == name for r in rows):
                continue
            started = time.perf_counter()
            done = certify(
                data, (1, 7), Path(scratch) / name, kind=kind, centroids=centroids, keep=asked.keep,
                integrity=integrity, fractions=fractions, radius=asked.radius, limit=asked.limit,
                run=RunContext(asked.seed),
            )  # fmt: skip
            rows.append({"name": name, "seconds": round(time.perf_counter() - started, 1), "report": done.report})
            (asked.out.parent / f"certification-{name}.png").write_bytes((done.folder / "certificate.png").read_bytes())
            document = {
                "benchmark": "certification",
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "hardware": {"machine": platform.machine(), "system": platform.system()},
                "versions": {p: metadata.version(p) for p in PACKAGES},
                "settings": asked_for,
                "configurations": rows,
            }
            for one in rows:
                one["report"]["features"]["source"] = "mnist.npz: pixels"
            asked.out.write_text(json.dumps(document, indent=1) + "\n")
            for c in done.report["certificates"]:
                print(
                    f"{name:20} {c['epsilon']:5.1%}  bound {c['upper_bound']:.4f}  attack {c['attack_loss']:.4f}"
                    f"  gap {c['gap']:6.1%}  error on clean {c['attack_error_on_clean']:.1%}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
