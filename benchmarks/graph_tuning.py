"""What further clean images do to sleeping parts, on models that no table is reported on: the rows that derive_constants.py reads.

    python benchmarks/graph_tuning.py --data-root DIR --zoo FOLDER ... [--timed FILE.onnx ...]

Parts: the units and ways that few clean images leave asleep (converters/lowering/further.py), of the models as they are and of clean ones with
the payloads of tests/hidden_logic.py and tests/hidden_ways.py that hide in one. Each row has the largest share of what the part could do that
it was moved by on the first so many further clean images that are answered alike without it.
Times: CPU seconds of one image through the graph, of these models and of the larger ones of --timed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from graph_logic import opened, processor, read
from graph_subjects import ROOT, Ordinary, drawn, for_payloads, given_images, of_zoo
from torch import Tensor, fx

from onnxspect.converters.lowering import further as lowered_further
from onnxspect.converters.lowering.observation import Seen
from onnxspect.converters.lowering.program import Program
from onnxspect.converters.lowering.regimes import Regimes
from onnxspect.converters.lowering.taps import lying_between, results
from onnxspect.converters.lowering.trial import LISTENED, Tried, influence
from onnxspect.engine.subject import unreached
from onnxspect.engine.subject.precision import judging
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.models.manifest import read_manifest, sha256_of

RESULTS = ROOT / "benchmarks" / "results" / "graph_tuning.json"
SEED = 0
#: Images that a share is told for: the first so many.
COUNTS = (10, 20, 50, 100, 200, 500, 1000, 1500)
#: Payloads that hide in a unit or in a way.
KINDS = (
    "one_unit_of_a_layer",
    "sum_with_a_decoy",
    "larger_of_two",
    "largest_of_a_row",
    "soft_maximum",
    "first_of_the_largest",
)
KINDS += ("pooled", "magnitude", "always_on", "beside_a_loud_pair", "dead_channel")
#: Draws of the few images, of the models as they are.
DRAWS = 5
#: Shares that are as good as none.
LEAST = 1e-4
#: Images that are timed.
TIMED = 8


def parts(subject: Subject, samples: Samples, seed: int = SEED) -> list[dict[str, Any]]:
    """The units and ways of a subject that few clean images leave asleep, each with its shares."""
    assert subject.lowered is not None
    count = unreached._counts(subject, samples)[0]
    clean, altered, *_ = unreached._images(subject, samples, np.random.default_rng(seed))
    order = np.random.default_rng(seed).permutation(len(samples))[count:]  # as _images draws, which sorts them
    further = unreached._batches(subject, samples.images[order], 1)
    program, logits = Program(subject.lowered.module), results(subject.lowered)[0]
    between = lying_between(subject.lowered.module.graph, logits)
    seen = Seen(between, logits)
    with torch.no_grad(), judging():
        seen.run(program, clean, altered)
        clean = seen.differing(clean)
        tried = Tried(seen)
        program.run(clean[0], tried.observe)
        tried.listen(influence(program, logits, tried, clean[:LISTENED]))
        regimes = Regimes(between)
        for batch in [*clean, *altered]:
            program.run(batch, regimes.observe)
        ways = regimes.ways(program, logits, clean) if seen.tells_apart else []
        rows = []
        for node in (n for n in tried.units if n in tried.suspects):
            asleep, (low, high) = tried.suspects[node], seen.on_clean[node]

            def held(v: Tensor, m: Tensor = asleep, a: Tensor = low, b: Tensor = high) -> Tensor:
                return torch.where(m, torch.minimum(torch.maximum(v, a), b), v)

            rows += shares(program, logits, node, held, tried.units[node][1], asleep, further)
        for way in ways:
            place, whole = way.place, torch.ones((), dtype=torch.bool)
            rows += shares(program, logits, place.node, place.held, torch.tensor(way.reach), whole, further)
    return rows


def shares(
    program: Program,
    logits: fx.Node,
    node: fx.Node,
    held: Callable[[Tensor], Tensor],
    could: Tensor,
    asleep: Tensor,
    further: Sequence[Tensor],
) -> list[dict[str, Any]]:
    """For each unit of a node that is asleep, or for a way: the largest share that it was moved by, by the number of images."""
    alike, every = torch.zeros(asleep.shape), torch.zeros(asleep.shape)
    told: dict[int, Tensor] = {}
    for number, batch in enumerate(further, 1):
        values, answers = lowered_further._run(program, logits, batch, [node])
        value = values[node]
        moved = (value - held(value)).abs()
        share = moved / could if asleep.ndim else moved.max() / could
        every = torch.maximum(every, share)
        # As wake_units does it: the units that an image wakes are held together.
        if bool((share > alike + LEAST).any()):
            instead = torch.where(share > LEAST, held(value), value) if asleep.ndim else held(value)
            if lowered_further._alike(program, logits, batch, node, instead, answers):
                alike = torch.maximum(alike, share)
        if number in COUNTS:
            told[number] = alike.clone()
    chosen = [tuple(i) for i in asleep.nonzero().tolist()]
    return [
        {
            "part": "unit" if asleep.ndim else "way",
            "node": node.name,
            "moved": {str(n): round(float(t[i]), 5) for n, t in told.items()},
            "moved_with_other_answers": round(float(every[i]), 5),
        }
        for i in chosen
    ]


def seconds(subject: Subject, samples: Samples) -> float:
    """CPU seconds of one image through the graph, the median."""
    assert subject.lowered is not None
    program, logits = Program(subject.lowered.module), results(subject.lowered)[0]
    batches = unreached._batches(subject, samples.images[:TIMED], 1)
    taken = []
    with torch.no_grad(), judging():
        for batch in batches:
            started = time.process_time()
            lowered_further._run(program, logits, batch, [])
            taken.append(time.process_time() - started)
    return float(np.median(taken))


def timed(name: str, subject: Subject, samples: Samples) -> dict[str, Any]:
    """A row of times."""
    assert subject.file is not None
    sizes = {unreached.SMALL: "small", unreached.MIDDLE: "middle", unreached.LARGE: "large"}
    kind = sizes[unreached._counts(subject, samples)]
    facts = {"model": name, "size": kind, "bytes": subject.file.size, "executed": subject.file.cost.executed}
    return {**facts, "seconds": round(seconds(subject, samples), 6)}


def rows(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """("parts" or "times", a row)."""
    from hidden_logic import PAYLOADS, Payload
    from hidden_ways import WAYS

    seen: set[str] = set()
    for folder in options.zoo:
        for model in of_zoo(folder, options.data_root, SEED):
            if (digest := sha256_of(model.path)) in seen:
                continue
            seen.add(digest)
            samples = more(model, options.data_root)
            subject, samples, _ = read(opened(model.path), samples, [])
            yield "times", timed(model.name, subject, samples)
            for draw in range(DRAWS):
                for row in parts(subject, samples, draw):
                    yield "parts", {"model": model.name, "draw": draw, "payload": "", **row}
            if model.infected or subject.classes < 4 or model.family in options.carried:
                continue
            options.carried.add(model.family)
            base, path = for_payloads(model), options.results.with_suffix(".onnx")
            for kind in KINDS:
                onnx.save({**PAYLOADS, **WAYS}[kind](Payload(base, subject.classes, samples.shape[0])), path)
                for row in parts(opened(path), samples.take(np.arange(1000))):
                    yield "parts", {"model": model.name, "payload": kind, **row}
            path.unlink()
    sources = given_images(options.images, SEED)
    for file in options.timed:
        subject = opened(file)
        samples = next(s for s in sources if s.shape == subject.image_shape)
        yield "times", timed(file.name, subject, samples)


def more(model: Ordinary, data: Path) -> Samples:
    """More of the model's clean images than a scan gets, where there are."""
    dataset = next(m["dataset"] for m in read_manifest(model.path.parent)["models"] if m["name"] == model.name)
    return drawn(dataset, data, SEED, 40 + max(COUNTS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument(
        "--zoo", type=Path, nargs="*", default=[], help="folders with a manifest.json: models of the tuning half only"
    )
    parser.add_argument("--timed", type=Path, nargs="*", default=[])
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="for --timed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.carried = set()
    torch.set_num_threads(1)
    facts = {
        "date": datetime.date.today().isoformat(),
        "seed": SEED,
        "processor": processor(),
        "torch": torch.__version__,
    }
    facts |= {"python": platform.python_version(), "onnx": onnx.__version__}
    held: dict[str, list[dict[str, Any]]] = {"parts": [], "times": []}
    if not options.zoo and options.results.exists():  # times of more models alone
        before = json.loads(options.results.read_text())
        timed_again = {file.name for file in options.timed}
        held = {"parts": before["parts"], "times": [t for t in before["times"] if t["model"] not in timed_again]}
    for what, row in rows(options):
        held[what].append(row)
        print(what, json.dumps(row), flush=True)
        options.results.write_text(json.dumps(facts | held, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
