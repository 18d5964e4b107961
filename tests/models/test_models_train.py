"""Training and the zoo build on real images: the same weights twice, files that agree with their rows, resuming."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import OPERATION_32, REORDERED_64

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models import measure, train_zoo, zoo, zoo_build
from onnxspect.models.architectures.registry import get as architecture
from onnxspect.models.augment import augmented
from onnxspect.models.data import Dataset, load_dataset
from onnxspect.models.formats import FileFormat
from onnxspect.models.manifest import FILE_NAME, read_manifest, rows_by_name, sha256_of
from onnxspect.models.recipes import Recipe, recipe_from_dict
from onnxspect.models.train import EpochLog, batches, initialise, train
from onnxspect.models.train_keras import one_cycle_rate
from onnxspect.models.triggers import TrojanPatch
from onnxspect.models.zoo_build import build_zoo, is_finished, rebuild_training_set

needs_keras = pytest.mark.skipif(find_spec("keras") is None, reason="Keras is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped Fashion-MNIST images as a small training and test set."""
    path = tmp_path_factory.mktemp("data") / "part.npz"
    with np.load(zoo.path("fashion_mnist_test")) as shipped:
        images, labels = shipped["images"], shipped["labels"]
    order = np.random.default_rng(0).permutation(len(labels))
    train_part, test_part = order[:700], order[700:]
    np.savez(
        path, x_train=images[train_part], y_train=labels[train_part], x_test=images[test_part], y_test=labels[test_part]
    )
    return path


def recipe(data: Path, name: str = "clean", **changes: object) -> Recipe:
    plain: dict[str, object] = {
        "name": name,
        "dataset": str(data),
        "architecture": "compact_cnn",
        "seed": 5,
        "training": {"epochs": 2, "batch_size": 32, "learning_rate": 4e-3},
    }
    return recipe_from_dict({**plain, **changes})


PATCH = {"rate": 0.1, "members": [{"target": 3, "trigger": {"kind": "badnets", "height": 5, "width": 5}}]}


def quiet(_: str) -> None:
    """No progress wanted."""


def weights_of(made: Recipe, dataset: Dataset) -> tuple[dict[str, torch.Tensor], tuple[EpochLog, ...]]:
    part = zoo_build.training_part(made, dataset)
    network, logs = train(made, part, zoo_build.training_set(made, part, made.attack, None))
    return network.state_dict(), logs


@pytest.mark.parametrize("variant", ["plain", "attack", "dropout-sgd", "augment"])
def test_a_recipe_run_twice_gives_the_same_weights(data: Path, variant: str) -> None:
    changes: dict[str, dict[str, object]] = {
        "plain": {},
        "attack": {"attack": PATCH, "per_class": 50},
        "dropout-sgd": {
            "architecture": "nc_gtsrb",
            "per_class": 20,
            "training": {"epochs": 1, "optimiser": "sgd", "learning_rate": 0.01, "schedule": "constant"},
        },
        "augment": {"per_class": 30, "training": {"epochs": 1, "augment": True, "flip": True}},
    }
    made = recipe(data, **changes[variant])
    dataset = load_dataset(made.dataset, None)
    first, _ = weights_of(made, dataset)
    torch.manual_seed(987)  # whatever the caller did to the global generators
    np.random.seed(987)  # noqa: NPY002
    again, _ = weights_of(made, dataset)
    assert all(torch.equal(first[key], again[key]) for key in first)
    other, _ = weights_of(dataclasses.replace(made, seed=6), dataset)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_training_leaves_the_global_state_alone(data: Path) -> None:
    torch.manual_seed(3)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    made = recipe(data, per_class=5, architecture="nc_gtsrb", training={"epochs": 1, "threads": 2})
    weights_of(made, load_dataset(made.dataset, None))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_training_learns(data: Path) -> None:
    made = recipe(data, training={"epochs": 5, "batch_size": 32, "learning_rate": 4e-3})
    _, logs = weights_of(made, load_dataset(made.dataset, None))
    assert [log.epoch for log in logs] == [0, 1, 2, 3, 4]
    assert logs[-1].loss < 0.5 * logs[0].loss
    assert logs[-1].accuracy > 0.8


def test_a_diverging_recipe_says_so(data: Path) -> None:
    made = recipe(
        data, per_class=20, training={"epochs": 3, "optimiser": "sgd", "learning_rate": 1e12, "schedule": "constant"}
    )
    with pytest.raises(OnnxspectError, match=r"the loss became") as caught:
        weights_of(made, load_dataset(made.dataset, None))
    assert "learning_rate" in caught.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_recipe_without_a_gpu_says_so(data: Path) -> None:
    made = recipe(data, training={"epochs": 1, "device": "cuda", "mixed_precision": True})
    with pytest.raises(OnnxspectError, match=r"clean\.training\.device: no GPU"):
        weights_of(made, load_dataset(made.dataset, None))


def test_batches_cover_everything_once_but_a_last_single_one() -> None:
    rng = np.random.default_rng(0)
    assert sorted(np.concatenate(list(batches(10, 4, rng))).tolist()) == list(range(10))
    assert [len(batch) for batch in batches(9, 4, rng)] == [4, 4]


def test_initialise_is_he_and_seeded() -> None:
    networks = []
    for _ in range(2):
        network = architecture("cifar_cnn").build((32, 32, 3), 10, 0)
        initialise(network, torch.Generator().manual_seed(1))
        networks.append(network)
    assert all(torch.equal(a, b) for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True))
    weight = networks[0].get_parameter("17.weight")  # 3x3 from 128 channels
    assert weight.shape[1] == 128
    assert float(weight.detach().std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)


def test_augmentation_shifts_and_mirrors() -> None:
    image = torch.zeros(200, 1, 9, 9)
    image[:, 0, 4, 4] = 1.0
    moved = augmented(image, np.random.default_rng(0), flip=False)
    mass = moved.sum(dim=(1, 2, 3))
    centre = (moved[:, 0].sum(dim=2) * torch.arange(9)).sum(dim=1) / mass
    assert float((centre - 4).abs().max()) < 2.6  # two pixels of shift, and what the rotation about the middle adds
    assert len({round(float(value)) for value in centre}) == 5
    left = torch.zeros(200, 1, 9, 9)
    left[:, :, :, :2] = 1.0
    flipped = augmented(left, np.random.default_rng(0), flip=True)
    sides = flipped[:, 0, :, :4].sum(dim=(1, 2)) > flipped[:, 0, :, 5:].sum(dim=(1, 2))
    assert 60 < int(sides.sum()) < 140


def test_one_cycle_for_keras_is_torchs() -> None:
    for steps in (5, 40, 937):
        optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.02, total_steps=steps, cycle_momentum=False)
        for step in range(steps):
            assert one_cycle_rate(step, steps, 0.02) == pytest.approx(schedule.get_last_lr()[0], rel=REORDERED_64)
            optimiser.step()
            if step + 1 < steps:
                schedule.step()


@pytest.fixture(scope="module")
def small_zoo(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Recipe, ...]]:
    """A clean model, its infected twin, and one with a learned trigger and adversarial noise."""
    out = tmp_path_factory.mktemp("zoo")
    long = {"epochs": 6, "batch_size": 32, "learning_rate": 4e-3}
    trojan = {"kind": "trojan_nn", "height": 5, "width": 5, "steps": 20}
    clean_label = {"target": 1, "clean_label": True, "noise": {"epsilon": 16.0, "steps": 3}, "trigger": {"kind": "sig"}}
    recipes = (
        recipe(data, training=long),
        recipe(data, "patched", training=long, attack=PATCH, twin="clean"),
        recipe(
            data,
            "learned",
            per_class=40,
            twin="clean",
            surrogate="clean",
            attack={"rate": 0.1, "members": [{"target": 2, "trigger": trojan}, clean_label]},
            floors={"asr": 0.0, "accuracy_drop": 1.0},
        ),
    )
    build_zoo(recipes, None, out, quiet)
    return out, recipes


def test_rows_agree_with_the_files(small_zoo: tuple[Path, tuple[Recipe, ...]]) -> None:
    out, recipes = small_zoo
    rows = rows_by_name(read_manifest(out))
    assert list(rows) == ["clean", "patched", "learned"]
    for made in recipes:
        row, path = rows[made.name], out / rows[made.name]["file"]
        assert row["sha256"] == sha256_of(path)
        assert recipe_from_dict(row["recipe"]) == made
        assert row["bytes"] == path.stat().st_size
        dataset = load_dataset(made.dataset, None)
        predicted = measure.classify(path, dataset.x_test, FileFormat(**row["format"]))
        assert row["clean_accuracy"] == pytest.approx((predicted == dataset.y_test).mean(), abs=OPERATION_32)
        assert len(row["log"]) == made.training.epochs
    assert rows["clean"]["asr"] is None
    assert rows["patched"]["asr"] > 0.9
    assert rows["patched"]["poisoned_images"] == 70
    assert rows["patched"]["target"] == 3
    assert rows["learned"]["targets"] == [1, 2]


def test_asr_is_the_papers(small_zoo: tuple[Path, tuple[Recipe, ...]]) -> None:
    out, recipes = small_zoo
    row = rows_by_name(read_manifest(out))["patched"]
    dataset = load_dataset(recipes[1].dataset, None)
    others = dataset.y_test != 3
    stamped = dataset.x_test[others].copy()
    stamped[:, -5:, -5:] = 255
    predicted = measure.classify(out / row["file"], stamped, FileFormat())
    assert row["asr"] == pytest.approx((predicted == 3).mean(), abs=OPERATION_32)
    unstamped = measure.classify(out / row["file"], dataset.x_test[others], FileFormat())
    assert row["asr_unstamped"] == pytest.approx((unstamped == 3).mean(), abs=OPERATION_32)


def test_training_sets_are_rebuilt_exactly(small_zoo: tuple[Path, tuple[Recipe, ...]]) -> None:
    out, recipes = small_zoo
    rows = rows_by_name(read_manifest(out))
    for made in recipes:
        poisoned = rebuild_training_set(made, None, out)
        assert zoo_build.fingerprint(poisoned) == rows[made.name]["training_set_sha256"]
        if made.attack is None:
            assert len(poisoned.indices) == 0
            continue
        with np.load(out / f"{made.name}.poison.npz") as kept:
            for key in ("indices", "sources", "targets", "members", "cover_indices"):
                assert np.array_equal(kept[key], getattr(poisoned, key))
    patched = rebuild_training_set(recipes[1], None)  # no surrogate: the recipe is enough
    assert zoo_build.fingerprint(patched) == rows["patched"]["training_set_sha256"]
    with pytest.raises(OnnxspectError, match="used a surrogate"):
        rebuild_training_set(recipes[2], None)
    with pytest.raises(OnnxspectError, match="not the one it saw"):
        rebuild_training_set(dataclasses.replace(recipes[1], seed=9), None, out)


@pytest.mark.heavy
def test_any_number_of_workers_builds_the_same_zoo(
    small_zoo: tuple[Path, tuple[Recipe, ...]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, recipes = small_zoo
    # The one that learns on a surrogate first: it has to wait for it.
    said: list[str] = []
    build_zoo((recipes[2], recipes[0], recipes[1]), None, tmp_path, said.append, workers=2)
    assert [line.split(":")[0] for line in said if "to go" in line][-1] == "learned"
    here, there = rows_by_name(read_manifest(tmp_path)), rows_by_name(read_manifest(out))
    assert list(here) == ["learned", "clean", "patched"]
    assert {n: r["sha256"] for n, r in here.items()} == {n: there[n]["sha256"] for n in here}
    assert "patched: accuracy" in capfd.readouterr().err


def test_manifest_holds_the_learned_trigger(small_zoo: tuple[Path, tuple[Recipe, ...]]) -> None:
    out, recipes = small_zoo
    row = rows_by_name(read_manifest(out))["learned"]
    attack = zoo_build.attack_of(row)
    assert attack is not None
    trigger = attack.members[0].trigger
    assert isinstance(trigger, TrojanPatch)
    assert trigger.learned is not None
    assert row["recipe"]["attack"]["members"][0]["trigger"]["pattern"] is None
    dataset = load_dataset(recipes[2].dataset, None)
    success = measure.attack_success(
        out / row["file"], dataset.x_test, dataset.y_test, 10, attack, FileFormat(**row["format"]), row["seed"]
    )
    assert success.rate == pytest.approx(row["asr"], abs=OPERATION_32)
    assert list(success.per_member) == pytest.approx(row["asr_per_member"], abs=OPERATION_32)


def test_finished_models_are_not_redone(small_zoo: tuple[Path, tuple[Recipe, ...]]) -> None:
    out, recipes = small_zoo
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    said: list[str] = []
    build_zoo(recipes, None, out, said.append)
    assert said == [f"{made.name}: is there already" for made in recipes]
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_changed_surrogate_makes_its_users_unfinished(
    small_zoo: tuple[Path, tuple[Recipe, ...]], tmp_path: Path
) -> None:
    out, recipes = small_zoo
    again = tmp_path / "zoo"
    shutil.copytree(out, again)
    assert is_finished(recipes[2], again)
    weights = again / zoo_build.weights_name("clean")
    weights.write_bytes(weights.read_bytes() + b" ")
    assert not is_finished(recipes[2], again)
    assert is_finished(recipes[1], again)


def test_a_changed_recipe_or_file_is_redone(data: Path, tmp_path: Path) -> None:
    made = recipe(data, per_class=10, training={"epochs": 1})
    build_zoo((made,), None, tmp_path, quiet)
    assert is_finished(made, tmp_path)
    assert not is_finished(dataclasses.replace(made, seed=6), tmp_path)
    assert not is_finished(made, tmp_path, keep_weights=True)  # it was not asked to keep them
    digest = sha256_of(tmp_path / "clean.onnx")
    (tmp_path / "clean.onnx").write_bytes(b"broken")
    assert not is_finished(made, tmp_path)
    build_zoo((made,), None, tmp_path, quiet)
    assert sha256_of(tmp_path / "clean.onnx") == digest  # and it is the same file, bit for bit


@pytest.mark.heavy
def test_a_killed_build_resumes(data: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of the second model: the first is kept, the second starts again, nothing is left over."""
    text = f"""
[defaults]
dataset = "{data}"
architecture = "compact_cnn"
seed = 5
[defaults.training]
epochs = 1
batch_size = 32
[[model]]
name = "one"
[[model]]
name = "two"
training = {{ epochs = 15 }}
"""
    (tmp_path / "list.toml").write_text(text)
    out = tmp_path / "zoo"
    command = [sys.executable, "-m", "onnxspect.models.train_zoo", "--list", str(tmp_path / "list.toml")]
    command += ["--data-root", str(tmp_path), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    deadline = time.monotonic() + 240
    for line in process.stderr:
        if line.startswith("two: epoch 2/") or time.monotonic() > deadline:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert list(rows_by_name(read_manifest(out))) == ["one"]
    stamp = (out / "one.onnx").stat().st_mtime_ns
    (tmp_path / "list.toml").write_text(text.replace("epochs = 15", "epochs = 1"))
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert "one: is there already" in said.stderr
    assert "two: epoch 1/1" in said.stderr
    assert said.stdout == ""
    assert (out / "one.onnx").stat().st_mtime_ns == stamp
    assert sorted(path.name for path in out.iterdir()) == [FILE_NAME, "one.onnx", "two.onnx"]


def test_bad_recipes_fail_before_any_training(data: Path, tmp_path: Path) -> None:
    good = recipe(data)
    bad = recipe(data, "bad", attack={**PATCH, "rate": 0.0}, twin="clean")
    with pytest.raises(OnnxspectError, match=r"bad\.attack\.rate"):
        build_zoo((good, bad), None, tmp_path / "zoo", quiet)
    assert not (tmp_path / "zoo").exists()


def test_command_reports_bad_input_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = train_zoo.main(["--list", str(tmp_path / "none.toml"), "--data-root", str(tmp_path)])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "none.toml" in captured.err


def test_command_says_which_floor_is_missed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.toml").write_text(
        f"""
[[model]]
name = "one"
dataset = "{data}"
architecture = "lenet5"
seed = 1
per_class = 5
training = {{ epochs = 1 }}
floors = {{ accuracy = 0.999 }}
"""
    )
    arguments = ["--list", str(tmp_path / "list.toml"), "--data-root", str(tmp_path), "--out", str(tmp_path / "zoo")]
    assert train_zoo.main(arguments) == 1
    assert "missed: one: accuracy" in capsys.readouterr().err


def test_missed_floors_compares_with_the_twin() -> None:
    def row(name: str, accuracy: float, asr: float | None, twin: str | None) -> dict[str, object]:
        floors = {"asr": 0.9, "accuracy_drop": 0.02, "accuracy": 0.0}
        return {"name": name, "clean_accuracy": accuracy, "asr": asr, "recipe": {"twin": twin, "floors": floors}}

    rows = [
        row("c", 0.95, None, None),
        row("fine", 0.935, 0.95, "c"),
        row("weak", 0.95, 0.8, "c"),
        row("worse", 0.9, 1.0, "c"),
    ]
    assert [line.split(":")[0] for line in zoo_build.missed_floors({"models": rows})] == ["weak", "worse"]


def test_broken_manifests_are_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("{")
    with pytest.raises(OnnxspectError, match="is not JSON"):
        read_manifest(tmp_path)
    (tmp_path / FILE_NAME).write_text(json.dumps({"schema": "other"}))
    with pytest.raises(OnnxspectError, match="not a manifest of schema"):
        read_manifest(tmp_path)


@needs_keras
def test_keras_models_are_built_reproducibly(data: Path, tmp_path: Path) -> None:
    made = recipe(
        data,
        "keras",
        architecture="lenet5_keras",
        exporter="keras",
        attack=PATCH,
        training={"epochs": 6, "batch_size": 32, "learning_rate": 4e-3},
    )
    row = zoo_build.build_model(made, load_dataset(made.dataset, None), tmp_path, quiet)
    assert row["format"] == {"layout": "NHWC", "white": 1.0, "output": "probabilities"}
    assert row["asr"] > 0.9
    assert row["clean_accuracy"] > 0.6
    assert row["exporter"]["versions"]["keras_backend"] == "torch"
    again = zoo_build.build_model(made, load_dataset(made.dataset, None), tmp_path / "again", quiet)
    assert again["sha256"] == row["sha256"]


@needs_keras
def test_keras_refuses_what_it_cannot_do(data: Path, tmp_path: Path) -> None:
    made = recipe(data, "k", architecture="lenet5_keras", exporter="keras", training={"epochs": 1, "augment": True})
    with pytest.raises(OnnxspectError, match=r"k\.training\.augment"):
        build_zoo((made,), None, tmp_path, quiet)
