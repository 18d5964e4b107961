"""Heaps of pictures as people have them, with the shipped model: read right, or refused with the way to go on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import CLASSES, SIDE, make_model, quadrant_images, quadrant_model, saved
from onnx import helper, numpy_helper
from PIL import Image

from onnxspect.cli.main import run as command_line
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.case import open_case
from onnxspect.engine.jobs.describe_data import describe_data
from onnxspect.engine.readers.labels import ClassList
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.datasets import Source
from onnxspect.engine.subject.preprocessing import Preflight, preflight
from onnxspect.engine.subject.resizing import Resize
from onnxspect.engine.subject.samples import Samples
from onnxspect.models import zoo

MODEL = zoo.path("fashion_mnist_clean")
NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


@pytest.fixture(scope="module")
def pictures(clean_samples: Samples) -> list[tuple[np.ndarray, int]]:
    """Twelve uint8 images of each class, and their labels."""
    images = np.round(clean_samples.images[:, 0] * 255).astype(np.uint8)
    return [(images[i], k) for k in range(10) for i in np.flatnonzero(clean_samples.labels == k)[:12]]


def written(
    root: Path, pictures: list[tuple[np.ndarray, int]], names: list[str] | tuple[str, ...], factor: int = 1
) -> Path:
    """PNG files by class; 16-bit ones where pixels are multiplied."""
    for i, (image, k) in enumerate(pictures):
        place = root / names[k]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image if factor == 1 else image.astype(np.uint16) * factor).save(place / f"{i:03d}.png")
    return root


def checked(data: Path | Source, resize: bool | Resize = False, model: Path = MODEL) -> tuple[Samples, Preflight]:
    """What a scan finds before it searches."""
    run = RunContext()
    case = open_case(model, data, None, run, resize)
    return case.samples, preflight(case.subject, case.samples, run, None, case.samples.order_given)


def test_folders_from_one_to_ten(pictures: list[tuple[np.ndarray, int]], tmp_path: Path) -> None:
    path = written(tmp_path / "data", pictures, [str(k + 1) for k in range(10)])
    with pytest.raises(
        OnnxspectError, match=r"label 10, .*: the labels count from 1; read so, \d\d\.\d% of the samples"
    ) as caught:
        checked(path)
    option = caught.value.hint.split()[1]
    assert caught.value.hint.startswith("--classes 1,2,3")
    samples, found = checked(Source(path, ClassList.of(option)))
    assert found.clean_accuracy > 0.85
    assert samples.names == tuple(str(k + 1) for k in range(10))


def test_folders_in_the_alphabets_order(pictures: list[tuple[np.ndarray, int]], tmp_path: Path) -> None:
    """What the message says to pass is what works."""
    path = written(tmp_path / "data", pictures, NAMES)
    with pytest.raises(OnnxspectError, match="in another order") as caught:
        checked(path)
    option = caught.value.hint.split("--classes ")[1]
    assert option == ",".join(NAMES)
    samples, found = checked(Source(path, ClassList.of(option)))
    assert found.clean_accuracy > 0.85
    assert samples.names == NAMES


def test_the_models_metadata_name_the_order(pictures: list[tuple[np.ndarray, int]], tmp_path: Path) -> None:
    model = onnx.load(str(MODEL))
    entry = model.metadata_props.add()
    entry.key, entry.value = "names", json.dumps(dict(enumerate(NAMES)))
    path = written(tmp_path / "data", pictures, NAMES)
    samples, found = checked(path, model=saved(model, tmp_path / "named.onnx"))
    assert found.clean_accuracy > 0.85
    assert any("labels follow the class names in the model's metadata" in note for note in samples.notes)


@pytest.mark.parametrize("factor", [257, 16])
def test_deep_pictures_are_scaled(pictures: list[tuple[np.ndarray, int]], tmp_path: Path, factor: int) -> None:
    samples, found = checked(written(tmp_path / "data", pictures, [str(k) for k in range(10)], factor))
    assert found.clean_accuracy > 0.85
    assert any("16-bit" in note or "more than 8 bits" in note for note in samples.notes)


def test_a_class_one_level_deeper_is_read(pictures: list[tuple[np.ndarray, int]], tmp_path: Path) -> None:
    path = written(tmp_path / "data", pictures, [str(k) for k in range(10)])
    (path / "9").rename(tmp_path / "inner")
    (path / "9").mkdir()
    (tmp_path / "inner").rename(path / "9" / "images")
    samples, _ = checked(path)
    assert len(samples) == 120
    assert any("class folders 9 were read too" in note for note in samples.notes)


def test_medmnists_keys(pictures: list[tuple[np.ndarray, int]], tmp_path: Path) -> None:
    images, labels = np.stack([p for p, _ in pictures]), np.array([[k] for _, k in pictures])
    arrays = {
        f"{part}_{kind}": a for part in ("train", "val", "test") for kind, a in (("images", images), ("labels", labels))
    }
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    samples, found = checked(tmp_path / "a.npz")
    assert found.clean_accuracy > 0.85
    assert any("only test_images and test_labels were read" in note for note in samples.notes)


def test_pictures_of_any_size_and_aspect(pictures: list[tuple[np.ndarray, int]], tmp_path: Path) -> None:
    """Two or three times as wide as high: what was trained on stretched pictures is nothing in their central square."""
    path = tmp_path / "data"
    for i, (image, k) in enumerate(pictures):
        (path / str(k)).mkdir(parents=True, exist_ok=True)
        side = 28 * (1 + i % 2)
        large = Image.fromarray(image).resize((side * (2 + i % 3), side), Image.Resampling.NEAREST)
        large.save(path / str(k) / f"{i}.png")
    with pytest.raises(OnnxspectError, match="the model takes 28x28") as caught:
        checked(path)
    assert "--resize" in caught.value.hint
    samples, found = checked(path, resize=True)
    assert found.clean_accuracy > 0.8
    assert any("stretched to 28x28 was taken" in note for note in samples.notes)
    np.testing.assert_array_equal(samples.images, checked(path, resize=Resize("stretch"))[0].images)
    for wrong, said in ((Resize("crop", 20), "--resize 28"), (Resize("stretch", crop=24), "--crop 28")):
        with pytest.raises(OnnxspectError) as caught:
            open_case(MODEL, path, resize=wrong)
        assert said in caught.value.hint


def test_a_margin_is_cut_from_the_centre(tmp_path: Path) -> None:
    """--resize 256 --crop 224 in small: the shorter side to 32, of which 28 are taken."""
    inner = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    (tmp_path / "data" / "0").mkdir(parents=True)
    Image.fromarray(np.pad(inner, ((2, 2), (6, 6)))).save(tmp_path / "data" / "0" / "wide.png")
    samples = Samples.load(tmp_path / "data", (1, 28, 28), Resize("crop", 32, 28))
    np.testing.assert_array_equal(np.round(samples.images[0, 0] * 255), inner)
    assert any("shorter side to 32 pixels, then the central 28x28" in note for note in samples.notes)


def test_sizes_for_a_model_that_takes_any(tmp_path: Path) -> None:
    nodes = [helper.make_node("GlobalAveragePool", ["image"], ["m"]), helper.make_node("Flatten", ["m"], ["logits"])]
    model = saved(make_model(nodes, shape=("N", 3, "h", "w"), out=("N", 3)), tmp_path / "any.onnx")
    rng = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / "data" / str(i % 3)).mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 100, (20 + 4 * (i > 8), 20, 3), np.uint8)
        image[..., i % 3] += 100
        Image.fromarray(image).save(tmp_path / "data" / str(i % 3) / f"{i}.png")
    with pytest.raises(OnnxspectError, match=r"20x24.*is 20x20") as caught:
        checked(tmp_path / "data", model=model)
    assert "--resize" in caught.value.hint
    samples, found = checked(tmp_path / "data", resize=True, model=model)
    assert samples.shape == (3, 20, 20)
    assert found.clean_accuracy == 1.0
    assert any("20x20, the size of 9 of 12, was chosen" in note for note in samples.notes)
    assert checked(tmp_path / "data", resize=Resize("crop", 18, 16), model=model)[0].shape == (3, 16, 16)


def test_grey_arrays_for_a_colour_model(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["logits"]),
    ]
    model = saved(make_model(nodes, [weight], ("N", 3, 6, 6), ("N", 3)), tmp_path / "rgb.onnx")
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 6, 6), np.uint8), labels=np.array([0, 1, 2, 0]))
    samples = open_case(model, tmp_path / "a.npz").samples
    assert samples.shape == (3, 6, 6)
    assert any("are grey" in note for note in samples.notes)


def test_what_was_guessed_is_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny world as 12-bit pictures in folders by name, scanned by a detector that costs nothing."""
    model = saved(quadrant_model(), tmp_path / "tiny.onnx")
    samples = quadrant_images(30)
    for i, (image, k) in enumerate(zip(samples.images[:, 0], samples.labels, strict=True)):
        place = tmp_path / "data" / f"q{k}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(image * 4095).astype(np.uint16)).save(place / f"{i}.png")
    (tmp_path / "data" / "q0" / "read.me").write_text("no image")
    arguments = ["scan", str(model), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "-q", "--json"]
    assert command_line([*arguments, "--detector", "max-margin"]) == 3
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("read as 12-bit" in n for n in notes)
    assert any("alphabetical order" in n for n in notes)
    assert any("left out (.me 1)" in n for n in notes)


def test_what_a_data_set_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = quadrant_images(3)
    images = np.round(samples.images[:, 0] * 255).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=samples.labels)
    facts = describe_data(
        tmp_path / "a.npz", ClassList(("a", "b", "c", "d", "e"), "given"), pictures=tmp_path / "five.png"
    )
    assert facts["images"] == 3 * CLASSES
    assert [(c["name"], c["images"]) for c in facts["classes"]] == [("a", 3), ("b", 3), ("c", 3), ("d", 3), ("e", 0)]
    assert facts["sizes"] == {f"{SIDE}x{SIDE}, grey": 12}
    assert {s["class"] for s in facts["shown"]} == {0, 1, 2, 3}
    with Image.open(tmp_path / "five.png") as sheet:
        assert sheet.size == (5 * 128, 128)
    assert command_line(["data", str(tmp_path / "a.npz"), "--classes", "a,b,c,d"]) == 0
    assert "12 of 4 classes" in capsys.readouterr().out
    assert command_line(["data", str(tmp_path / "a.npz"), "--classes", "a,b"]) == 2
    assert "names 2 classes" in capsys.readouterr().err
    assert command_line(["data", "hf://mnist"]) == 2
    assert "stays off the network" in capsys.readouterr().err
