"""Two of the plain networks in Keras, so that a zoo holds files that torch code never described.

They differ from the torch ones as Keras files in the wild do: channels last, a softmax at the end, and in one the
scaling from 0..255 inside the model. Keras is imported only when one is built; every layer has a name and a seeded
initialiser, so the file depends on nothing that happened before.
"""

from __future__ import annotations

import os
from typing import Any

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models.architectures.registry import register
from onnxspect.models.formats import FileFormat
from onnxspect.models.randomness import keyed_seed
from onnxspect.models.triggers import ImageShape


def import_keras() -> Any:
    """Keras, on its torch backend unless the user chose one (Keras reads KERAS_BACKEND at its first import)."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras
    except ImportError as error:
        raise OnnxspectError(f"Keras cannot be imported: {error}", "pip install 'onnxspect[keras]'") from error
    return keras


class _Layers:
    """Named, seeded layers of one model."""

    def __init__(self, seed: int) -> None:
        self.keras = import_keras()
        self.seed = seed

    def _start(self, name: str) -> Any:
        return self.keras.initializers.HeNormal(seed=keyed_seed(self.seed, "weights", name) % 2**31)

    def conv(self, name: str, filters: int, padding: str) -> Any:
        return self.keras.layers.Conv2D(
            filters,
            5,
            padding=padding,
            activation="relu",
            data_format="channels_last",
            kernel_initializer=self._start(name),
            name=name,
        )

    def pool(self, name: str) -> Any:
        return self.keras.layers.MaxPooling2D(2, data_format="channels_last", name=name)

    def dense(self, name: str, units: int, activation: str) -> Any:
        return self.keras.layers.Dense(units, activation=activation, kernel_initializer=self._start(name), name=name)


@register(
    "nc_mnist_keras",
    smallest=16,
    framework="keras",
    file_format=FileFormat(layout="NHWC", white=255.0, output="probabilities"),
)
def nc_mnist_keras(shape: ImageShape, classes: int, seed: int) -> Any:
    """NC Table VII in Keras; pixels 0..255 in, scaled inside."""
    layers = _Layers(seed)
    keras = layers.keras
    return keras.Sequential(
        [
            keras.Input(shape, name="pixels"),
            keras.layers.Rescaling(1.0 / 255.0, name="rescaling"),
            layers.conv("conv_1", 16, "valid"),
            layers.pool("pool_1"),
            layers.conv("conv_2", 32, "valid"),
            layers.pool("pool_2"),
            keras.layers.Flatten(name="flatten"),
            layers.dense("dense_1", 512, "relu"),
            layers.dense("probabilities", classes, "softmax"),
        ],
        name="nc_mnist",
    )


@register(
    "lenet5_keras",
    smallest=12,
    framework="keras",
    file_format=FileFormat(layout="NHWC", white=1.0, output="probabilities"),
)
def lenet5_keras(shape: ImageShape, classes: int, seed: int) -> Any:
    """LeNet-5 in Keras; pixels in [0, 1] in."""
    layers = _Layers(seed)
    keras = layers.keras
    return keras.Sequential(
        [
            keras.Input(shape, name="pixels"),
            layers.conv("conv_1", 6, "same"),
            layers.pool("pool_1"),
            layers.conv("conv_2", 16, "valid"),
            layers.pool("pool_2"),
            keras.layers.Flatten(name="flatten"),
            layers.dense("dense_1", 120, "relu"),
            layers.dense("dense_2", 84, "relu"),
            layers.dense("probabilities", classes, "softmax"),
        ],
        name="lenet5",
    )
