"""What a detector asks of a training set before it believes it: that it is this model's."""

from __future__ import annotations

import numpy as np

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.subject.preprocessing import accuracy_floor, check_labels
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject


def check_training_set(training: Samples, subject: Subject) -> None:
    """Refuse images and labels that the model cannot have been trained on.

    Raises:
        OnnxspectError: another size, or a class that the model does not have.
    """
    if training.shape != subject.image_shape:
        raise OnnxspectError(
            f"the training images are {training.shape}, the model takes {subject.image_shape}",
            "bring them to the model's size first, as the model was trained on them",
        )
    check_labels(training, subject)


def check_agreement(predicted: np.ndarray, labels: np.ndarray, subject: Subject) -> None:
    """A model knows most of its training set, poisoned or not.

    Args:
        predicted: class indices ``(n,)``.
        labels: of the same samples ``(n,)``.
        subject: the model.

    Raises:
        OnnxspectError: it gives hardly more of them their label than chance.
    """
    accuracy = float((predicted == labels).mean())
    floor = accuracy_floor(labels, subject.classes)
    if accuracy < floor:
        raise OnnxspectError(
            f"the model gives {accuracy:.1%} of the training samples their label (at least {floor:.1%} is expected): "
            "the labels do not match",
            "give the training set of this very model, with labels in the model's order",
        )
