"""Heaps of pictures as people keep them: what is read of each, and what is refused with the next step."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from onnxspect.converters.errors import OnnxspectError
from onnxspect.engine.jobs.describe_data import describe_data
from onnxspect.engine.readers.labels import ClassList
from wild_files.wild_file import Became

HEADING = "Data, as people keep it"
NAMES = ("ant", "bee", "cat")
LABELS = np.arange(12) % 3
COLOUR = np.random.default_rng(0).integers(0, 256, (12, 10, 10, 3), np.uint8)
GREY = COLOUR[..., 0]


@dataclass(frozen=True)
class Heap:
    """A data set as somebody keeps it.

    Attributes:
        name: what it is, in words.
        make: writes it into an empty folder and gives its path.
        works: what is right: read, or refused by name with the next step.
        training, classes: as the command's options.
    """

    name: str
    make: Callable[[Path], Path | str]
    works: bool = True
    training: bool = False
    classes: str = ""


def outcome(heap: Heap, folder: Path) -> Became:
    """What `onnxspect data` says of it."""
    path = heap.make(folder)
    try:
        found = describe_data(path, ClassList.of(heap.classes) if heap.classes else None, heap.training)
    except OnnxspectError as error:
        return Became(False, _plain(error.message, path, folder), _plain(error.hint, path, folder))
    counts = ", ".join(f"{c['name']} {c['images']}" for c in found["classes"] if c["images"])
    sizes = "; ".join(found["sizes"])
    return Became(
        True, f"{found['form']}: {counts} ({sizes})", "", tuple(_plain(n, path, folder) for n in found["notes"])
    )


def _plain(text: str, path: Path | str, folder: Path) -> str:
    return (
        text.replace(f"{path}: ", "").replace(f"{path}/", "").replace(f"{folder}/", "").replace(str(folder), "FOLDER")
    )


def _picture(image: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    held = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(held, kind, **options)
    return held.getvalue()


def _written(files: dict[str, bytes], root: Path) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def _by_class(pattern: str = "{name}/{i:02d}.png", names: Sequence[str] = NAMES, kind: str = "PNG") -> dict[str, bytes]:
    """Files by a pattern of the class's name and the picture's number."""
    return {
        pattern.format(name=names[k], i=i): _picture(image, kind)
        for i, (image, k) in enumerate(zip(COLOUR, LABELS, strict=True))
    }


def _folder(files: Callable[[], dict[str, bytes]], below: str = "") -> Callable[[Path], Path]:
    return lambda folder: _written(files(), folder / "data") / below


def _numbered(*names: str) -> Callable[[Path], Path]:
    return _folder(lambda: _by_class(names=names))


def _list(
    head: str, row: str, name: str = "labels.csv", pattern: str = "images/{i:02d}.png", whole: bool = False
) -> Callable[[Path], Path]:
    """Pictures in one folder, and a list of them; `whole` gives the folder, not the list."""

    def make(folder: Path) -> Path:
        files = _by_class(pattern)
        lines = [
            row.format(name=NAMES[k], k=k, i=i, file=f, stem=Path(f).stem, base=Path(f).name)
            for i, (f, k) in enumerate(zip(files, LABELS, strict=True))
        ]
        files[name] = "\n".join([*([head] if head else []), *lines, ""]).encode()
        root = _written(files, folder / "data")
        return root if whole else root / name

    return make


def _one_hot(folder: Path) -> Path:
    files = _by_class("images/{i:02d}.png")
    rows = [
        f"{Path(f).stem},{','.join('1.0' if j == k else '0.0' for j in range(3))}"
        for f, k in zip(files, LABELS, strict=True)
    ]
    return (
        _written(files | {"labels.csv": "\n".join(["image,ant,bee,cat", *rows]).encode()}, folder / "data")
        / "labels.csv"
    )


def _npz(**arrays: np.ndarray) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]
        return folder / "data.npz"

    return make


def _archive(kind: str, files: Callable[[], dict[str, bytes]]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"data.{kind}"
        if kind == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in files().items():
                    archive.writestr(name, data)
            return path
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as packed:
            for name, data in files().items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                packed.addfile(member, io.BytesIO(data))
        return path

    return make


def _idx(prefix: str, suffix: str = "") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import struct

        images = struct.pack(">IIII", 2051, 12, 10, 10) + GREY.tobytes()
        labels = struct.pack(">II", 2049, 12) + LABELS.astype(np.uint8).tobytes()
        pack = gzip.compress if suffix else bytes
        files = {f"{prefix}images-idx3-ubyte{suffix}": pack(images), f"{prefix}labels-idx1-ubyte{suffix}": pack(labels)}
        return _written(files, folder / "raw")

    return make


def _one_batch(folder: Path) -> Path:
    data = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}
    (folder / "data_batch_1").write_bytes(pickle.dumps(data, protocol=2))
    return folder / "data_batch_1"


def _parquet(**columns: Callable[[int], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({name: [value(i) for i in range(12)] for name, value in columns.items()})
        pyarrow.parquet.write_table(table, folder / "train-00000-of-00001.parquet")
        return folder

    return make


def _cache_of_the_hub(folder: Path) -> Path:
    """What huggingface_hub keeps: snapshots of a repository by commit."""
    place = folder / "datasets--me--insects" / "snapshots" / "0123" / "data"
    place.mkdir(parents=True)
    _parquet(image=lambda i: {"bytes": _picture(COLOUR[i]), "path": None}, label=lambda i: int(LABELS[i]))(place)
    return folder / "datasets--me--insects"


def _mat(**arrays: np.ndarray) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from scipy.io import savemat

        savemat(folder / "data.mat", arrays)
        return folder / "data.mat"

    return make


def _as(kind: str) -> dict[str, bytes]:
    """A folder by class, with one kind of picture that the common loaders pass over without a word."""
    files = {}
    for i, (image, k) in enumerate(zip(COLOUR, LABELS, strict=True)):
        grey = image[..., 0]
        suffix, data = "png", b""
        if kind == "16 bits":
            data = _picture(grey.astype(np.uint16) * 257)
        elif kind == "12 bits":
            data = _picture(grey.astype(np.uint16) * 16)
        elif kind == "float":
            suffix, data = "tif", _picture(Image.fromarray((grey / 255).astype(np.float32)), "TIFF")
        elif kind == "float to 255":
            suffix, data = "tif", _picture(Image.fromarray(grey.astype(np.float32)), "TIFF")
        elif kind == "palette":
            data = _picture(Image.fromarray(image).convert("P"))
        elif kind == "alpha":
            data = _picture(Image.fromarray(image).convert("RGBA"))
        elif kind == "one bit":
            data = _picture(Image.fromarray(grey).convert("1"))
        elif kind == "cmyk":
            suffix, data = "jpg", _picture(Image.fromarray(image).convert("CMYK"), "JPEG")
        elif kind == "rotation":
            held = Image.fromarray(image)
            exif = held.getexif()
            exif[0x0112] = 6
            suffix, data = "jpg", _picture(held, "JPEG", exif=exif)
        elif kind == "frames":
            frames = [Image.fromarray(image), Image.fromarray(255 - image)]
            suffix, data = "gif", _picture(frames[0], "GIF", save_all=True, append_images=frames[1:])
        elif kind == "mixed":
            data = _picture(image if i % 2 else grey)
        files[f"{NAMES[k]}/{i:02d}.{suffix}"] = data
    return files


def _pictures(kind: str) -> Callable[[Path], Path]:
    return _folder(lambda: _as(kind))


def _damaged() -> dict[str, bytes]:
    files = _by_class()
    name = next(iter(files))
    return files | {name: files[name][:40]}


_COCO = json.dumps(
    {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "category_id": 3, "bbox": []}],
        "categories": [],
    }
)
_SYNSETS = ("n01440764", "n01443537", "n01484850")

HEAPS: tuple[Heap, ...] = (
    Heap("ImageFolder", _folder(_by_class)),
    Heap("ImageFolder of JPEG files in capitals", _folder(lambda: _by_class("{name}/{i}.JPG", kind="JPEG"))),
    Heap("train and test parts", _folder(lambda: _by_class("train/{name}/{i}.png") | _by_class("test/{name}/{i}.png"))),
    Heap(
        "the same, as a training set",
        _folder(lambda: _by_class("train/{name}/{i}.png") | _by_class("test/{name}/{i}.png")),
        training=True,
    ),
    Heap("one folder around all classes", _folder(lambda: _by_class("insects/{name}/{i}.png"))),
    Heap(
        "Tiny ImageNet: images in a folder of their own in each class",
        _folder(lambda: _by_class("{name}/images/{i}.JPEG", _SYNSETS, "JPEG")),
    ),
    Heap(
        "one class nested deeper",
        _folder(
            lambda: {f.replace("ant/", "ant/a/") if i % 2 else f: d for i, (f, d) in enumerate(_by_class().items())}
        ),
    ),
    Heap("folders 1, 2, 3", _numbered("1", "2", "3")),
    Heap("folders 0, 1, 5", _numbered("0", "1", "5")),
    Heap(
        "folders 00000, 00001, 00002 (GTSRB), a list beside the pictures",
        _folder(
            lambda: (
                _by_class("{name}/{i}.ppm", ("00000", "00001", "00002"), "PPM")
                | {"00000/GT-00000.csv": b"Filename;Width\n"}
            )
        ),
    ),
    Heap("folders 01_ant, 02_bee, 03_cat", _numbered("01_ant", "02_bee", "03_cat")),
    Heap("folders by ImageNet's synsets", _numbered(*_SYNSETS)),
    Heap(
        "what systems leave: .DS_Store, Thumbs.db, .ipynb_checkpoints",
        _folder(lambda: _by_class() | {".DS_Store": b"x", "ant/Thumbs.db": b"x", ".ipynb_checkpoints/a.png": b"x"}),
    ),
    Heap("a class folder without images", _folder(lambda: _by_class() | {"dog/readme.txt": b"later"})),
    Heap("folders in the order of a list", _folder(_by_class), classes="cat,bee,ant"),
    Heap("a list of classes without one of the folders", _folder(_by_class), works=False, classes="cat,bee"),
    Heap(
        "classes in the file names (cat.0.jpg)", _folder(lambda: _by_class("{name}.{i}.jpg", kind="JPEG")), works=False
    ),
    Heap(
        "arrays in class folders (.npy)",
        _folder(lambda: {f"{NAMES[k]}/{i}.npy": b"\x93NUMPY" for i, k in enumerate(LABELS)}),
        works=False,
    ),
    Heap(
        "pictures for Apple's phones (.heic)",
        _folder(lambda: {f"{NAMES[k]}/{i}.heic": b"x" for i, k in enumerate(LABELS)}),
        works=False,
    ),
    Heap("a damaged picture among them", _folder(_damaged), works=False),
    Heap("CSV: file names and words", _list("file_name,label", "{file},{name}")),
    Heap("CSV: paths and numbers, separated by semicolons", _list("path;class", "{file};{k}")),
    Heap(
        "CSV as Kaggle has it: names without endings, pictures in a folder",
        _list("id,label", "{stem},{name}", "train.csv", "train_images/{i:02d}.png"),
    ),
    Heap("CSV: file names alone, pictures in a folder beside", _list("filename,class", "{base},{name}")),
    Heap("CSV with paths of Windows", _list("file,label", "images\\{base},{name}")),
    Heap("CSV with paths of another machine", _list("path,label", "/home/me/data/{base},{name}"), works=False),
    Heap("CSV with a column for each class (ISIC)", _one_hot, works=False),
    Heap("a list of paths and numbers (.txt)", _list("", "{file} {k}", "train.txt")),
    Heap(
        "JSON lines in a folder (Hugging Face)",
        _list("", '{{"file_name": "{file}", "label": "{name}"}}', "metadata.jsonl", whole=True),
    ),
    Heap(
        "COCO annotations",
        lambda folder: _written({"instances.json": _COCO.encode()}, folder) / "instances.json",
        works=False,
    ),
    Heap("npz: images, labels", _npz(images=COLOUR, labels=LABELS, classes=np.array(NAMES))),
    Heap(
        "npz: Keras' x_train, y_train, x_test, y_test",
        _npz(x_train=COLOUR[:6], y_train=LABELS[:6], x_test=COLOUR, y_test=LABELS),
    ),
    Heap(
        "npz: MedMNIST",
        _npz(
            train_images=GREY,
            train_labels=LABELS[:, None],
            val_images=GREY,
            val_labels=LABELS[:, None],
            test_images=GREY,
            test_labels=LABELS[:, None],
        ),
    ),
    Heap("npz: data, target (scikit-learn)", _npz(data=GREY, target=LABELS)),
    Heap("npz: arr_0, arr_1, channels first", _npz(arr_0=COLOUR.transpose(0, 3, 1, 2), arr_1=LABELS)),
    Heap("npz: labels as one-hot rows (to_categorical)", _npz(x_test=COLOUR, y_test=np.eye(3)[LABELS])),
    Heap("npz: floats to 255", _npz(images=COLOUR.astype(np.float32), labels=LABELS), works=False),
    Heap("npz: normalised floats", _npz(images=(COLOUR / 127.5 - 1).astype(np.float32), labels=LABELS), works=False),
    Heap("npz: 16-bit pixels", _npz(images=GREY.astype(np.uint16) * 257, labels=LABELS), works=False),
    Heap("npz: alpha", _npz(images=np.concatenate([COLOUR, COLOUR[..., :1]], 3), labels=LABELS), works=False),
    Heap("npz: other names", _npz(pictures=COLOUR, kinds=LABELS), works=False),
    Heap("npz: more labels than images", _npz(images=COLOUR[:5], labels=LABELS), works=False),
    Heap("one array (.npy)", lambda folder: (np.save(folder / "x.npy", COLOUR), folder / "x.npy")[1], works=False),
    Heap("zip of an ImageFolder", _archive("zip", _by_class)),
    Heap(
        "zip made on a Mac",
        _archive("zip", lambda: _by_class("insects/{name}/{i}.png") | {"__MACOSX/insects/ant/._0.png": b"x"}),
    ),
    Heap("tar.gz of an ImageFolder", _archive("tar.gz", _by_class)),
    Heap(
        "tar of WebDataset: 0.png beside 0.cls",
        _archive(
            "tar",
            lambda: {f"{i:03d}.{e}": d for i in range(3) for e, d in (("png", _picture(COLOUR[i])), ("cls", b"1"))},
        ),
        works=False,
    ),
    Heap(
        "zip of pictures and a list",
        _archive("zip", lambda: _by_class("{i}.png") | {"labels.csv": b"file,label\n"}),
        works=False,
    ),
    Heap(
        "parquet: image and label",
        _parquet(image=lambda i: {"bytes": _picture(COLOUR[i]), "path": None}, label=lambda i: int(LABELS[i])),
    ),
    Heap(
        "parquet: img and fine_label, words",
        _parquet(img=lambda i: _picture(COLOUR[i]), fine_label=lambda i: NAMES[LABELS[i]]),
    ),
    Heap(
        "parquet that names files and holds none",
        _parquet(image=lambda i: {"bytes": None, "path": f"{i}.png"}, label=lambda i: int(LABELS[i])),
        works=False,
    ),
    Heap("the Hugging Face hub's cache", _cache_of_the_hub),
    Heap(".mat: SVHN, labels from 1", _mat(X=COLOUR.transpose(1, 2, 3, 0), y=(LABELS + 1)[:, None])),
    Heap(
        ".mat saved with -v7.3",
        lambda folder: _written({"data.mat": b"\x89HDF\r\n\x1a\n" + bytes(600)}, folder) / "data.mat",
        works=False,
    ),
    Heap("MNIST's files, packed", _idx("t10k-", ".gz")),
    Heap("EMNIST's files", _idx("emnist-letters-test-")),
    Heap("one batch of CIFAR-10", _one_batch, works=False),
    Heap(
        "HDF5", lambda folder: _written({"data.h5": b"\x89HDF\r\n\x1a\n" + bytes(600)}, folder) / "data.h5", works=False
    ),
    Heap("LMDB", _folder(lambda: {"data.mdb": bytes(64), "lock.mdb": bytes(64)}), works=False),
    Heap("an address", lambda _: "https://example.org/data.zip", works=False),
    Heap("a data set of the Hugging Face hub", lambda _: "hf://datasets/ylecun/mnist", works=False),
    Heap("a path that is not there", lambda folder: folder / "data", works=False),
    Heap("an empty folder", lambda folder: folder, works=False),
    Heap("pictures of 16 bits", _pictures("16 bits")),
    Heap("pictures of 12 bits in 16", _pictures("12 bits")),
    Heap("floating-point TIFF, 0 to 1", _pictures("float")),
    Heap("floating-point TIFF, 0 to 255", _pictures("float to 255"), works=False),
    *(
        Heap(f"pictures with {w}", _pictures(k))
        for k, w in (
            ("palette", "a palette"),
            ("alpha", "alpha"),
            ("one bit", "one bit"),
            ("cmyk", "CMYK"),
            ("rotation", "an EXIF rotation"),
            ("frames", "several frames"),
        )
    ),
    Heap("grey and coloured pictures mixed", _pictures("mixed")),
)


def main() -> None:
    """Print what becomes of every heap."""
    import tempfile

    for heap in HEAPS:
        with tempfile.TemporaryDirectory() as folder:
            found = outcome(heap, Path(folder))
        wrong = "" if found.works == heap.works else "   <-- OTHERWISE THAN IS RIGHT"
        print(
            f"{'read   ' if found.works else 'refused'} {heap.name}{wrong}\n    {found.said}\n    -> {found.hint or '; '.join(found.notes)}"
        )


if __name__ == "__main__":
    main()
