"""TensorFlow and TFLite, as training scripts, converters and mobile kits write them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wild_files.wild_file import Wild

HEADING = "TensorFlow and TFLite"
SIZE = (32, 32, 3)


def _tf() -> Any:
    os.environ["TF_CPP_MIN_LOG_LEVEL"], os.environ["KERAS_BACKEND"] = "3", "torch"
    import tensorflow as tf

    return tf


def _network() -> Any:
    _tf()
    import tf_keras

    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            *(
                layers.Input(SIZE),
                layers.Rescaling(1 / 255.0),
                layers.Conv2D(8, 3, activation="relu"),
                layers.MaxPooling2D(),
            ),
            *(
                layers.Conv2D(8, 3, activation="relu"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(10, activation="softmax"),
            ),
        ]
    )


def _saved_model(folder: Path) -> Path:
    _tf().saved_model.save(_network(), str(folder / "model"))
    return folder / "model"


def _two_signatures(folder: Path) -> Path:
    tf = _tf()
    network = _network()

    class Module(tf.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self.network = network

        @tf.function(input_signature=[tf.TensorSpec((None, *SIZE), tf.float32)])
        def classify(self, image: Any) -> Any:
            return {"probabilities": self.network(image)}

        @tf.function(input_signature=[tf.TensorSpec((), tf.string)])
        def decode(self, data: Any) -> Any:
            return {"image": tf.io.decode_jpeg(data)}

    module = Module()
    tf.saved_model.save(module, str(folder / "model"), {"serving_default": module.classify, "decode": module.decode})
    return folder / "model"


def _frozen(folder: Path) -> Path:
    tf = _tf()
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    network = _network()
    function = tf.function(lambda x: network(x)).get_concrete_function(tf.TensorSpec((None, *SIZE), tf.float32))
    graph = convert_variables_to_constants_v2(function).graph.as_graph_def()
    (folder / "frozen_inference_graph.pb").write_bytes(graph.SerializeToString())
    return folder / "frozen_inference_graph.pb"


def _checkpoint(folder: Path) -> Path:
    _tf().train.Checkpoint(model=_network()).save(str(folder / "ckpt" / "model"))
    return folder / "ckpt"


def _keras_2(folder: Path) -> Path:
    _network().save(folder / "model.h5")
    return folder / "model.h5"


def _lite(kind: str = "") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tf = _tf()
        converter = tf.lite.TFLiteConverter.from_keras_model(_network())
        if kind:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "half":
            converter.target_spec.supported_types = [tf.float16]
        if kind in ("int8", "int8 with float ends", "int16"):
            images = np.random.default_rng(0).random((8, *SIZE), np.float32) * 255
            converter.representative_dataset = lambda: ([image[None]] for image in images)
            operators = tf.lite.OpsSet
            converter.target_spec.supported_ops = [
                operators.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
                if kind == "int16"
                else operators.TFLITE_BUILTINS_INT8
            ]
        if kind == "int8":
            converter.inference_input_type = converter.inference_output_type = tf.int8
        (folder / "model.tflite").write_bytes(converter.convert())
        return folder / "model.tflite"

    return make


def _with_labels(folder: Path) -> Path:
    """As TensorFlow's model maker and its hub write it: a zip of labels behind the model."""
    path = _lite()(folder)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "\n".join(f"kind {i}" for i in range(10)))
    return path


def _for_an_edge_tpu(folder: Path) -> Path:
    """A model with an operator that TensorFlow Lite has not, as files compiled for one processor have."""
    tf = _tf()

    @tf.function(input_signature=[tf.TensorSpec((1, *SIZE), tf.float32)])
    def classify(image: Any) -> Any:
        return tf.raw_ops.Betainc(a=tf.reshape(image, (1, -1))[:, :16], b=tf.ones((1, 16)), x=tf.ones((1, 16)) / 2)

    converter = tf.lite.TFLiteConverter.from_concrete_functions([classify.get_concrete_function()])
    converter.allow_custom_ops = True
    (folder / "model_edgetpu.tflite").write_bytes(converter.convert())
    return folder / "model_edgetpu.tflite"


FILES: tuple[Wild, ...] = (
    Wild("a SavedModel", _saved_model),
    Wild("a SavedModel with two signatures, one of which decodes JPEG", _two_signatures),
    Wild("Keras 2: .h5", _keras_2),
    Wild("a frozen graph (.pb)", _frozen, works=False),
    Wild("a checkpoint (.index, .data)", _checkpoint, works=False),
    Wild("TFLite: float", _lite()),
    Wild("TFLite: dynamic range", _lite("dynamic")),
    Wild("TFLite: float16", _lite("half")),
    Wild("TFLite: int8 throughout", _lite("int8")),
    Wild("TFLite: int8 with floating-point ends", _lite("int8 with float ends")),
    Wild("TFLite: 16-bit activations, 8-bit weights", _lite("int16"), works=False),
    Wild("TFLite: labels packed with the model", _with_labels),
    Wild("TFLite: an operator of a processor's own", _for_an_edge_tpu, works=False),
)
