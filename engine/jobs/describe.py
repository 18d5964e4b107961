"""What a file is, without judging it: the library call behind `onnxspect info`."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from typing import Any

import torch

from onnxspect.converters.lowering.functions import inline_functions
from onnxspect.converters.lowering.other_outputs import embeddings
from onnxspect.converters.lowering.taps import cuts
from onnxspect.converters.proof.second_opinion import second_opinion
from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.datasets import Data, samples_from
from onnxspect.engine.subject.onnx_model import OpenedModel, infinite
from onnxspect.engine.subject.opening import Model, open_file_of
from onnxspect.engine.subject.preprocessing import preflight
from onnxspect.engine.subject.referee import made_samples, rulings

#: Channels, height and width that a second opinion takes where the file leaves them open.
_OPEN = (3, 64, 64)


def describe(model: Model, second: bool = False, logic: bool = False, data: Data | None = None) -> dict[str, Any]:
    """Facts of an ONNX file as plain JSON values; names from the file are made safe to print.

    Args:
        model: the file, in any form that has an ONNX file behind it (opening.ACCEPTED).
        second: ask onnx2torch for a second opinion (`second_opinion` in the answer).
        logic: rule on every decision by the image's data (`logic` in the answer; engine/subject/referee.py).
        data: clean samples that this is measured on; images are made up without any.

    Raises:
        OnnxspectError: the file is not a usable image classifier; says why. Or a second opinion is asked for and onnx2torch
            is not installed.
    """
    opened = open_file_of(model)
    file, lowered, logits = opened.file, opened.lowered, opened.logits
    operators = Counter(node.op_type for node in file.proto.graph.node)
    facts = {
        "path": opened.name,
        "sha256": file.sha256,
        "opset": file.opset,
        "producer": printable(f"{file.proto.producer_name} {file.proto.producer_version}".strip()),
        "input": f"{printable(lowered.inputs[0])}: {_input(opened)}",
        "logits": f"{printable(logits.value)} ({logits.how}), {_classes(opened)} classes",
        "outputs": _outputs(opened),
        "parameters": sum(p.numel() for p in lowered.module.parameters()),
        "operators": ", ".join(f"{printable(name)} {n}" for name, n in operators.most_common()),
        "warnings": [
            *(printable(w, 400) for w in file.warnings),
            *(f"weights {printable(w)} hold infinite values" for w in infinite(lowered)[:10]),
        ],
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


def _input(opened: OpenedModel) -> str:
    """Layout and sizes of the images, in words."""
    channels, height, width = opened.image_shape
    if opened.spec.layout == "FLAT":
        numbers = opened.numbers
        if not numbers:
            return "FLAT, rows of any number of values"
        square = next(((c, side) for c in (1, 3) if (side := math.isqrt(numbers // c)) ** 2 * c == numbers), None)
        shown = "" if square is None else f": {square[1]}x{square[1]}, {_channels(square[0])}"
        return f"FLAT, rows of {numbers} values{shown}"
    return f"{opened.spec.layout}, {width or 'any'}x{height or 'any'}, {_channels(channels)}"


def _channels(count: int) -> str:
    return f"{count or 'any number of'} channel{'' if count == 1 else 's'}"


def _classes(opened: OpenedModel) -> int | str:
    """How many classes it has: by one run where the size of its images is known, else by what the graph alone says."""
    if opened.size is not None:
        return opened.subject().classes
    if opened.numbers:
        with contextlib.suppress(OnnxspectError):  # rows that are no square image: the graph's own shapes say it
            return opened.subject((1, 1, opened.numbers)).classes
    return opened.known_classes or "an unknown number of"


def _outputs(opened: OpenedModel) -> str:
    """Every output, and which of them is looked at."""
    used = opened.logits.output
    names = [o.name for o in opened.file.proto.graph.output]
    scores = {o.output for o in opened.others}
    before = {e.output for e in embeddings(inline_functions(opened.file.proto), opened.logits.value)}
    said = []
    for name in names:
        if name == used:
            what = "looked at"
        elif name in before:
            what = "not looked at: the class scores are computed from it"
        else:
            what = f"class scores of its own: --output {printable(name)}" if name in scores else "not looked at"
        said.append(f"{printable(name)} ({what})")
    return ", ".join(said)


def _sizes(opened: OpenedModel) -> tuple[int, ...]:
    """Of one input in the file's layout; what the file leaves open is as `_OPEN` says."""
    channels, height, width = (size or other for size, other in zip(opened.image_shape, _OPEN, strict=True))
    return tuple(opened.spec.encode(torch.zeros(1, channels, height, width)).shape[1:])
