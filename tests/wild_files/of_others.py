"""Files of formats that are not converted, and downloads that went wrong: each is to be named, with the way on."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

from wild_files.wild_file import Wild

HEADING = "Other formats, and what went wrong on the way"


def _bytes(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def _folder(name: str, *inside: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for entry in inside:
            path = folder / name / entry
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"{}")
        return folder / name

    return make


def _network() -> bytes:
    from compatibility_cases import classifier

    return classifier([], ("z",)).SerializeToString()


def _zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        archive.writestr("export/model.onnx", _network())
    return folder / "model.zip"


def _packed(folder: Path) -> Path:
    (folder / "model.onnx.gz").write_bytes(gzip.compress(_network()))
    return folder / "model.onnx.gz"


def _cut_off(folder: Path) -> Path:
    data = _network()
    (folder / "model.onnx").write_bytes(data[: len(data) // 2])
    return folder / "model.onnx"


def _written(kind: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import onnx

        onnx.save(onnx.load_from_string(_network()), folder / f"model.{kind}", format=kind)
        return folder / f"model.{kind}"

    return make


_HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Please sign in</body></html>\n"
_OPENVINO = b'<?xml version="1.0"?>\n<net name="model" version="11">\n<layers></layers></net>\n'
_DARKNET = b"[net]\nbatch=1\nwidth=32\nheight=32\n[convolutional]\nfilters=16\n"
_CAFFE = b'name: "LeNet"\nlayer {\n  name: "data"\n  type: "Input"\n}\n'
_MXNET = json.dumps({"nodes": [], "arg_nodes": [0], "heads": []}).encode()
_XGBOOST = json.dumps({"learner": {"attributes": {}}, "version": [2, 0, 0]}).encode()
_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 1000\n"
_COREML = b"\x08\x07\x12\x10\x0a\x0e\x0a\x05image\x1a\x05\x22\x03\x08\x20"

FILES: tuple[Wild, ...] = tuple(
    Wild(name, make, works=False)
    for name, make in (
        ("Core ML (.mlmodel)", _bytes("model.mlmodel", _COREML)),
        ("Core ML (.mlpackage)", _folder("model.mlpackage", "Manifest.json", "Data/com.apple.CoreML/model.mlmodel")),
        ("OpenVINO (.xml)", _bytes("model.xml", _OPENVINO)),
        ("TensorRT (.engine)", _bytes("model.engine", b"ftrt" + bytes(64))),
        ("ncnn (.param)", _bytes("model.param", b"7767517\n3 3\nInput data 0 1 data\n")),
        ("MNN (.mnn)", _bytes("model.mnn", b"\x18\x00\x00\x00" + bytes(64))),
        ("ExecuTorch (.pte)", _bytes("model.pte", b"\x30\x00\x00\x00ET12" + bytes(64))),
        ("Rockchip (.rknn)", _bytes("model.rknn", b"RKNN" + bytes(64))),
        ("Hailo (.hef)", _bytes("model.hef", b"\x01HEF" + bytes(64))),
        ("Caffe: .prototxt", _bytes("deploy.prototxt", _CAFFE)),
        ("Caffe: .caffemodel", _bytes("lenet.caffemodel", b"\x0a\x05LeNet\xa2\x06\x10" + bytes(32))),
        ("Darknet: .cfg", _bytes("tiny.cfg", _DARKNET)),
        ("Darknet: .weights", _bytes("tiny.weights", b"\x00\x00\x00\x00\x02\x00\x00\x00" + bytes(64))),
        ("PaddlePaddle (.pdmodel)", _bytes("model.pdmodel", b"\x0a\x10\x08\x00\x10\xff" + bytes(32))),
        ("MXNet: -symbol.json", _bytes("model-symbol.json", _MXNET)),
        ("XGBoost (.json)", _bytes("model.json", _XGBOOST)),
        ("a folder of Hugging Face", _folder("resnet", "config.json", "model.safetensors", "preprocessor_config.json")),
        ("a folder with the model in it", _folder("export", "model.onnx", "labels.txt")),
        ("a zip with the model in it", _zipped),
        ("a model packed by gzip", _packed),
        ("an ONNX model as JSON", _written("json")),
        ("an ONNX model as text", _written("textproto")),
        ("the pointer of Git LFS", _bytes("model.onnx", _LFS)),
        ("a web page instead of the file", _bytes("model.onnx", _HTML)),
        ("a download that was cut off", _cut_off),
        ("an empty file", _bytes("model.onnx", b"")),
    )
)
