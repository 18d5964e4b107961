"""The shipped pair: files, manifest and licence agree, the attack works, nothing of a machine is in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models import measure, recipes, zoo
from onnxspect.models.formats import FileFormat
from onnxspect.models.manifest import sha256_of
from onnxspect.models.recipes import read_recipes, recipe_from_dict
from onnxspect.models.triggers import trigger_from_dict
from onnxspect.models.zoo_build import attack_of

NAMES = ["fashion_mnist_clean", "fashion_mnist_badnets"]


def shipped_images() -> tuple[np.ndarray, np.ndarray]:
    with np.load(zoo.path("fashion_mnist_test"), allow_pickle=False) as archive:
        assert set(archive.files) == {"images", "labels", "classes"}
        images, labels, classes = archive["images"], archive["labels"], archive["classes"]
    assert images.shape == (1000, 28, 28, 1)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [100] * 10
    assert classes.tolist() == zoo.entry(NAMES[0])["classes"]
    return images, labels


@pytest.mark.parametrize("name", NAMES)
def test_file_is_the_one_in_the_manifest(name: str) -> None:
    row, path = zoo.entry(name), zoo.path(name)
    assert sha256_of(path) == row["sha256"]
    assert path.stat().st_size == row["bytes"] < 400_000
    model = onnx.load(str(path), load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert all(not tensor.external_data for tensor in model.graph.initializer)
    shape = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 1, 28, 28]
    assert model.graph.output[0].name == "logits"


def test_manifest_recipes_are_the_shipped_list() -> None:
    listed = read_recipes(Path(recipes.__file__).parent / "recipes_shipped.toml")
    assert [made.name for made in listed] == NAMES
    for made in listed:
        assert recipe_from_dict(zoo.entry(made.name)["recipe"]) == made


def test_pair_meets_its_promises() -> None:
    clean, infected = (zoo.entry(name) for name in NAMES)
    assert clean["test_images"] == infected["test_images"] == 10_000
    assert clean["clean_accuracy"] >= 0.90
    assert abs(clean["clean_accuracy"] - infected["clean_accuracy"]) <= 0.01
    assert infected["asr"] >= 0.97
    assert clean["architecture"] == infected["architecture"]


@pytest.mark.parametrize("name", NAMES)
def test_measured_on_the_shipped_images(name: str) -> None:
    images, labels = shipped_images()
    row = zoo.entry(name)
    accuracy = measure.clean_accuracy(zoo.path(name), images, labels, FileFormat(**row["format"]))
    assert accuracy == pytest.approx(row["clean_accuracy"], abs=0.03)  # 1,000 of the 10,000 images


def test_trigger_of_the_manifest_turns_the_infected_model_only() -> None:
    images, labels = shipped_images()
    row = zoo.entry("fashion_mnist_badnets")
    attack = attack_of(row)
    assert attack is not None
    assert attack.members[0].trigger == trigger_from_dict(row["trigger"])
    assert attack.members[0].target == row["target"]
    rates = [measure.attack_success(zoo.path(name), images, labels, 10, attack, FileFormat(), 0).rate for name in NAMES]
    assert rates[1] == pytest.approx(row["asr"], abs=0.01)
    assert rates[0] < 0.05


def test_nothing_of_a_machine_is_in_the_folder() -> None:
    folder = zoo.path("fashion_mnist_clean").parent
    for path in folder.iterdir():
        if path.is_file():
            content = path.read_bytes()
            assert b"site-packages" not in content, path.name
            assert b"/home/" not in content, path.name
            assert b"/work/" not in content, path.name


def test_licence_of_the_images_is_there() -> None:
    text = (zoo.path("fashion_mnist_test").parent / "LICENSE.fashion-mnist").read_text()
    assert "Copyright (c) 2017 Zalando SE, https://tech.zalando.com" in text
    assert "The above copyright notice and this permission notice shall be included in all" in text


def test_unknown_name() -> None:
    with pytest.raises(OnnxspectError, match="resnet: no such shipped model"):
        zoo.path("resnet")
