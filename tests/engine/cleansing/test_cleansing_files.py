"""`onnxspect cleanse` from files: streaming, the activation cache, what is written, and what is refused."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from cleansing_support import TARGET, listening_model, poisoned_set
from conftest import saved
from PIL import Image
from tolerances import NETWORK_32

from onnxspect.cli.main import run as command_line
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.cleanse import cleanse
from onnxspect.engine.jobs.retrain import Retrain
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.activations import activations, open_training_set, penultimate
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.models import zoo

#: Said, not found: a network of straight lines classifies as well on pixels times 255.
SPEC = InputSpec()


@pytest.fixture(scope="module")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The poisoned tiny world as an npz, uint8."""
    samples, indices = poisoned_set(per_class=40, stamped=16)
    folder = tmp_path_factory.mktemp("train")
    np.savez(folder / "truth.npz", indices=indices)
    names = np.array(["one", "two", "three", "four"])
    images = np.round(samples.images[:, 0] * 255).astype(np.uint8)
    np.savez_compressed(folder / "train.npz", images=images, labels=samples.labels, classes=names)
    return folder / "train.npz"


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny classifier with a backdoor, as a file."""
    return saved(listening_model(), tmp_path_factory.mktemp("model") / "listening.onnx")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def as_folder(train_file: Path, out: Path) -> Path:
    """The same images as PNG files by class."""
    with np.load(train_file) as archive:
        for i, (image, label) in enumerate(zip(archive["images"], archive["labels"], strict=True)):
            (out / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(out / str(label) / f"{i:04d}.png")
    return out


@pytest.mark.parametrize("compressed", [True, False])
def test_a_streamed_set_is_the_set(tmp_path: Path, compressed: bool) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (70, 6, 5, 3), dtype=np.uint8)
    labels = rng.integers(0, 4, 70)
    path = tmp_path / "t.npz"
    (np.savez_compressed if compressed else np.savez)(path, x_train=images, y_train=labels)
    training = open_training_set(path)
    whole = Samples.from_arrays(images, labels)
    assert training.shape == whole.shape
    assert np.array_equal(np.concatenate([part for _, part in training.batches(16)]), whole.images)
    taken = training.take(np.array([65, 3, 20]))
    assert np.array_equal(taken.images, whole.images[[3, 20, 65]])
    assert np.array_equal(taken.labels, labels[[3, 20, 65]])


def test_a_streamed_folder_is_the_folder(train_file: Path, tmp_path: Path) -> None:
    folder = as_folder(train_file, tmp_path / "images")
    training = open_training_set(folder)
    whole = Samples.load(folder)
    assert training.files == whole.files
    assert np.array_equal(np.concatenate([part for _, part in training.batches(50)]), whole.images)


def test_activations_are_those_of_the_model_and_are_taken_once(tmp_path: Path) -> None:
    subject = Subject.from_onnx(zoo.path("fashion_mnist_clean"))
    training = open_training_set(zoo.path("fashion_mnist_test"))
    name = penultimate(subject)
    found = activations(subject, training, [name], tmp_path, RunContext())
    whole = Samples.load(zoo.path("fashion_mnist_test"))
    assert np.allclose(found["logits"], subject.predict(whole.images), atol=NETWORK_32)
    assert found[name].shape[0] == len(whole)
    assert found[name].shape[1] < 2000
    files = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert len(files) == 2
    again = activations(subject, training, [name], tmp_path, RunContext())
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == files
    assert np.array_equal(again[name], found[name])
    with pytest.raises(OnnxspectError, match="no value named"):
        activations(subject, training, ["no such value"], tmp_path, RunContext())


def test_a_cleansing_names_the_poison_and_keeps_the_rest(train_file: Path, model_file: Path, tmp_path: Path) -> None:
    before = sha256(train_file)
    truth = train_file.with_name("truth.npz")
    done = cleanse(model_file, train_file, tmp_path / "out", targets=[TARGET], spec=SPEC, truth=truth)
    assert sha256(train_file) == before
    by_name = {m["name"]: m for m in done.report["methods"]}
    assert list(by_name) == ["reverse-engineering", "spectral-signatures", "activation-clustering", "cluster-impurity"]
    for rates in (by_name["reverse-engineering"]["rates"], done.report["rates"]):
        assert rates["tpr"] == 1.0
        assert rates["fpr"] == 0.0
    with np.load(train_file) as old, np.load(tmp_path / "out" / "kept.npz") as kept, np.load(truth) as known:
        assert sorted(kept["index"].tolist() + known["indices"].tolist()) == list(range(len(old["labels"])))
        assert np.array_equal(kept["images"], old["images"][kept["index"]])
        assert np.array_equal(kept["labels"], old["labels"][kept["index"]])
        assert kept["images"].dtype == np.uint8
        assert kept["classes"].tolist() == ["one", "two", "three", "four"]
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "label", "score", "decision", "detector", "direction"]
    assert {r["direction"] for r in rows} == {"higher is more suspicious"}
    assert {r["label"] for r in rows} == {str(TARGET)}  # a sample that a method did not score has no row
    assert all(r["score"] for r in rows)
    assert sum(r["decision"] == "remove" for r in rows if r["detector"] == "reverse-engineering") == 16
    assert (tmp_path / "out" / "suspicious.png").read_bytes()[:4] == b"\x89PNG"


def test_the_target_is_found_where_nobody_names_it(train_file: Path, model_file: Path, tmp_path: Path) -> None:
    done = cleanse(model_file, train_file, tmp_path / "out", truth=train_file.with_name("truth.npz"), spec=SPEC)
    assert [t["target"] for t in done.report["triggers"]] == [TARGET]
    assert done.report["rates"]["tpr"] == 1.0
    assert done.report["rates"]["fpr"] == 0.0


def test_all_methods_run_on_the_same_activations_and_give_the_same_twice(
    train_file: Path, model_file: Path, tmp_path: Path
) -> None:
    methods = ["spectral-signatures", "activation-clustering", "cluster-impurity"]
    for name in ("a", "b"):
        done = cleanse(model_file, train_file, tmp_path / name, detectors=methods, tap="flat")
        assert [m["name"] for m in done.report["methods"]] == methods
        assert done.report["tap"] == "flat"
    for file in ("scores.csv", "cleansing.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    with np.load(tmp_path / "a" / "kept.npz") as kept:
        assert len(kept["labels"]) == done.report["kept"]


def test_a_folder_gets_a_list_of_files_to_keep(train_file: Path, model_file: Path, tmp_path: Path) -> None:
    """A name that would make a line of its own, or that a terminal would obey, is escaped, and said."""
    folder = as_folder(train_file, tmp_path / "images")
    first = min(folder.rglob("*.png"))
    odd = first.rename(first.with_name("\x1b[2J\n\u202e" + first.name))
    files = sorted(p for p in folder.rglob("*.png"))
    done = cleanse(model_file, folder, tmp_path / "out", targets=[TARGET], spec=SPEC)
    text = (tmp_path / "out" / "kept.txt").read_text()
    kept = text.splitlines()
    assert len(kept) == done.report["kept"] == 144
    (escaped,) = [name for name in kept if not (folder / name).is_file()]
    assert escaped.endswith(r"\x1b[2J\n\u202e" + first.name)
    assert not {"\x1b", "\u202e"} & set(text)
    assert any("1 kept files have line ends or control characters" in note for note in done.report["notes"])
    assert odd.is_file()
    assert sorted(folder.rglob("*.png")) == files


def test_a_model_fine_tuned_on_the_kept_samples_forgets_the_trigger(
    train_file: Path, model_file: Path, tmp_path: Path
) -> None:
    done = cleanse(
        model_file, train_file, tmp_path / "out", targets=[TARGET], spec=SPEC, retrain=tmp_path / "new.onnx",
        how=Retrain(epochs=30, learning_rate=0.1),
    )  # fmt: skip
    assert done.proof is not None
    assert (tmp_path / "new.onnx").is_file()
    (effect,) = done.proof.triggers
    assert effect.before > 0.9
    assert effect.after < 0.05
    assert done.proof.accuracy_after > 0.9


def test_the_command_shows_what_it_removed(
    train_file: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["cleanse", str(model_file), "--train", str(train_file), "--out", str(tmp_path / "o"), "-q"]
    common += ["--scale", "1", "--target", str(TARGET), "--truth", str(train_file.with_name("truth.npz"))]
    assert command_line(common) == 1
    assert "16 of 160 samples removed" in capsys.readouterr().out
    assert command_line([*common, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["rates"]["tpr"] == 1.0


def test_a_clean_set_loses_nothing(train_file: Path, model_file: Path, tmp_path: Path) -> None:
    with np.load(train_file) as archive, np.load(train_file.with_name("truth.npz")) as known:
        rest = np.setdiff1d(np.arange(len(archive["labels"])), known["indices"])
        path = tmp_path / "clean.npz"
        np.savez(path, images=archive["images"][rest], labels=archive["labels"][rest])
    done = cleanse(model_file, path, tmp_path / "out", targets=[TARGET], spec=SPEC)
    assert done.report["removed"] == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"detectors": ["magic"]}, "unknown detector"),
        ({"detectors": ["dtinspector"]}, "comes from a scan"),
        ({"detectors": ["training-difference"]}, "comes from a scan"),
        ({"targets": [7]}, "target class 7"),
        ({"run_folder": "nowhere"}, "no run"),
        ({"detectors": ["spectral-signatures"], "tap": "no such tap"}, "no value named"),
        ({"truth": "missing.npz"}, "No such file"),
    ],
)
def test_what_does_not_fit_is_refused(
    train_file: Path,
    model_file: Path,
    tmp_path: Path,
    changed: dict,
    message: str,  # type: ignore[type-arg]
) -> None:
    with pytest.raises(OnnxspectError, match=message):
        cleanse(model_file, train_file, tmp_path / "out", **changed)


def test_sets_that_are_not_the_models_are_refused(train_file: Path, model_file: Path, tmp_path: Path) -> None:
    with np.load(train_file) as archive:
        images, labels = archive["images"], archive["labels"]
    path = tmp_path / "odd.npz"
    np.savez(path, images=images, labels=np.where(labels == 3, 11, labels))
    with pytest.raises(OnnxspectError, match="label 11"):
        cleanse(model_file, path, tmp_path / "out", spec=SPEC)
    np.savez(path, images=images, labels=labels[:-1])
    with pytest.raises(OnnxspectError, match="labels"):
        cleanse(model_file, path, tmp_path / "out", spec=SPEC)
    np.savez(path, images=images[:, :6], labels=labels)
    with pytest.raises(OnnxspectError, match="the model takes"):
        cleanse(model_file, path, tmp_path / "out", spec=SPEC)
    np.savez(tmp_path / "twice.npz", indices=np.array([3, 3]))
    with pytest.raises(OnnxspectError, match="twice"):
        cleanse(model_file, train_file, tmp_path / "out", truth=tmp_path / "twice.npz")


def test_an_empty_class_is_named(train_file: Path, model_file: Path, tmp_path: Path) -> None:
    with np.load(train_file) as archive:
        rows = np.flatnonzero(archive["labels"] != 1)
        path = tmp_path / "less.npz"
        np.savez(path, images=archive["images"][rows], labels=archive["labels"][rows])
    done = cleanse(model_file, path, tmp_path / "out", detectors=["spectral-signatures"], tap="flat")
    assert "class 1 has no training samples" in done.report["notes"]


def test_a_damaged_file_is_refused(train_file: Path, tmp_path: Path) -> None:
    data = train_file.read_bytes()
    for name, content in {"cut": data[: len(data) // 2], "text": b"hello", "empty": b""}.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(OnnxspectError, match="not a readable npz"):
            open_training_set(path)


def test_the_run_of_another_model_is_refused(
    train_file: Path, own_run: Path, planted_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(OnnxspectError, match="another model"):
        cleanse(planted_file, train_file, tmp_path / "out", run_folder=own_run)


def test_the_triggers_of_a_scan_are_used(train_file: Path, own_run: Path, model_file: Path, tmp_path: Path) -> None:
    truth = train_file.with_name("truth.npz")
    done = cleanse(model_file, train_file, tmp_path / "out", own_run, targets=[TARGET], truth=truth)
    assert [(t["method"], t["target"]) for t in done.report["triggers"]] == [
        ("reverse-engineering", TARGET),
        ("trigger-bearing", TARGET),
    ]
    assert not (tmp_path / "out" / "search").exists()  # nothing was searched again
    assert done.report["rates"]["tpr"] == 1.0
    assert done.report["rates"]["fpr"] == 0.0


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Path:
    """A finished scan of the tiny classifier with a backdoor."""
    folder = tmp_path_factory.mktemp("scan")
    samples, _ = poisoned_set(per_class=20, stamped=0)
    data = folder / "clean.npz"
    np.savez(data, images=np.round(samples.images[:, 0] * 255).astype(np.uint8), labels=samples.labels)
    scan(model_file, data, folder / "run", "quick", ["reverse-engineering"], SPEC)
    return folder / "run"
