"""Searches side by side on a CPU beside the same searches one after the other, each then spread over all of torch's threads.

    python benchmarks/side_by_side.py MODEL --data CLEAN.npz [MODEL --data CLEAN.npz ...] [--steps 60] [--out FILE]

For each model: the masks of all its classes, and training three reference networks. Both ways in turn, three times; the least time counts
of each. "The same" says whether the results are the same to the last bit as on one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detection import PACKAGES, version
from gpu_machine import processor

from onnxspect.engine.run import RunContext, prepare_process
from onnxspect.engine.search import search as search_module
from onnxspect.engine.search.perturbation import MaskPattern
from onnxspect.engine.search.search import SearchConfig, Unit, search
from onnxspect.engine.subject import reference
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.workers import in_order

ROUNDS = 3
#: Images that reference networks are trained on.
TRAINED_ON = 200
RESULTS = Path(__file__).resolve().parent / "results" / "side_by_side.json"


@contextlib.contextmanager
def one_after_the_other() -> Iterator[None]:
    """As it was: one piece of work at a time, all threads on its operations."""
    places, many = search_module.places_for, reference.in_order
    search_module.places_for = lambda subject, *_, **__: ((subject,), 0)
    reference.in_order = lambda work, pieces, places, _=0: in_order(work, pieces, places[:1])
    try:
        yield
    finally:
        search_module.places_for, reference.in_order = places, many


def timed(work: Callable[[], list[np.ndarray]]) -> dict[str, Any]:
    """Seconds of both ways, and whether side by side gives what one thread gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.perf_counter()
    alone = work()
    seconds = {"one thread": time.perf_counter() - started}
    torch.set_num_threads(threads)
    after, beside = [], []
    for _ in range(ROUNDS):
        with one_after_the_other():
            started = time.perf_counter()
            work()
            after.append(time.perf_counter() - started)
        started = time.perf_counter()
        found = work()
        beside.append(time.perf_counter() - started)
    same = all(np.array_equal(a, b) for a, b in zip(alone, found, strict=True))
    seconds |= {"one after the other": min(after), "side by side": min(beside)}
    return {
        **{k: round(v, 2) for k, v in seconds.items()},
        "ratio": round(min(beside) / min(after), 3),
        "the same": same,
    }


def measured(model: Path, data: Path, steps: int) -> list[dict[str, Any]]:
    """The rows of one model."""
    subject, samples, run = Subject.from_onnx(model), Samples.load(data), RunContext()
    config = SearchConfig(steps=steps, settle=10**9)
    batches = [(Unit(t),) for t in range(subject.classes)]

    def searched() -> list[np.ndarray]:
        found = [r for rs in search(subject, samples, batches, MaskPattern(), config, run, "measured") for r in rs]
        return [r.trigger["mask"] for r in found]

    fit = samples.take(np.sort(np.random.default_rng(0).permutation(len(samples))[:TRAINED_ON]))

    def trained() -> list[np.ndarray]:
        networks = reference.train_references(subject, fit, fit, run)
        return [p.numpy() for n in networks for p in n.module.state_dict().values()]  # type: ignore[attr-defined]

    work = ((f"masks of {subject.classes} classes", searched), ("training references", trained))
    rows = [{"model": model.name, "work": name, **timed(what)} for name, what in work]
    print(*rows, sep="\n", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--data", type=Path, required=True, action="append", help="npz with clean samples, one a model")
    parser.add_argument("--steps", type=int, default=60, help="of each search")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file")
    asked = parser.parse_intermixed_args(arguments)
    if len(asked.models) != len(asked.data):
        parser.error("give --data once a model, in the order of the models")
    prepare_process("cpu")
    rows = [r for model, data in zip(asked.models, asked.data, strict=True) for r in measured(model, data, asked.steps)]
    result = {
        "benchmark": "side_by_side",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "steps": asked.steps,
        "machine": {"processor": processor(), "threads": torch.get_num_threads(), "system": platform.system()},
        "versions": {p: version(p) for p in PACKAGES},
        "rows": rows,
    }
    asked.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
