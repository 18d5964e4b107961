"""Keras 3, as tutorials and its own applications write it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wild_files.wild_file import Wild

HEADING = "Keras"
SIZE = (32, 32, 3)


def _keras() -> Any:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    keras.utils.set_random_seed(0)
    return keras


def _body(keras: Any, image: Any) -> Any:
    layers = keras.layers
    hidden = layers.Conv2D(8, 3, activation="relu")(image)
    hidden = layers.MaxPooling2D()(layers.BatchNormalization()(hidden))
    return layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(hidden))


def _ending(
    end: Callable[[Any, Any], Any], front: Callable[[Any], list[Any]] | None = None, name: str = "model.keras"
) -> Callable[[Path], Path]:
    """A functional model: what is in front, the body, and how it ends."""

    def make(folder: Path) -> Path:
        keras = _keras()
        image = value = keras.Input(SIZE)
        for layer in front(keras.layers) if front else ():
            value = layer(value)
        keras.Model(image, end(keras.layers, _body(keras, value))).save(folder / name)
        return folder / name

    return make


def _softmax(layers: Any, hidden: Any) -> Any:
    return layers.Dense(10, activation="softmax")(hidden)


def _augmenting(layers: Any) -> list[Any]:
    return [
        layers.Rescaling(1 / 255.0),
        layers.RandomFlip("horizontal"),
        layers.RandomRotation(0.1),
        layers.RandomContrast(0.2),
    ]


def _adapted(layers: Any) -> list[Any]:
    return [layers.Normalization(mean=[120.0, 110.0, 100.0], variance=[3000.0, 3100.0, 3200.0])]


def _mixed(folder: Path) -> Path:
    keras = _keras()
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        return _ending(lambda layers, hidden: layers.Dense(10, dtype="float32", activation="softmax")(hidden))(folder)
    finally:
        keras.mixed_precision.set_global_policy("float32")


def _application(name: str, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        keras = _keras()
        getattr(keras.applications, name)(weights=None, input_shape=SIZE, classes=10, **options).save(
            folder / "model.keras"
        )
        return folder / "model.keras"

    return make


def _own_layer(folder: Path) -> Path:
    keras = _keras()

    class Twice(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, x: Any) -> Any:
            return 2 * x

    image = keras.Input(SIZE)
    keras.Model(image, _softmax(keras.layers, _body(keras, Twice()(image)))).save(folder / "model.keras")
    return folder / "model.keras"


def _transformer(folder: Path) -> Path:
    keras = _keras()
    layers = keras.layers
    image = keras.Input(SIZE)
    tokens = layers.Reshape((16, 16))(layers.Conv2D(16, 8, 8)(image))
    tokens = layers.Add()([tokens, layers.MultiHeadAttention(2, 8)(layers.LayerNormalization()(tokens), tokens)])
    keras.Model(image, _softmax(layers, layers.GlobalAveragePooling1D()(tokens))).save(folder / "model.keras")
    return folder / "model.keras"


def _two_inputs(folder: Path) -> Path:
    keras = _keras()
    image, age = keras.Input(SIZE), keras.Input((1,))
    joined = keras.layers.Concatenate()([_body(keras, image), age])
    keras.Model([image, age], _softmax(keras.layers, joined)).save(folder / "model.keras")
    return folder / "model.keras"


def _weights(folder: Path) -> Path:
    keras = _keras()
    image = keras.Input(SIZE)
    keras.Model(image, _softmax(keras.layers, _body(keras, image))).save_weights(folder / "model.weights.h5")
    return folder / "model.weights.h5"


def _description(folder: Path) -> Path:
    keras = _keras()
    image = keras.Input(SIZE)
    (folder / "model.json").write_text(keras.Model(image, _softmax(keras.layers, _body(keras, image))).to_json())
    return folder / "model.json"


def _browser(folder: Path) -> Path:
    text = {
        "format": "layers-model",
        "modelTopology": {"keras_version": "2.4"},
        "weightsManifest": [{"paths": ["group1-shard1of1.bin"]}],
    }
    (folder / "model.json").write_text(json.dumps(text))
    return folder / "model.json"


FILES: tuple[Wild, ...] = (
    Wild("a functional model (.keras)", _ending(_softmax)),
    Wild("the same in HDF5 (.h5)", _ending(_softmax, name="model.h5")),
    Wild("augmentation and rescaling in front", _ending(_softmax, _augmenting)),
    Wild("an adapted Normalization in front", _ending(_softmax, _adapted)),
    Wild(
        "Resizing in front",
        _ending(_softmax, lambda layers: [layers.Resizing(24, 24), layers.Rescaling(1 / 127.5, -1)]),
    ),
    Wild("one sigmoid", _ending(lambda layers, hidden: layers.Dense(1, activation="sigmoid")(hidden))),
    Wild(
        "a sigmoid for each of several tags",
        _ending(lambda layers, hidden: layers.Dense(6, activation="sigmoid")(hidden)),
    ),
    Wild(
        "two heads, the second named by --head",
        _ending(lambda layers, hidden: [layers.Dense(1, name="age")(hidden), layers.Dense(4, name="kind")(hidden)]),
        head="kind",
    ),
    Wild(
        "a head that is not there",
        _ending(lambda layers, hidden: [layers.Dense(3, name="age")(hidden), layers.Dense(4)(hidden)]),
        False,
        head="kind",
    ),
    Wild("one number without a sigmoid", _ending(lambda layers, hidden: layers.Dense(1)(hidden)), works=False),
    Wild("mixed_float16", _mixed),
    Wild("attention over patches", _transformer),
    Wild("keras.applications: MobileNetV3Small, preprocessing inside", _application("MobileNetV3Small")),
    Wild("a layer of one's own", _own_layer, works=False),
    Wild("an image and a number", _two_inputs, works=False),
    Wild("weights alone (.weights.h5), without a factory", _weights, works=False),
    Wild("a description alone (model.json)", _description, works=False),
    Wild("TensorFlow.js", _browser, works=False),
)
