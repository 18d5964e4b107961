"""What a file is, without judging it: the library call behind `onnxspect info`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from onnxspect.converters.lowering.taps import cuts
from onnxspect.converters.proof.second_opinion import second_opinion
from onnxspect.converters.text import printable
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.datasets import Data, samples_from
from onnxspect.engine.subject.preprocessing import preflight
from onnxspect.engine.subject.referee import made_samples, rulings
from onnxspect.engine.subject.subject import OpenedModel, open_onnx

#: Channels, height and width that a second opinion takes where the file leaves them open.
_OPEN = (3, 64, 64)


def describe(model: str | Path, second: bool = False, logic: bool = False, data: Data | None = None) -> dict[str, Any]:
    """Facts of an ONNX file as plain JSON values; names from the file are made safe to print.

    Args:
        model: the file.
        second: ask onnx2torch for a second opinion (`second_opinion` in the answer).
        logic: rule on every decision by the image's data (`logic` in the answer; engine/subject/referee.py).
        data: clean samples that this is measured on; images are made up without any.

    Raises:
        OnnxspectError: the file is not a usable image classifier; says why. Or a second opinion is asked for and onnx2torch
            is not installed.
    """
    opened = open_onnx(model)
    file, lowered, logits = opened.file, opened.lowered, opened.logits
    classes = opened.subject().classes if opened.size is not None else "unknown number of"
    channels, height, width = (size or "any" for size in opened.image_shape)
    operators = Counter(node.op_type for node in file.proto.graph.node)
    facts = {
        "path": str(model),
        "sha256": file.sha256,
        "opset": file.opset,
        "producer": printable(f"{file.proto.producer_name} {file.proto.producer_version}".strip()),
        "input": f"{printable(lowered.inputs[0])}: {opened.spec.layout}, {width}x{height}, {channels} channels",
        "logits": f"{printable(logits.value)} ({logits.how}), {classes} classes",
        "parameters": sum(p.numel() for p in lowered.module.parameters()),
        "operators": ", ".join(f"{printable(name)} {n}" for name, n in operators.most_common()),
        "warnings": list(file.warnings),
        "taps": [
            {
                "index": tap.index,
                "value": printable(tap.name),
                "shape": None if tap.shape is None else list(tap.shape),
                "depth": tap.depth,
                "operator": tap.operator,
            }
            for tap in cuts(lowered)
        ],
    }
    if second:
        facts["second_opinion"] = second_opinion(file.proto, lowered, _sizes(opened)).describe()
    if logic:
        facts["logic"] = _logic(opened, data)
    return facts


def _logic(opened: OpenedModel, data: Data | None) -> dict[str, Any]:
    channels, height, width = (size or other for size, other in zip(opened.image_shape, _OPEN, strict=True))
    if data is None:
        samples = made_samples((channels, height, width))
        subject = opened.subject(samples.shape)
    else:
        samples = samples_from(data, opened.size, resize=False)
        subject = preflight(opened.subject(samples.shape), samples, RunContext(), None).subject
    found = rulings(subject, samples)
    return {"images": "given" if data is not None else "made up", "decisions": [r.describe() for r in found]}


def _sizes(opened: OpenedModel) -> tuple[int, ...]:
    """Of one input in the file's layout; what the file leaves open is as `_OPEN` says."""
    channels, height, width = (size or other for size, other in zip(opened.image_shape, _OPEN, strict=True))
    return tuple(opened.spec.encode(torch.zeros(1, channels, height, width)).shape[1:])
