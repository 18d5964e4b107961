"""How much of a class's mask is luck: Neural Cleanse from several starts, and what searching some classes again is worth.

    python -m onnxspect.models.train_zoo --list benchmarks/restarts.toml --out build/restarts --data-root DIR
    python benchmarks/restarts.py --models build/restarts --data-root DIR [--threads 1]

Every class of every model is searched from `STARTS` starts as `standard` does it, each on images of its own, and once on each reference network. A
row a model is added to benchmarks/results/restarts.json as it is done, so that a run that was cut off goes on. From the rows follows, for
each way to spend starts and each start as the first one, the p-value that `decide` gives on these masks alone:

* one: one start a class, as it was;
* front: the three most suspicious classes and two random others from two more starts, the rest rescaled (NeuralCleanse.restarts);
* light: the same with two, two and one more start;
* all: the least of two starts of every class.

These models are for tuning: no board reports them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import even_draw, split_of

from onnxspect.engine.detectors.base import NATURE, against_references, compared
from onnxspect.engine.detectors.held_out import share_led
from onnxspect.engine.detectors.neural_cleanse import NAME, NeuralCleanse
from onnxspect.engine.detectors.registry import PRESETS
from onnxspect.engine.jobs.scan import SEARCH_SHARE
from onnxspect.engine.judge.evidence import Evidence, Unit, UnitEvidence, View
from onnxspect.engine.judge.measurement import measured
from onnxspect.engine.judge.verdict import decide
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.perturbation import MaskPattern
from onnxspect.engine.search.search import SearchConfig, plan, search
from onnxspect.engine.subject.opening import open_model
from onnxspect.engine.subject.reference import train_references
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import Trigger
from onnxspect.engine.version import tool_version

RESULTS = Path(__file__).resolve().parent / "results" / "restarts.json"
SAMPLES, STARTS, TRIED = 2000, 4, 200
#: Way -> (front-runners, random group, further starts).
WAYS = {"one": (0, 0, 0), "light": (2, 2, 1), "front": (3, 2, 2), "all": (99, 0, 1)}


def costs(
    subject: Subject, samples: Samples, config: SearchConfig, starts: int, led: Callable[[Trigger], float] | None
) -> Any:
    """(mask areas, what `led` says of each trigger), both ``(start, class)``, NaN where none was found."""
    areas, shares = (np.full((starts, subject.classes), np.nan) for _ in range(2))
    units = [Unit(t, start=k) for k in range(starts) for t in range(subject.classes)]
    for batch in search(subject, samples, plan(units, 1), MaskPattern(), config, RunContext(seed=0), NAME):
        for result in batch:
            place = result.unit.start, result.unit.target
            if result.found:
                areas[place] = result.cost
                shares[place] = led(Trigger.kept(result.unit.target, result.trigger)) if led is not None else np.nan
    return areas, shares


def row(path: Path, truth: Mapping[str, Any], samples: Samples, references_at: Path) -> dict[str, Any]:
    """All searches on one model."""
    subject = open_model(path).subject((1, 28, 28))
    found, held_out = samples.split(SEARCH_SHARE, np.random.default_rng(0))
    references = train_references(subject, found, held_out, RunContext(seed=0), references_at)
    config = PRESETS["standard"]
    lighter = SearchConfig(**{**vars(config), "samples": config.samples // 2})
    tried = held_out.images[:TRIED], held_out.labels[:TRIED]

    def transfer(trigger: Trigger) -> float:
        images = tried[0][tried[1] != trigger.target]
        return float(np.mean([share_led(r, trigger, images) for r in references]))

    areas, shares = costs(subject, found, config, STARTS, transfer)
    baselines = [costs(r, found, lighter, 1, None)[0][0] for r in references]
    return {
        "model": path.stem,
        "sha256": truth["sha256"],
        "targets": truth.get("targets") or [],
        "asr": truth["asr"],
        "areas": np.round(areas, 3).tolist(),
        "transfer": np.round(shares, 3).tolist(),
        "references": np.round(baselines, 3).tolist(),
    }


def p_value(areas: np.ndarray, references: np.ndarray) -> tuple[int, float]:
    """(class, p-value) of the most suspicious class, of masks alone."""

    def units(values: np.ndarray) -> list[UnitEvidence]:
        return [
            UnitEvidence(Unit(t), measured(l1=float(v)), True, True, 1, 1.0, 1.0, 100, {}) for t, v in enumerate(values)
        ]

    found = against_references(units(areas), [units(r) for r in references], "l1")
    views = compared([View("l1")], True, 2 * NATURE)
    evidence = Evidence(NAME, {}, "l1", "l1", "low", tuple(found), tuple(views), NeuralCleanse.traits)
    finding = min(decide([evidence], len(areas)).classes, key=lambda f: f.log10_p)
    return finding.index, float(10**finding.log10_p)


def spent(
    areas: np.ndarray, references: np.ndarray, first: int, way: tuple[int, int, int], rng: np.random.Generator
) -> np.ndarray:
    """Mask areas ``(class,)`` when starts are spent in that way."""
    front, beside, more = way
    order = [first, *[k for k in range(len(areas)) if k != first][:more]]
    one = areas[first]
    ranked = np.argsort(np.log(one) - np.log(references).mean(0))
    ahead, others = ranked[:front], ranked[front:]
    group = rng.permutation(others)[:beside]
    least = one.copy()
    for k in (*ahead, *group):
        least[k] = areas[order, k].min()
    if len(group):
        rest = np.setdiff1d(others, group)
        least[rest] *= np.exp(np.log(least[group] / one[group]).mean())
    return least


def judged(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each model and way, the p-values from each first start, and how many of them name the right class."""
    table = []
    for r in rows:
        areas, references = np.array(r["areas"]), np.array(r["references"])
        line: dict[str, Any] = {"model": r["model"], "targets": r["targets"]}
        for name, way in WAYS.items():
            rng = np.random.default_rng(0)
            found = [p_value(spent(areas, references, k, way, rng), references) for k in range(len(areas))]
            line[name] = [round(p, 9) for _, p in found]
            line[f"{name} right"] = sum(k in r["targets"] for k, _ in found) if r["targets"] else None
        table.append(line)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    images, labels = split_of("fashion_mnist", given.data_root)
    drawn = even_draw(labels, SAMPLES, np.random.default_rng(0))
    samples = Samples.from_arrays(images[drawn], labels[drawn])
    known = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for truth in json.loads((given.models / "manifest.json").read_text())["models"]:
            if not any(r["sha256"] == truth["sha256"] for r in known):
                known.append(row(given.models / truth["file"], truth, samples, Path(folder)))
                keep(known)
    keep(known)
    for line in judged(known):
        worst = {name: f"{max(line[name]) if line['targets'] else min(line[name]):.2g}" for name in WAYS}
        print(
            f"{line['model']:18} {line['targets']!s:5} " + "  ".join(f"{n} {p}" for n, p in worst.items()), flush=True
        )


def keep(rows: list[dict[str, Any]]) -> None:
    """Write what is known."""
    said = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python benchmarks/restarts.py",
        "tool": tool_version(),
        "machine": platform.machine(),
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "numpy": np.__version__},
        "samples": SAMPLES,
        "seed": 0,
        "rows": rows,
        "judged": judged(rows),
    }
    RESULTS.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
