"""A classifier under inspection: a callable from pixels to logits, differentiable, parameters frozen.

Pixels are float32 ``(n, channels, height, width)`` in [0, 1]; logits are ``(n, classes)``. What the *file* wants
(layout, channel order, value range, mean and deviation) and what it answers (probabilities instead of logits) are
facts kept in `InputSpec` and `logits_how`, and hidden in here: no detector knows them.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor, nn

from onnxspect.converters.file.bound_inputs import bound, several_inputs
from onnxspect.converters.file.input_face import with_face
from onnxspect.converters.file.malice import refuse_hostile
from onnxspect.converters.file.onnx_file import OnnxFile, read_onnx
from onnxspect.converters.file.probe import probe
from onnxspect.converters.lowering.logits import LogitsInfo, logits_of, score_outputs
from onnxspect.converters.lowering.lower import LoweredModel, lower
from onnxspect.converters.lowering.purpose import refuse_others
from onnxspect.converters.lowering.simplify import simplify
from onnxspect.converters.proof.oracle import Oracle, of_file
from onnxspect.converters.proof.parity import Comparison
from onnxspect.converters.stages import stage
from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError, caused_by
from onnxspect.engine.subject.class_scores import ClassScores, as_scores, scoring
from onnxspect.engine.subject.memory import budget, in_parts, kept_bytes
from onnxspect.engine.subject.precision import judging

#: Real images on which the torch graph is compared with onnxruntime.
REAL_IMAGES = 8
LAYOUTS = ("NCHW", "NHWC", "NHW", "FLAT")
#: Outputs beyond which a file is taken for no classifier: five times the classes of the largest image sets (ImageNet-21k).
MOST_CLASSES = 100_000


@dataclass(frozen=True)
class InputSpec:
    """What the model's input tensor is, in terms of pixels in [0, 1].

    The model is fed ``(pixels * scale - mean) / std``, per channel in the model's own channel order.

    Attributes:
        name: how people call it ("0..1", "imagenet", ...).
        layout: NCHW, NHWC, NHW (grey without a channel axis) or FLAT (rows of height * width * channels values).
        channel_order: "RGB" or "BGR"; irrelevant for one channel.
        scale: 1 for models that take [0, 1], 255 for those that take [0, 255].
        mean, std: one value, or one a channel, after scaling.
    """

    name: str = "0..1"
    layout: str = "NCHW"
    channel_order: str = "RGB"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise OnnxspectError(f"unknown layout {self.layout!r}", f"one of {', '.join(LAYOUTS)}")
        if self.channel_order not in ("RGB", "BGR"):
            raise OnnxspectError(f"unknown channel order {self.channel_order!r}", "RGB or BGR")
        if not self.scale > 0 or not all(s > 0 for s in self.std):
            raise OnnxspectError("the input scale and every standard deviation must be positive")

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels ``(n, channels, height, width)`` in [0, 1] to what the model takes; differentiable."""
        x = pixels.flip(1) if self.channel_order == "BGR" and pixels.shape[1] == 3 else pixels
        if self.scale != 1.0 or any(self.mean) or any(s != 1.0 for s in self.std):
            gain, offset = _affine(self.scale, self.mean, self.std, x.dtype, x.device)
            x = x * gain + offset
        if self.layout == "NCHW":
            return x
        if self.layout == "NHWC":
            return x.permute(0, 2, 3, 1)
        if self.layout == "NHW":
            return x[:, 0]
        return x.permute(0, 2, 3, 1).flatten(1)

    def describe(self) -> dict[str, Any]:
        """As the report shows it."""
        return {
            "name": self.name,
            "layout": self.layout,
            "channel_order": self.channel_order,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def described(cls, stated: Mapping[str, Any]) -> InputSpec:
        """What `describe` gave, out of a report."""
        return cls(**{**stated, "mean": tuple(stated["mean"]), "std": tuple(stated["std"])})


@lru_cache(maxsize=64)
def _affine(
    scale: float, means: tuple[float, ...], deviations: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(gain, offset) by channel; kept, because a captured step may not copy numbers from the host."""
    mean = torch.tensor(means, dtype=dtype, device=device).view(-1, 1, 1)
    std = torch.tensor(deviations, dtype=dtype, device=device).view(-1, 1, 1)
    return scale / std, -mean / std


@dataclass(frozen=True)
class Origin:
    """Where a Subject came from.

    Attributes:
        file: the ONNX file.
        lowered: its torch graph, with the map of weights.
        logits: which value of the file holds the logits, and how it was found.
    """

    file: OnnxFile
    lowered: LoweredModel
    logits: LogitsInfo


@dataclass(frozen=True)
class Subject:
    """A classifier under inspection; fully made: every size and the number of classes are known.

    Attributes:
        module: from the model's own input tensor to logits; evaluation mode, parameters frozen.
        spec: how pixels become that input tensor.
        image_shape: (channels, height, width) of its images.
        classes: number of classes.
        device: where the module lives.
        name: path of the file, or the module's class.
        file: the ONNX file it came from, or None for a live torch module.
        lowered: the torch graph of that file, with its map of weights, or None.
        logits: which value of the file holds the logits, and how it was found, or None.
        comparison: of that torch graph with onnxruntime, or None.
    """

    module: Callable[[Tensor], Tensor]
    spec: InputSpec
    image_shape: tuple[int, int, int]
    classes: int
    device: str = "cpu"
    name: str = ""
    file: OnnxFile | None = field(default=None, repr=False)
    lowered: LoweredModel | None = field(default=None, repr=False)
    logits: LogitsInfo | None = None
    comparison: Comparison | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.classes < 1 or not all(s >= 1 for s in self.image_shape):
            raise OnnxspectError(
                f"{self.name or 'the subject'}: {self.classes} classes and images of {self.image_shape}, not all at least 1",
                "Subject.from_onnx and Subject.from_module find out both",
            )

    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of pixels ``(n, channels, height, width)`` in [0, 1], in parts that fit in memory."""
        return in_parts(self.in_one_pass, pixels, self.images_at_once)

    def in_one_pass(self, pixels: Tensor) -> Tensor:
        """The same, whatever memory it takes."""
        return as_scores(self.module(self.spec.encode(pixels)))

    @property
    def images_at_once(self) -> int:
        """How many images' activations may be in memory at a time (memory.budget)."""
        return max(1, budget(self.device) // self.kept_bytes)

    @cached_property
    def kept_bytes(self) -> int:
        """What one image's activations take for a backward pass."""
        return kept_bytes(self.in_one_pass, torch.full((1, *self.image_shape), 0.5, device=self.device))

    def predict(self, pixels: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Logits ``(n, classes)`` float32 for an array of pixels, in batches, without gradients, in IEEE arithmetic."""
        with torch.no_grad(), judging():
            parts = [
                self(torch.from_numpy(np.ascontiguousarray(pixels[i : i + batch_size])).to(self.device)).float().cpu()
                for i in range(0, len(pixels), batch_size)
            ]
        return torch.cat(parts).numpy()

    def with_spec(self, spec: InputSpec) -> Subject:
        """The same classifier, read with another InputSpec."""
        return replace(self, spec=spec)

    @property
    def origin(self) -> Origin:
        """The file that it came from, its torch graph and its logits.

        Raises:
            OnnxspectError: there is no ONNX file behind it: it is a live torch module, or a part of a model.
        """
        if self.file is None or self.lowered is None or self.logits is None:
            raise self._no_file()
        return Origin(self.file, self.lowered, self.logits)

    @property
    def graph(self) -> LoweredModel:
        """The torch graph of the file that it, or the model that it is a part of, came from.

        Raises:
            OnnxspectError: there is none.
        """
        if self.lowered is None:
            raise self._no_file()
        return self.lowered

    def _no_file(self) -> OnnxspectError:
        return OnnxspectError(f"{self.name}: no ONNX file behind this subject", "export it first")

    @cached_property
    def sha256(self) -> str:
        """A digest of the model, in hexadecimal: the file's own; without one, of the module's structure and weights.

        A plain function, which has neither, is known by its answers to seeded noise.
        """
        if self.file is not None:
            return self.file.sha256
        module = self.module.inner if isinstance(self.module, ClassScores) else self.module
        if isinstance(module, nn.Module):
            digest = hashlib.sha256(repr(module).encode())
            for name, value in module.state_dict().items():
                if isinstance(value, Tensor):
                    array = value.detach().cpu().contiguous()
                    digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
                    digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
            return digest.hexdigest()
        return self.answers_digest

    @cached_property
    def answers_digest(self) -> str:
        """SHA-256 of its answers to three images of seeded noise, to the last bit: of a function there is nothing else."""
        return hashlib.sha256(self.predict(_noise(self.image_shape).numpy()).tobytes()).hexdigest()

    @classmethod
    def from_module(
        cls, module: nn.Module, image_shape: tuple[int, int, int], spec: InputSpec | None = None, device: str = "cpu"
    ) -> Subject:
        """From a live torch module that takes images of `image_shape` (as `spec` says) and answers logits.

        The module itself is not changed: it is used as it stands, in evaluation mode, through a frozen copy.

        Raises:
            OnnxspectError: it does not run on such images, or does not answer (n, classes).
        """
        frozen = copy.deepcopy(module).to(device).eval().requires_grad_(False)
        spec, name = spec or InputSpec(), type(module).__name__
        return cls(frozen, spec, image_shape, _count_classes(frozen, spec, image_shape, device, name), device, name)

    @classmethod
    def from_onnx(
        cls,
        path: str | Path,
        spec: InputSpec | None = None,
        device: str = "cpu",
        image_shape: tuple[int, int, int] | None = None,
    ) -> Subject:
        """From an ONNX file of any exporter.

        The file is first opened, checked and run in a child process; then lowered, and the torch graph is compared
        with onnxruntime on seeded inputs. `spec` is a guess (pixels in [0, 1]) until `preflight` settles it.

        Args:
            path: the file.
            spec: how it takes pixels.
            device: "cpu" or "cuda".
            image_shape: (channels, height, width), where the file leaves sizes open.

        Raises:
            OnnxspectError: the file is not a usable image classifier, or leaves its images' size open; says why.
        """
        return open_onnx(path, spec, device).subject(image_shape)

    def check(self, pixels: np.ndarray) -> None:
        """Compare the torch graph with onnxruntime on real images ``(n, channels, height, width)``, at every tap.

        Raises:
            OnnxspectError: they differ by more than rounding; names the first tensor that does.
        """
        images = torch.from_numpy(np.ascontiguousarray(pixels[:REAL_IMAGES]))
        self._compare(self.spec.encode(images).numpy(), batch_sizes=())
        if self.comparison is not None:  # opened, preprocessing found: nothing is left to compare
            self.comparison.release()

    def _compare(self, batch: np.ndarray, batch_sizes: tuple[int, ...]) -> None:
        if self.comparison is not None:  # a live module has nothing to be compared with
            with judging():
                self.comparison.check(batch, batch_sizes=batch_sizes)

    def oracle(self) -> Oracle:
        """onnxruntime over the original file.

        Raises:
            OnnxspectError: the subject is a live module without a file.
        """
        return Oracle(of_file(self.origin.file), self.device)


@dataclass(frozen=True)
class OpenedModel:
    """An ONNX file that was read, checked, lowered; a Subject as soon as the size of its images is known.

    Attributes:
        module, spec, device, name, file, lowered, logits, comparison: as `Subject` has them.
        image_shape: (channels, height, width) of its images; 0 for a size that the file leaves open.
        others: outputs that lead to other class scores than `logits`.
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
        classes = _count_classes(self.module, self.spec, shape, self.device, self.name)
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
        made._compare(made.spec.encode(_noise(shape)).numpy(), batch_sizes=(1, 4))
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


def _count_classes(
    module: Callable[[Tensor], Tensor], spec: InputSpec, shape: tuple[int, int, int], device: str, name: str
) -> int:
    _, height, width = shape
    with torch.no_grad():
        try:
            logits = module(spec.encode(torch.full((2, *shape), 0.5, device=device)))
            logits = logits.reshape(logits.shape[0], -1)
        except Exception as error:  # whatever the untrusted graph raises on an image is the same finding
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise caused_by(error, f"{name}: does not run on {width}x{height} images: {line}") from error
    if logits.ndim != 2 or logits.shape[0] != 2 or logits.shape[1] < 2:
        raise OnnxspectError(
            f"{name}: not a classifier of at least two classes: two images give an output of shape {tuple(logits.shape)}"
        )
    if logits.shape[1] > MOST_CLASSES:
        raise OnnxspectError(
            f"{name}: {logits.shape[1]} outputs are more than the classes of any image classifier ({MOST_CLASSES})",
            "if it is a segmentation or a detection model, there is nothing to scan",
        )
    return int(logits.shape[1])


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
                raise OnnxspectError(f"{file.path}: the input has {a} channels, not 1 or 3: not an image classifier")
            return "NCHW", (a, b, c)
        return "NHWC", (c, a, b)
    if len(dims) == 3:
        return "NHW", (1, dims[1], dims[2])
    if len(dims) == 2:
        return "FLAT", (0, 0, 0)
    raise OnnxspectError(
        f"{file.path}: the input {name} has {len(dims)} axes; an image batch has 4 (or 3 grey, or 2 flattened)"
    )


def _dims(file: OnnxFile, name: str) -> list[int]:
    """Sizes of the graph input `name`; 0 for an open one."""
    info = next(i for i in file.proto.graph.input if i.name == name)
    return [max(d.dim_value, 0) if d.HasField("dim_value") else 0 for d in info.type.tensor_type.shape.dim]


def _noise(shape: tuple[int, ...]) -> Tensor:
    """Three images of even noise, ``(3, channels, height, width)`` in [0, 1]; the same ones every time."""
    return torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))


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
