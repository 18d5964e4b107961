"""Every form that people keep labelled pictures in gives the same images and labels; what is hostile or wrong is named."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data_forms import COLOUR, FORMS, GREY, LABELS, NAMES, as_folder, cifar_pickles, matlab, png

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.readers import npz
from onnxspect.engine.readers.forms import open_reader
from onnxspect.engine.readers.labels import ClassList
from onnxspect.engine.readers.reader import Asked, Reader
from onnxspect.engine.subject.class_order import Order


def check(reader: Reader, images: np.ndarray = COLOUR, names: tuple[str, ...] | None = NAMES) -> None:
    """The same pairs, in whatever order; rows one by one are the same as all together."""
    stored = images if images.ndim == 4 else images[..., None]
    found = list(reader.images())
    assert len(found) == len(reader.labels) == len(stored)
    expected = {(int(label), image.tobytes()) for label, image in zip(LABELS, stored, strict=True)}
    assert {(int(label), image.tobytes()) for label, image in zip(reader.labels, found, strict=True)} == expected
    assert all(image.shape == stored.shape[1:] and image.dtype == np.uint8 for image in found)
    if names is not None:
        assert reader.names == names
    some = list(reader.images([7, 2]))
    assert [s.tobytes() for s in some] == [found[2].tobytes(), found[7].tobytes()]
    assert reader.fingerprint() == reader.fingerprint()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pairs(form: str, tmp_path: Path) -> None:
    path = FORMS[form](tmp_path / "data")
    reader = open_reader(path)
    check(reader)
    if form in ("parts", "parquet", "cifar pickles", "tfrecord"):
        assert any("the set is in parts" in note for note in reader.notes())
        train = open_reader(path, Asked(training=True))
        assert 0 < len(train.labels) < 12 or form == "tfrecord"


def test_forms_without_names(tmp_path: Path) -> None:
    mat = open_reader(matlab(tmp_path / "m"))
    check(mat, names=())
    assert any("last axis" in note for note in mat.notes())
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    header = struct.pack(">HBBIII", 0, 8, 3, *GREY.shape)
    (raw / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + GREY.tobytes()))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 12) + LABELS.astype(np.uint8).tobytes())
    check(open_reader(tmp_path), GREY, ())
    check(open_reader(raw / "t10k-images-idx3-ubyte.gz"), GREY, ())


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links")
def test_archives_follow_no_links(tmp_path: Path) -> None:
    as_folder(tmp_path / "data")
    (tmp_path / "data" / "ant" / "link.png").symlink_to("/etc/hostname")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "data", "../../data")
    reader = open_reader(tmp_path / "a.tar")
    check(reader)
    assert any("1 links" in note for note in reader.notes())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs")
def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    """By every name that a form of data is told by, in a folder that is otherwise whole, and where a file is asked for."""
    data = as_folder(tmp_path / "data")
    names = ("a.parquet", "a.arrow", "a.tfrecord", "t10k-images-idx3-ubyte", "metadata.csv", "dataset_dict.json")
    for name in (*names, "ant/a.png"):
        os.mkfifo(data / name)
    check(open_reader(data))
    os.mkfifo(tmp_path / "fifo")
    for ask in (lambda p: npz.arrays(p, "it"), ClassList.of, open_reader):
        with pytest.raises(OnnxspectError, match="regular file"):
            ask(tmp_path / "fifo")


# -- which class a word is -------------------------------------------------------------------------------------------


def test_given_classes_settle_the_order(tmp_path: Path) -> None:
    path = as_folder(tmp_path / "data")
    listed = tmp_path / "names.txt"
    listed.write_text("dog\ncat\nbee\nant\n")
    reader = open_reader(path, Asked(ClassList.of(listed)))
    words = [Path(f).parts[0] for f in reader.files]
    assert [("dog", "cat", "bee", "ant")[k] for k in reader.labels] == words
    assert not reader.ordered
    assert open_reader(path).ordered
    assert ClassList.of("dog,cat").names == ("dog", "cat")
    with pytest.raises(OnnxspectError, match=r"1 of its 3 class names are not in .*\(cat\)") as caught:
        open_reader(path, Asked(ClassList(("ant", "bee"), "names.txt")))
    assert "ant, bee" in caught.value.hint
    unsure = open_reader(path, Asked(ClassList(("ant", "bee"), "the model's metadata", certain=False)))
    assert any("not used for labels" in note for note in unsure.notes())


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a\nb\n\n", ("a", "b")),
        ('["a", "b"]', ("a", "b")),
        ('{"0": "a", "1": "b"}', ("a", "b")),
        ('{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}', ("n01440764 tench", "n01443537 goldfish")),
        ('{"a": 0, "b": 1}', ("a", "b")),
    ],
)
def test_lists_of_classes(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    (tmp_path / "names").write_text(text)
    assert ClassList.of(tmp_path / "names").names == names


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "no class names"), ("a\na\n", "is in it twice"), ('{"0": 1.5', "not valid JSON"), ('{"a": "b"}', "no list")],
)
def test_lists_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "names").write_text(text)
    with pytest.raises(OnnxspectError, match=said):
        ClassList.of(tmp_path / "names")


def test_some_classes_by_their_indices(tmp_path: Path) -> None:
    """What a scan says of ten folders of a hundred classes can be given back as it is."""
    listed = ClassList.of("ant=3,cat=7,bee=5")
    assert listed.names == ("class-0", "class-1", "class-2", "ant", "class-4", "bee", "class-6", "cat")
    reader = open_reader(as_folder(tmp_path / "data"), Asked(listed))
    assert {(reader.files[i].split("/")[0], int(k)) for i, k in enumerate(reader.labels)} == {
        ("ant", 3),
        ("bee", 5),
        ("cat", 7),
    }
    order = Order({0: 3, 1: 5, 2: 7}, 1.0, 0.0)
    assert order.option(NAMES, 100) == "--classes ant=3,bee=5,cat=7"
    with pytest.raises(OnnxspectError, match="twice"):
        ClassList.of("ant=3,bee=3")
    assert ClassList.of("a=b,c").names == ("a=b", "c")


def test_a_list_of_names_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("id,label\n../../etc/passwd,ant\n")
    with pytest.raises(OnnxspectError, match=r"outside the list's folder"):
        open_reader(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("id,label\nmissing,ant\n")
    with pytest.raises(OnnxspectError, match="row 2: missing: no such file"):
        open_reader(tmp_path / "list.csv")


def test_synsets_are_found_in_their_lines(tmp_path: Path) -> None:
    path = as_folder(tmp_path / "data", ("n01440773", "n02000000", "n03000000"))
    given = ClassList(("n03000000 c", "x", "n01440773 a, b", "n02000000"), "given")
    reader = open_reader(path, Asked(given))
    assert {Path(f).parts[0]: int(k) for f, k in zip(reader.files, reader.labels, strict=True)} == {
        "n01440773": 2,
        "n02000000": 3,
        "n03000000": 0,
    }


def test_imagenets_own_synsets_are_known(tmp_path: Path) -> None:
    reader = open_reader(as_folder(tmp_path / "data", ("n01440764", "n01443537", "n15075141")))
    assert set(reader.labels.tolist()) == {0, 1, 999}
    assert len(reader.names) == 1000
    assert any("ImageNet's synsets" in note for note in reader.notes())


def test_numbers_move_where_a_list_orders_them() -> None:
    from onnxspect.engine.readers.labels import of_numbers

    labels = np.array([0, 1, 2, 1])
    assert of_numbers(labels, (), ClassList(("2", "0", "1"), "given"), "d").labels.tolist() == [1, 2, 0, 2]
    assert of_numbers(labels, ("a", "b", "c"), ClassList(("b", "c", "a"), "given"), "d").labels.tolist() == [2, 0, 1, 0]
    named = of_numbers(labels, (), ClassList(("x", "y", "z"), "given"), "d")
    assert (named.labels.tolist(), named.names) == ([0, 1, 2, 1], ("x", "y", "z"))
    with pytest.raises(OnnxspectError, match="label 2, but given names 2 classes"):
        of_numbers(labels, (), ClassList(("x", "y"), "given"), "d")


def test_what_lies_beside_is_named(tmp_path: Path) -> None:
    path = as_folder(tmp_path / "data")
    (path / "dog").mkdir()
    (path / "ant" / "drawing.eps").write_text("%!PS")
    (path / "loose.png").write_bytes(png(COLOUR[0]))
    (path / "bee" / "more").mkdir()
    (path / "bee" / "more" / "x.png").write_bytes(png(COLOUR[0]))
    reader = open_reader(path)
    notes = " / ".join(reader.notes())
    assert "class folders without an image: dog" in notes
    assert "1 files of no image format that is read were left out (.eps 1)" in notes
    assert "1 images that lie in no class folder" in notes
    assert "images in folders inside the class folders bee were read too" in notes
    assert len(reader.labels) == 13
    assert reader.names == ("ant", "bee", "cat", "dog")


# -- what is wrong or hostile ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("hf://mnist", "huggingface-cli download --repo-type dataset mnist"),
        ("https://huggingface.co/datasets/a/b", "dataset a/b"),
        ("https://example.org/x.zip", "curl -LO https://example.org/x.zip"),
    ],
)
def test_addresses_are_not_fetched(path: str, said: str) -> None:
    for given in (path, Path(path)):
        with pytest.raises(OnnxspectError, match="stays off the network") as caught:
            open_reader(given)
        assert said in caught.value.hint


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("exit 1",))


def test_a_pickle_that_would_run_something_is_named_and_not_run(tmp_path: Path) -> None:
    root = cifar_pickles(tmp_path / "data")
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({b"data": _Bomb()}, protocol=2))
    with pytest.raises(OnnxspectError, match=r"asks for (posix|nt)\.system") as caught:
        open_reader(root)
    assert "not run" in caught.value.hint


def test_a_declared_size_is_compared_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (1, 2**17, 2**17, 3)}
    )
    small = io.BytesIO()
    np.save(small, np.zeros(1, np.int64))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(1000))
        archive.writestr("labels.npy", small.getvalue())
    monkeypatch.setenv("ONNXSPECT_MAX_DATA_BYTES", str(2**30))
    with pytest.raises(OnnxspectError, match=r"48\.0 GiB, more than the limit of 1\.0 GiB") as caught:
        open_reader(tmp_path / "a.npz")
    assert "ONNXSPECT_MAX_DATA_BYTES" in caught.value.hint
    with pytest.raises(OnnxspectError, match=r"a\.npz: images: an array of shape .* 48\.0 GiB"):
        npz.arrays(tmp_path / "a.npz", "a.npz")
    monkeypatch.setenv("ONNXSPECT_MAX_DATA_BYTES", "many")
    with pytest.raises(OnnxspectError, match="not a whole number"):
        open_reader(tmp_path / "a.npz")


def test_a_list_names_nothing_outside_its_folder(tmp_path: Path) -> None:
    as_folder(tmp_path / "other")
    (tmp_path / "data").mkdir()
    for name, said in (("../other/ant/00.png", "outside the list's folder"), ("none.png", "no such file")):
        (tmp_path / "data" / "a.csv").write_text(f"file,label\n{name},1\n")
        with pytest.raises(OnnxspectError, match=said):
            open_reader(tmp_path / "data" / "a.csv")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "no rows"),
        ("a.csv", b"file,colour\na.png,1\n", "which columns are files and labels"),
        ("a.jsonl", b"{", "not a readable list"),
        ("a.mat", b"nothing", "not a readable .mat"),
        ("a.mat", b"\x89HDF\r\n\x1a\n" + bytes(600), "-v7.3"),
        ("a.tfrecord", b"\xff" * 100, "not a readable TFRecord"),
        ("a.tfrecord", struct.pack("<Q", 3) + b"\0\0\0\0abc\0\0\0\0", "not a tf.train.Example"),
        ("a.parquet", b"PAR1 no more", "cannot be read"),
        ("a.zip", b"PK\x03\x04" + bytes(50), "not a readable npz"),
        ("t10k-images-idx3-ubyte", b"\0\0\x08\x03", "labels are not beside it"),
    ],
)
def test_damaged_files_are_a_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OnnxspectError, match=said) as caught:
        open_reader(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["zip", "tar.gz", "csv", "parquet", "cifar pickles", "tfrecord", "npz"])
def test_mutants_are_read_or_refused(form: str, tmp_path: Path) -> None:
    path = FORMS[form](tmp_path / "data")
    target = (
        next(p for p in (path, *sorted(path.rglob("*"))) if p.is_file() and "meta" not in p.name)
        if path.is_dir()
        else path
    )
    whole, rng = target.read_bytes(), np.random.default_rng(3)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        target.write_bytes(data[: int(rng.integers(1, len(data)))] if rng.random() < 0.3 else data)
        with contextlib.suppress(OnnxspectError):  # anything else is a crash
            for _ in open_reader(path).images():
                pass
