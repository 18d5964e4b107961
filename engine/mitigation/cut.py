"""Cutting dormant logic out: a value that is the same on every clean image is made to be that, whatever the image is.

A payload of nodes (engine/detectors/graph_logic.py) sits in a part of the graph that sleeps on clean images. Frozen at the value that it has
there, in the file and in onnxruntime, it does what it does for clean images, to the last bit, and nothing else ever again. Weights and all
other nodes stay as they are. Parts are frozen one after the other, those nearest to the class scores first, until no trigger works.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx
import torch
from torch import fx

from onnxspect.converters.file.oversized import copied
from onnxspect.converters.lowering.dormant import Dormant
from onnxspect.converters.lowering.taps import first_names
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.graph_edit import Freeze
from onnxspect.engine.mitigation.method import Edit, PatchInput
from onnxspect.engine.subject.file_classifier import file_scores
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.subject.unreached import unreached

#: Values behind a part that are tried in its stead, where the file has it inside a function.
_FURTHER = 24


@dataclass(frozen=True)
class Cut:
    """The method's settings.

    Attributes:
        samples: on at most so many clean images a part's usual value is read off, and the file compared with the original's answers.
    """

    name: ClassVar[str] = "cut"
    trains: ClassVar[bool] = False
    mends: ClassVar[bool] = True
    samples: int = 400

    def edit(self, given: PatchInput) -> Edit:
        """Freeze the dormant parts that the triggers wake.

        Raises:
            OnnxspectError: nothing sleeps in the graph, or what does is awake on some clean images.
        """
        given.needs_triggers(self.name)
        subject = given.subject
        clean = given.clean
        # What is awake and only stays on one side of something has no value to be frozen at.
        asleep = [
            replace(d, place=d.frozen) if d.kind == "way" else d
            for d in unreached(subject, clean, given.run.seed).dormant
        ]
        parts = [d for d in reversed(asleep) if d.place is not None]
        if not parts:
            raise OnnxspectError(
                "no part of the graph sleeps on the clean samples: there is nothing to cut out",
                "the backdoor is in the weights: another method, or auto",
            )
        images = clean.images[: self.samples]
        before = file_scores(subject, images)
        # Images that are answered with the class anyway say nothing of a trigger.
        answers = before.argmax(1)
        stamped = [t.apply(images[t.counts_on(clean.labels[: self.samples], answers)]) for t in given.triggers]
        targets = [t.target for t in given.triggers]
        frozen: list[Freeze] = []
        worst = 1.0
        for part in parts:
            freeze = _frozen(subject, part, images)
            if freeze is None or freeze.value in {f.value for f in frozen}:
                continue
            frozen.append(freeze)
            proto = _with(subject, frozen)
            worst = max(
                float((file_scores(subject, s, proto).argmax(1) == t).mean()) if len(s) else 0.0
                for s, t in zip(stamped, targets, strict=True)
            )
            if worst <= given.success:
                break
        if not frozen:
            raise OnnxspectError(
                "no dormant part has a value of its own in the file's graph that could be frozen",
                "another method, such as --method unlearn, or the file before the part was put in",
            )
        after = file_scores(subject, images, _with(subject, frozen))
        if (before.argmax(1) != after.argmax(1)).any():
            raise OnnxspectError(
                "a dormant part is awake on some clean samples: frozen, it changes their answers",
                "take the samples that carry its trigger out of the clean ones",
            )
        facts = {
            "frozen": [printable(f.value) for f in frozen],
            "samples": len(images),
            "bit_identical": bool(np.array_equal(before, after)),
            "largest_difference": float(np.abs(before.astype(np.float64) - after).max()),
        }
        return Edit(additions=tuple(frozen), facts=facts)


def _with(subject: Subject, frozen: Sequence[Freeze]) -> onnx.ModelProto:
    proto = copied(subject.origin.file.proto)
    for freeze in frozen:
        freeze.apply(proto)
    return proto


def _frozen(subject: Subject, part: Dormant, images: np.ndarray) -> Freeze | None:
    """The part, or the first value behind it that the file has by name and that is as constant; None where there is none."""
    assert part.place is not None
    proto, names = subject.origin.file.proto, first_names(subject.origin.lowered)
    made = {o for n in proto.graph.node for o in n.output if o}
    for node in _behind(part.place.node):
        value = names.get(node)
        if value is None or value not in made:
            continue
        values = _values(subject, value, images)
        if values is None:
            continue
        usual = values[0]
        same = np.array([v == usual for v in values]).mean(0) if usual.size else np.ones(usual.shape)
        wanted = part.place.asleep.cpu().numpy() if node is part.place.node else np.ones(usual.shape, bool)
        if wanted.shape != usual.shape:
            wanted = np.ones(usual.shape, bool)
        if node is part.place.node or bool((same == 1).all()):
            return Freeze(value, _median(values), wanted)
    return None


def _values(subject: Subject, value: str, images: np.ndarray) -> list[np.ndarray] | None:
    """A value on clean images in onnxruntime, of one call each; None where its shape differs between them."""
    proto = subject.origin.file.proto
    oracle = Oracle(proto, outputs=[value])
    name, shape = next((n, s) for n, (s, _) in oracle.inputs.items())
    rows = shape[0] if shape and isinstance(shape[0], int) and shape[0] > 0 else 1
    found = []
    for start in range(0, len(images), rows):
        group = images[np.arange(start, start + rows) % len(images)]
        fed = subject.spec.encode(torch.from_numpy(np.ascontiguousarray(group, dtype=np.float32))).numpy()
        found.append(np.asarray(oracle.run({name: np.ascontiguousarray(fed, dtype=oracle.dtype(name))})[0]))
    return found if all(f.shape == found[0].shape for f in found) else None


def _median(values: Sequence[np.ndarray]) -> np.ndarray:
    """The value that most images have, element by element; of one that hardly moves, the middle one."""
    stacked = np.sort(np.stack(values), axis=0)
    return np.asarray(stacked[len(values) // 2])


def _behind(node: fx.Node) -> Iterator[fx.Node]:
    """A value, then those made of it, the nearest first."""
    seen, edge = {node}, [node]
    for _ in range(_FURTHER):
        if not edge:
            return
        at = edge.pop(0)
        yield at
        edge += [u for u in at.users if u not in seen]
        seen |= set(at.users)
