"""Ordinary classifiers for graph_logic.py, each with clean images of its own kind.

Three sources: folders with a zoo's manifest (models/manifest.py), the networks of tests/lowering_networks.py trained for some hundred steps on
CIFAR-10's subset and exported in several ways, and ONNX files from anywhere.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from datasets import even_draw
from onnx import helper, version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from onnxspect.engine.subject.samples import Samples
from onnxspect.models.made import load
from onnxspect.models.manifest import read_manifest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
#: Clean images that a scan gets; of large pictures, of which few are looked at.
IMAGES, LARGE_IMAGES = 1000, 64
#: The training of a network of the matrix.
STEPS, BATCH, RATE = 400, 64, 2e-3
#: Payloads are written in this opset or a later one.
OPSET = 18


@dataclass(frozen=True)
class Ordinary:
    """A classifier as it is deployed.

    Attributes:
        name: of the file; unique within its source.
        family: of its network, or where it comes from.
        form: exporter, and what was done to the file since.
        path: the file.
        samples: clean images of what it was made for; None where nobody knows.
        infected: its weights hold a backdoor.
    """

    name: str
    family: str
    form: str
    path: Path
    samples: Samples | None
    infected: bool = False


def of_zoo(folder: Path, data: Path, seed: int) -> Iterator[Ordinary]:
    """The models of a folder with a manifest, with an even draw of test images (and of training images where those are too few)."""
    for row in read_manifest(folder)["models"]:
        samples = drawn(row["dataset"], data, seed)
        form = row["exporter"]["name"] if isinstance(row["exporter"], dict) else row["exporter"]
        yield Ordinary(row["name"], row["architecture"], form, folder / row["file"], samples, row["infected"])


def drawn(dataset: str, data: Path, seed: int, n: int = IMAGES) -> Samples:
    """Clean images of a set that models/made.py knows."""
    held = load(dataset, data)
    rng = np.random.default_rng(seed)
    rows = even_draw(held.y_test, n, rng)
    images, labels = held.x_test[rows], held.y_test[rows]
    if len(rows) < n:
        more = even_draw(held.y_train, n - len(rows), rng)[: n - len(rows)]
        images, labels = np.concatenate([images, held.x_train[more]]), np.concatenate([labels, held.y_train[more]])
    return Samples.from_arrays(images, labels)


def matrix_names() -> list[str]:
    """The networks of tests/lowering_networks.py."""
    from lowering_networks import MATRIX

    return list(MATRIX)


class Matrix:
    """Networks of the matrix, trained once and kept as files."""

    def __init__(self, work: Path, data: Path, seed: int) -> None:
        self.work, self.seed = work, seed
        self._set = load("cifar10", data)
        self.samples = drawn("cifar10", data, seed)

    def network(self, name: str) -> nn.Module:
        """Trained; kept by its weights."""
        from lowering_families import build
        from lowering_networks import MATRIX

        network, held = build(name, MATRIX), self.work / f"{name}.pt"
        if held.is_file():
            network.load_state_dict(torch.load(held, weights_only=True))
        else:
            self._train(network)
            held.parent.mkdir(parents=True, exist_ok=True)
            torch.save(network.state_dict(), held)
        return network.eval()

    def _train(self, network: nn.Module) -> None:
        """Adam on even batches; as a user trains, and long enough that the answers hang on the picture."""
        torch.manual_seed(self.seed)
        rng = np.random.default_rng(self.seed)
        optimizer = torch.optim.Adam(network.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2 * RATE, STEPS)
        network.train()
        for _ in range(STEPS):
            rows = rng.integers(len(self._set.y_train), size=BATCH)
            pixels = torch.from_numpy(self._set.x_train[rows]).permute(0, 3, 1, 2).float() / 255
            loss = nn.functional.cross_entropy(network(pixels), torch.from_numpy(self._set.y_train[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    def exported(self, name: str, form: str) -> Ordinary:
        """A network in one of `FORMS`."""
        from lowering_families import export

        path = self.work / f"{name}.{form.replace(' ', '_')}.onnx"
        if not path.is_file():
            base, _, then = form.partition(", ")
            if then:
                FORMS[form](self.exported(name, base).path, path, self.samples.images[:32])
            else:
                onnx.save(
                    export(self.network(name), dynamo=base == "dynamo", opset=18 if base == "dynamo" else 17), path
                )
        return Ordinary(name, name, form, path, self.samples)


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, images: np.ndarray) -> None:
        self.batches = iter([{name: i[None]} for i in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def as_qdq(path: Path, target: Path, images: np.ndarray) -> None:
    """Activations and weights in 8 bits, QuantizeLinear and DequantizeLinear around every operator."""
    with contextlib.redirect_stdout(io.StringIO()):
        reader = _Calibration(onnx.load(path).graph.input[0].name, images)
        quantize_static(path, target, reader, QuantFormat.QDQ, per_channel=True)


def as_integers(path: Path, target: Path, name: str, rows: np.ndarray) -> None:
    """The same by operators on integers (QLinearConv and the like); `rows` are what the model's input of this name takes."""
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_static(path, target, _Calibration(name, rows), QuantFormat.QOperator)


def as_dynamic(path: Path, target: Path, _: np.ndarray) -> None:
    """Weights in 8 bits, activations quantised by their own range."""
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_dynamic(path, target, weight_type=QuantType.QUInt8)


def as_half(path: Path, target: Path, _: np.ndarray) -> None:
    """16 bits inside, float32 outside."""
    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), target)


def as_optimised(path: Path, target: Path, _: np.ndarray) -> None:
    """As onnxruntime saves it at the extended level."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(target), 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


#: Form -> what makes it of the file that is named before the comma; exporters alone have nothing before them.
FORMS: dict[str, Callable[[Path, Path, np.ndarray], None] | None] = {
    "torchscript": None,
    "dynamo": None,
    "torchscript, QDQ": as_qdq,
    "torchscript, dynamic int8": as_dynamic,
    "torchscript, fp16": as_half,
    "dynamo, optimised": as_optimised,
}


def for_payloads(ordinary: Ordinary) -> onnx.ModelProto:
    """The model as payloads are put on: opset 18 or later, images ``(n, channels, height, width)``, values 0 to 1."""
    model = onnx.load(ordinary.path)
    if next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) < OPSET:
        model = version_converter.convert_version(model, OPSET)
    assert ordinary.samples is not None
    channels, height, width = ordinary.samples.shape
    entry = model.graph.input[0]
    dims = entry.type.tensor_type.shape.dim
    if [d.dim_value for d in dims][1:] != [channels, height, width]:
        # Channels last, as Keras has them: turned round in front, as its users do who serve such files to others.
        inner = f"{entry.name}_channels_last"
        for node in model.graph.node:
            for i, name in enumerate(node.input):
                if name == entry.name:
                    node.input[i] = inner
        turned = helper.make_node("Transpose", [entry.name], [inner], "turned", perm=[0, 2, 3, 1])
        white = _white(ordinary)
        first = [turned]
        if white != 1:
            turned.output[0] = f"{inner}_unit"
            model.graph.initializer.append(helper.make_tensor("white", onnx.TensorProto.FLOAT, [], [white]))
            first.append(helper.make_node("Mul", [turned.output[0], "white"], [inner], "white_pixels"))
        nodes = [*first, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        for dim, size in zip(dims[1:], (channels, height, width), strict=True):
            dim.dim_value = size
    onnx.checker.check_model(model)
    return model


def _white(ordinary: Ordinary) -> float:
    """What a white pixel is to the file, by its zoo's manifest."""
    folder = ordinary.path.parent
    row: dict[str, Any] = next(m for m in read_manifest(folder)["models"] if m["name"] == ordinary.name)
    return float(row["format"]["white"])


def given_images(paths: Sequence[Path], seed: int) -> list[Samples]:
    """Images of every source: an npz file, or a folder of images by class (at most LARGE_IMAGES of its folders)."""
    found = []
    for path in paths:
        if path.suffix == ".npz":
            held = np.load(path)
            images, labels = (held[k] for k in (("images", "labels") if "images" in held else ("x_test", "y_test")))
            rows = even_draw(labels.reshape(-1), IMAGES, np.random.default_rng(seed))
            found.append(Samples.from_arrays(images[rows], labels.reshape(-1)[rows], path=path.name))
        else:
            folders = sorted(path.iterdir())[:LARGE_IMAGES]
            pixels = [_picture(next(iter(sorted(f.iterdir())))) for f in folders]
            found.append(Samples.from_arrays(np.stack(pixels), np.arange(len(pixels)), path=path.name))
    return found


def _picture(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))


def made_images(shape: tuple[int, int, int], n: int, seed: int) -> Samples:
    """Coarse patches and noise in [0, 1]."""
    channels, height, width = shape
    rng = np.random.default_rng(seed)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    coarse = rng.random((n, channels, 4, 4))[:, :, rows][:, :, :, columns]
    images = np.clip(coarse + 0.1 * rng.standard_normal(coarse.shape), 0, 1).astype(np.float32)
    return Samples.from_arrays(images, rng.integers(0, 2, n))
