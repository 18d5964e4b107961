"""What every way of patching has in common: what it is given, the edit that it hands back.

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
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import Trigger

#: Names of nodes and tensors that a patch adds begin so, by which `verify` distinguishes them from changes.
ADDED = "onnxspect/"


class Addition(Protocol):
    """Nodes that a patch adds to a graph."""

    def apply(self, model: onnx.ModelProto) -> str:
        """Add them to `model` in place; says in a few words what was added.

        Raises:
            OnnxspectError: they do not fit this graph.
        """


@dataclass(frozen=True)
class PatchInput:
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
        """Refuse where there are no triggers.

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
    #: Whether weights are fitted to `PatchInput.fit`, so that only `PatchInput.guard` can judge them.
    trains: ClassVar[bool]
    #: Whether it takes the backdoor out. What only stands guard is tried last, and not searched again.
    mends: ClassVar[bool]

    def edit(self, given: PatchInput) -> Edit:
        """Work out the edit; the same input gives the same bits.

        Raises:
            OnnxspectError: the method cannot work on this model, and why.
        """
