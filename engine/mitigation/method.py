"""What every way of patching has in common: the case it is given, the edit that it hands back.

A method is a frozen record of settings with one call, `edit`. It never touches the subject or a file: it answers with
new values of named parameters and nodes to add, and `engine/jobs/patch.py` writes, measures and judges them. So a method
that is wrong about itself costs time and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.evidence import UNTARGETED
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.perturbation import stamp
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject

#: Names of nodes and tensors that a patch adds begin so, by which `verify` distinguishes them from changes.
ADDED = "onnxspect/"
#: The largest `Trigger.room`: beyond that multiple of the recovered size a trigger need not be the same backdoor's.
MOST_ROOM = 2.5


@dataclass(frozen=True)
class Trigger:
    """A recovered trigger: the class it leads to, and its arrays.

    Attributes:
        target: class index; evidence.UNTARGETED for a trigger that takes every image to some class that is not its own
            (an all-to-all backdoor's).
        arrays: `mask` ``(1 or channels, height, width)`` and `pattern` ``(channels, height, width)``, both in [0, 1],
            or `delta` ``(channels, height, width)`` in [-1, 1].
        source: the class whose images it moves, or None for all.
        room: largest size, as a multiple of its own, up to which a trigger to the same class is attributed to the
            backdoor; larger ones are what any clean model has (remainder.py measures it).
        smallest: it was searched for as the smallest that works. One that was read off a training set has the size that it
            has there, which may be more than a class needs that no attack has touched: its `room` may be less than 1.
    """

    target: int
    arrays: Mapping[str, np.ndarray]
    source: int | None = None
    room: float = MOST_ROOM
    smallest: bool = True

    @property
    def mask(self) -> np.ndarray | None:
        """How much of every pixel is replaced, ``(1 or channels, height, width)`` in [0, 1]; None for an additive trigger."""
        return self.arrays.get("mask")

    @property
    def pattern(self) -> np.ndarray | None:
        """What replaces it, ``(channels, height, width)`` in [0, 1]; None for an additive trigger."""
        return self.arrays.get("pattern")

    @property
    def delta(self) -> np.ndarray | None:
        """What is added, ``(channels, height, width)`` in [-1, 1]; None for a trigger that replaces."""
        return self.arrays.get("delta")

    def stamped(self, images: np.ndarray) -> np.ndarray:
        """Images ``(n, channels, height, width)`` in [0, 1] with the trigger on them, float32, clipped to [0, 1]."""
        return stamp(images, dict(self.arrays))

    def counts_on(self, labels: np.ndarray, answers: np.ndarray | None = None) -> np.ndarray:
        """Which images its success is counted on, bool ``(n,)``.

        Args:
            labels: of the images ``(n,)``.
            answers: classes that the original gives them without a trigger ``(n,)``; those that are there already
                do not count.

        Those of its source, where there are any; without a target, those that are answered right.
        """
        if self.target == UNTARGETED:
            return np.ones(len(labels), bool) if answers is None else answers == labels
        counted = labels != self.target
        if answers is not None:
            counted &= answers != self.target
        if self.source is not None and (counted & (labels == self.source)).any():
            counted &= labels == self.source
        return np.asarray(counted)

    def leads(self, answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Which stamped images it has led where it leads, bool ``(n,)``, by their answers and labels ``(n,)``."""
        return np.asarray(answers != labels if self.target == UNTARGETED else answers == self.target)


class Addition(Protocol):
    """Nodes that a patch adds to a graph."""

    def apply(self, model: onnx.ModelProto) -> str:
        """Add them to `model` in place; says in a few words what was added.

        Raises:
            OnnxspectError: they do not fit this graph.
        """


@dataclass(frozen=True)
class Case:
    """What a method works on.

    Attributes:
        subject: the infected classifier; never changed.
        fit: clean samples to learn from.
        guard: other clean samples, to choose by.
        triggers: recovered; empty for methods that need none.
        run: seed, device, observer.
        success: the most that a trigger may still succeed.
        accuracy_lost: the most clean accuracy that may be lost, as a share.
    """

    subject: Subject
    fit: Samples
    guard: Samples
    triggers: tuple[Trigger, ...]
    run: RunContext
    success: float = 0.01
    accuracy_lost: float = 0.01

    @property
    def clean(self) -> Samples:
        """All clean samples, for methods that train nothing on them."""
        return self.fit.joined(self.guard)

    def needs_triggers(self, method: str) -> None:
        """Refuse a case without triggers.

        Raises:
            OnnxspectError: there are none.
        """
        if not self.triggers:
            raise OnnxspectError(f"no trigger for {method} to work on", "scan the model first, and patch with that run")


@dataclass(frozen=True)
class Edit:
    """What is to be changed in the file.

    Attributes:
        values: torch parameter name -> its new value; those that equal the old are left alone.
        additions: nodes to add, in order.
        facts: what the method says of its work, as plain JSON values.
        pictures: file name -> PNG, for the run folder.
    """

    values: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    additions: tuple[Addition, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict, repr=False)


class Method(Protocol):
    """One way of patching: a frozen dataclass of settings."""

    #: As `patch --method` takes it, and as the patched file's metadata records it.
    name: ClassVar[str]
    #: Whether weights are fitted to `Case.fit`, so that only `Case.guard` can judge them.
    trains: ClassVar[bool]
    #: Whether it takes the backdoor out. What only stands guard is tried last, and not searched again.
    mends: ClassVar[bool]

    def edit(self, case: Case) -> Edit:
        """Work out the edit; the same case gives the same bits.

        Raises:
            OnnxspectError: the method cannot work on this model, and why.
        """


def strengthened(trigger: Trigger, strength: float) -> dict[str, np.ndarray]:
    """A trigger's arrays with the mask (at most 1) or the additive change multiplied by `strength`."""
    arrays = dict(trigger.arrays)
    for name, most in (("mask", 1.0), ("delta", np.inf)):
        if name in arrays:
            arrays[name] = np.minimum(arrays[name] * np.float32(strength), np.float32(most))
    return arrays


def hardened(trigger: Trigger, bar: float) -> dict[str, np.ndarray]:
    """A mask of zeros and ones, one where it was above `bar` times its maximum, and a pattern of zeros and ones."""
    mask, pattern = trigger.arrays["mask"], trigger.arrays["pattern"]
    whole = (mask > bar * mask.max()).astype(np.float32)
    return {"mask": whole, "pattern": np.round(pattern).astype(np.float32)}


def size(trigger: Trigger) -> float:
    """L1 norm of a mask; l2 norm of an additive trigger (what the searches for them make small)."""
    if "mask" in trigger.arrays:
        return float(np.abs(trigger.arrays["mask"]).sum())
    return float(np.linalg.norm(trigger.arrays["delta"]))
