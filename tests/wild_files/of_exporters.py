"""ONNX files as exporters and preprocessing tools leave them: what differs between them is the form, not the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from wild_files.wild_file import Wild

HEADING = "ONNX, as exporters write it"


def _exported(folder: Path, network: Any = None, image: Any = None, **options: Any) -> Path:
    """By torch's tracing exporter."""
    import warnings

    import torch

    from wild_files.networks import COLOUR, colour, settled

    network = settled(colour()) if network is None else network
    image = torch.rand(2, *COLOUR) if image is None else image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given: dict[str, Any] = {
            "dynamo": False,
            "opset_version": 17,
            "input_names": ["input"],
            "output_names": ["output"],
        }
        given |= {"dynamic_axes": {"input": {0: "batch"}, "output": {0: "batch"}}, **options}
        torch.onnx.export(network, (image,), str(folder / "model.onnx"), **given)
    return folder / "model.onnx"


def _traced(**options: Any) -> Callable[[Path], Path]:
    return lambda folder: _exported(folder, **options)


def _dynamo(folder: Path, **options: Any) -> Path:
    import torch

    from wild_files.networks import COLOUR, colour, settled

    dims = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(
        settled(colour()), (torch.rand(2, *COLOUR),), dynamo=True, dynamic_shapes=dims, verbose=False
    )
    program.save(str(folder / "model.onnx"), **options)  # type: ignore[union-attr]
    return folder / "model.onnx"


def _in_training(folder: Path) -> Path:
    """Exported with training=TRAINING: dropout drops, and normalisation uses the batch's own statistics."""
    import torch

    from wild_files.networks import colour, settled

    network = settled(colour()).train()
    return _exported(folder, network, training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False)


def _other_network(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from wild_files import networks

        return _exported(folder, networks.settled(getattr(networks, name)()))

    return make


def _in_front(form: str) -> Callable[[Path], Path]:
    """A network that takes pixels as cameras and image libraries give them, with the arithmetic inside."""

    def make(folder: Path) -> Path:
        import torch
        from torch import nn

        from wild_files.networks import COLOUR, colour, settled

        class Front(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = settled(colour())
                self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1))
                self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1))

            def forward(self, x: Any) -> Any:
                if form in ("uint8 rows last", "float rows last"):
                    x = x.permute(0, 3, 1, 2)
                if form != "float rows last":
                    x = x.float() / 255
                if form == "resized inside":
                    x = nn.functional.interpolate(x, size=(32, 32), mode="bilinear", align_corners=False)
                return self.inner((x - self.mean) / self.std)

        shape = (2, 32, 32, 3) if "last" in form else (2, 3, 48, 48) if form == "resized inside" else (2, *COLOUR)
        image = torch.randint(0, 255, shape).to(torch.uint8 if "uint8" in form else torch.float32)
        return _exported(folder, Front().eval(), image)

    return make


def _edited(
    change: Callable[[onnx.ModelProto], Any], source: Callable[[Path], Path] | None = None
) -> Callable[[Path], Path]:
    """The plain file after a change: in place, or a new model."""

    def make(folder: Path) -> Path:
        path = (source or _traced())(folder)
        model = onnx.load(path)
        found = change(model)
        onnx.save(found if isinstance(found, onnx.ModelProto) else model, path)
        return path

    return make


def _as_constants(model: onnx.ModelProto) -> None:
    """Weights as Constant nodes, as some exporters write them."""
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    rest = list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])


def _weights_as_inputs(model: onnx.ModelProto) -> None:
    """As files before ONNX's IR 4 (keep_initializers_as_inputs)."""
    for t in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))


def _with_names(model: onnx.ModelProto) -> None:
    """Class names and the range of pixels in the metadata, as Windows ML, Custom Vision and Ultralytics write them."""
    helper.set_model_props(
        model, {"names": str({i: f"kind {i}" for i in range(10)}), "Image.NominalPixelRange": "Normalized_0_1"}
    )


def _sparse(model: onnx.ModelProto) -> None:
    """A pruned layer as a sparse initializer."""
    dense = model.graph.initializer[-2]
    values = numpy_helper.to_array(dense).copy()
    values[np.abs(values) < np.quantile(np.abs(values), 0.5)] = 0
    places = np.flatnonzero(values)
    held = numpy_helper.from_array(values.ravel()[places], dense.name)
    sparse = helper.make_sparse_tensor(
        held, numpy_helper.from_array(places.astype(np.int64), f"{dense.name}_at"), list(values.shape)
    )
    model.graph.initializer.remove(dense)
    model.graph.sparse_initializer.append(sparse)


def _with_contrib(domain: str, operator: str) -> Callable[[onnx.ModelProto], None]:
    """An operator of an extension between the network and its output."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "scores"
        model.graph.node.append(helper.make_node(operator, ["scores"], ["output"], domain=domain))
        model.opset_import.append(helper.make_opsetid(domain, 1))

    return change


def _two_named(model: onnx.ModelProto) -> None:
    """The training loss as a second input, label, and output: a file exported for on-device training."""
    graph = model.graph
    graph.input.append(helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]))
    graph.node.append(helper.make_node("SoftmaxCrossEntropyLoss", ["output", "label"], ["loss"]))
    graph.output.append(helper.make_tensor_value_info("loss", TensorProto.FLOAT, []))


def _ready(form: str) -> Callable[[Path], Path]:
    """Files of other purposes, of a few nodes each."""

    def make(folder: Path) -> Path:
        def array(*shape: int) -> np.ndarray:
            return 0.1 * np.random.default_rng(1).standard_normal(shape).astype(np.float32)

        shapes: dict[str, tuple[list[Any], list[tuple[str, list[Any]]]]] = {
            "ssd": (["n", 3, 16, 16], [("boxes", ["n", 20, 4]), ("scores", ["n", 20, 21])]),
            "yolo": (["n", 3, 16, 16], [("output0", ["n", 84, 30])]),
            "detr": (["n", 3, 16, 16], [("pred_logits", ["n", 20, 92]), ("pred_boxes", ["n", 20, 4])]),
            "keypoints": (["n", 3, 16, 16], [("heatmaps", ["n", 17, 8, 8])]),
            "depth": (["n", 3, 16, 16], [("depth", ["n", 1, 16, 16])]),
            "ocr": (["n", 1, 16, 64], [("logits", ["n", 26, 37])]),
            "video": (["n", 3, 8, 16, 16], [("logits", ["n", 10])]),
            "ten crops": (["n", 10, 3, 16, 16], [("logits", ["n", 10])]),
            "four channels": (["n", 4, 16, 16], [("logits", ["n", 10])]),
            "generator": (["n", 32], [("image", ["n", 3, 16, 16])]),
            "spectrogram": (["n", 1, 32, 16], [("logits", ["n", 10])]),
        }
        given, results = shapes[form]
        size = int(np.prod(given[1:]))
        nodes, weights = [helper.make_node("Flatten", ["x"], ["flat"])], []
        for name, shape in results:
            wide = int(np.prod(shape[1:]))
            weights += [numpy_helper.from_array(array(size, wide), f"{name}_w")]
            weights += [numpy_helper.from_array(np.array([-1, *shape[1:]], np.int64), f"{name}_s")]
            nodes.append(helper.make_node("MatMul", ["flat", f"{name}_w"], [f"{name}_m"]))
            nodes.append(helper.make_node("Reshape", [f"{name}_m", f"{name}_s"], [name]))
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in results],
            weights,
        )
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx"
        )
        return folder / "model.onnx"

    return make


def _reconverted(written: int, version: int) -> Callable[[Path], Path]:
    return _edited(lambda m: onnx.version_converter.convert_version(m, version), _traced(opset_version=written))


def _external(folder: Path) -> Path:
    """Weights in a file beside the model."""
    path = _exported(folder)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return path


FILES: tuple[Wild, ...] = (
    *(Wild(f"torch.onnx (trace), opset {n}", _traced(opset_version=n)) for n in (9, 11, 13, 17)),
    Wild("torch.onnx (torch.export), the newest opset", _dynamo),
    Wild("torch.onnx, weights beside the model (model.onnx.data)", _external),
    Wild("torch.onnx, weights declared as inputs", _edited(_weights_as_inputs)),
    Wild("torch.onnx, a batch of 1", _traced(dynamic_axes={})),
    Wild("torch.onnx, every axis free", _traced(dynamic_axes={"input": {0: "n", 2: "h", 3: "w"}, "output": {0: "n"}})),
    Wild("torch.onnx, exported in training mode", _in_training, works=False),
    Wild("a vision transformer", _other_network("token_classifier")),
    Wild("the same, its batch written into it by len(x)", _other_network("token_classifier_by_len"), works=False),
    Wild("mean and deviation inside, pixels 0 to 255", _in_front("float")),
    Wild("a camera's bytes: uint8, channels last", _in_front("uint8 rows last")),
    Wild("uint8, channels first", _in_front("uint8")),
    Wild("channels last, mean and deviation inside", _in_front("float rows last")),
    Wild("resized inside", _in_front("resized inside")),
    Wild("weights as Constant nodes", _edited(_as_constants)),
    Wild("class names and range in the metadata (Windows ML, Custom Vision, Ultralytics)", _edited(_with_names)),
    Wild("a sparse initializer", _edited(_sparse)),
    Wild("converted up from opset 14 to 18 (onnx.version_converter)", _reconverted(14, 18)),
    Wild("converted up from opset 13 to 21 (onnx.version_converter)", _reconverted(13, 21)),
    Wild("for training on the device: label beside the image, loss as an output", _edited(_two_named), works=False),
    Wild("an operator of onnxruntime-extensions", _edited(_with_contrib("ai.onnx.contrib", "BlurTwice")), works=False),
    Wild("an operator of mmdeploy", _edited(_with_contrib("mmdeploy", "TopPool")), works=False),
    Wild("a TensorRT plugin", _edited(_with_contrib("TRT", "EfficientNMS_TRT")), works=False),
    Wild("SSD: boxes and scores", _ready("ssd"), works=False),
    Wild("YOLOv8: (n, 84, boxes)", _ready("yolo"), works=False),
    Wild("DETR: pred_logits and pred_boxes", _ready("detr"), works=False),
    Wild("key points: heat maps", _ready("keypoints"), works=False),
    Wild("depth of every pixel", _ready("depth"), works=False),
    Wild("text recognition: a row of letters", _ready("ocr"), works=False),
    Wild("video: five axes", _ready("video"), works=False),
    Wild("ten crops of an image at once: five axes", _ready("ten crops"), works=False),
    Wild("four channels (RGBA, or near infrared)", _ready("four channels"), works=False),
    Wild("a generator: noise to an image", _ready("generator"), works=False),
    Wild("sounds as spectrograms of one channel", _ready("spectrogram"), image=(1, 32, 16)),
)
