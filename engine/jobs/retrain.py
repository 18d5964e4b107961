"""Retraining after a cleansing: the model fine-tuned on what was kept, written, and measured on kept samples that it has not seen."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from onnxspect.converters.file.onnx_file import read_onnx
from onnxspect.engine.cleansing.by_trigger import Found, without
from onnxspect.engine.jobs.export import Provenance, patched_model, write_model
from onnxspect.engine.mitigation.descent import Descent
from onnxspect.engine.mitigation.recovered import named
from onnxspect.engine.mitigation.training import trainable_copy
from onnxspect.engine.mitigation.verification import Goals, Verification
from onnxspect.engine.mitigation.verify import verify
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.activations import TrainingSet
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import Trigger
from onnxspect.engine.version import tool_version

#: Share of the kept samples that fine-tuning is measured on.
APART = 0.1


@dataclass(frozen=True)
class Retrain:
    """How `retrain` fine-tunes.

    Attributes:
        epochs: over the kept samples.
        batch_size: images a step.
        learning_rate: Adam's, falling to zero.
        restored: the removed samples are trained on too, as they are, with the class that the model gives them once the
            trigger is off. Without them nothing tells the network to forget: it has already learned the trigger.
    """

    epochs: int = 4
    batch_size: int = 64
    learning_rate: float = 1e-3
    restored: bool = True


def retrained(
    subject: Subject,
    training: TrainingSet,
    removed: np.ndarray,
    patterns: Sequence[Found],
    out: Path,
    how: Retrain,
    run: RunContext,
) -> Verification:
    """Fine-tune on the kept samples, write the model, and measure it on kept samples that it has not seen.

    Args:
        subject: the model, from an ONNX file.
        training: the whole training set; what is kept of it is held in memory.
        removed: bool ``(n,)``: what the cleansing removes.
        patterns: triggers that are taken off removed samples, and that the proof is measured with.
        out: the file to write.
        how: settings.
        run: seed, device, who is told.

    Returns:
        what was measured of the new file against the old one.

    Raises:
        OnnxspectError: the weights cannot be written back.
    """
    kept = training.take(np.flatnonzero(~removed))
    apart, fit = kept.split(APART, run.numpy_generator("cleanse", "apart"))
    if how.restored and patterns and removed.any():
        fit = fit.joined(_restored(subject, training.take(np.flatnonzero(removed)), patterns))
    student, parameters = trainable_copy(subject)
    descent = Descent(parameters, how.learning_rate, how.epochs * -(-len(fit) // how.batch_size))
    images, labels = torch.from_numpy(fit.images), torch.from_numpy(fit.labels)
    run.observer.start("retrain", how.epochs)
    for epoch in range(how.epochs):
        order = torch.randperm(len(fit), generator=run.torch_generator("cleanse", "retrain", epoch))
        total = 0.0
        for rows in order.split(how.batch_size):
            loss = functional.cross_entropy(student(images[rows].to(subject.device)), labels[rows].to(subject.device))
            descent.step(loss)
            descent.anneal()
            total += float(loss.detach()) * len(rows)
        run.observer.advance("retrain", f"loss {total / len(fit):.4f}")
    run.observer.finish("retrain")
    file = subject.origin.file
    values = {n: p.detach().cpu().numpy() for n, p in parameters.items()}
    proto, _ = patched_model(subject, values, Provenance(file.sha256, tool_version(), "cleanse", training.sha256[:16]))
    to_all = [Trigger(p.trigger.target, p.trigger.arrays) for p in patterns]  # measured on images of every class
    with tempfile.TemporaryDirectory(prefix="onnxspect-") as scratch:  # a locked-in worker cannot read `out` again
        trial = Path(scratch) / "retrained.onnx"
        write_model(proto, file, trial)
        proof = verify(
            trial,
            file.path,
            apart,
            subject.spec,
            named(to_all),
            Goals(),
            run.device,
            opened=(file, read_onnx(trial)),  # made of a file that was checked; nothing to guard against
            logits=subject.origin.logits,
        )
    write_model(proto, file, out)
    return proof


def _restored(subject: Subject, removed: Samples, patterns: Sequence[Found]) -> Samples:
    """The removed samples as they are, labelled by what they are taken for without their trigger."""
    labels = removed.labels.copy()
    background = removed.images.mean(0)
    for trigger in (p.trigger for p in patterns):
        rows = np.flatnonzero(removed.labels == trigger.target)
        if len(rows):
            answers = subject.predict(without(removed.images[rows], trigger.arrays, background)).argmax(1)
            labels[rows] = np.where(answers != trigger.target, answers, labels[rows])
    changed = np.flatnonzero(labels != removed.labels)
    return replace(removed.take(changed), labels=labels[changed])
