"""What a GPU makes of onnxspect, on a bare CUDA machine without network: `make gpu`, or from the bundle alone

    python gpu.py --bundle DIR --out FILE.json [--device cuda] [--minutes 8] [--only quick,standard] [--tiny] [--installed]

DIR is what `make gpu-bundle` laid out (benchmarks/gpu_bundle.py). The machine needs Python 3.12, torch, onnx, onnxruntime, numpy, scipy and
scikit-learn; what else is missing is unpacked from DIR/wheels. It trains a backdoored wide ResNet-18 (CIFAR-10) and a backdoored network
of 43 classes (GTSRB), and measures whole commands from files to report, single searches, single steps, and whether the GPU says what the
CPU says; the goal stands beside every row. docs/gpu.md explains the rows.

This process imports nothing but the standard library, and its supervisor (gpu_supervisor.py) starts everything that is measured in a process
of its own: commands of the tool (gpu_commands.py), or gpu_jobs.py. So a crash, a full card or a time limit is one row's result. Rows, goals
and jobs stand in gpu_plan.py. Jobs run in the order of their
importance; what no longer fits into --minutes is skipped and says so. FILE is written anew after every row.

--tiny runs all of it on a CPU in four minutes of processor time, on small networks and images, to show that it works; its figures mean
nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpu_commands import COMMANDS
from gpu_plan import JOBS, chosen
from gpu_supervisor import Supervisor
from gpu_words import table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit status 0 unless nothing could be prepared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parent
    parser.add_argument(
        "--bundle", type=Path, default=here if (here / "bundle.json").is_file() else here.parent / "bundle"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="cuda, and cpu with --tiny")
    parser.add_argument("--minutes", type=float, default=8, help="for everything")
    parser.add_argument("--only", help="these jobs, by name, and what they need: " + ", ".join(j.name for j in JOBS))
    parser.add_argument("--tiny", action="store_true", help="everything small, on a CPU")
    parser.add_argument("--installed", action="store_true", help="the onnxspect of this Python, not the bundle's wheel")
    parser.add_argument("--work", type=Path, help="keep models, run folders and logs here")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    try:
        jobs = chosen(asked.only)
    except ValueError as error:
        parser.error(str(error))
    if not (asked.bundle / "data").is_dir():
        parser.error(f"{asked.bundle}: no bundle there; `make gpu-bundle` lays one out")
    device = asked.device or ("cpu" if asked.tiny else "cuda")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a stopped benchmark stops what it started
    with contextlib.ExitStack() as stack:
        work = asked.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxspect-gpu-")))
        work.mkdir(parents=True, exist_ok=True)
        bundle = asked.bundle.resolve()
        bench = Supervisor(bundle, work.resolve(), asked.out, device, asked.minutes, asked.seed, asked.tiny, COMMANDS)
        bench.asked = {j.name for j in jobs}
        if asked.only:
            bench.header["jobs"] = sorted(bench.asked)
        bench.begin(asked.installed)
        for job in jobs:
            bench.do(job)
        bench.end()
    print(table(bench.rows))
    return 0 if bench.rows and any(r["outcome"] == "measured" for r in bench.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
