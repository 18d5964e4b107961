"""A file with several outputs of class scores: which one the samples are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.subject.onnx_model import OpenedModel, open_onnx
from onnxspect.engine.subject.preprocessing import candidates
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject

#: Images on which outputs are compared: of two that classify, the better one is told from 100 on; embeddings are at chance.
TRIAL = 128
#: By so much may the accuracy of the file's first able output be below the best one's, and it is still taken.
AS_GOOD = 0.05


def likeliest(opened: OpenedModel, samples: Samples) -> OpenedModel:
    """The same file, at the output whose class scores agree with the labels.

    A file with one such output is returned as it is; so is one of whose outputs none has enough classes.

    Args:
        opened: at its likeliest output by the graph alone.
        samples: clean, labelled, in the model's size.
    """
    if not opened.others:
        return opened
    top = int(samples.labels.max(initial=0))
    able: list[tuple[OpenedModel, float]] = []
    order = {o.name: i for i, o in enumerate(opened.file.proto.graph.output)}
    outputs = sorted([opened.logits.output, *(o.output for o in opened.others)], key=lambda n: order.get(n, len(order)))
    for output in outputs:
        try:
            tried = opened if output == opened.logits.output else at(opened, output)
            subject = tried.subject(samples.shape)
        except OnnxspectError:  # what cannot be searched cannot be chosen; it is listed as not looked at
            continue
        if subject.classes > top:
            able.append((tried, _accuracy(subject, samples)))
    if not able:
        return opened
    best = max(accuracy for _, accuracy in able)
    chosen = next(tried for tried, accuracy in able if accuracy >= best - AS_GOOD)
    return replace(chosen, said=(_said(chosen, able, min(TRIAL, len(samples))),)) if len(able) > 1 else chosen


def _said(chosen: OpenedModel, able: Sequence[tuple[OpenedModel, float]], trials: int) -> str:
    """How the output was chosen, in a sentence."""
    right = ", ".join(f"{printable(tried.logits.output)} {accuracy:.1%}" for tried, accuracy in able)
    return (
        f"several outputs hold class scores; of {trials} samples they classify correctly: {right}: "
        f"{printable(chosen.logits.output)} was looked at (--output NAME for another)"
    )


def at(opened: OpenedModel, output: str) -> OpenedModel:
    """The same file, at another of its outputs."""
    return open_onnx(opened.file, opened.spec, opened.device, output, name=opened.name)


def _accuracy(subject: Subject, samples: Samples) -> float:
    """The best share of right answers under any usual preprocessing."""
    rows = np.linspace(0, len(samples) - 1, min(TRIAL, len(samples))).astype(int)
    images, labels = samples.images[rows], samples.labels[rows]
    shares = []
    for spec in candidates(samples.shape[0], subject.spec.layout):
        answers = subject.with_spec(spec).predict(images)
        shares.append(float((answers.argmax(1) == labels).mean()) if np.isfinite(answers).all() else 0.0)
    return max(shares)
