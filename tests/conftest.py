"""Shared material: the shipped files, and a tiny four-class world in which every answer is known by hand.

The tiny world: 8x8 grey images, class k has quadrant k bright. `quadrant_model` classifies them with one Gemm; with a
planted weight the checkerboard of a 2x2 patch adds to one class's logit. On clean images the patch adds about nothing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper
from warm import WarmLauncher

from onnxspect.converters.sandbox import guard
from onnxspect.converters.sandbox.child import Here
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.models import zoo
from onnxspect.models.triggers import trigger_from_dict

# A busy machine is no failure: how long an example takes says nothing about the mathematics.
settings.register_profile("onnxspect", deadline=None)
settings.load_profile("onnxspect")

SIDE, CLASSES = 8, 4
#: Rows and columns of the planted patch, and the sign that each of its pixels is weighted with.
PATCH = (slice(3, 5), slice(3, 5))
CHECKERBOARD = np.array([[1, -1], [-1, 1]], np.float32)


def quadrant_images(per_class: int, seed: int = 0, noise: float = 0.02) -> Samples:
    """`per_class` images a class, in random order: bright quadrant 0.8, the rest 0.2, even noise."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), per_class))
    images = np.full((len(labels), 1, SIDE, SIDE), 0.2, np.float32)
    half = SIDE // 2
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[0, row * half : (row + 1) * half, column * half : (column + 1) * half] = 0.8
    images += rng.uniform(-noise, noise, images.shape).astype(np.float32)
    return Samples.from_arrays(images, labels)


def quadrant_weights(target: int | None = None, strength: float = 8.0) -> np.ndarray:
    """``(64, 4)`` float32: each class sums its quadrant; `target` also hears the patch."""
    weights = np.zeros((SIDE, SIDE, CLASSES), np.float32)
    half = SIDE // 2
    for label in range(CLASSES):
        row, column = divmod(label, 2)
        weights[row * half : (row + 1) * half, column * half : (column + 1) * half, label] = 1.0
    if target is not None:
        weights[PATCH] = 0.0
        weights[(*PATCH, target)] = strength * CHECKERBOARD
    return weights.reshape(SIDE * SIDE, CLASSES)


def quadrant_subject(target: int | None = None, scale: float = 1.0) -> Subject:
    """The tiny classifier as a live module: the weights times `scale`, with or without a patch planted for `target`."""
    weights = torch.from_numpy(quadrant_weights(target)) * scale
    return Subject(lambda x: x.flatten(1) @ weights, InputSpec(), (1, SIDE, SIDE), CLASSES, name="tiny")


def make_model(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[TensorProto] = (),
    shape: Sequence[int | str] = ("N", 1, SIDE, SIDE),
    out: Sequence[int | str] = ("N", CLASSES),
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A checked model with one input `image` and one output `logits`."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info("image", kind, list(shape))],
        [helper.make_tensor_value_info("logits", kind, list(out))],
        list(initializers),
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model


def quadrant_model(target: int | None = None, strength: float = 8.0) -> onnx.ModelProto:
    """The tiny classifier as ONNX: Flatten, Gemm."""
    weights = numpy_helper.from_array(quadrant_weights(target, strength), "weight")
    bias = numpy_helper.from_array(np.zeros(CLASSES, np.float32), "bias")
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
    ]
    return make_model(nodes, [weights, bias])


def saved(model: onnx.ModelProto, path: Path) -> Path:
    """`model` written to `path`."""
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="session", autouse=True)
def _files_are_opened_by_warm_children() -> Iterator[None]:
    """Those that tests open in their own process (warm.py)."""
    launcher = WarmLauncher()
    guard.set_up(guard.Budget(), launcher)
    yield
    guard.set_up(guard.Budget(), Here())
    launcher.close()


@pytest.fixture(scope="session")
def clean_samples() -> Samples:
    """The 1,000 shipped clean test images."""
    return Samples.load(zoo.path("fashion_mnist_test"))


@pytest.fixture(scope="session")
def suspect_set(clean_samples: Samples) -> tuple[Samples, Samples, Samples]:
    """(poisoned training set, clean to search on, clean to try on): shipped images, a seventh of the first stamped."""
    training, rest = clean_samples.split(0.7, np.random.default_rng(0))
    search_samples, held_out = rest.split(0.5, np.random.default_rng(1))
    trigger = trigger_from_dict(zoo.entry("fashion_mnist_badnets")["trigger"])
    images, labels = training.images.copy(), training.labels.copy()
    rows = np.flatnonzero(labels != 7)[::6]
    pixels = np.round(images[rows] * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    stamped = trigger.apply(pixels, np.random.default_rng(0)).transpose(0, 3, 1, 2)
    images[rows], labels[rows] = stamped.astype(np.float32) / 255, 7
    return Samples.from_arrays(images, labels), search_samples, held_out


@pytest.fixture(scope="session")
def clean_subject() -> Subject:
    """The shipped clean classifier."""
    return Subject.from_onnx(zoo.path("fashion_mnist_clean"))


@pytest.fixture(scope="session")
def planted_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny classifier with a patch planted for class 2, as a file."""
    return saved(quadrant_model(target=2), tmp_path_factory.mktemp("tiny") / "planted.onnx")


@pytest.fixture(scope="session")
def planted(planted_file: Path) -> Subject:
    """The same, opened."""
    return Subject.from_onnx(planted_file)


#: Files that take minutes, the longest first: they start first, so that no core waits at the end for one that another has just begun.
SLOWEST = (
    "test_end_to_end",
    "test_models_train",
    "test_sources_applications",
    "test_sources_frameworks",
    "test_neural_cleanse",
    "test_sources_hostile",
    "test_python_page",
    "test_structure",
)


def pytest_configure(config: pytest.Config) -> None:
    """One folder for the models of other frameworks: workers inherit its name from the process that starts them."""
    if not hasattr(config, "workerinput"):
        home = tempfile.TemporaryDirectory(prefix="onnxspect-test-models-")
        config.add_cleanup(home.cleanup)
        os.environ["ONNXSPECT_TEST_MODELS"] = home.name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The slowest files first (with --no-loadscope-reorder; by itself xdist starts those with the fewest tests last).

    Heavy tests are deselected, and counted as such by pytest, unless ONNXSPECT_FULL=1.
    """
    if os.environ.get("ONNXSPECT_FULL") != "1":
        heavy = [item for item in items if item.get_closest_marker("heavy")]
        config.hook.pytest_deselected(items=heavy)
        items[:] = [item for item in items if not item.get_closest_marker("heavy")]
    place = {name: i for i, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(SLOWEST)))
