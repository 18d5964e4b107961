"""What no search of a scan can reach: dormant parts of the graph, and outputs that none looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnxspect.converters.lowering.decisions import decisions
from onnxspect.converters.lowering.dormant import Dormant, dormant
from onnxspect.converters.lowering.fixed_batch import group_size
from onnxspect.converters.lowering.functions import inline_functions
from onnxspect.converters.lowering.logits import LogitsInfo
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.lowering.node_names import Names
from onnxspect.converters.lowering.other_outputs import embeddings, other_outputs, switch_of
from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.subject.across_batch import BySize, across_batch
from onnxspect.engine.subject.class_scores import class_scores
from onnxspect.engine.subject.precision import judging
from onnxspect.engine.subject.preprocessing import accuracy_floor
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject

#: Clean images that the graph is run on, and altered ones: of small images, of small ones in a large network, and of large ones.
SMALL, MIDDLE, LARGE = (40, 16), (20, 8), (8, 4)
#: Images of up to so many values are small, unless the file has more bytes or more nodes than this.
_SMALL_PIXELS, _SMALL_FILE, _FEW_NODES = 3 * 64 * 64, 1 << 24, 250
#: Pictures of noise among the altered ones.
_NOISE = 2
#: Clean images on which what sleeps is looked at again, at most: of small images by the nodes that run for one, of others.
_FURTHER, _NODES_RUN, _FURTHER_MIDDLE, _FURTHER_LARGE = 1000, 50_000, 50, 10
_NAMED = 5
#: Images on which it is tried whether an embedding is an answer.
_TRIAL = 64


@dataclass(frozen=True)
class Unreached:
    """What is to be said of it.

    Attributes:
        hidden: reasons why finding nothing says nothing, in sentences; empty for ordinary files.
        limits: what was not looked at, and need not keep anybody from a verdict, in sentences.
        dormant: the dormant parts.
    """

    hidden: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    dormant: tuple[Dormant, ...] = ()


def unreached(
    subject: Subject, samples: Samples, seed: int = 0, idle: Callable[[Dormant], bool] | None = None
) -> Unreached:
    """Look at the graph and the outputs of a subject's file.

    Args:
        subject: with its preprocessing settled.
        samples: clean.
        seed: of the draw and the shifts.
        idle: whether a dormant part was woken and leads nowhere: such parts keep nobody from a verdict, and are named in the limits.
    """
    if subject.file is None or subject.lowered is None or subject.logits is None:
        return Unreached()
    model, value = inline_functions(subject.file.proto), subject.logits.value
    hidden, limits = [], []
    switch = switch_of(subject.file.proto, value)
    if switch:
        hidden.append(f"its class scores are chosen by a comparison ({printable(switch)}), past which no gradient sees")
    if subject.file.chooses:
        hidden.append(
            f"it chooses by how many images it is given ({_list(subject.file.chooses)}), and was only looked at as it answers one image"
        )
    clean, altered, further, rest = _images(subject, samples, np.random.default_rng(seed))
    with judging():
        sleeping = dormant(model, subject.lowered, clean, altered, further, rest, _ends(subject, samples))
    idle_parts = [d for d in sleeping.dormant if idle is not None and idle(d)]
    asleep = tuple(
        d for d in sleeping.dormant if not any(d is i for i in idle_parts)
    )  # two parts of a node may look alike
    hidden += [_said(d) for d in asleep if d.node != switch]
    if sleeping.untried:
        hidden.append(
            f"more parts of the graph than were tried depend on the image and are the same on the clean images "
            f"({len(sleeping.untried)} were left: {_list(sleeping.untried)}), so that no search reaches past them"
        )
    if sleeping.not_run:
        hidden.append(
            f"parts of the graph were made to be what no clean image makes them, and what follows does not run then: "
            f"{_list(sleeping.not_run)}; what values that it runs with do was not found"
        )
    flow = across_batch(subject, samples.images[: len(clean)], few=_counts(subject, samples) == LARGE)
    if flow.ranges:
        limits.append(
            "An image's answer depends on the other images of its batch, by the ranges of dynamic quantisation; each was looked at by itself."
        )
    if flow.through is not None:
        name, operator = Names(subject.lowered, model).of(flow.through)
        hidden.append(
            f"an image's answer hangs on the other images of its batch, first through {printable(name)} ({printable(operator)}), "
            + (
                "as clean images show: each was looked at by itself, and not among others"
                if flow.seen
                else "which no clean image shows: what wakes it need not be in the image that it changes"
            )
        )
    elif flow.seen and not flow.ranges:
        hidden.append(
            "an image's answer hangs on the other images of its batch: each was looked at by itself, and not among others"
        )
    if not flow.looked:
        limits.append(
            "Whether an image's answer depends on the other images of its batch was seen on clean images alone: for more there is too little memory."
        )
    if flow.size is not None:
        hidden.append(_said_of_size(flow.size, *Names(subject.lowered, model).of(flow.size.node)))
    for output in other_outputs(model, value):
        name = printable(output.name)
        if output.answers:
            hidden.append(
                f"its output {name} answers from other values than the class scores that were looked at ({printable(value)})"
            )
            limits.append(f"The output {name} was not looked at: it leads to answers of its own.")
        else:
            limits.append(f"The output {name} was not looked at: it does not follow from the class scores.")
    for bound, number in subject.file.bound:
        limits.append(
            f"The input {printable(bound)} was {number:g} throughout: what the model answers at another value was not looked at."
        )
    for info in embeddings(model, value):
        name = printable(info.output)
        limits.append(
            f"The output {name} was not looked at: the class scores that were ({printable(value)}) are computed from it."
        )
        if _classifies(subject, info, samples):
            hidden.append(f"its output {name}, which was not looked at, names the class of the samples too")
    if asleep or sleeping.not_run:
        names = [*(d.node for d in asleep), *sleeping.not_run]
        limits.append(f"Parts of the graph that no search reaches: {_list(list(dict.fromkeys(names)))}.")
    if idle_parts:
        limits.append(
            f"Parts of the graph that sleep on clean images were woken, and lead to no class: {_list([d.node for d in idle_parts])}."
        )
    live = [n for n in decisions(model, subject.lowered) if n not in {d.node for d in sleeping.dormant}]
    if live:
        limits.append(f"Decisions by the image that have no slope were not searched through: {_list(live)}.")
    return Unreached(tuple(hidden), tuple(limits), asleep)


def _classifies(subject: Subject, info: LogitsInfo, samples: Samples) -> bool:
    """Whether an output that the class scores are computed from names the right class by itself: then it is an answer."""
    assert subject.file is not None
    rows = np.linspace(0, len(samples) - 1, min(_TRIAL, len(samples))).astype(int)
    images, labels = samples.images[rows], samples.labels[rows]
    try:
        module = lower(inline_functions(subject.file.proto), [info.value]).module.to(subject.device)
        with torch.no_grad(), judging():
            pixels = subject.spec.encode(torch.from_numpy(np.ascontiguousarray(images)).to(subject.device))
            answers = class_scores(module(pixels), info).cpu().numpy()
    except OnnxspectError:
        return False
    floor = accuracy_floor(labels, int(labels.max()) + 1)
    return answers.shape[1] > int(labels.max()) and float((answers.argmax(1) == labels).mean()) >= floor


def _said(found: Dormant) -> str:
    if found.kind == "way":
        return (
            f"{printable(found.node)} ({found.operator}) depends on the image and goes one way only on the clean images and on altered ones, "
            f"so that no search reaches the other; made to go there, it leads {100 * found.moved:.0f} % of the answers to class {found.leads_to}"
        )
    if found.kind == "index":
        return (
            f"{printable(found.node)} ({found.operator}) points by the image at some places only on the clean images and on altered ones, so "
            f"that no search reaches the others; made to point there, it leads {100 * found.moved:.0f} % of the answers to class {found.leads_to}"
        )
    if found.kind == "disguise":
        return (
            f"{printable(found.node)} ({found.operator}) is the same on the clean images of all classes but {found.leads_to}, so that no "
            f"search reaches past it; made to be what it is on those, it leads {100 * found.moved:.0f} % of the others to that class"
        )
    what = {
        "decision": "is the same decision",
        "value": "has the same value",
        "root": "has the same value",
        "units": "has units of the same value",
    }[found.kind]
    return (
        f"{printable(found.node)} ({found.operator}) depends on the image and {what} on the clean images, so that no search "
        f"reaches past it; made to differ, it changes {100 * found.moved:.0f} % of the answers, most to class {found.leads_to}"
    )


def _said_of_size(found: BySize, node: str, operator: str) -> str:
    what = f"the class scores hang on how many images a batch has, first through {printable(node)} ({printable(operator)}), "
    if not found.images:
        return what + "which no batch that was run shows"
    return what + (
        f"which no usual batch shows; {found.images} images in one batch change {100 * found.moved:.0f} % of their answers, most to class "
        f"{found.leads_to}"
    )


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(printable(n) for n in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _images(
    subject: Subject, samples: Samples, rng: np.random.Generator
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Sequence[Tensor]]:
    """(clean, altered, further clean, all other clean) batches of one image each, or of one group, as the model takes them."""
    assert subject.lowered is not None
    rows = group_size(subject.lowered.module)
    n, m = _counts(subject, samples)
    order, n = rng.permutation(len(samples)), max(2, n)
    drawn = samples.images[np.sort(order[:n])]
    end = n + _further(subject, samples)
    further = samples.images[np.sort(order[n:end])]
    others = drawn[rng.integers(len(drawn), size=m)]
    shifted = [np.roll(x, tuple(rng.integers(0, x.shape[1:])), (1, 2)) for x in others]
    mixed = [0.5 * (x + y) for x, y in zip(shifted[::2], drawn[rng.integers(len(drawn), size=m)], strict=False)]
    # Most of them lose contrast: what only scales with an image's range (dynamic quantisation) is not asleep.
    dim = [x * rng.uniform(0.5, 0.9) for x in [*mixed, *shifted[1::4]]]
    # Noise lights every place at once, of which a picture may have some that are dark on all.
    altered = np.stack([*dim, *shifted[3::4], *rng.random((_NOISE, *drawn.shape[1:]))]).astype(np.float32)
    rest = _Batches(subject, samples.images, order[end:], rows)
    return _batches(subject, drawn, rows), _batches(subject, altered, rows), _batches(subject, further, rows), rest


def _ends(subject: Subject, samples: Samples) -> tuple[Tensor, Tensor]:
    """(the least input, the largest), a batch each as the model takes it: of pixels in [0, 1]."""
    assert subject.lowered is not None
    rows = group_size(subject.lowered.module)
    dark, white = (_batches(subject, np.full((1, *samples.shape), v, np.float32), rows)[0] for v in (0.0, 1.0))
    return torch.minimum(dark, white), torch.maximum(dark, white)


def _counts(subject: Subject, samples: Samples) -> tuple[int, int]:
    assert subject.file is not None
    if int(np.prod(samples.shape)) > _SMALL_PIXELS:
        return LARGE
    return SMALL if subject.file.size <= _SMALL_FILE and subject.file.cost.executed <= _FEW_NODES else MIDDLE


def _further(subject: Subject, samples: Samples) -> int:
    assert subject.file is not None
    counts = _counts(subject, samples)
    if counts != SMALL:
        return _FURTHER_MIDDLE if counts == MIDDLE else _FURTHER_LARGE
    return min(_FURTHER, _NODES_RUN // max(1, subject.file.cost.executed))


@dataclass(frozen=True, eq=False)
class _Batches(Sequence[Tensor]):
    """Batches that are made when they are asked for: of so many rows each of `images`, in the order that is given."""

    subject: Subject
    images: np.ndarray
    order: np.ndarray
    rows: int

    def __len__(self) -> int:
        return len(self.order) // self.rows

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        chosen = self.order[index * self.rows : (index + 1) * self.rows]
        return _batches(self.subject, self.images[chosen], self.rows)[0]


def _batches(subject: Subject, images: np.ndarray, rows: int) -> list[Tensor]:
    groups = [images[np.arange(i, i + rows) % len(images)] for i in range(0, len(images), rows)]
    return [subject.spec.encode(torch.from_numpy(g).to(subject.device)) for g in groups]
