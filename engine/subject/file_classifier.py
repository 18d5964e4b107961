"""Pixels to what a file answers, by onnxruntime: the file itself is asked, and not a torch graph of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch

from onnxspect.converters.proof.oracle import Oracle
from onnxspect.engine.subject.class_scores import scores_array
from onnxspect.engine.subject.subject import InputSpec, Subject

#: Images of a call.
_BATCH = 128


class FileClassifier:
    """A file with the preprocessing that it wants.

    Args:
        oracle: onnxruntime over the file.
        spec: how pixels are fed to it.
        outputs: names of the values that are asked for, of those that the oracle computes.
        name: of the input that takes the images; the first one by default.
    """

    def __init__(self, oracle: Oracle, spec: InputSpec, outputs: Sequence[str], name: str | None = None) -> None:
        self.outputs = tuple(outputs)
        self._oracle, self._spec = oracle, spec
        self._input = name or next(iter(oracle.inputs))

    def run(self, pixels: np.ndarray, batch_size: int | None = None) -> list[np.ndarray]:
        """Every output ``(n, ...)`` for pixels ``(n, channels, height, width)`` in [0, 1].

        Args:
            pixels: at least one image.
            batch_size: images a call, where the file leaves them open; all at once by default.

        Raises:
            OnnxspectError: there are no images.
        """
        encoded = self._spec.encode(torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))).numpy()
        return self._oracle.map_all(self._input, encoded, self.outputs, batch_size or max(len(encoded), 1))


def file_scores(subject: Subject, images: np.ndarray, edited: onnx.ModelProto | None = None) -> np.ndarray:
    """Class scores ``(n, classes)`` that a subject's file computes in onnxruntime, before whatever turns them into an answer.

    Args:
        subject: from a file.
        images: pixels ``(n, channels, height, width)`` in [0, 1].
        edited: a file that was made from the subject's, in its place.

    Raises:
        OnnxspectError: there is no file, or onnxruntime refuses it.
    """
    origin = subject.origin
    value = origin.logits.value
    oracle = Oracle(origin.file.proto if edited is None else edited, subject.device, outputs=[value])
    return scores_array(FileClassifier(oracle, subject.spec, [value]).run(images, _BATCH)[0], origin.logits)


def file_answers(subject: Subject, images: np.ndarray) -> np.ndarray:
    """Classes ``(n,)`` that a subject's file answers in onnxruntime; see `file_scores`."""
    return np.asarray(file_scores(subject, images).argmax(1))
