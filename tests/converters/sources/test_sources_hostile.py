"""Files that would run code, or read other files, when their framework opens them."""

from __future__ import annotations

import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sources_support import made, needs, reference_folder, refused

from onnxspect.converters.errors import HostileError, OnnxspectError

pytestmark = pytest.mark.frameworks
MOTH = reference_folder() / "unsafe" / "moth_lambda.h5"


def layer(kind: str, **facts: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": "suspect"}, **facts}


def config(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"class_name": "Sequential", "module": "keras", "config": {"name": "s", "layers": list(layers)}}


@needs("keras")
@pytest.mark.parametrize(
    ("suspect", "words"),
    [
        (layer("Lambda"), "suspect is a Lambda"),
        (layer("Dense", module="os", registered_name="system"), "is code of os"),
        (layer("Custom", module="my_package.layers", registered_name="my_package>Custom"), "is code of my_package"),
        (layer("Custom", registered_name="my_package>Custom"), "is a custom class"),
        ({"class_name": "Dense", "config": {"name": "d", "activation": {"class_name": "__lambda__"}}}, "is a Lambda"),
        ({"class_name": "Dense", "config": {"name": "d", "function_type": "lambda"}}, "d is a Lambda"),
        ({"class_name": "Bidirectional", "config": {"name": "b", "layer": layer("Lambda")}}, "suspect is a Lambda"),
        (layer("function", module="shutil", config="rmtree"), "is code of shutil"),
        (layer("Dense", module="kerasevil.layers"), "is code of kerasevil"),
        (layer("get_file", module="keras.utils"), "is code of keras.utils"),
        (layer("load_model", module="keras.src.saving.saving_api"), "is code of keras.src.saving"),
    ],
)
def test_keras_description_with_code(suspect: dict[str, Any], words: str) -> None:
    from onnxspect.converters.sources.from_keras import refuse_code

    with pytest.raises(OnnxspectError) as caught:
        refuse_code(config(layer("Dense", module="keras.layers", registered_name=None), suspect))
    assert words in caught.value.message


@needs("keras")
def test_innocent_keras_description() -> None:
    from onnxspect.converters.sources.from_keras import refuse_code

    ordinary = layer("Dense", module="keras.layers", registered_name="Dense")
    initializer = {"module": "keras.initializers", "class_name": "Zeros", "config": {}, "registered_name": None}
    refuse_code(config(ordinary, {**ordinary, "config": {"name": "d", "kernel_initializer": initializer}}))
    for function in ("math.multiply", "__operators__.add", "reshape", "compat.v1.shape"):
        operation = {"class_name": "TFOpLambda", "config": {"name": "t", "function": function}}
        refuse_code({"class_name": "Functional", "config": {"layers": [operation]}})


@needs("keras")
@pytest.mark.parametrize(
    "function", ["io.write_file", "py_function", "raw_ops.ReadFile", "compat.v1.py_func", "saved_model.load"]
)
def test_operation_of_tensorflow_that_does_more(function: str) -> None:
    from onnxspect.converters.sources.from_keras import refuse_code

    operation = {"class_name": "TFOpLambda", "config": {"name": "t", "function": function}}
    with pytest.raises(OnnxspectError, match=r"layer t calls tf\."):
        refuse_code({"class_name": "Functional", "config": {"layers": [operation]}})


@needs("keras")
@pytest.mark.parametrize("name", ["lambda.keras", "lambda.h5"])
def test_lambda_is_refused_before_keras_is_imported(tmp_path: Path, name: str) -> None:
    assert "Lambda: it holds Python bytecode" in refused(made("keras") / name, tmp_path).message


@needs("keras")
@pytest.mark.skipif(not MOTH.is_file(), reason="needs the reference files (ONNXSPECT_DATA)")
def test_moth(tmp_path: Path) -> None:
    error = refused(MOTH, tmp_path)
    assert "layer lambda_1 is a Lambda" in error.message
    assert "it was not run" in error.message
    assert error.hint


@needs("keras")
@pytest.mark.parametrize("way", ["link", "storage", "virtual"])
def test_hdf5_that_leads_to_other_files(tmp_path: Path, way: str) -> None:
    import h5py

    from onnxspect.converters.sources.from_keras import refuse_external

    secret = tmp_path / "secret"
    with h5py.File(secret, "w") as file:
        file["data"] = [1.0]
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config())
        inner = file.create_group("layers/dense")
        if way == "link":
            inner["kernel"] = h5py.ExternalLink(str(secret), "data")
        elif way == "storage":
            inner.create_dataset("kernel", (4,), "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        else:
            layout = h5py.VirtualLayout((1,), "f8")
            layout[:] = h5py.VirtualSource(str(secret), "data", shape=(1,))
            inner.create_virtual_dataset("kernel", layout)
        inner["cycle"] = file["layers"]  # a hard link back must not make the look endless
    with h5py.File(path, "r") as file, pytest.raises(OnnxspectError, match="another file"):
        refuse_external(file)
    assert "another file" in refused(path, tmp_path).message


@needs("keras")
def test_damaged_keras_archives(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in (("config.json", "[" * 100_000), ("model.weights.h5", ""), ("metadata.json", "{}")):
            archive.writestr(name, content)
    source = tmp_path / "deep.keras"
    source.write_bytes(stream.getvalue())
    assert "is damaged" in refused(source, tmp_path).message


@needs("sklearn")
def test_code_in_a_pickle(tmp_path: Path) -> None:
    folder = made("sklearn")
    error = refused(folder / "evil.pkl", tmp_path)
    assert isinstance(error, HostileError)
    assert "hostile file: its pickle calls " in error.message
    assert not (folder / "owned").exists()


@needs("sklearn")
def test_foreign_type_in_skops(tmp_path: Path) -> None:
    assert "not scikit-learn's own" in refused(made("sklearn") / "foreign.skops", tmp_path).message


@needs("tensorflow")
def test_saved_model_that_reads_files(tmp_path: Path) -> None:
    error = refused(made("tensorflow") / "reads", tmp_path)
    assert "ReadFile" in error.message
    assert "it was not loaded" in error.hint


@needs("tensorflow")
def test_damaged_tflite(tmp_path: Path) -> None:
    """TensorFlow Lite's own checks, or its crash, in the child."""
    data = bytearray((made("tensorflow") / "small.tflite").read_bytes())
    data[64:400] = bytes(336)
    source = tmp_path / "damaged.tflite"
    source.write_bytes(data)
    start = time.monotonic()
    assert refused(source, tmp_path).message
    assert time.monotonic() - start < 120
