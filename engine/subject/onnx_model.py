"""An ONNX file on its way to a Subject: read and run in a child process, its logits found, lowered to torch.

A file may leave the size of its images open, so that it is a Subject only when samples, or the caller, say it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from onnx import TensorProto
from torch import Tensor

from onnxspect.converters.file.bound_inputs import bound, several_inputs
from onnxspect.converters.file.input_face import with_face
from onnxspect.converters.file.malice import refuse_hostile
from onnxspect.converters.file.onnx_file import OnnxFile, read_onnx
from onnxspect.converters.file.probe import probe
from onnxspect.converters.lowering.logits import LogitsInfo, logits_of, score_outputs
from onnxspect.converters.lowering.lower import LoweredModel, lower
from onnxspect.converters.lowering.purpose import refuse_others
from onnxspect.converters.lowering.simplify import simplify
from onnxspect.converters.proof.parity import Comparison
from onnxspect.converters.stages import stage
from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.subject.class_scores import scoring
from onnxspect.engine.subject.subject import InputSpec, Subject, count_classes, noise


@dataclass(frozen=True)
class OpenedModel:
    """An ONNX file that was read, checked, lowered; a Subject as soon as the size of its images is known.

    Attributes:
        module, spec, device, name, file, lowered, logits, comparison: as `Subject` has them.
        image_shape: (channels, height, width) of its images; 0 for a size that the file leaves open.
        others: outputs that lead to other class scores than `logits`.
        said: how one of them was chosen, in sentences.
    """

    module: Callable[[Tensor], Tensor]
    spec: InputSpec
    image_shape: tuple[int, int, int]
    device: str
    name: str
    file: OnnxFile = field(repr=False)
    lowered: LoweredModel = field(repr=False)
    logits: LogitsInfo = field(repr=False)
    comparison: Comparison = field(repr=False, compare=False)
    others: tuple[LogitsInfo, ...] = ()
    said: tuple[str, ...] = ()

    @property
    def numbers(self) -> int:
        """How many values an image is in a flat input; 0 where the input is not flat or leaves it open."""
        sizes = _dims(self.file, self.lowered.inputs[0])
        return sizes[1] if self.spec.layout == "FLAT" and len(sizes) == 2 else 0

    @property
    def known_classes(self) -> int:
        """How many classes the graph alone says it has; 0 where it does not."""
        dims = next((v for v in self.file.proto.graph.output if v.name == self.logits.output), None)
        sizes = [d.dim_value for d in dims.type.tensor_type.shape.dim][1:] if dims is not None else []
        return math.prod(sizes) if sizes and all(n > 0 for n in sizes) else 0

    @property
    def size(self) -> tuple[int, int, int] | None:
        """`image_shape` where the file fixes it, else None."""
        return self.image_shape if all(self.image_shape) else None

    def subject(self, image_shape: tuple[int, int, int] | None = None) -> Subject:
        """The classifier, its torch graph compared with onnxruntime on seeded inputs.

        Args:
            image_shape: of real images, for a file that leaves sizes open; a size that the file fixes stands.

        Raises:
            OnnxspectError: the size is open and none is given; it does not run on such images, is no classifier, or the torch
                graph differs from the file.
        """
        shape = self.size or image_shape
        if shape is None:
            raise OnnxspectError(
                f"{self.name}: the file leaves the size of its images open",
                "give image_shape=(channels, height, width)",
            )
        stage("running the model")
        classes = count_classes(self.module, self.spec, shape, self.device, self.name)
        made = Subject(
            self.module,
            self.spec,
            shape,
            classes,
            self.device,
            self.name,
            self.file,
            self.lowered,
            self.logits,
            self.comparison,
        )
        stage("comparing torch with onnxruntime")
        made.compare(made.spec.encode(noise(shape)).numpy(), batch_sizes=(1, 4))
        return made


def open_onnx(
    model: str | Path | OnnxFile,
    spec: InputSpec | None = None,
    device: str = "cpu",
    output: str = "",
    bind: Mapping[str, float] | None = None,
    name: str = "",
) -> OpenedModel:
    """Open an ONNX file of any exporter: checked and run in a child process, then lowered.

    Args:
        model: path of the file, or what `open_file` made of it.
        spec: how it takes pixels; the layout is the file's in any case.
        device: where the module is to live.
        output: the output whose class scores are meant; the likeliest one by default.
        bind: values of inputs other than the image, where `model` is a path.
        name: what errors and reports call it; its path by default.

    Raises:
        OnnxspectError: the file is not a usable image classifier; says why.
    """
    file = model if isinstance(model, OnnxFile) else open_file(model, bind)
    name = name or str(model.path if isinstance(model, OnnxFile) else model)
    stage("lowering the graph")
    proto, known = simplify(file.proto)
    try:
        refuse_others(proto, known.after, output)
        info = logits_of(proto, known.after, output)
    except OnnxspectError as error:
        raise error.at(name) from error
    others = tuple(o for o in score_outputs(proto, known.after) if (o.value, o.chosen) != (info.value, info.chosen))
    lowered = lower(proto, [info.value], known.after)
    if len(lowered.inputs) != 1:
        raise several_inputs(file.proto, f"{name}: the model")
    _refuse_nan(lowered, name)
    layout, image_shape = _image_input(file, lowered.inputs[0])
    spec = replace(spec, layout=layout) if spec is not None else InputSpec(layout=layout)
    lowered.module.to(device)
    module = scoring(lowered.module, info, known.before.dtypes.get(lowered.inputs[0]) == TensorProto.DOUBLE)
    comparison = Comparison(file.proto, lowered, knowledge=known.before)
    return OpenedModel(module, spec, image_shape, device, name, file, lowered, info, comparison, others)


def _refuse_nan(lowered: LoweredModel, name: str) -> None:
    """Refuse weights that are not a number: what they reach is not one either, whatever the image.

    Raises:
        OnnxspectError: naming the tensor.
    """
    for key, values in lowered.module.named_parameters():
        if values.is_floating_point() and bool(torch.isnan(values).any()):
            known = lowered.weights.get(key)
            shown = printable(known.initializer if known is not None else key)
            count = int(torch.isnan(values).sum())
            raise OnnxspectError(
                f"{name}: {count} of the {values.numel()} values of {shown} are not a number (NaN)",
                "the training diverged, or the file is damaged",
            )


def infinite(lowered: LoweredModel) -> list[str]:
    """Names of weights with infinite values: ordinary in a mask, and a diverged training everywhere else."""
    found = []
    for key, values in lowered.module.named_parameters():
        if values.is_floating_point() and bool(torch.isinf(values).any()):
            known = lowered.weights.get(key)
            found.append(known.initializer if known is not None else key)
    return found


def _image_input(file: OnnxFile, name: str) -> tuple[str, tuple[int, int, int]]:
    """(layout, (channels, height, width)) of the graph input `name`; 0 for an open size."""
    dims = _dims(file, name)
    if len(dims) == 4:
        _, a, b, c = dims
        if a in (1, 3) or c not in (1, 3):
            if a not in (0, 1, 3):
                raise OnnxspectError(
                    f"{file.path}: the input has {a} channels, not 1 or 3: not an image classifier",
                    "only grey and RGB images are searched: hold further channels at a value inside the model, and export that",
                )
            return "NCHW", (a, b, c)
        return "NHWC", (c, a, b)
    if len(dims) == 3:
        return "NHW", (1, dims[1], dims[2])
    if len(dims) == 2:
        return "FLAT", (0, 0, 0)
    raise OnnxspectError(
        f"{file.path}: the input {name} has {len(dims)} axes; an image batch has 4 (or 3 grey, or 2 flattened)",
        "only classifiers of single images are searched (videos, volumes and several crops at once are not)",
    )


def _dims(file: OnnxFile, name: str) -> list[int]:
    """Sizes of the graph input `name`; 0 for an open one."""
    info = next(i for i in file.proto.graph.input if i.name == name)
    return [max(d.dim_value, 0) if d.HasField("dim_value") else 0 for d in info.type.tensor_type.shape.dim]


def open_file(path: str | Path, bind: Mapping[str, float] | None = None) -> OnnxFile:
    """Read an ONNX file and let a child process check and run it first.

    Args:
        path: the file.
        bind: values of inputs other than the image; what is left in use by its name alone needs none.

    Raises:
        OnnxspectError: it is not usable; says why.
    """
    stage("checking the file")
    refuse_hostile(Path(path))
    file = with_face(bound(read_onnx(Path(path)), bind))
    probe(file)
    return file
