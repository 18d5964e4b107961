"""The clean images that benchmarks draw from: the data sets as npz under --data-root."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

#: Files whose name is not the data set's.
FILES = {"cifar10": "cifar10_subset.npz", "gtsrb": "gtsrb32_roi_clean.npz"}


def split_of(dataset: str, root: Path, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """Clean images uint8 NHWC and labels int64 of a split; of a set that has only one, that. Exits where there is none."""
    source = root / FILES.get(dataset, f"{dataset}.npz")
    if not source.is_file():
        sys.exit(f"{source}: no such data set; give --data-root")
    with np.load(source, allow_pickle=False) as archive:
        names = ("images", "labels") if f"x_{split}" not in archive else (f"x_{split}", f"y_{split}")
        images, labels = (archive[n] for n in names)
    return images, labels.astype(np.int64).reshape(-1)


def even_draw(labels: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of about n samples in order, as many of every class and two at least."""
    per_class = max(2, n // len(np.unique(labels)))
    queues = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    return np.sort(np.concatenate([q[:per_class] for q in queues]))
