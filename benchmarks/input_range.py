"""How often few clean samples mislead the choice of the input range: the former rule and the present one, over many draws.

    python benchmarks/input_range.py --data-root DIR [--draws 12] [--out FILE]

Small networks of three architectures are trained on MNIST, Fashion-MNIST and CIFAR-10 as each of four readings gives their pixels (DIR as
in models/data.py); the shipped pair is added. Then 10, 20, 50, 100 and 200 test images are drawn, `--draws` times each, and both rules
choose among the usual preprocessings. The former rule took the lowest cross-entropy among those within a standard error of
the best accuracy. Choices that differ from the truth by the factor of 255 are counted apart: they are what misleads a search.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.special import log_softmax
from torch import nn
from torch.nn import functional

from onnxspect.engine.subject.input_range import choose
from onnxspect.engine.subject.preprocessing import candidates
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.models import zoo

#: File -> its own mean and deviation among the candidates.
FILES = {
    "mnist.npz": "mnist mean/std",
    "fashion_mnist.npz": "fashion-mnist mean/std",
    "cifar10_subset.npz": "cifar-10 mean/std",
}
TRAINED, TESTED = 4000, 600
SIZES = (10, 20, 50, 100, 200)
EPOCHS, BATCH = 4, 64


def networks(channels: int, side: int) -> dict[str, Callable[[], nn.Module]]:
    """Three small architectures for ten classes."""
    last = 32 * (side // 4) ** 2

    def body(norm: bool) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for i, o in ((channels, 16), (16, 32)):
            layers += [
                nn.Conv2d(i, o, 3, padding=1),
                *([nn.BatchNorm2d(o)] if norm else []),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        return layers

    return {
        "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(channels * side**2, 128), nn.ReLU(), nn.Linear(128, 10)),
        "convolutional": lambda: nn.Sequential(*body(False), nn.Flatten(), nn.Linear(last, 10)),
        "with BatchNorm": lambda: nn.Sequential(*body(True), nn.Flatten(), nn.Linear(last, 10)),
    }


def subjects(root: Path) -> Iterator[tuple[str, str, Subject, Samples]]:
    """(name, true reading, network, test samples)."""
    for file, own in FILES.items():
        train, test = (Samples.load(root / file, training=t) for t in (True, False))
        rng = np.random.default_rng(0)
        train = train.take(rng.permutation(len(train))[:TRAINED])
        test = test.take(rng.permutation(len(test))[:TESTED])
        channels, side, _ = train.shape
        images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
        specs = {s.name: s for s in candidates(channels, "NCHW")}
        for kind, make in networks(channels, side).items():
            for reading in ("0..1", "0..255", "-1..1", own):
                torch.manual_seed(0)
                network = make()
                encoded = specs[reading].encode(images)
                optimiser = torch.optim.Adam(network.parameters(), 1e-3)
                for _ in range(EPOCHS):
                    for rows in torch.randperm(len(encoded)).split(BATCH):
                        optimiser.zero_grad()
                        functional.cross_entropy(network(encoded[rows]), labels[rows]).backward()
                        optimiser.step()
                yield f"{file} {kind}", reading, Subject.from_module(network.eval(), train.shape), test
    shipped = Samples.load(zoo.path("fashion_mnist_test"))
    for name in ("fashion_mnist_clean", "fashion_mnist_badnets"):
        yield name, "0..1", Subject.from_onnx(zoo.path(name)), shipped.take(np.arange(TESTED))


def former(logits: list[np.ndarray], labels: np.ndarray) -> int:
    """The rule before: the lowest cross-entropy among near ties in accuracy."""
    accuracies = np.array([(x.argmax(1) == labels).mean() if np.isfinite(x).all() else 0.0 for x in logits])
    entropies = np.array([_entropy(x, labels) for x in logits])
    best = float(accuracies.max())
    tolerance = np.sqrt(max(best * (1 - best), 1.0 / len(labels)) / len(labels))
    close = np.flatnonzero(accuracies >= best - tolerance)
    return int(close[np.argmin(entropies[close])])


def _entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    if not np.isfinite(logits).all():
        return np.inf
    return float(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())


def _large(name: str) -> bool:
    return "0..255" in name


def main() -> None:
    """Measure, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/input_range.json"))
    asked = parser.parse_args()
    counts: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    margins: list[float] = []
    for name, reading, subject, test in subjects(asked.data_root):
        options = candidates(test.shape[0], subject.spec.layout)
        names = [o.name for o in options]
        logits = [subject.with_spec(o).predict(test.images) for o in options]
        ordered = np.sort(logits[names.index(reading)], axis=1)
        margins.append(float(np.median(ordered[:, -1] - ordered[:, -2])))
        rng = np.random.default_rng(0)
        for n in SIZES:
            for _ in range(asked.draws):
                rows = rng.permutation(len(test))[:n]
                drawn = [x[rows] for x in logits]
                for rule, index in (
                    ("former", former(drawn, test.labels[rows])),
                    ("present", choose(drawn, test.labels[rows]).index),
                ):
                    counts[n][f"{rule} other"] += names[index] != reading
                    counts[n][f"{rule} by 255"] += _large(names[index]) != _large(reading)
                counts[n]["draws"] += 1
        print(name, reading, flush=True)
    print(f"\n{'images':>6} {'draws':>6} {'former: other, by 255':>24} {'present: other, by 255':>24}")
    for n, c in counts.items():
        print(
            f"{n:6} {c['draws']:6} {c['former other']:12} {c['former by 255']:11} {c['present other']:12} {c['present by 255']:11}"
        )
    print(f"median margin under the own reading: {min(margins):.2f} to {max(margins):.2f}")
    asked.out.write_text(
        json.dumps(
            {
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "machine": platform.platform(),
                "counts": {str(n): dict(c) for n, c in counts.items()},
                "margins": margins,
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
