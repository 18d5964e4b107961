"""A classifier under inspection: a callable from pixels to logits, differentiable, parameters frozen.

Pixels are float32 ``(n, channels, height, width)`` in [0, 1]; logits are ``(n, classes)``. What the *file* wants
(layout, channel order, value range, mean and deviation) and what it answers (probabilities instead of logits) are
facts kept in `InputSpec` and `logits_how`, and hidden in here: no detector knows them.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxspect.converters.file.onnx_file import OnnxFile
from onnxspect.converters.lowering.fixed_batch import GroupedGraphModule
from onnxspect.converters.lowering.logits import LogitsInfo
from onnxspect.converters.lowering.lower import LoweredModel
from onnxspect.converters.proof.oracle import Oracle, of_file
from onnxspect.converters.proof.parity import Comparison
from onnxspect.engine.errors import OnnxspectError, caused_by
from onnxspect.engine.subject.class_scores import ClassScores, as_scores
from onnxspect.engine.subject.memory import budget, in_parts, kept_bytes
from onnxspect.engine.subject.precision import judging
from onnxspect.engine.subject.small_network import SmallNetwork

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
            raise OnnxspectError(f"unknown layout {self.layout!r:.40}", f"one of {', '.join(LAYOUTS)}")
        if self.channel_order not in ("RGB", "BGR"):
            raise OnnxspectError(f"unknown channel order {self.channel_order!r:.40}", "RGB or BGR")
        if not self.scale > 0 or not all(s > 0 for s in self.std):
            raise OnnxspectError(
                "the input scale and every standard deviation must be positive",
                "the model is fed (pixels * scale - mean) / std: leave out what is 1",
            )

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
    def shareable(self) -> bool:
        """Whether several threads may run it at a time: of a live module nobody knows what it keeps of a pass."""
        if self.lowered is None:
            return isinstance(self.module, SmallNetwork)
        return not isinstance(self.lowered.module, GroupedGraphModule)

    def on(self, device: str) -> Subject | None:
        """A copy on another device, for searches; None where the module is a plain function, which lies where it lies."""
        if not isinstance(self.module, nn.Module):
            return None
        return replace(self, module=copy.deepcopy(self.module).to(device), device=device)

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

    def accuracy(self, pixels: np.ndarray, labels: np.ndarray) -> float:
        """The share of an array of pixels ``(n, channel, height, width)`` that gets its label ``(n,)``."""
        return float((self.predict(pixels).argmax(1) == labels).mean())

    def with_spec(self, spec: InputSpec) -> Subject:
        """The same classifier, read with another InputSpec."""
        found = replace(self, spec=spec)
        if spec.layout == self.spec.layout and (kept := vars(self).get("kept_bytes")) is not None:
            vars(found)["kept_bytes"] = kept  # measured already, and pixels of another range keep as much
        return found

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
        return hashlib.sha256(self.predict(noise(self.image_shape).numpy()).tobytes()).hexdigest()

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
        return cls(frozen, spec, image_shape, count_classes(frozen, spec, image_shape, device, name), device, name)

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
        from onnxspect.engine.subject.onnx_model import open_onnx  # which makes a Subject, and so imports this module

        return open_onnx(path, spec, device).subject(image_shape)

    def check(self, pixels: np.ndarray) -> None:
        """Compare the torch graph with onnxruntime on real images ``(n, channels, height, width)``, at every tap.

        Raises:
            OnnxspectError: they differ by more than rounding; names the first tensor that does.
        """
        images = torch.from_numpy(np.ascontiguousarray(pixels[:REAL_IMAGES]))
        self.compare(self.spec.encode(images).numpy(), batch_sizes=())
        if self.comparison is not None:  # opened, preprocessing found: nothing is left to compare
            self.comparison.release()

    def compare(self, batch: np.ndarray, batch_sizes: tuple[int, ...]) -> None:
        """Compare the torch graph with onnxruntime on a batch as the file takes it, at these sizes too.

        Raises:
            OnnxspectError: they differ by more than rounding.
        """
        if self.comparison is not None:  # a live module has nothing to be compared with
            with judging():
                self.comparison.check(batch, batch_sizes=batch_sizes)

    def oracle(self) -> Oracle:
        """onnxruntime over the original file.

        Raises:
            OnnxspectError: the subject is a live module without a file.
        """
        return Oracle(of_file(self.origin.file), self.device)


def count_classes(
    module: Callable[[Tensor], Tensor], spec: InputSpec, shape: tuple[int, int, int], device: str, name: str
) -> int:
    """How many classes a module answers images of a shape with.

    Raises:
        OnnxspectError: it does not run on them, or is no classifier.
    """
    _, height, width = shape
    with torch.no_grad():
        try:
            logits = module(spec.encode(torch.full((2, *shape), 0.5, device=device)))
            logits = logits.reshape(logits.shape[0], -1)
        except Exception as error:  # whatever the untrusted graph raises on an image is the same finding
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise caused_by(
                error,
                f"{name}: does not run on {width}x{height} images: {line}",
                "give images of the size that it was trained on",
            ) from error
    if logits.ndim != 2 or logits.shape[0] != 2 or logits.shape[1] < 2:
        raise OnnxspectError(
            f"{name}: not a classifier of at least two classes: two images give an output of shape {tuple(logits.shape)}",
            "onnxspect looks for backdoors in image classifiers: models that answer one score for each class of a whole image",
        )
    if logits.shape[1] > MOST_CLASSES:
        raise OnnxspectError(
            f"{name}: {logits.shape[1]} outputs are more than the classes of any image classifier ({MOST_CLASSES})",
            "if it is a segmentation or a detection model, there is nothing to scan",
        )
    return int(logits.shape[1])


def noise(shape: tuple[int, ...]) -> Tensor:
    """Three images of even noise, ``(3, channels, height, width)`` in [0, 1]; the same ones every time."""
    return torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
