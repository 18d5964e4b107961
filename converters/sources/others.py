"""Files that people bring and that are not converted here: what each is, and the way from it to one that is.

Told by the first bytes, by the names in an archive or a folder, and, for text, by the words that such a file begins with; by the
ending of its name only where the bytes say nothing (protocol buffers without a mark). Nothing is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from onnxspect.converters.errors import OnnxspectError

_EXPORT = (
    "it is made for running and cannot be turned back: take the model that it was made from, or export that to ONNX"
)
_WHOLE = "put the parts together: from_pretrained(FOLDER).save_pretrained(OUT, max_shard_size='100GB'), then give model.safetensors"
_UNPACK = "unpack it, and name the file"

UNKNOWN = "of no format that is known"

#: First bytes -> (what it is, the way on); "" where the formats that are known are the hint.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"%PDF", "a PDF, not a model", ""),
    (b"\x89PNG", "an image, not a model", ""),
    (b"\xff\xd8\xff", "an image, not a model", ""),
    (b"version https://git-lfs", "a Git LFS pointer: the model itself was not downloaded", "git lfs pull"),
    (b"GGUF", "a GGUF language model, not an image classifier", ""),
    (b"ftrt", "a TensorRT engine", _EXPORT),
    (b"ptrt", "a TensorRT engine", _EXPORT),
    (b"RKNN", "a model for Rockchip's processors (RKNN)", _EXPORT),
    (b"\x01HEF", "a model for Hailo's processors (HEF)", _EXPORT),
    (b"LMDK", "a model for Kendryte's processors (kmodel)", _EXPORT),
    (b"MMdN", "an MXNet archive", "export it in MXNet: mxnet.contrib.onnx.export_model"),
    (
        b"ML\xefR",
        "MLIR bytecode (StableHLO)",
        "it holds no ONNX: convert the model that it was made from (Flax, Keras, SavedModel)",
    ),
)
_PACKED: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "a file packed by gzip", "gunzip it, and name the file"),
    (b"BZh", "a file packed by bzip2", "bunzip2 it, and name the file"),
    (b"\xfd7zXZ", "a file packed by xz", "unxz it, and name the file"),
    (b"\x28\xb5\x2f\xfd", "a file packed by zstd", "unzstd it, and name the file"),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
)
_AT_FOUR: tuple[tuple[bytes, str, str], ...] = (
    (
        b"ORTM",
        "a model in onnxruntime's own format (.ort)",
        "scan the ONNX file that it was made from: an .ort file is that, optimised",
    ),
    (b"ET12", "an ExecuTorch program (.pte)", _EXPORT),
    (b"ET13", "an ExecuTorch program (.pte)", _EXPORT),
)
_TEXT: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (
        re.compile(rb'"(irVersion|opsetImport|ir_version|opset_import)"\s*:'),
        "an ONNX model as JSON",
        "write it in the binary form: onnx.save(onnx.load(FILE, format='json'), 'model.onnx')",
    ),
    (
        re.compile(rb"^\s*(ir_version\s*:|<\s*ir_version)", re.M),
        "an ONNX model as text",
        "write it in the binary form: onnx.save(onnx.load(FILE, format='textproto' or 'onnxtxt'), 'model.onnx')",
    ),
    (
        re.compile(rb"^\s*(<\?xml[^>]*>\s*)?<net\b"),
        "an OpenVINO model (.xml)",
        "take the ONNX file that it was made from; OpenVINO does not write ONNX",
    ),
    (
        re.compile(rb"^\s*<(!doctype )?html", re.I),
        "a web page, not a model: the download led to a page",
        "download the file itself (a button called raw, or download)",
    ),
    (
        re.compile(rb"^7767517\s"),
        "an ncnn model (.param)",
        "take the ONNX file that it was made from; ncnn does not write ONNX",
    ),
    (
        re.compile(rb"^\[net(work)?\]", re.M),
        "a Darknet description (.cfg)",
        "convert it with a tool for Darknet, or load its weights in PyTorch and export from there",
    ),
    (
        re.compile(rb'^\s*(name\s*:\s*".*"\s*)?(input\s*:|layers?\s*\{|input_param)', re.M),
        "a Caffe description (.prototxt)",
        "caffe2onnx turns it and its .caffemodel into ONNX",
    ),
    (re.compile(rb'"weight_map"\s*:'), "the index of a checkpoint that lies in several files", _WHOLE),
    (
        re.compile(rb'"(modelTopology|weightsManifest)"\s*:'),
        "a TensorFlow.js model",
        "tensorflowjs_converter --input_format=tfjs_layers_model --output_format=keras turns it into an .h5 file",
    ),
    (
        re.compile(rb'"(arg_nodes|node_row_ptr)"\s*:'),
        "an MXNet description (-symbol.json)",
        "export it in MXNet: mxnet.contrib.onnx.export_model",
    ),
    (
        re.compile(rb'"learner"\s*:\s*\{'),
        "an XGBoost model",
        "it is a model of tables; no gradient passes through trees, so it cannot be scanned",
    ),
    (
        re.compile(rb'"class_name"\s*:\s*"(Functional|Sequential|Model)"'),
        "a Keras description without weights",
        "save the whole model: model.save('model.keras')",
    ),
    (re.compile(rb"^\s*node\s*\{", re.M), "a TensorFlow graph as text (.pbtxt)", "save the model as a SavedModel"),
    (
        re.compile(rb"^\s*module\b.*(stablehlo|mhlo|func\.func)", re.S),
        "StableHLO as text",
        "convert the model that it was made from (Flax, Keras, SavedModel)",
    ),
    (
        re.compile(rb"^tree\s*$.*^num_class=", re.M | re.S),
        "a LightGBM model",
        "it is a model of tables; no gradient passes through trees, so it cannot be scanned",
    ),
)
_ENDINGS: dict[str, tuple[str, str]] = {
    ".mlmodel": (
        "a Core ML model",
        "take the model that it was made from; coremltools turns others into Core ML, and not back",
    ),
    ".caffemodel": ("the weights of a Caffe model", "caffe2onnx turns them and their .prototxt into ONNX"),
    ".weights": ("the weights of a Darknet model", "load them in PyTorch, and export from there"),
    ".params": ("the weights of an MXNet model", "export it in MXNet: mxnet.contrib.onnx.export_model"),
    ".pdmodel": ("a PaddlePaddle model", "paddle2onnx --model_dir FOLDER --save_file model.onnx"),
    ".pdiparams": ("the weights of a PaddlePaddle model", "paddle2onnx --model_dir FOLDER --save_file model.onnx"),
    ".mnn": ("an MNN model", "take the ONNX file that it was made from; MNN does not write ONNX"),
    ".engine": ("a TensorRT engine", _EXPORT),
    ".plan": ("a TensorRT engine", _EXPORT),
    ".eqx": (
        "an Equinox file: the leaves of a tree, without the tree",
        "load it in Equinox, and save the arrays as safetensors, for --factory",
    ),
    ".index": (
        "part of a TensorFlow checkpoint",
        "restore it in TensorFlow, and save the model: tf.saved_model.save or model.save",
    ),
    ".meta": ("the graph of a TensorFlow 1 checkpoint", "restore it in TensorFlow, and save the model as a SavedModel"),
}


class OtherFormatError(OnnxspectError):
    """A file that is of a format that is known by name, and is not converted here."""


def of_file(path: Path, head: bytes) -> tuple[str, str]:
    """(what a file of none of our formats is, the way on; "" where there is none but the formats that are known).

    Args:
        path: of the file.
        head: its first bytes, a few thousand.
    """
    for magic, what, way in (*_MAGIC, *_PACKED):
        if head.startswith(magic):
            return what, way
    for magic, what, way in _AT_FOUR:
        if head[4:8] == magic:
            return what, way
    if path.name == "saved_model.pb":
        return "the graph of a SavedModel: name its folder instead", ""
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive, but of no framework that is known", ""
    if head[257:262] == b"ustar":
        return "a tar archive, but no checkpoint of PyTorch", _UNPACK
    for pattern, what, way in _TEXT:
        if pattern.search(head):
            return what, way
    ending = path.suffix.lower()
    if (
        ending in (".pb", ".pbtxt")
        and head[:1] == b"\x0a"
        and re.search(rb"\x12[\x03-\x20](Const|Placeholder|Identity|Conv2D)", head)
    ):
        return (
            "a frozen TensorFlow graph",
            "python -m tf2onnx.convert --graphdef FILE --inputs INPUT:0 --outputs OUTPUT:0 --output model.onnx turns it into ONNX",
        )
    if re.match(r"\.data-\d+-of-\d+", ending):
        return _ENDINGS[".index"]
    if ending in _ENDINGS:
        return _ENDINGS[ending]
    if head.lstrip()[:1] in (b"{", b"[", b"<"):
        return "text, not a model", ""
    return UNKNOWN, ""


def of_archive(names: Iterable[str]) -> tuple[str, str]:
    """(what a zip archive with these names is, the way on); ("", "") where they say nothing."""
    held = list(names)
    last = {n.rsplit("/", 1)[-1] for n in held}
    if "bytecode.pkl" in last:
        return (
            "a TorchScript model for the lite interpreter (PyTorch Mobile, .ptl)",
            "save the same module with torch.jit.save, or export it to ONNX",
        )
    if any(n.endswith(("/.data/extern_modules", "/.data/version")) for n in held) and "data.pkl" not in last:
        return (
            "a torch.package archive: Python code with weights",
            "load it where it is trusted, and save its state_dict(), for --factory",
        )
    if any(n.startswith("MAR-INF/") for n in held):
        return "a TorchServe archive (.mar)", "unpack it, and give the file of weights in it, with --factory"
    if "saved_model.pb" in last:
        return "a zipped SavedModel", "unpack it, and name the folder"
    if any(n.endswith(".onnx") for n in held):
        return "a zip archive with an ONNX file in it", _UNPACK
    for ending in (".pth", ".pt", ".keras", ".h5", ".tflite", ".safetensors"):
        if any(n.endswith(ending) for n in held):
            return f"a zip archive with a {ending} file in it", _UNPACK
    return "", ""


def of_folder(names: set[str]) -> tuple[str, str]:
    """(what a folder with these entries is, the way on)."""
    if "saved_model.pbtxt" in names:
        return "a SavedModel as text", "a SavedModel as text is not read; save it in the binary form"
    if {"Manifest.json", "Data"} <= names:
        return "a Core ML package (.mlpackage)", _ENDINGS[".mlmodel"][1]
    weights = sorted(n for n in names if n.endswith((".safetensors", ".bin", ".pth", ".pt")))
    if "config.json" in names and weights:
        return (
            "a model's folder of Hugging Face: its weights do not say their network",
            f"give {weights[0]} in it, with --factory",
        )
    for ending in (".onnx", ".keras", ".tflite", ".h5", ".pth", ".pt"):
        found = sorted(n for n in names if n.endswith(ending))
        if found:
            return "a folder, but neither a SavedModel nor an Orbax checkpoint", f"name the model in it: {found[0]}"
    if any(n.endswith(".index") for n in names) and "checkpoint" in names:
        return "a TensorFlow checkpoint, which is weights alone", _ENDINGS[".index"][1]
    return (
        "a folder, but neither a SavedModel nor an Orbax checkpoint",
        "for a folder of files, name the model file in it",
    )
