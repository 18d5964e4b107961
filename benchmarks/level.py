"""The level of the verdict's null models by simulation: the chance of an alarm on a clean model, for several laws of noise.

    python benchmarks/level.py [--runs 4000] [--classes 2 3 10 43 100] [--out benchmarks/results/level.json]

A clean model's logarithms of what K classes take are b times what the references say, b = 0.35, and noise; the references'
are what the classes are by nature (deviation 0.5) and noise of their own (0.22). The subject's noise has the deviation that the prior
says (or twice that) and is normal, Student's with 10 or 5 degrees of freedom, or left-skewed (minus a Gumbel law: a long tail on
the suspicious side). Reported is the share of runs in which any class falls below the level, with its exact 95 % interval. With two or three classes
each is judged against the references alone, and has noise of the references' own deviation.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from boards import interval

from onnxspect.engine.detectors.base import TYPICAL
from onnxspect.engine.judge.few_classes import beside_references
from onnxspect.engine.judge.measurement import Search
from onnxspect.engine.judge.null_model import FEWEST_CLASSES, Prior, against_reference
from onnxspect.engine.judge.spread import PRIOR_DF
from onnxspect.engine.judge.thresholds import ALPHA

NATURE, BETWEEN, SLOPE = 0.5, 0.22, 0.35
#: As many references as a scan trains of a model with few classes, and with more.
REFERENCES = {True: 8, False: 3}
#: Standardised: mean 0, deviation 1.
LAWS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "t10": lambda rng, shape: rng.standard_t(10, shape) / np.sqrt(10 / 8),
    "t5": lambda rng, shape: rng.standard_t(5, shape) / np.sqrt(5 / 3),
    "left-skewed": lambda rng, shape: -(rng.gumbel(size=shape) - np.euler_gamma) / (np.pi / np.sqrt(6)),
}
#: A level is held where the chance of an alarm is at most so many times the nominal one.
ALLOWED = 1.2


def least_p(
    rng: np.random.Generator, classes: int, law: str, times: float = 1.0, planted: float = 0.0, slope: float = SLOPE
) -> float:
    """The least p-value of one simulated model; `planted` is taken off the logarithm of its first class."""
    draw = LAWS[law]
    few = classes < FEWEST_CLASSES
    prior = Prior(TYPICAL["l1", Search.FULL], PRIOR_DF)
    easy = rng.normal(0.0, NATURE, classes)
    noise = BETWEEN if few else prior.deviation
    references = easy[:, None] + BETWEEN * (
        draw(rng, (classes, REFERENCES[few])) if few else rng.standard_normal((classes, 3))
    )
    values = (1.0 if few else slope) * easy + times * noise * draw(rng, (classes,))
    values[0] -= planted
    if few:
        return float(beside_references(np.exp(3 + values), np.exp(3.5 + references)).p_value.min())
    means = references.mean(1)
    reliability = max(0.0, 1 - BETWEEN**2 / 3 / means.var(ddof=1))
    judged = against_reference(
        np.exp(3 + values), np.exp(3.5 + means), spread=BETWEEN, reliability=reliability, prior=prior
    )
    return float(judged.p_value.min())


def simulated(
    classes: int, law: str, times: float, runs: int, level: float = ALPHA, planted: float = 0.0, seed: int = 0
) -> dict[str, Any]:
    """The share of runs with an alarm, as a row."""
    rng = np.random.default_rng([seed, classes, list(LAWS).index(law), round(10 * times), round(10 * planted)])
    alarms = sum(least_p(rng, classes, law, times, planted) < level for _ in range(runs))
    low, high = interval(alarms, runs)
    return {
        "classes": classes,
        "law": law,
        "deviation": times,
        "planted": planted,
        "level": level,
        "runs": runs,
        "chance": alarms / runs,
        "interval_95": [round(low, 4), round(high, 4)],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a level is surely not held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 3, 4, 10, 43, 100])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    rows = []
    for classes in asked.classes:
        runs = max(200, asked.runs * 10 // max(10, classes))
        for law in LAWS:
            for times, planted in ((1.0, 0.0), (2.0, 0.0), (1.0, 1.0), (1.0, 1.6)):
                if times != 1 and classes < FEWEST_CLASSES:
                    continue  # no prior deviation is used there
                rows.append(simulated(classes, law, times, runs, planted=planted))
                print(json.dumps(rows[-1]), flush=True)
    if asked.out:
        asked.out.write_text(json.dumps({"command": "benchmarks/level.py", "rows": rows}, indent=1) + "\n")
    return int(any(r["interval_95"][0] > ALLOWED * r["level"] for r in rows if not r["planted"]))


if __name__ == "__main__":
    sys.exit(main())
