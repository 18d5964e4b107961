"""Is the lowered graph as fast as the torch module it came from? Forward plus input gradient, on one thread.

    python benchmarks/lowering_speed.py [--batch 16] [--rounds 15] [--dynamo] [--device cpu|cuda] [--torchvision FOLDER]

Every family of tests/lowering_families.py is exported and lowered; native module and graph take turns, and the ratio of
their median times (CPU time of the process: other processes take none of it) is printed. With --torchvision (a folder
that ``pip install --target FOLDER --no-deps torchvision`` filled) full-size networks are measured too. Writes a dated
JSON with the hardware in it; exits with 1 if the geometric mean of the ratios is above 1.05.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from of_tests import module_of_tests
from torch import Tensor, nn

from onnxspect.converters.lowering.lower import lower

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 1.05
FULL_SIZE = ("resnet50", "densenet121", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t")


def seconds(module: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """One forward pass and one gradient with respect to the input: CPU time of this process, or wall time on a GPU."""
    x = x.detach().requires_grad_(True)
    clock = time.perf_counter if x.is_cuda else time.process_time
    if x.is_cuda:
        torch.cuda.synchronize()
    start = clock()
    torch.autograd.grad(module(x).square().sum(), x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def compare(native: nn.Module, graph: nn.Module, x: Tensor, rounds: int) -> tuple[float, float]:
    """Median seconds of each; they take turns, so that what else the machine does meets both."""
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds + 2):
        for module, record in zip((native, graph), times, strict=True):
            taken = seconds(module, x)
            if i >= 2:  # warm
                record.append(taken)
    return statistics.median(times[0]), statistics.median(times[1])


def full_size(folder: Path) -> dict[str, Callable[[], nn.Module]]:
    """Networks of torchvision, whose wheel needs two schemas to load beside a CPU build of torch."""
    sys.path.append(str(folder))
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    models = importlib.import_module("torchvision").models
    full_size.library = library  # type: ignore[attr-defined]  # the schemas live as long as this object
    return {name: getattr(models, name) for name in FULL_SIZE}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dynamo", action="store_true", help="torch's default exporter instead of the older one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--torchvision", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    zoo = module_of_tests("lowering_families")
    networks: dict[str, Callable[[], nn.Module]] = {name: (lambda name=name: zoo.build(name)) for name in zoo.FAMILIES}
    size = zoo.SIZE
    if options.torchvision:
        networks, size = full_size(options.torchvision), 224
    rows = {}
    for name, make in networks.items():
        if options.only and name not in options.only:
            continue
        native = make().eval()
        x = torch.rand(options.batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        model = zoo.export(native, dynamo=options.dynamo, example=x[:2])
        native.requires_grad_(False)  # only now: the older exporter meets fused kernels in a frozen transformer
        graph = lower(model).module.to(options.device)
        a, b = compare(native.to(options.device), graph, x.to(options.device), options.rounds)
        rows[name] = {"native_seconds": a, "graph_seconds": b, "ratio": b / a}
        print(f"{name:18s} native {1e3 * a:8.2f} ms   graph {1e3 * b:8.2f} ms   ratio {b / a:.3f}", flush=True)
    mean = math.exp(statistics.fmean(math.log(r["ratio"]) for r in rows.values()))
    print(f"geometric mean of the ratios: {mean:.3f}")
    today = datetime.date.today().isoformat()
    record = {
        "date": today,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu, one thread",
        "batch": options.batch,
        "size": size,
        "exporter": "dynamo" if options.dynamo else "torchscript",
        "networks": rows,
        "geometric_mean": mean,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    kind = f"{'full_' if options.torchvision else ''}{options.device}{'_default_exporter' if options.dynamo else ''}"
    path = options.results / f"lowering_speed_{kind}_{today}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if mean <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
