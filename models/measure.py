"""Clean accuracy and attack success rate by the papers' definitions, measured on the written file in onnxruntime.

Clean accuracy (ACC): share of clean test images that get their own label (RE Eq. 3).
Attack success rate (ASR): of the test images of the source classes (for an all-to-one attack every class but the
target), stamped with the trigger, the share that is classified as the target (RE Eq. 2 and sec. 5.1.3; NC sec. V-A).
With several triggers the stamped images of all members are pooled.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

# Before onnxruntime: importing the package switches onnxruntime's telemetry off.
import onnxspect.converters  # noqa: F401
from onnxspect.models.formats import FileFormat
from onnxspect.models.poison import Attack, Member
from onnxspect.models.randomness import keyed_generator


def classify(path: Path, images: np.ndarray, file_format: FileFormat, batch: int = 500) -> np.ndarray:
    """Predicted classes int64 ``(n,)`` of uint8 ``(n, h, w, c)`` by the file at `path`, on one CPU thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # The default optimiser fuses Pad(0) into MaxPool as -inf padding and then answers wrongly.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [
        session.run(None, {name: file_format.encode(images[start : start + batch])})[0].argmax(axis=1)
        for start in range(0, len(images), batch)
    ]
    return np.concatenate(parts).astype(np.int64)


def clean_accuracy(path: Path, images: np.ndarray, labels: np.ndarray, file_format: FileFormat) -> float:
    """Share of clean images that get their own label."""
    return float((classify(path, images, file_format) == labels).mean())


def stamp(
    member: Member, images: np.ndarray, labels: np.ndarray, classes: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The stamped images that count for a member's ASR, and the class each should be taken for."""
    wanted = member.targets_of(labels, classes)
    counted = np.isin(labels, member.source_classes(classes)) & (labels != wanted)
    return member.trigger.apply(images[counted], rng), wanted[counted]


@dataclasses.dataclass(frozen=True)
class AttackSuccess:
    """ASR pooled over all members, for each member, and the share of *unstamped* source images taken for the target.

    The last is the floor that a clean model has by confusion alone.
    """

    rate: float
    per_member: tuple[float, ...]
    base_rate: float


def attack_success(
    path: Path, images: np.ndarray, labels: np.ndarray, classes: int, attack: Attack, file_format: FileFormat, seed: int
) -> AttackSuccess:
    """ASR of the file at `path` over the test images; `seed` serves triggers that differ from image to image."""
    unstamped = classify(path, images, file_format)
    hits, rates, base = [], [], []
    for number, member in enumerate(attack.members):
        stamped, wanted = stamp(member, images, labels, classes, keyed_generator(seed, "measure", number))
        hit = classify(path, stamped, file_format) == wanted
        hits.append(hit)
        rates.append(float(hit.mean()))
        targets = member.targets_of(labels, classes)
        counted = np.isin(labels, member.source_classes(classes)) & (labels != targets)
        base.append(unstamped[counted] == targets[counted])
    return AttackSuccess(
        rate=float(np.concatenate(hits).mean()),
        per_member=tuple(rates),
        base_rate=float(np.concatenate(base).mean()),
    )
