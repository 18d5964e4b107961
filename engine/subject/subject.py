"""A classifier under inspection: a callable from pixels to logits, differentiable, parameters frozen.

Pixels are float32 ``(n, channels, height, width)`` in [0, 1]; logits are ``(n, classes)``. What the *file* wants
(layout, channel order, value range, mean and deviation) and what it answers (probabilities instead of logits) are
facts kept in `InputSpec` and `logits_how`, and hidden in here: no detector knows them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxspect.converters.file.onnx_file import OnnxFile, read_onnx
from onnxspect.converters.file.probe import probe
from onnxspect.converters.lowering.logits import LogitsInfo, logits_of
from onnxspect.converters.lowering.lower import LoweredModel, lower
from onnxspect.converters.lowering.simplify import simplify
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.converters.proof.parity import Comparison
from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.subject.memory import budget, in_parts, kept_bytes

#: Real images on which the torch graph is compared with onnxruntime.
REAL_IMAGES = 8
LAYOUTS = ("NCHW", "NHWC", "NHW", "FLAT")


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
            gain, offset = self._affine(x)
            x = x * gain + offset
        if self.layout == "NCHW":
            return x
        if self.layout == "NHWC":
            return x.permute(0, 2, 3, 1)
        if self.layout == "NHW":
            return x[:, 0]
        return x.permute(0, 2, 3, 1).flatten(1)

    def _affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.mean, dtype=x.dtype, device=x.device).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=x.dtype, device=x.device).view(-1, 1, 1)
        return self.scale / std, -mean / std

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
    def described(cls, told: Mapping[str, Any]) -> InputSpec:
        """What `describe` told, out of a report."""
        return cls(**{**told, "mean": tuple(told["mean"]), "std": tuple(told["std"])})


@dataclass(frozen=True)
class Subject:
    """A classifier under inspection.

    Attributes:
        module: from the model's own input tensor to logits; evaluation mode, parameters frozen.
        spec: how pixels become that input tensor.
        image_shape: (channels, height, width) of its images; 0 for a size that the model leaves open.
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

    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of pixels ``(n, channels, height, width)`` in [0, 1], in parts that fit in memory."""
        return (
            self.in_one_pass(pixels) if self.size is None else in_parts(self.in_one_pass, pixels, self.images_at_once)
        )

    def in_one_pass(self, pixels: Tensor) -> Tensor:
        """The same, whatever memory it takes."""
        logits = self.module(self.spec.encode(pixels))
        return logits.reshape(logits.shape[0], -1)

    @cached_property
    def images_at_once(self) -> int:
        """How many images' activations may be in memory at a time (memory.budget)."""
        image = torch.full((1, *self.image_shape), 0.5, device=self.device)
        return max(1, budget(self.device) // kept_bytes(self.in_one_pass, image))

    def predict(self, pixels: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Logits ``(n, classes)`` float32 for an array of pixels, in batches, without gradients."""
        with torch.no_grad():
            parts = [
                self(torch.from_numpy(np.ascontiguousarray(pixels[i : i + batch_size])).to(self.device)).float().cpu()
                for i in range(0, len(pixels), batch_size)
            ]
        return torch.cat(parts).numpy()

    def with_spec(self, spec: InputSpec) -> Subject:
        """The same classifier, read with another InputSpec."""
        return replace(self, spec=spec)

    @property
    def size(self) -> tuple[int, int, int] | None:
        """`image_shape` where it is fixed, else None."""
        return self.image_shape if all(self.image_shape) else None

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
        subject = cls(frozen, spec or InputSpec(), image_shape, 0, device, type(module).__name__)
        return replace(subject, classes=_count_classes(subject))

    @classmethod
    def from_onnx(cls, path: str | Path, spec: InputSpec | None = None, device: str = "cpu") -> Subject:
        """From an ONNX file of any exporter.

        The file is first opened, checked and run in a child process; then lowered, and the torch graph is compared
        with onnxruntime on seeded inputs. `spec` is a guess (pixels in [0, 1]) until `preflight` settles it.

        Raises:
            OnnxspectError: the file is not a usable image classifier; says why.
        """
        file = open_file(path)
        proto, known = simplify(file.proto)
        try:
            info = logits_of(proto, known.after)
        except OnnxspectError as error:
            raise OnnxspectError(f"{path}: {error.message}", error.hint) from error
        lowered = lower(proto, [info.value], known.after)
        if len(lowered.inputs) != 1:
            names = ", ".join(map(printable, lowered.inputs[:5]))
            raise OnnxspectError(
                f"{path}: the model has {len(lowered.inputs)} inputs ({names}); an image classifier has one"
            )
        layout, image_shape = _image_input(file, lowered.inputs[0])
        spec = replace(spec, layout=layout) if spec is not None else InputSpec(layout=layout)
        lowered.module.to(device)
        module = _LogOf(lowered.module) if info.how == "log_of_probabilities" else lowered.module
        comparison = Comparison(file.proto, lowered, knowledge=known.before)
        subject = cls(module, spec, image_shape, 0, device, str(path), file, lowered, info, comparison)
        return subject.settled(image_shape) if subject.size is not None else subject

    def settled(self, image_shape: tuple[int, int, int]) -> Subject:
        """The same classifier with its open image sizes filled in from real images, checked against onnxruntime.

        Raises:
            OnnxspectError: it does not run on such images, is no classifier, or the torch graph differs from the file.
        """
        if self.classes:
            return self
        filled = replace(self, image_shape=image_shape)
        filled = replace(filled, classes=_count_classes(filled))
        filled._compare(_seeded_input(filled), batch_sizes=(1, 4))
        return filled

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
        if self.comparison is not None:
            self.comparison.check(batch, batch_sizes=batch_sizes)

    def oracle(self) -> Oracle:
        """onnxruntime over the original file.

        Raises:
            OnnxspectError: the subject is a live module without a file.
        """
        if self.file is None:
            raise OnnxspectError(f"{self.name}: no ONNX file behind this subject", "export it first")
        return Oracle(self.file.path, self.device)


def _count_classes(subject: Subject) -> int:
    channels, height, width = subject.image_shape
    with torch.no_grad():
        try:
            logits = subject.in_one_pass(torch.full((2, channels, height, width), 0.5, device=subject.device))
        except Exception as error:  # whatever the stranger's graph raises on an image is the same finding
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise OnnxspectError(f"{subject.name}: does not run on {width}x{height} images: {line}") from error
    if logits.ndim != 2 or logits.shape[0] != 2 or logits.shape[1] < 2:
        raise OnnxspectError(
            f"{subject.name}: not a classifier of at least two classes: two images give an output of shape "
            f"{tuple(logits.shape)}"
        )
    return int(logits.shape[1])


def _image_input(file: OnnxFile, name: str) -> tuple[str, tuple[int, int, int]]:
    """(layout, (channels, height, width)) of the graph input `name`; 0 for an open size."""
    info = next(i for i in file.proto.graph.input if i.name == name)
    dims = [d.dim_value if d.HasField("dim_value") else 0 for d in info.type.tensor_type.shape.dim]
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


def _seeded_input(subject: Subject) -> np.ndarray:
    """Three images of even noise, as the model takes them."""
    pixels = torch.rand(3, *subject.image_shape, generator=torch.Generator().manual_seed(0))
    return subject.spec.encode(pixels).numpy()


class _LogOf(nn.Module):
    """Logarithm of the probabilities of a model whose softmax could not be taken off; floored to stay finite."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities: logits up to a constant a row."""
        return torch.log(self.inner(x).clamp_min(1e-30))


def open_file(path: str | Path) -> OnnxFile:
    """Read an ONNX file and let a child process check and run it first.

    Raises:
        OnnxspectError: it is not usable; says why.
    """
    file = read_onnx(Path(path))
    probe(file)
    return file
