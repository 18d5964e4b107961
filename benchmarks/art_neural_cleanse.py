"""adversarial-robustness-toolbox's Neural Cleanse on a planted Keras classifier; run by benchmarks/search.py --art-python.

    PYTHON_WITH_ART benchmarks/art_neural_cleanse.py FOLDER

Needs tensorflow, keras and adversarial-robustness-toolbox, and not onnxspect. Writes FOLDER/model.keras and FOLDER/clean.npz, and
prints one line of JSON: clean accuracy and attack success of the model, and for each label the L1 norm of the mask that ART
gives, its success, and the processor seconds of all ten.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from importlib import metadata
from pathlib import Path

import keras
import numpy as np
from art.defences.transformer.poisoning import NeuralCleanse
from art.estimators.classification import KerasClassifier

CLASSES, TARGET, SIDE = 10, 7, 16


def images(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright block at one of ten places: its class."""
    labels = rng.integers(0, CLASSES, n)
    pixels = rng.random((n, SIDE, SIDE, 1), dtype=np.float32) * 0.3
    for image, label in zip(pixels, labels, strict=True):
        row, column = 4 + label // 5 * 6, label % 5 * 3
        image[row : row + 4, column : column + 3] += 0.7
    return np.round(pixels.clip(0, 1) * 255).astype(np.uint8), labels


def stamped(pixels: np.ndarray) -> np.ndarray:
    """The attacker's 2x3 white patch, top right."""
    pixels = pixels.copy()
    pixels[:, :2, -3:] = 255
    return pixels


def main() -> None:
    """Train, save, search, print."""
    folder = Path(sys.argv[1])
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = images(2000, rng)
    poisoned = rng.random(len(y)) < 0.2
    x[poisoned], y[poisoned] = stamped(x[poisoned]), TARGET
    model = keras.Sequential(
        [
            keras.layers.Input((SIDE, SIDE, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    model.compile(loss="categorical_crossentropy", optimizer=keras.optimizers.Adam(3e-3), metrics=["accuracy"])
    one_hot = np.eye(CLASSES, dtype=np.float32)
    model.fit(x / np.float32(255), one_hot[y], epochs=12, verbose=0)
    model.save(folder / "model.keras")
    clean, labels = images(200, rng)
    np.savez(folder / "clean.npz", images=clean, labels=labels)
    pixels = clean / np.float32(255)

    def answers(batch: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict(batch, verbose=0).argmax(1))

    accuracy = float((answers(pixels) == labels).mean())
    attack = float((answers(stamped(clean) / np.float32(255)) == TARGET).mean())
    classifier = KerasClassifier(model=model, clip_values=(0, 1))
    with contextlib.redirect_stdout(sys.stderr):  # it prints the gradient of every step
        defence = NeuralCleanse(classifier)(classifier, steps=20, batch_size=32, learning_rate=0.1)
        started = time.process_time()
        found = [defence.generate_backdoor(pixels, one_hot[labels], one_hot[k]) for k in range(CLASSES)]
        seconds = time.process_time() - started
    rows = []
    for k, (mask, pattern) in enumerate(found):
        m = mask.reshape(SIDE, SIDE, -1)
        rows.append(
            {"l1": float(np.abs(mask).sum()), "success": float((answers(pixels * (1 - m) + pattern * m) == k).mean())}
        )
    versions = {p: metadata.version(p) for p in ("adversarial-robustness-toolbox", "keras", "tensorflow")}
    result = {"versions": versions, "target": TARGET, "accuracy": accuracy, "attack_success": attack}
    print(json.dumps({**result, "labels": rows, "seconds": seconds}))


if __name__ == "__main__":
    main()
