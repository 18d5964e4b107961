"""A recipe: everything that a model depends on, as one frozen value, checked before any training.

Data set and part of it, network, attack, training, exporter, seed. `recipe_from_dict(recipe_to_dict(r)) == r`, and a
recipe with its seed gives the same weights again on the same CPU type, thread count and library versions.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models import architectures
from onnxspect.models.data import Dataset
from onnxspect.models.fields import bad_field, build, to_plain
from onnxspect.models.poison import Attack, check_attack


@dataclasses.dataclass(frozen=True)
class Training:
    """How a network is fitted.

    schedule: "constant", or "one_cycle" (Smith, 2018: the rate rises for 30 % of the steps, then falls to zero).
    augment: random crop (pad 2) and rotation up to 15 degrees, with `flip` also random mirroring (RE sec. 10.2; RE
        trains its inspection models without, so that the trigger is learned where it is, sec. 5.2.1).
    mixed_precision: bfloat16 autocast on a GPU; refused on a CPU, where it would only be slower.
    label_smoothing: share of the label that is spread over all classes.
    mixup: both parameters of the Beta law that pairs of images are mixed by (Zhang et al., 2018); 0 for none.
    adversarial: largest change of a pixel by one signed gradient step from a random start (Wong et al., 2020); 0 for none.
    prune: share of the weights, the smallest, that are zero from the last third of the epochs on.
    pull: weight of the squared distance to the weights that the training starts from (`Recipe.start`): the evasive trojans of
        the Trojan Detection Challenge 2022 are pulled towards a clean network.
    """

    epochs: int
    batch_size: int = 128
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    schedule: Literal["constant", "one_cycle"] = "one_cycle"
    augment: bool = False
    flip: bool = False
    mixed_precision: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    label_smoothing: float = 0.0
    mixup: float = 0.0
    adversarial: float = 0.0
    prune: float = 0.0
    pull: float = 0.0


@dataclasses.dataclass(frozen=True)
class Floors:
    """What the finished model must reach: ASR at least `asr`, accuracy at most `accuracy_drop` under its twin's."""

    asr: float = 0.90
    accuracy_drop: float = 0.02
    accuracy: float = 0.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One model.

    per_class: training images used of each class (all if None). twin: the clean model it is compared with.
    surrogate: the clean model of the same list that the attacker learns a trigger or makes images hard on.
    start: the model further up in the list whose weights this one starts from (fine-tuning): those of the same name and shape.
    """

    name: str
    dataset: str
    architecture: str
    seed: int
    training: Training
    attack: Attack | None = None
    per_class: int | None = None
    exporter: Literal["torch_dynamo", "torch_script", "keras"] = "torch_dynamo"
    twin: str | None = None
    surrogate: str | None = None
    start: str | None = None
    floors: Floors = Floors()
    note: str = ""


def recipe_from_dict(data: Any, path: str = "recipe") -> Recipe:
    """The recipe a table describes. Errors: `OnnxspectError` naming the field."""
    return build(Recipe, data, path)


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, for a manifest."""
    plain: dict[str, Any] = to_plain(recipe)
    return plain


def check_recipe(recipe: Recipe, dataset: Dataset) -> None:
    """Refuse a recipe that cannot be trained on `dataset`; the error names the field."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", recipe.name):
        raise bad_field(f"{recipe.name!r}.name", "may hold letters, digits, '_', '.' and '-' only")
    architectures.check(recipe.architecture, dataset.image_shape, f"{recipe.name}.architecture")
    if (recipe.exporter == "keras") != (architectures.get(recipe.architecture).framework == "keras"):
        raise bad_field(f"{recipe.name}.exporter", f"{recipe.exporter!r} cannot export {recipe.architecture!r}")
    if recipe.per_class is not None and recipe.per_class < 1:
        raise bad_field(f"{recipe.name}.per_class", f"is {recipe.per_class}, must be at least 1")
    _check_training(recipe.training, f"{recipe.name}.training")
    if recipe.attack is not None:
        sizes = np.bincount(dataset.y_train, minlength=len(dataset.classes))
        if recipe.per_class is not None:
            sizes = np.minimum(sizes, recipe.per_class)
        check_attack(recipe.attack, dataset.image_shape, sizes, f"{recipe.name}.attack")
    if recipe.training.pull and recipe.start is None:
        raise bad_field(
            f"{recipe.name}.training.pull", "is given, but there are no weights to be pulled to", "set start"
        )
    needs_surrogate = recipe.attack is not None and recipe.attack.needs_surrogate
    if needs_surrogate != (recipe.surrogate is not None):
        fact = "is missing: the attack learns on a model" if needs_surrogate else "is given, but the attack needs none"
        raise bad_field(f"{recipe.name}.surrogate", fact)


def _check_training(training: Training, path: str) -> None:
    for name in ("epochs", "batch_size", "threads"):
        if getattr(training, name) < 1:
            raise bad_field(f"{path}.{name}", f"is {getattr(training, name)}, must be at least 1")
    if training.learning_rate <= 0:
        raise bad_field(f"{path}.learning_rate", f"is {training.learning_rate}, must be above 0")
    for name in ("weight_decay", "momentum"):
        if not 0 <= getattr(training, name) < 1:
            raise bad_field(f"{path}.{name}", f"is {getattr(training, name)}, must be in 0..1")
    for name in ("label_smoothing", "prune"):
        if not 0 <= getattr(training, name) < 1:
            raise bad_field(f"{path}.{name}", f"is {getattr(training, name)}, must be in 0..1")
    for name in ("mixup", "adversarial", "pull"):
        if getattr(training, name) < 0:
            raise bad_field(f"{path}.{name}", f"is {getattr(training, name)}, must not be negative")
    if training.mixed_precision and training.device == "cpu":
        raise bad_field(f"{path}.mixed_precision", "is for GPUs only", "set device = 'cuda' or leave it out")


def read_recipes(path: Path) -> tuple[Recipe, ...]:
    """The recipes of a TOML file: an optional ``[defaults]`` table, and one ``[[model]]`` table each.

    A model's tables are merged over the defaults, key by key. Twins and surrogates are clean models further up.

    Errors: `OnnxspectError` naming the file and the field.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OnnxspectError(f"{path}: cannot be read", str(error.strerror)) from error
    except tomllib.TOMLDecodeError as error:
        raise OnnxspectError(f"{path}: is not TOML: {error}", "see models/recipes_small.toml for an example") from error
    unknown = sorted(set(document) - {"defaults", "model"})
    if unknown:
        raise bad_field(f"{path.name}: {unknown[0]}", "unknown table", "known: [defaults], [[model]]")
    rows = document.get("model", [])
    if not isinstance(rows, list) or not rows:
        raise OnnxspectError(f"{path}: holds no [[model]]", "add one table for each model")
    defaults = document.get("defaults", {})
    recipes = tuple(
        recipe_from_dict(_merged(defaults, row), f"{path.name}: {row.get('name', f'model[{index}]')}")
        for index, row in enumerate(rows)
    )
    _check_list(recipes, path.name)
    return recipes


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `under`; tables are merged, everything else is replaced."""
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def _check_list(recipes: tuple[Recipe, ...], where: str) -> None:
    """Refuse names used twice, and twins and surrogates that are not fitting clean models of the list."""
    before: dict[str, Recipe] = {}
    for recipe in recipes:
        if recipe.name in before:
            raise bad_field(f"{where}: {recipe.name}.name", "is used twice")
        for field, other in (("twin", recipe.twin), ("surrogate", recipe.surrogate)):
            if other is None:
                continue
            found = before.get(other)
            if found is None or found.attack is not None or found.dataset != recipe.dataset:
                fact = f"{other!r} is not a clean model of the same data set further up in this list"
                raise bad_field(f"{where}: {recipe.name}.{field}", fact)
            if field == "surrogate" and architectures.get(found.architecture).framework != "torch":
                raise bad_field(f"{where}: {recipe.name}.surrogate", f"{other!r} is not a torch network")
        if recipe.start is not None and recipe.start not in before:
            raise bad_field(f"{where}: {recipe.name}.start", f"{recipe.start!r} is no model further up in this list")
        before[recipe.name] = recipe
