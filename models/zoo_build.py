"""From recipes to a zoo folder: NAME.onnx, NAME.poison.npz and a manifest row for every model, resumably.

A finished model is one whose row holds the same recipe and whose files still have the row's sha256; it is not redone.
A model's files are written before its row, so a build that is killed at any moment starts the unfinished model again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models import architectures, exporting, measure
from onnxspect.models.data import Dataset
from onnxspect.models.fields import build, to_plain
from onnxspect.models.formats import FileFormat
from onnxspect.models.made import load
from onnxspect.models.manifest import read_manifest, rows_by_name, sha256_of, write_manifest, write_whole
from onnxspect.models.poison import Attack, Poisoned, learn_triggers, poison, unpoisoned
from onnxspect.models.randomness import keyed_generator, keyed_seed, torch_determinism
from onnxspect.models.recipes import Recipe, check_recipe, recipe_from_dict, recipe_to_dict
from onnxspect.models.train import EpochLog, build_network, train
from onnxspect.models.train_keras import check_keras_training, train_keras

Observer = Callable[[str], None]


def training_part(recipe: Recipe, dataset: Dataset) -> Dataset:
    """The part of the data set that a recipe trains on. Drawn from the seed alone: twins get the same images."""
    if recipe.per_class is None:
        return dataset
    return dataset.balanced_part(recipe.per_class, keyed_generator(recipe.seed, "part"))


def training_set(recipe: Recipe, part: Dataset, attack: Attack | None, surrogate: nn.Module | None) -> Poisoned:
    """The (poisoned) training set of a recipe, given its attack with all triggers learned."""
    if attack is None:
        return unpoisoned(part.x_train, part.y_train)
    rng = keyed_generator(recipe.seed, "poison")
    with torch_determinism(keyed_seed(recipe.seed, "poison"), recipe.training.threads):
        return poison(part.x_train, part.y_train, len(part.classes), attack, rng, surrogate)


def learned_attack(recipe: Recipe, part: Dataset, surrogate: nn.Module | None) -> Attack | None:
    """The recipe's attack with all triggers learned on the surrogate."""
    if recipe.attack is None or surrogate is None:
        return recipe.attack
    rng = keyed_generator(recipe.seed, "learn")
    with torch_determinism(keyed_seed(recipe.seed, "learn"), recipe.training.threads):
        return learn_triggers(recipe.attack, surrogate, part.x_train, part.y_train, len(part.classes), rng)


def fingerprint(poisoned: Poisoned) -> str:
    """SHA-256 of a training set's pixels and labels."""
    digest = hashlib.sha256(np.ascontiguousarray(poisoned.images).tobytes())
    digest.update(np.ascontiguousarray(poisoned.labels, dtype="<i8").tobytes())
    return digest.hexdigest()


def rebuild_training_set(recipe: Recipe, data_root: Path | None, zoo: Path | None = None) -> Poisoned:
    """The training set that the model of `recipe` saw, pixel for pixel, with the indices of its poisoned samples.

    Args:
        recipe: e.g. ``recipe_from_dict(row["recipe"])`` of a manifest row.
        data_root: the folder with the data sets.
        zoo: the zoo folder of the model. Needed for attacks with a surrogate; where it is given, the result is checked
            against the fingerprint in the model's row.

    Errors: `OnnxspectError` if a surrogate is needed but not there, or if the set is not the one the model saw.
    """
    dataset = load(recipe.dataset, data_root)
    check_recipe(recipe, dataset)
    part = training_part(recipe, dataset)
    if zoo is None:
        if recipe.surrogate is not None:
            raise OnnxspectError(f"{recipe.name}: its attack used a surrogate", "give the zoo folder that holds it")
        return training_set(recipe, part, recipe.attack, None)
    row = rows_by_name(read_manifest(zoo)).get(recipe.name)
    if row is None:
        raise OnnxspectError(f"{recipe.name}: is not in the manifest of {zoo}", "give the zoo folder that holds it")
    attack = recipe.attack and attack_of(row)
    noise = attack is not None and attack.needs_surrogate
    poisoned = training_set(recipe, part, attack, load_surrogate(recipe, dataset, zoo) if noise else None)
    if fingerprint(poisoned) != row["training_set_sha256"]:
        raise OnnxspectError(f"{recipe.name}: the rebuilt training set is not the one it saw", "are the data the same?")
    return poisoned


def attack_of(row: dict[str, Any]) -> Attack | None:
    """The attack of a manifest row, all triggers learned; None for a clean model."""
    if row["attack"] is None:
        return None
    plain = {key: value for key, value in row["attack"].items() if key != "setting"}
    return build(Attack, plain, f"{row['name']}.attack")


def load_surrogate(recipe: Recipe, dataset: Dataset, out: Path) -> nn.Module | None:
    """The network of the recipe's surrogate, from the weights the zoo keeps of it; None if the recipe names none."""
    if recipe.surrogate is None:
        return None
    row = rows_by_name(read_manifest(out)).get(recipe.surrogate)
    if row is None or not (out / weights_name(recipe.surrogate)).is_file():
        raise OnnxspectError(
            f"{recipe.surrogate}: the surrogate's weights are not in {out}", "build the surrogate first"
        )
    network = build_network(recipe_from_dict(row["recipe"]), dataset)
    with np.load(out / weights_name(recipe.surrogate), allow_pickle=False) as archive:
        network.load_state_dict({key: torch.from_numpy(archive[key]) for key in archive.files})
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network.eval()


def start_weights(recipe: Recipe, out: Path) -> dict[str, torch.Tensor] | None:
    """The weights that a recipe starts from, which the zoo keeps of that model; None if it starts from none.

    Raises:
        OnnxspectError: they are not there.
    """
    if recipe.start is None:
        return None
    path = out / weights_name(recipe.start)
    if not path.is_file():
        raise OnnxspectError(
            f"{recipe.start}: the weights that {recipe.name} starts from are not in {out}", "build it first"
        )
    with np.load(path, allow_pickle=False) as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def weights_name(name: str) -> str:
    """The file with the torch weights of a surrogate."""
    return f"{name}.weights.npz"


def build_model(
    recipe: Recipe, dataset: Dataset, out: Path, observe: Observer, *, keep_weights: bool = False
) -> dict[str, Any]:
    """Train, export and measure one model; its files go to `out`. Returns its manifest row.

    keep_weights: also write the torch weights, for a model that serves as a surrogate.
    """
    started = time.perf_counter()
    part = training_part(recipe, dataset)
    surrogate = load_surrogate(recipe, dataset, out)
    attack = learned_attack(recipe, part, surrogate)
    poisoned = training_set(recipe, part, attack, surrogate)
    path = out / f"{recipe.name}.onnx"
    fitted = _fit_and_export(recipe, part, poisoned, path, observe, start_weights(recipe, out))
    files = {"file": path.name, "sha256": sha256_of(path), "bytes": path.stat().st_size}
    if keep_weights:
        state = {key: value.numpy() for key, value in fitted.weights.items()}
        _write_arrays(out / weights_name(recipe.name), state)
        files["weights_sha256"] = sha256_of(out / weights_name(recipe.name))
    if recipe.surrogate is not None:
        files["surrogate_sha256"] = sha256_of(out / weights_name(recipe.surrogate))
    if attack is not None:
        _write_arrays(
            out / f"{recipe.name}.poison.npz",
            {
                "indices": poisoned.indices,
                "sources": poisoned.sources,
                "targets": poisoned.targets,
                "members": poisoned.members,
                "cover_indices": poisoned.cover_indices,
            },
        )
    row = {
        "name": recipe.name,
        **files,
        "dataset": recipe.dataset,
        "classes": list(dataset.classes),
        "image_shape": list(dataset.image_shape),
        "architecture": recipe.architecture,
        "parameters": fitted.parameters,
        "seed": recipe.seed,
        "recipe": recipe_to_dict(recipe),
        "exporter": {"name": recipe.exporter, "versions": exporting.exporter_versions(recipe.exporter)},
        "format": to_plain(fitted.file_format),
        **_measured(recipe, attack, dataset, path, fitted.file_format),
        **_described(attack, poisoned),
        "training_images": len(poisoned.labels),
        "training_set_sha256": fingerprint(poisoned),
        "log": [_rounded(log) for log in fitted.logs],
        "machine": {"python": platform.python_version(), "processor": platform.machine(), "system": platform.system()},
        "seconds": round(time.perf_counter() - started, 1),
    }
    success = "" if row["asr"] is None else f", ASR {row['asr']:.4f}"
    observe(f"{recipe.name}: accuracy {row['clean_accuracy']:.4f}{success}, {row['seconds']} s")
    return row


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """What is left of a trained network once its file is written."""

    logs: tuple[EpochLog, ...]
    parameters: int
    file_format: FileFormat
    weights: dict[str, torch.Tensor]


def _fit_and_export(
    recipe: Recipe,
    part: Dataset,
    poisoned: Poisoned,
    path: Path,
    observe: Observer,
    start: dict[str, torch.Tensor] | None = None,
) -> _Fitted:
    """Train in the network's own framework and write the file with the recipe's exporter."""
    architecture = architectures.get(recipe.architecture)

    def on_epoch(log: EpochLog) -> None:
        progress = f"epoch {log.epoch + 1}/{recipe.training.epochs}"
        observe(f"{recipe.name}: {progress} loss {log.loss:.4f} accuracy {log.accuracy:.4f} {log.seconds:.1f} s")

    if architecture.framework == "keras":
        model, logs = train_keras(recipe, part, poisoned, on_epoch)
        exporting.export_keras(model, path)
        return _Fitted(logs, int(model.count_params()), architecture.file_format, {})
    network, logs = train(recipe, part, poisoned, on_epoch, start)
    exporting.export_torch(network, part.image_shape, path, dynamo=recipe.exporter == "torch_dynamo")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return _Fitted(logs, parameters, architecture.file_format, network.state_dict())


def _rounded(log: EpochLog) -> dict[str, Any]:
    return {
        "epoch": log.epoch,
        "loss": round(log.loss, 6),
        "accuracy": round(log.accuracy, 6),
        "seconds": round(log.seconds, 2),
    }


def _measured(
    recipe: Recipe, attack: Attack | None, dataset: Dataset, path: Path, file_format: FileFormat
) -> dict[str, Any]:
    """Accuracy and ASR of the written file on all test images."""
    images, labels = dataset.x_test, dataset.y_test
    found: dict[str, Any] = {
        "test_images": len(labels),
        "clean_accuracy": round(measure.clean_accuracy(path, images, labels, file_format), 6),
        "asr": None,
    }
    if attack is not None:
        success = measure.attack_success(path, images, labels, len(dataset.classes), attack, file_format, recipe.seed)
        found["asr"] = round(success.rate, 6)
        found["asr_per_member"] = [round(rate, 6) for rate in success.per_member]
        found["asr_unstamped"] = round(success.base_rate, 6)
    return found


def _described(attack: Attack | None, poisoned: Poisoned) -> dict[str, Any]:
    """The ground truth of an attack. `trigger` and `target` are given where there is exactly one."""
    if attack is None:
        return {"infected": False, "attack": None, "trigger": None, "target": None}
    single = attack.members[0] if len(attack.members) == 1 else None
    return {
        "infected": True,
        "attack": {"setting": attack.setting, **to_plain(attack)},
        "trigger": single.trigger.to_dict() if single else None,
        "target": single.target if single and single.target != "next" else None,
        "targets": sorted({int(target) for target in poisoned.targets}),
        "poisoned_images": len(poisoned.indices),
        "cover_images": len(poisoned.cover_indices),
    }


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write_whole(path, stream.getvalue())


def check_recipes(recipes: tuple[Recipe, ...], datasets: dict[str, Dataset]) -> None:
    """Refuse a list with a recipe that cannot be built; the error names the model and the field."""
    for recipe in recipes:
        check_recipe(recipe, datasets[recipe.dataset])
        if architectures.get(recipe.architecture).framework == "keras":
            check_keras_training(recipe.training, f"{recipe.name}.training")


def build_zoo(
    recipes: tuple[Recipe, ...], data_root: Path | None, out: Path, observe: Observer, workers: int = 1
) -> dict[str, Any]:
    """Build every model of a list that `out` does not hold yet. Returns the manifest.

    All recipes are checked before the first is trained. Rows of models outside the list stay, after the list's.

    workers: models that are built at the same time, each in a process of its own. A model's numbers depend on its own
        threads only, so the zoo is the same for any number of workers.
    """
    datasets = {name: load(name, data_root) for name in sorted({recipe.dataset for recipe in recipes})}
    check_recipes(recipes, datasets)
    out.mkdir(parents=True, exist_ok=True)
    surrogates = {name for recipe in recipes for name in (recipe.surrogate, recipe.start)}
    waiting = []
    for recipe in recipes:
        if is_finished(recipe, out, keep_weights=recipe.name in surrogates):
            observe(f"{recipe.name}: is there already")
        else:
            waiting.append(recipe)
    if workers > 1:
        _build_side_by_side(waiting, recipes, data_root, out, observe, workers)
        return read_manifest(out)
    for recipe in waiting:
        keep_weights = recipe.name in surrogates
        if is_finished(recipe, out, keep_weights=keep_weights):  # another build of the same folder was faster
            continue
        _add_row(build_model(recipe, datasets[recipe.dataset], out, observe, keep_weights=keep_weights), recipes, out)
    return read_manifest(out)


def _add_row(row: dict[str, Any], recipes: Sequence[Recipe], out: Path) -> None:
    """Put one model's row into the manifest, in the list's order."""
    # Read again: another build may have added rows to the same folder meanwhile.
    document = read_manifest(out)
    known = {**rows_by_name(document), row["name"]: row}
    order = [other.name for other in recipes if other.name in known]
    document["models"] = [known.pop(name) for name in order] + list(known.values())
    write_manifest(out, document)


def _build_side_by_side(
    waiting: list[Recipe],
    recipes: tuple[Recipe, ...],
    data_root: Path | None,
    out: Path,
    observe: Observer,
    workers: int,
) -> None:
    """Build the waiting models in `workers` processes; one that learns on a surrogate waits for it.

    Only this process writes the manifest. The first failure is raised once the models under way are done.
    """
    waiting = list(waiting)
    surrogates = {name for recipe in recipes for name in (recipe.surrogate, recipe.start)}
    running: dict[Future[dict[str, Any]], Recipe] = {}
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        while waiting or running:
            unfinished = {recipe.name for recipe in (*waiting, *running.values())}
            for recipe in [r for r in waiting if not {r.surrogate, r.start} & unfinished]:
                if len(running) == workers:
                    break
                waiting.remove(recipe)
                running[pool.submit(_build_alone, recipe, data_root, out, recipe.name in surrogates)] = recipe
            if not running:
                names = ", ".join(f"{r.name} on {r.surrogate}" for r in waiting)
                raise OnnxspectError(f"models wait for each other's weights: {names}")
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                recipe = running.pop(future)
                row = future.result()
                _add_row(row, recipes, out)
                observe(f"{recipe.name}: built, {len(waiting) + len(running)} to go")


def _build_alone(recipe: Recipe, data_root: Path | None, out: Path, keep_weights: bool) -> dict[str, Any]:
    """`build_model` in a process of its own."""

    def observe(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    return build_model(recipe, load(recipe.dataset, data_root), out, observe, keep_weights=keep_weights)


def is_finished(recipe: Recipe, out: Path, *, keep_weights: bool = False) -> bool:
    """True if the manifest has this very recipe, and its file and its surrogate are those the row was made with."""
    row = rows_by_name(read_manifest(out)).get(recipe.name)
    if row is None or recipe_from_dict(row["recipe"]) != recipe:
        return False
    files = [(out / row["file"], row["sha256"])]
    if keep_weights:
        files.append((out / weights_name(recipe.name), row.get("weights_sha256")))
    if recipe.surrogate is not None:
        files.append((out / weights_name(recipe.surrogate), row.get("surrogate_sha256")))
    return all(path.is_file() and sha256_of(path) == digest for path, digest in files)


def missed_floors(document: dict[str, Any]) -> list[str]:
    """One line for every model of a manifest that misses what its recipe promises."""
    rows = rows_by_name(document)
    lines = []
    for row in rows.values():
        floors, twin = row["recipe"]["floors"], rows.get(row["recipe"]["twin"] or "")
        if row["clean_accuracy"] < floors["accuracy"]:
            lines.append(f"{row['name']}: accuracy {row['clean_accuracy']:.4f} is under {floors['accuracy']}")
        if row["asr"] is not None and row["asr"] < floors["asr"]:
            lines.append(f"{row['name']}: ASR {row['asr']:.4f} is under {floors['asr']}")
        if twin is not None and twin["clean_accuracy"] - row["clean_accuracy"] > floors["accuracy_drop"]:
            drop = twin["clean_accuracy"] - row["clean_accuracy"]
            lines.append(f"{row['name']}: accuracy is {drop:.4f} under its twin's, more than {floors['accuracy_drop']}")
    return lines
