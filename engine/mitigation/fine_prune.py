"""Fine-Pruning (Liu, Dolan-Gavitt and Garg, 2018): prune what clean images leave silent, then fine-tune.

Neurons of the last convolutional layer are ranked by their mean activation on *clean* images and switched off from the
least active on, as long as clean accuracy stays within what may be lost (their stopping rule); no trigger is needed for
that. The pruned model is then fine-tuned on the clean samples, the pruned neurons held at zero.

Departure: the layer is the last one whose neurons weights alone can switch off (neurons.py), so that fine-tuning can
hold them at zero by holding those weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.fine_tune import fine_tuned
from onnxspect.engine.mitigation.method import Edit, PatchInput
from onnxspect.engine.mitigation.neurons import (
    Layer,
    curve_points,
    last_convolutional,
    layers,
    masked,
    per_neuron,
    zeroed,
)
from onnxspect.engine.mitigation.settings import require
from onnxspect.engine.mitigation.training import Retraining, trainable_copy
from onnxspect.engine.search.embedding import embed

NAME = "fine-prune"
#: Keys the draws of its training. It was the name until the command line had one style, and a key stays, so that the bits do.
_DRAWS = "fine_prune"


@dataclass(frozen=True)
class FinePrune:
    """The method's settings.

    Attributes:
        training: of the fine-tuning; labels alone.
        most_lost: clean accuracy that pruning may cost before fine-tuning (theirs: 4 %).
    """

    name: ClassVar[str] = NAME
    trains: ClassVar[bool] = True
    mends: ClassVar[bool] = True
    training: Retraining = field(default_factory=lambda: Retraining(epochs=20, from_teacher=0.0))
    most_lost: float = 0.04

    def __post_init__(self) -> None:
        require(0 <= self.most_lost <= 1, "the accuracy that fine-prune may cost lies between 0 and 1")

    def edit(self, given: PatchInput) -> Edit:
        """Prune, then fine-tune.

        Raises:
            OnnxspectError: no layer can be pruned by weights alone, or nothing can be trained.
        """
        student, parameters = trainable_copy(given.subject)
        exact = [layer for layer in layers(given.subject) if layer.exact]
        if not exact:
            raise OnnxspectError(
                f"{given.subject.name}: no layer's neurons can be switched off by weights alone",
                "another method, such as --method unlearn",
            )
        layer = last_convolutional(exact)
        off = self._silent(given, layer)
        zeros = zeroed(given.subject, layer, off)
        held = [(parameters[n], torch.from_numpy(~_touched(v, layer, n, off, given))) for n, v in zeros.items()]

        def hold() -> None:
            with torch.no_grad():
                for parameter, keep in held:
                    parameter.mul_(keep.to(parameter.device))

        hold()
        epochs = fine_tuned(given, student, parameters, self.training, NAME, _DRAWS, after_step=hold)
        facts = {"layer": layer.tap.name, "pruned": int(off.sum()), "neurons": layer.neurons}
        values = {n: p.detach().cpu().numpy() for n, p in parameters.items()}
        return Edit(values, facts=facts | {"epochs": epochs})

    def _silent(self, given: PatchInput, layer: Layer) -> np.ndarray:
        """The neurons to prune: the least active on clean images, as many as accuracy allows."""
        embedding = embed(given.subject, layer.tap.name)
        order = np.argsort(per_neuron(embedding.activations(given.fit.images), layer).mean(0), kind="stable")
        clean = embedding.activations(given.guard.images)
        start = float((embedding.answers(clean) == given.guard.labels).mean())
        off = np.zeros(layer.neurons, bool)
        for pruned in curve_points(layer.neurons):
            keep = np.ones(layer.neurons, bool)
            keep[order[:pruned]] = False
            if (
                float((embedding.answers(masked(clean, layer, keep)) == given.guard.labels).mean())
                < start - self.most_lost
            ):
                break
            off = ~keep
        return off


def _touched(value: np.ndarray, layer: Layer, parameter: str, off: np.ndarray, given: PatchInput) -> np.ndarray:
    """Which elements of a parameter belong to neurons that are switched off, bool in its shape."""
    assert given.subject.lowered is not None
    initializer = given.subject.lowered.weights[parameter].initializer
    axis = next(s.axis for s in layer.sources if s.initializer == initializer)
    shape = [-1 if i == axis else 1 for i in range(value.ndim)]
    return np.array(np.broadcast_to(off.reshape(shape), value.shape))
