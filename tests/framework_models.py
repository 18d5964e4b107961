"""Models of other frameworks for the tests, made in a process of their own (a framework a process).

    python tests/framework_models.py keras FOLDER [NAME ...]

Weights are random but alive: every batch normalisation is calibrated on noise, so that outputs depend on the input.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

APPLICATIONS = ("MobileNetV2", "ResNet50V2", "DenseNet121", "EfficientNetV2B0")
SIZE = 64  # pixels: large enough for five halvings, small enough for two cores
CLASSES = 10


class Touch:
    """A pickle of this makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def small_network(layers: Any, sequential: Any) -> Any:
    """A small image classifier, in Keras 2 or 3: (28, 28, 1), pixels 0 to 255, to ten probabilities."""
    return sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Rescaling(1 / 255.0),
            layers.Conv2D(8, 3, padding="same", strides=2, activation="relu"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3, padding="same", strides=2),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )


def calibration(count: int, *, pixels: bool = False) -> np.ndarray:
    """Images of the kind that `convert` compares on: ``(count, SIZE, SIZE, 3)`` in [0, 1], or in [0, 255]."""
    from onnxspect.converters.sources.images import test_image

    rng = np.random.default_rng(100)
    images = np.stack([test_image((SIZE, SIZE, 3), "NHWC", rng) for _ in range(count)])
    return np.asarray(images * (255 if pixels else 1), np.float32)


def enliven(model: Any, images: np.ndarray) -> None:
    """Scale the last kernel up, and set every batch normalisation's statistics to those of `images`.

    The last normalisation of a residual branch is turned down, as training begins with it turned off: random branches at
    full strength, forty in a row, amplify rounding until float32 cannot tell what the network computes.
    """
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.momentum = 0.0
            if "project" in layer.name.lower():
                gamma, *rest = layer.get_weights()
                layer.set_weights([gamma * 0.3, *rest])
        if type(layer).__name__ == "Dense":
            kernel, *rest = layer.get_weights()
            layer.set_weights([rng.standard_normal(kernel.shape) * 3 / np.sqrt(len(kernel)), *rest])
    model(images, training=True)


def make_keras(folder: Path, names: list[str]) -> None:
    """Keras 3 on torch: .keras and .h5."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    keras.utils.set_random_seed(0)
    noise = np.random.default_rng(0).random((16, 28, 28, 1), np.float32) * 255
    if not names:
        model = small_network(keras.layers, keras.Sequential)
        enliven(model, noise)
        for suffix in ("keras", "h5"):
            model.save(folder / f"small.{suffix}")
        model.save_weights(folder / "small.weights.h5")
        layers = keras.layers
        augmenting = [
            layers.RandomFlip(),
            layers.RandomRotation(0.1),
            layers.RandomZoom(0.1),
            layers.RandomContrast(0.1),
        ]
        augmented = keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                keras.Sequential([*augmenting, layers.GaussianNoise(0.1)]),
                *(
                    layers.Rescaling(1 / 255.0),
                    layers.Conv2D(4, 3, activation="relu"),
                    layers.MaxPooling2D(),
                    layers.Flatten(),
                ),
                layers.Dense(CLASSES),
            ]
        )
        enliven(augmented, noise)
        augmented.save(folder / "augment.keras")
        image = keras.Input((28, 28, 1))
        features = layers.Flatten()(layers.MaxPooling2D()(layers.Conv2D(4, 3, activation="relu")(image)))
        digit, parity = layers.Dense(CLASSES, name="digit")(features), layers.Dense(2, name="parity")(features)
        keras.Model(image, [digit, parity]).save(folder / "two_heads.keras")
        keras.Model(image, layers.Dense(1, activation="sigmoid")(features)).save(folder / "binary.keras")
        secret = keras.Sequential(
            [keras.Input((4, 4, 1)), keras.layers.Lambda(lambda x: x * 2), keras.layers.Flatten()]
        )
        for suffix in ("keras", "h5"):
            secret.save(folder / f"lambda.{suffix}")
        return
    for name in names:
        model = getattr(keras.applications, name)(weights=None, input_shape=(SIZE, SIZE, 3), classes=CLASSES)
        enliven(model, calibration(8, pixels=any(type(layer).__name__ == "Rescaling" for layer in model.layers)))
        for suffix in ("keras", "h5"):
            model.save(folder / f"{name}.{suffix}")


def make_tensorflow(folder: Path, names: list[str]) -> None:
    """tf_keras: .h5 of Keras 2, SavedModel, TFLite."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf
    import tf_keras

    tf_keras.utils.set_random_seed(0)

    def save(model: Any, name: str) -> None:
        tf.saved_model.save(model, str(folder / name))
        (folder / f"{name}.tflite").write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(folder / name)).convert())

    if names:
        for name in names:
            model = getattr(tf_keras.applications, name)(weights=None, input_shape=(SIZE, SIZE, 3), classes=CLASSES)
            enliven(model, calibration(8))  # a SavedModel does not tell its range, so [0, 1] is compared
            save(model, name)
        return
    noise = np.random.default_rng(0).random((16, 28, 28, 1), np.float32) * 255
    model = small_network(tf_keras.layers, tf_keras.Sequential)
    enliven(model, noise)
    save(model, "small")
    model.save(folder / "keras2.h5")

    def quantised(name: str, *, integers: bool = False, half: bool = False) -> None:
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if half:
            converter.target_spec.supported_types = [tf.float16]
        if integers:
            converter.representative_dataset = lambda: ([image[None]] for image in noise)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.uint8
        (folder / name).write_bytes(converter.convert())

    quantised("hybrid.tflite")
    quantised("half.tflite", half=True)
    quantised("int8.tflite", integers=True)
    # TensorFlow's first tutorial: pixels without a channel axis, two dense layers.
    dense = tf_keras.layers.Dense
    tutorial = [tf_keras.layers.Flatten(input_shape=(28, 28)), dense(32, activation="relu"), dense(CLASSES)]
    model = tf_keras.Sequential(tutorial)
    noise = noise[..., 0] / 255
    quantised("tutorial.tflite", integers=True)

    class Reads(tf.Module):  # type: ignore[misc,name-defined]
        """A classifier whose graph reads a file."""

        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32)])
        def __call__(self, image: Any) -> Any:
            length = tf.strings.length(tf.io.read_file("/etc/hostname"))
            return image + tf.cast(length, tf.float32)

    reads = Reads()
    tf.saved_model.save(reads, str(folder / "reads"), signatures=reads.__call__)


def make_jax(folder: Path, _: list[str]) -> None:
    """Flax: the variables of `framework_factories.flax_cnn` as msgpack, safetensors, npz and an Orbax checkpoint."""
    import flax
    import jax
    import jax.numpy as jnp
    import orbax.checkpoint
    from safetensors.numpy import save_file

    sys.path.insert(0, str(Path(__file__).parent))
    from framework_factories import flax_module

    variables = flax_module().init(jax.random.PRNGKey(0), jnp.zeros((1, 28, 28, 1)))
    variables = jax.tree_util.tree_map(np.asarray, variables)
    (folder / "flax.msgpack").write_bytes(flax.serialization.to_bytes(variables))
    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    save_file(flat, folder / "flax.safetensors")
    np.savez(folder / "flax.npz", **flat)
    orbax.checkpoint.PyTreeCheckpointer().save((folder / "flax_orbax").resolve(), variables)


def make_sklearn(folder: Path, _: list[str]) -> None:
    """scikit-learn: fitted on its own digits (8 x 8)."""
    import warnings

    import joblib
    import skops.io
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    warnings.simplefilter("ignore")
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.float32)
    words = np.asarray([f"digit {d}" for d in labels])
    models = {
        "mlp": (MLPClassifier((32,), max_iter=40, random_state=0), labels),
        "binary": (MLPClassifier((8,), max_iter=40, random_state=0), labels % 2),
        "logistic": (LogisticRegression(max_iter=50), words),
        "pipeline": (
            make_pipeline(StandardScaler(), PCA(20), MLPClassifier((16,), max_iter=40, random_state=0)),
            labels,
        ),
        "scaled": (make_pipeline(MinMaxScaler(), LogisticRegression(max_iter=50)), labels),
        "forest": (RandomForestClassifier(5, random_state=0), labels),
    }
    for name, (model, targets) in models.items():
        model.fit(images, targets)
        joblib.dump(model, folder / f"{name}.joblib")
    joblib.dump(models["mlp"][0], folder / "packed.joblib", compress=3)
    (folder / "mlp.pkl").write_bytes(pickle.dumps(models["mlp"][0]))
    skops.io.dump(models["mlp"][0], folder / "mlp.skops")
    (folder / "evil.pkl").write_bytes(pickle.dumps(Touch(folder / "owned")))
    skops.io.dump({"a": Touch}, folder / "foreign.skops")


MAKERS = {"keras": make_keras, "tensorflow": make_tensorflow, "jax": make_jax, "sklearn": make_sklearn}

if __name__ == "__main__":
    MAKERS[sys.argv[1]](Path(sys.argv[2]), sys.argv[3:])
