"""Pixels to what a file answers, by onnxruntime: the file itself is asked, and not a torch graph of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from onnxspect.converters.proof.oracle import Oracle
from onnxspect.engine.subject.subject import InputSpec


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
