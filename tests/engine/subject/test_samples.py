"""Clean samples from arrays, npz files and folders: every accepted form, and one line for every refused one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tolerances import OPERATION_32

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.subject.samples import Samples

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 5, 4, 1), np.uint8)
COLOUR = RNG.integers(0, 256, (6, 5, 4, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def folder(path: Path, names: list[str], per_class: int = 2, mode: str = "RGB", size: tuple[int, int] = (4, 5)) -> Path:
    """`per_class` PNG images in each class folder; image i of class k is even grey 10 k + i."""
    for k, name in enumerate(names):
        (path / name).mkdir(parents=True)
        for i in range(per_class):
            value = 10 * k + i
            colour = value if mode == "L" else (value, value, value, 255)[: len(mode)]
            Image.new(mode, size, colour).save(path / name / f"{i}.png")
    return path


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_every_layout_gives_the_same_pixels(images: np.ndarray) -> None:
    expected = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    unit = (images / np.float32(255)).astype(np.float32)
    forms = [images, images.astype(np.int64), unit, unit.astype(np.float64), unit.transpose(0, 3, 1, 2)]
    if images.shape[-1] == 1:
        forms += [images[..., 0], unit[..., 0]]
    for form in forms:
        samples = Samples.from_arrays(form, LABELS)
        assert samples.images.dtype == np.float32
        assert samples.labels.dtype == np.int64
        assert samples.shape == (images.shape[-1], 5, 4)
        np.testing.assert_array_equal(samples.images, expected)


def test_hash_is_of_the_content(tmp_path: Path) -> None:
    a = Samples.load(npz(tmp_path / "a.npz", images=COLOUR, labels=LABELS))
    b = Samples.load(npz(tmp_path / "b.npz", labels=LABELS.astype(np.uint8), images=COLOUR, note=np.zeros(3)))
    assert a.sha256 == b.sha256
    changed = COLOUR.copy()
    changed[0, 0, 0, 0] ^= 1
    assert Samples.from_arrays(changed, LABELS).sha256 != a.sha256
    assert Samples.from_arrays(COLOUR, LABELS[::-1].copy()).sha256 != a.sha256


def test_npz(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", images=GREY, labels=LABELS, classes=np.array(["cat", "dög", "<b>"]))
    samples = Samples.load(path, (1, 5, 4))
    assert samples.names == ("cat", "dög", "<b>")
    assert samples.path == str(path)
    assert len(samples) == 6


def test_npz_keys(tmp_path: Path) -> None:
    other = npz(tmp_path / "b.npz", x_train=GREY[:4], y_train=LABELS[:4], x_test=GREY, y_test=LABELS)
    assert len(Samples.load(other)) == 6
    assert len(Samples.load(other, training=True)) == 4
    with pytest.raises(OnnxspectError, match=r"no `images` and `labels` in it \(found data, targets\)"):
        Samples.load(npz(tmp_path / "c.npz", data=GREY, targets=LABELS))
    with pytest.raises(OnnxspectError, match="found nothing"):
        Samples.load(npz(tmp_path / "d.npz"))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (LABELS.astype(np.uint8), LABELS),
        (LABELS.astype(np.float32), LABELS),
        (LABELS[:, None], LABELS),
        (np.eye(3)[LABELS], LABELS),
    ],
    ids=["uint8", "whole floats", "column", "one-hot"],
)
def test_accepted_labels(labels: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(Samples.from_arrays(GREY, labels).labels, expected)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.eye(3)[LABELS] * 0.5, "their rows are not one-hot"),
        (LABELS - 1, "label -1 is negative"),
        (LABELS + 0.5, "not integers"),
        (np.where(LABELS == 0, np.nan, LABELS), "not integers"),
        (np.array(["a"] * 6), "not integers"),
        (LABELS[:5], "6 images but 5 labels"),
        (np.array(3), r"labels have shape \(\)"),
    ],
    ids=["rows", "negative", "halves", "nan", "text", "too few", "scalar"],
)
def test_refused_labels(labels: np.ndarray, said: str) -> None:
    with pytest.raises(OnnxspectError, match=said) as caught:
        Samples.from_arrays(GREY, labels, path="data.npz")
    assert caught.value.message.startswith("data.npz: ")


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (GREY.astype(np.float32), "float pixels span"),
        (GREY / 127.5 - 1, "float pixels span"),
        (np.where(GREY.max() == GREY, np.nan, GREY / 255), "NaN or infinity"),
        (np.where(GREY.max() == GREY, np.inf, GREY / 255), "NaN or infinity"),
        (GREY.astype(np.int32) * 2, "outside 0..255"),
        (GREY.astype(np.int32) - 1, "outside 0..255"),
        (np.zeros((6, 5, 4, 4), np.uint8), "alpha"),
        (np.zeros((6, 5, 4, 2), np.uint8), "neither 1 nor 3 channels"),
        (np.zeros((6, 20), np.uint8), "2 axes"),
        (np.zeros((6, 5, 4, 3, 1), np.uint8), "5 axes"),
        (np.zeros((6, 5, 4, 3), np.complex64), "not uint8 or float"),
        (np.full((6, 5, 4, 3), "x"), "not uint8 or float"),
        (np.zeros((0, 5, 4, 3), np.uint8), "but 6 labels"),
    ],
    ids=["0..255", "-1..1", "nan", "inf", "above", "below", "alpha", "two", "flat", "five", "complex", "text", "none"],
)
def test_refused_images(images: np.ndarray, said: str) -> None:
    with pytest.raises(OnnxspectError, match=said) as caught:
        Samples.from_arrays(images, LABELS)
    assert "\n" not in str(caught.value)


def test_no_images_at_all() -> None:
    with pytest.raises(OnnxspectError, match="no images"):
        Samples.from_arrays(GREY[:0], LABELS[:0])


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code of the file was run')",))


@pytest.mark.parametrize("key", ["images", "labels", "classes"])
def test_pickled_objects_are_never_loaded(tmp_path: Path, key: str) -> None:
    arrays: dict[str, np.ndarray] = {"images": GREY, "labels": LABELS}
    arrays[key] = np.array([_Bomb()] * 6, object)
    np.savez(tmp_path / "a.npz", allow_pickle=True, **arrays)
    with pytest.raises(OnnxspectError, match="not a readable npz"):
        Samples.load(tmp_path / "a.npz")


def test_other_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GREY)
    with pytest.raises(OnnxspectError, match=r"\.npy array"):
        Samples.load(tmp_path / "a.npy")
    for name, data in {"text.npz": b"hello", "empty.npz": b"", "zip.npz": b"PK\x03\x04" + b"\0" * 50}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(OnnxspectError, match=f"{name}: not a readable npz"):
            Samples.load(tmp_path / name)
    with pytest.raises(OnnxspectError, match="no such file"):
        Samples.load(tmp_path / "nothing.npz")


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_npz_is_refused_or_read_never_crashes(tmp_path: Path, compressed: bool) -> None:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(
        buffer, images=np.repeat(COLOUR, 4, 0), labels=np.repeat(LABELS, 4)
    )
    whole = buffer.getvalue()
    rng = np.random.default_rng(1)
    path, refused, lines = tmp_path / "a.npz", 0, 0
    crashes: dict[str, int] = {}
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data[: int(rng.integers(1, len(data)))] if rng.random() < 0.2 else data)
        try:
            Samples.load(path)
        except OnnxspectError as error:
            refused += 1
            lines = max(lines, str(error).count("\n") + 1)
        except Exception as error:  # whatever it is, a user would see a traceback
            crashes[f"{type(error).__name__}: {error}"[:100]] = crashes.get(type(error).__name__, 0) + 1
    assert not crashes
    assert refused > 50
    assert lines == 1


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 1000),
)
def test_split(labels: list[int], fraction: float, seed: int) -> None:
    n = len(labels)
    images = (np.arange(n, dtype=np.float32) / n).reshape(n, 1, 1, 1)
    samples = Samples(images, np.array(labels), files=tuple(f"{i}.png" for i in range(n)), path="p", sha256="s")
    a, b = samples.split(fraction, np.random.default_rng(seed))
    assert sorted([*a.images.ravel(), *b.images.ravel()]) == sorted(images.ravel())
    for part in (a, b):
        assert (part.path, part.sha256) == ("p", "s")
        for image, label, file in zip(part.images.ravel(), part.labels, part.files, strict=True):
            row = int(file.split(".")[0])
            assert label == labels[row]
            assert image == images[row, 0, 0, 0]
    for k in set(labels):
        count = labels.count(k)
        in_a = int((a.labels == k).sum())
        if count > 1:
            assert in_a == min(int(np.ceil(fraction * count)), count - 1)
            assert 1 <= in_a < count
    alone = [k for k in set(labels) if labels.count(k) == 1]
    assert np.isin(a.labels, alone).sum() == int(np.ceil(fraction * len(alone)))
    again, _ = samples.split(fraction, np.random.default_rng(seed))
    assert again.files == a.files


def test_split_depends_on_its_generator() -> None:
    samples = Samples.from_arrays(np.zeros((100, 4, 4), np.uint8), np.arange(100) % 4)
    samples = Samples(samples.images, samples.labels, files=tuple(map(str, range(100))))
    parts = {samples.split(0.5, np.random.default_rng(s))[0].files for s in range(5)}
    assert len(parts) == 5


def test_take() -> None:
    samples = Samples.from_arrays(GREY, LABELS)
    taken = samples.take(np.array([4, 0]))
    assert taken.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(taken.images, samples.images[[4, 0]])


@pytest.mark.parametrize(
    ("names", "labels", "by_index"),
    [
        (["cat", "ant", "bee"], {"ant": 0, "bee": 1, "cat": 2}, ("ant", "bee", "cat")),
        (["2", "0", "10"], {"2": 2, "0": 0, "10": 10}, None),
        (["03_stop", "1-go", "2"], {"03_stop": 3, "1-go": 1, "2": 2}, ("0", "1-go", "2", "03_stop")),
        (["1_a", "1_b"], {"1_a": 0, "1_b": 1}, ("1_a", "1_b")),
    ],
    ids=["named", "numbered", "leading numbers", "ambiguous numbers"],
)
def test_folder(tmp_path: Path, names: list[str], labels: dict[str, int], by_index: tuple[str, ...] | None) -> None:
    samples = Samples.load(folder(tmp_path / "data", names))
    assert len(samples) == 2 * len(names)
    assert samples.shape == (3, 5, 4)
    for file, label, image in zip(samples.files, samples.labels, samples.images, strict=True):
        name, number = Path(file).parts
        assert label == labels[name]
        np.testing.assert_allclose(image, (10 * names.index(name) + int(number[0])) / 255, rtol=OPERATION_32)
    if by_index is not None:
        assert samples.names == by_index
    else:
        assert samples.names == tuple(map(str, range(11)))


def test_folder_channels(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", ["a", "b"], mode="L")
    assert Samples.load(path).shape == (1, 5, 4)
    assert Samples.load(path, (3, 5, 4)).shape == (3, 5, 4)
    alpha = folder(tmp_path / "alpha", ["a", "b"], mode="RGBA")
    samples = Samples.load(alpha)
    assert samples.shape == (3, 5, 4)
    np.testing.assert_allclose(samples.images[-1], 11 / 255, rtol=OPERATION_32)
    assert Samples.load(alpha, (1, 5, 4)).shape == (1, 5, 4)


def test_folder_of_mixed_images(tmp_path: Path) -> None:
    """A model with open sizes takes what the folder has; a folder that has several sizes or depths is reported."""
    sizes = folder(tmp_path / "sizes", ["a", "b"])
    Image.new("RGB", (7, 7)).save(sizes / "a" / "other.png")
    with pytest.raises(OnnxspectError, match=r"other\.png|size"):
        Samples.load(sizes)
    depths = folder(tmp_path / "depths", ["a", "b"])
    Image.new("L", (4, 5)).save(depths / "a" / "other.png")
    with pytest.raises(OnnxspectError):
        Samples.load(depths)


def test_folder_ignores_what_is_no_image(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", ["a", "b"])
    (path / "README.txt").write_text("hello")
    (path / "a" / "notes.txt").write_text("hello")
    (path / ".cache").mkdir()
    assert len(Samples.load(path)) == 4


def test_folder_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(OnnxspectError, match="an empty folder"):
        Samples.load(tmp_path / "empty")
    (tmp_path / "bare" / "a").mkdir(parents=True)
    with pytest.raises(OnnxspectError, match="no images in its 1 folders"):
        Samples.load(tmp_path / "bare")
    broken = folder(tmp_path / "broken", ["a", "b"])
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(buffer, "PNG")
    whole = buffer.getvalue()
    for data in (b"no image", b"", whole[:40], whole[: len(whole) // 2]):
        (broken / "a" / "1.png").write_bytes(data)
        with pytest.raises(OnnxspectError, match=r"1\.png: not a readable image"):
            Samples.load(broken)


@pytest.mark.filterwarnings("ignore::UserWarning")  # what Pillow says of damaged TIFF tags
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tif", "webp"])
def test_damaged_image_is_refused_or_read_never_crashes(tmp_path: Path, suffix: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)).save(
        buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix)
    )
    whole, rng = buffer.getvalue(), np.random.default_rng(2)
    path = tmp_path / "data" / "a"
    path.mkdir(parents=True)
    crashes: dict[str, int] = {}
    unnamed = 0
    for _ in range(150):
        data = bytearray(whole)
        data[int(rng.integers(min(len(data), 200)))] ^= 1 << int(rng.integers(8))
        (path / f"i.{suffix}").write_bytes(data)
        try:
            Samples.load(tmp_path / "data", (3, 12, 12), resize=True)
        except OnnxspectError as error:
            unnamed += f"i.{suffix}" not in str(error)
        except Exception as error:  # whatever it is, a user would see a traceback
            crashes[f"{type(error).__name__}: {error}"[:100]] = crashes.get(type(error).__name__, 0) + 1
    assert not crashes
    assert not unnamed


def test_size_is_checked(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", images=COLOUR, labels=LABELS)
    with pytest.raises(OnnxspectError, match="4x5 with 3 channels, the model takes 8x8 with 3 channels") as caught:
        Samples.load(path, (3, 8, 8))
    assert "--resize" in caught.value.hint
    for resize in (False, True):
        with pytest.raises(OnnxspectError, match="takes 4x5 with 1 channel") as caught:
            Samples.load(path, (1, 5, 4), resize=resize)
        assert "colour channels" in caught.value.hint
    with pytest.raises(OnnxspectError, match=r"png: 4x5, the model takes 8x8"):
        Samples.load(folder(tmp_path / "data", ["a", "b"]), (3, 8, 8))


def test_resize(tmp_path: Path) -> None:
    samples = Samples.load(npz(tmp_path / "a.npz", images=COLOUR, labels=LABELS), (3, 8, 8), resize=True)
    assert samples.shape == (3, 8, 8)
    np.testing.assert_array_equal(samples.labels, LABELS)
    data = folder(tmp_path / "data", ["a", "b"], size=(9, 6))
    resized = Samples.load(data, (3, 4, 4), resize=True)
    assert resized.shape == (3, 4, 4)
    np.testing.assert_allclose(resized.images[0], 0.0)
    np.testing.assert_allclose(resized.images[-1], 11 / 255, rtol=OPERATION_32)


def test_resize_takes_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((2, 4, 12, 1), np.uint8)
    wide[:, :, 4:8] = 200
    resized = Samples.load(npz(tmp_path / "a.npz", images=wide, labels=np.array([0, 1])), (1, 4, 4), resize=True)
    np.testing.assert_allclose(resized.images, 200 / 255, rtol=OPERATION_32)
    untouched = Samples.load(npz(tmp_path / "b.npz", images=COLOUR, labels=LABELS), (3, 5, 4), resize=True)
    np.testing.assert_array_equal(untouched.images, Samples.from_arrays(COLOUR, LABELS).images)
