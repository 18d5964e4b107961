"""Recipes: what is read is what is written back, and a wrong one fails with its field named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from onnxspect import models
from onnxspect.converters.errors import OnnxspectError
from onnxspect.models.data import Dataset, data_root, load_dataset
from onnxspect.models.recipes import check_recipe, read_recipes, recipe_from_dict, recipe_to_dict
from onnxspect.models.zoo_build import check_recipes

FOLDER = Path(models.__file__).parent
LISTS = sorted(FOLDER.glob("recipes_*.toml"))
# Image shape, classes and training images a class of the data folder's sets: the lists are checked without the data.
SETS = {
    "mnist": ((28, 28, 1), 10, 4000),
    "fashion_mnist": ((28, 28, 1), 10, 3000),
    "cifar10": ((32, 32, 3), 10, 1000),
    "gtsrb": ((32, 32, 3), 43, 120),
}


def dataset(name: str = "mnist") -> Dataset:
    shape, classes, per_class = SETS[name]
    labels = np.repeat(np.arange(classes), per_class)
    images = np.broadcast_to(np.zeros(1, np.uint8), (len(labels), *shape))
    return Dataset(name, images, labels, images[:10], labels[:10], tuple(map(str, range(classes))))


def plain(**changes: object) -> dict[str, object]:
    base: dict[str, object] = {
        "name": "m",
        "dataset": "mnist",
        "architecture": "lenet5",
        "seed": 1,
        "training": {"epochs": 1},
        "attack": {"rate": 0.05, "members": [{"target": 0, "trigger": {"kind": "badnets"}}]},
    }
    return {**base, **changes}


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_lists_are_buildable(path: Path) -> None:
    recipes = read_recipes(path)
    check_recipes(recipes, {name: dataset(name) for name in SETS})
    for recipe in recipes:
        assert recipe_from_dict(json.loads(json.dumps(recipe_to_dict(recipe)))) == recipe
        if recipe.attack is not None:
            twin = next(other for other in recipes if other.name == recipe.twin)
            same = dataclasses.replace(
                twin,
                name=recipe.name,
                attack=recipe.attack,
                twin=recipe.twin,
                surrogate=recipe.surrogate,
                floors=recipe.floors,
                note=recipe.note,
            )
            assert same == recipe  # twins differ in nothing but the attack


def test_small_list_has_what_it_promises() -> None:
    recipes = read_recipes(FOLDER / "recipes_small.toml")
    infected = [recipe for recipe in recipes if recipe.attack is not None]
    assert len(recipes) - len(infected) >= 12
    assert len(infected) >= 18
    kinds = {member.trigger.kind for recipe in infected if recipe.attack for member in recipe.attack.members}
    assert len(kinds) >= 8
    assert len({recipe.architecture for recipe in infected}) >= 3
    assert sum(recipe.exporter == "keras" for recipe in recipes) >= 2


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "a/b"}, r"name"),
        ({"architecture": "alexnet"}, r"architecture: unknown network"),
        ({"exporter": "keras"}, r"exporter"),
        ({"architecture": "lenet5_keras"}, r"exporter"),
        ({"exporter": "tf2onnx"}, r"exporter"),
        ({"per_class": 0}, r"per_class"),
        ({"seed": "one"}, r"seed"),
        ({"sede": 1}, r"sede: unknown field"),
        ({"training": {"epochs": 0}}, r"training\.epochs"),
        ({"training": {}}, r"training\.epochs: is missing"),
        ({"training": {"epochs": 1, "batch_size": 0}}, r"training\.batch_size"),
        ({"training": {"epochs": 1, "learning_rate": 0.0}}, r"training\.learning_rate"),
        ({"training": {"epochs": 1, "momentum": 1.0}}, r"training\.momentum"),
        ({"training": {"epochs": 1, "optimiser": "lion"}}, r"training\.optimiser"),
        ({"training": {"epochs": 1, "mixed_precision": True}}, r"training\.mixed_precision"),
        ({"attack": {"rate": 0, "members": [{"target": 0, "trigger": {"kind": "badnets"}}]}}, r"attack\.rate"),
        ({"attack": {"rate": 0.1, "members": [{"target": 10, "trigger": {"kind": "badnets"}}]}}, r"\.target: unknown"),
        (
            {"attack": {"rate": 0.1, "members": [{"target": 1, "sources": [1], "trigger": {"kind": "badnets"}}]}},
            r"\.sources: class 1 is the target",
        ),
        (
            {"attack": {"rate": 0.1, "members": [{"target": 1, "trigger": {"kind": "badnets", "width": 29}}]}},
            r"\.trigger\.width: 29 is larger than the image",
        ),
        ({"attack": {"rate": 0.1, "members": [{"target": "last", "trigger": {"kind": "badnets"}}]}}, r"\.target"),
        (
            {"attack": {"rate": 0.1, "members": [{"target": 1, "trigger": {"kind": "trojan_nn"}}]}},
            r"surrogate: is miss",
        ),
        ({"surrogate": "other"}, r"surrogate: is given"),
        ({"attack": {"rate": 0.1, "members": {"target": 1}}}, r"members: must be a list"),
        ({"attack": []}, r"attack: must be a table"),
    ],
)
def test_bad_recipes_name_the_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(OnnxspectError, match=field):
        check_recipe(recipe_from_dict(plain(**changes)), dataset())


def test_a_network_too_deep_for_the_image_is_refused() -> None:
    tiny = dataclasses.replace(dataset(), x_train=np.zeros((40000, 10, 10, 1), np.uint8))
    with pytest.raises(OnnxspectError, match="architecture: vgg9 needs images of at least 16x16"):
        check_recipe(recipe_from_dict(plain(architecture="vgg9", attack=None)), tiny)


HEAD = '[defaults]\ndataset = "mnist"\narchitecture = "lenet5"\nseed = 1\n[defaults.training]\nepochs = 1\n'
ATTACK = 'attack = { rate = 0.1, members = [{ target = 0, trigger = { kind = "badnets" } }] }\n'


def test_defaults_are_merged_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "list.toml"
    path.write_text(HEAD + '[[model]]\nname = "a"\n[[model]]\nname = "b"\ntraining = { batch_size = 7 }\n' + ATTACK)
    first, second = read_recipes(path)
    assert first.training.batch_size == 128
    assert second.training.batch_size == 7
    assert second.training.epochs == 1
    assert second.attack is not None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[[model", "is not TOML"),
        ("", r"holds no \[\[model\]\]"),
        ("[models]\n", "models: unknown table"),
        (HEAD + '[[model]]\nname = "a"\n[[model]]\nname = "a"\n', r"a\.name: is used twice"),
        (HEAD + '[[model]]\nname = "a"\ntwin = "b"\n', r"a\.twin: 'b' is not a clean model"),
        (HEAD + f'[[model]]\nname = "a"\n{ATTACK}[[model]]\nname = "b"\ntwin = "a"\n', r"b\.twin"),
        (
            HEAD + '[[model]]\nname = "k"\narchitecture = "lenet5_keras"\nexporter = "keras"\n'
            '[[model]]\nname = "b"\nsurrogate = "k"\n',
            r"b\.surrogate: 'k' is not a torch network",
        ),
        (HEAD + '[[model]]\nname = "a"\nepochs = 3\n', r"a\.epochs: unknown field"),
    ],
)
def test_bad_lists_name_file_and_field(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "list.toml"
    path.write_text(text)
    with pytest.raises(OnnxspectError, match=match) as caught:
        read_recipes(path)
    assert "list.toml" in caught.value.message


def test_missing_list(tmp_path: Path) -> None:
    with pytest.raises(OnnxspectError, match=r"none\.toml: cannot be read"):
        read_recipes(tmp_path / "none.toml")


def write_npz(path: Path, **changes: np.ndarray) -> Path:
    arrays = {
        "x_train": np.zeros((6, 8, 8, 3), np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": np.zeros((3, 8, 8, 3), np.uint8),
        "y_test": np.array([0, 1, 2]),
    }
    np.savez(path, **{key: value for key, value in {**arrays, **changes}.items() if value is not None})
    return path


def test_a_users_npz(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "mine.npz", classes=np.array(["a", "b", "c"]))
    loaded = load_dataset(str(path), None)
    assert loaded.classes == ("a", "b", "c")
    assert loaded.image_shape == (8, 8, 3)
    part = loaded.balanced_part(1, np.random.default_rng(0))
    assert sorted(part.y_train.tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"x_train": np.zeros((6, 8, 8, 3), np.float32)}, "x_train is float32"),
        ({"x_test": np.zeros((3, 9, 8, 3), np.uint8)}, "differ in size"),
        ({"y_train": np.array([0, 1])}, "with 2 labels"),
        ({"y_test": np.array([0.0, 1.0, 2.0])}, "y_test must be non-negative integers"),
        ({"y_test": np.array([0, 1, 5]), "classes": np.array(["a", "b", "c"])}, "outside the 3 classes"),
        ({"y_test": None}, "has no array 'y_test'"),
    ],
)
def test_bad_npz(tmp_path: Path, changes: dict[str, np.ndarray], match: str) -> None:
    path = write_npz(tmp_path / "mine.npz", **changes)
    with pytest.raises(OnnxspectError, match=match) as caught:
        load_dataset(str(path), None)
    assert str(path) in caught.value.message


def test_a_truncated_npz(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "mine.npz")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(OnnxspectError, match="not a readable"):
        load_dataset(str(path), None)


def test_a_folder_of_images(tmp_path: Path) -> None:
    from PIL import Image

    for part, count in (("train", 3), ("test", 1)):
        for label, word in enumerate(("cat", "dog")):
            (tmp_path / part / word).mkdir(parents=True)
            for index in range(count):
                pixels = np.full((8, 8, 3), 100 * label + index, np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / word / f"{index}.png")
    loaded = load_dataset(str(tmp_path), None)
    assert loaded.classes == ("cat", "dog")
    assert loaded.y_train.tolist() == [0, 0, 0, 1, 1, 1]
    assert loaded.x_train[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    (tmp_path / "train" / "cat" / "9.png").unlink(missing_ok=True)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "train" / "cat" / "9.png")
    with pytest.raises(OnnxspectError, match="one size"):
        load_dataset(str(tmp_path), None)


def test_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONNXSPECT_DATA", raising=False)
    with pytest.raises(OnnxspectError, match="no data folder"):
        data_root()
    with pytest.raises(OnnxspectError, match="is not a folder"):
        data_root(tmp_path / "none")
    with pytest.raises(OnnxspectError, match=r"mnist\.npz: no such file"):
        load_dataset("mnist", tmp_path)
    with pytest.raises(OnnxspectError, match="unknown data set 'imagenet'"):
        load_dataset("imagenet", tmp_path)
    monkeypatch.setenv("ONNXSPECT_DATA", str(tmp_path))
    assert data_root() == tmp_path
