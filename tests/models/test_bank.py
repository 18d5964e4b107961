"""The bank: families as data, its halves apart, sets that are made, and what training can do beside the plain loss."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models import architectures, made
from onnxspect.models.bank import families, recipes
from onnxspect.models.data import Dataset
from onnxspect.models.manifest import read_manifest
from onnxspect.models.poison import unpoisoned
from onnxspect.models.recipes import Recipe, check_recipe, recipe_from_dict, recipe_to_dict
from onnxspect.models.train import attacked, smallest_weights, train
from onnxspect.models.zoo_build import build_zoo

HALVES = ("tuning", "judging")


def blank(name: str) -> Dataset:
    """A set with the classes, the size and the number of images of the named one, all of them black."""
    k = made.classes_of(name)
    glyphs = made._GLYPHS.fullmatch(name)
    known = {"digits": (16, 1), "cifar10": (32, 3), "gtsrb": (32, 3), "sign_digits": (48, 3)}
    side, channels = (int(glyphs[2]), 3 if glyphs[3] else 1) if glyphs else known.get(name, (28, 1))
    a_class = {"digits": 140, "cifar10": 1000, "gtsrb": 120, "sign_digits": 156}.get(name, 3000)
    labels = np.repeat(np.arange(k), min(300, max(40, made.RENDERED // k)) if glyphs else a_class)
    images = np.broadcast_to(np.zeros(1, np.uint8), (len(labels), side, side, channels))
    return Dataset(name, images, labels, images[:10], labels[:10], tuple(map(str, range(k))))


def test_the_bank_is_large_and_its_halves_are_apart() -> None:
    known, _ = families()
    by_half = {h: [f for f in known if f.half == h] for h in HALVES}
    assert sum(f.clean for f in known) >= 300
    assert sum(f.infected for f in known) >= 150
    for of in by_half.values():
        assert {2, 3, 4, 10, 26, 43, 100, 1000} <= {f.classes for f in of}
        assert {True, False} == {f.exporter == "keras" for f in of}
    tasks = [{(f.dataset, f.architecture, tuple(sorted(f.training.items()))) for f in of} for of in by_half.values()]
    assert not tasks[0] & tasks[1]
    assert {"vit_tiny", "mobilenet_v2", "resnet10_tiny", "densenet_tiny"} <= {f.architecture for f in known}
    assert {"mixup", "label_smoothing", "adversarial", "prune"} <= {k for f in known for k in f.training}


@pytest.mark.parametrize("half", HALVES)
def test_every_recipe_can_be_trained(half: str) -> None:
    listed = recipes(half)
    assert len({r.name for r in listed}) == len(listed)
    assert len({r.seed for r in listed}) == len(listed)
    sets = {name: blank(name) for name in {r.dataset for r in listed}}
    before: set[str] = set()
    for recipe in listed:
        check_recipe(recipe, sets[recipe.dataset])
        assert recipe_from_dict(recipe_to_dict(recipe)) == recipe
        assert recipe.start is None or recipe.start in before
        before.add(recipe.name)
    evasive = [r for r in listed if r.training.pull]
    assert bool(evasive) == (half == "judging")
    assert all(r.start and r.attack for r in evasive)


def test_families_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(OnnxspectError, match="no family 'mnist9'"):
        recipes("tuning", ("mnist9",))
    row = '[[family]]\nname = "a"\nhalf = "tuning"\ndataset = "digits"\narchitecture = "lenet5"\nclean = 1\ninfected = 1\ninfected_seed = 1\n'
    for text, said in (
        ("not toml [", "cannot be read"),
        (row + 'attacks = ["none"]', "no kind of attack is called 'none'"),
        (row + "attacks = []\n" + row + "attacks = []", "used twice"),
        (row.replace("tuning", "both") + "attacks = []", "half"),
        ("[attacks.x]\nrate = 0.1", "no kind of attack"),
    ):
        path = tmp_path / "bank.toml"
        path.write_text(text)
        with pytest.raises(OnnxspectError, match=said):
            families(path)


def test_rendered_characters() -> None:
    first, again = made.rendered("g", 3, 20, colour=False), made.rendered("g", 3, 20, colour=False)
    assert first.image_shape == (20, 20, 1)
    np.testing.assert_array_equal(first.x_train, again.x_train)
    assert (np.bincount(first.y_train) == 300).all()
    assert (np.bincount(first.y_test) == 75).all()
    # Images of one class differ, and their mean differs from the others': it is a task.
    means = [first.x_train[first.y_train == k].astype(float).std(0).mean() for k in range(3)]
    assert min(means) > 10
    assert made.rendered("g", 2, 16, colour=True).image_shape == (16, 16, 3)
    assert len(made.characters()) > 1000
    assert len(set(made.characters())) == len(made.characters())
    for k, side in ((1, 28), (9999, 28), (5, 4)):
        with pytest.raises(OnnxspectError):
            made.rendered("g", k, side, colour=False)


def test_parts_and_sizes() -> None:
    whole = made.load("digits", None)
    assert whole.image_shape == (16, 16, 1)
    part = made.load("digits/4@20", None)
    assert part.image_shape == (20, 20, 1)
    assert part.classes == tuple("0123")
    assert set(part.y_train) == set(part.y_test) == {0, 1, 2, 3}
    assert made.classes_of("digits/4@20") == 4
    assert made.classes_of("glyphs-26-32-rgb") == 26
    with pytest.raises(OnnxspectError, match="10 classes, not 11"):
        made.load("digits/11", None)


def test_the_transformer_is_as_large_as_it_says() -> None:
    for shape in ((28, 28, 1), (32, 32, 3), (16, 16, 1)):
        network = architectures.get("vit_tiny").build(shape, 5, 0)
        height, width, channels = shape
        assert network(torch.zeros(2, channels, height, width)).shape == (2, 5)


def recipe(**training: object) -> Recipe:
    plain = {"epochs": 3, "batch_size": 32, "learning_rate": 4e-3, **training}
    start = {"start": "other"} if "pull" in training else {}
    return recipe_from_dict(
        {
            "name": "x",
            "dataset": "digits/3",
            "architecture": "lenet5",
            "seed": 3,
            "training": plain,
            "per_class": 40,
            **start,
        }
    )


@pytest.fixture(scope="module")
def small() -> Dataset:
    return made.load("digits/3", None).balanced_part(40, np.random.default_rng(0))


def test_each_way_of_training_is_another_network(small: Dataset) -> None:
    ways: list[dict[str, object]] = [{}, {"label_smoothing": 0.2}, {"mixup": 0.4}, {"adversarial": 0.1}, {"prune": 0.7}]
    poisoned = unpoisoned(small.x_train, small.y_train)
    found = {}
    for way in ways:
        network, logs = train(recipe(**way), small, poisoned)
        assert np.isfinite(logs[-1].loss)
        found[str(way)] = torch.cat([p.detach().flatten() for p in network.parameters() if p.dim() > 1])
    weights = list(found.values())
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])
    assert (weights[4] == 0).float().mean() >= 0.69
    assert (weights[0] == 0).float().mean() < 0.01


def test_a_network_is_pulled_to_where_it_starts(small: Dataset) -> None:
    poisoned = unpoisoned(small.x_train, small.y_train)
    start = train(recipe(), small, poisoned)[0].state_dict()
    other = dataclasses.replace(small, y_train=(small.y_train + 1) % 3)
    wrong = unpoisoned(other.x_train, other.y_train)
    apart = []
    for pull in (1e-4, 10.0):
        moved, _ = train(recipe(pull=pull), other, wrong, start=start)
        apart.append(sum(float((p - start[n]).square().sum()) for n, p in moved.named_parameters()))
    assert apart[1] < 0.2 * apart[0]


def test_an_adversarial_step_stays_within_reach_and_hurts(small: Dataset) -> None:
    network, _ = train(recipe(epochs=8), small, unpoisoned(small.x_train, small.y_train))
    images = torch.from_numpy(small.x_train[:60].transpose(0, 3, 1, 2)).float() / 255
    labels = torch.from_numpy(small.y_train[:60])
    moved = attacked(network, images, labels, 0.1, np.random.default_rng(0))
    assert float((moved - images).abs().max()) <= 0.1 + 1e-6
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    before, after = (torch.nn.functional.cross_entropy(network(x), labels) for x in (images, moved))
    assert after > before
    masks = smallest_weights(network, 0.5)
    assert sum(int(m.sum()) for m in masks.values()) == pytest.approx(
        0.5 * sum(m.numel() for m in masks.values()), rel=0.01
    )


def test_a_half_is_trained_and_not_twice(tmp_path: Path) -> None:
    bank = tmp_path / "bank.toml"
    bank.write_text(
        '[attacks.evasive]\nrate = 0.1\npull = 0.001\ntrigger = { kind = "badnets", height = 3, width = 3 }\n'
        '[[family]]\nname = "d"\nhalf = "tuning"\ndataset = "digits/3"\narchitecture = "lenet5"\nexporter = "torch_script"\n'
        'clean = 1\ninfected = 1\ninfected_seed = 1\nper_class = 60\nattacks = ["evasive"]\n'
        "training = { epochs = 3, batch_size = 32, learning_rate = 4e-3 }\n"
    )
    listed = recipes("tuning", path=bank)
    assert [r.name for r in listed] == ["d_clean_0", "d_evasive_0"]
    assert listed[1].start == "d_clean_0"
    said: list[str] = []
    build_zoo(listed, None, tmp_path / "out", said.append)
    rows = read_manifest(tmp_path / "out")["models"]
    assert [r["infected"] for r in rows] == [False, True]
    assert all((tmp_path / "out" / r["file"]).is_file() for r in rows)
    said.clear()
    build_zoo(listed, None, tmp_path / "out", said.append)
    assert said == ["d_clean_0: is there already", "d_evasive_0: is there already"]
