"""A classifier seen at an internal layer: p(x) = g(f(x)), with f(x) the embedding at a *tap* (CEPA, Li et al., 2024, sec. 3).

For a model that came from a file, a tap is a cut of its graph (converters/lowering/taps.py), addressed by ONNX value name, and
f and g are exact. For a live torch module, which has no such graph, a tap is the *input of a submodule*, addressed by
the submodule's name; that no path leads around it is then the caller's promise.

`perturbing` moves the other end: it makes a Subject whose "pixels" are an internal tensor of the model;
`from_discrete` does so for models whose input is discrete (token ids, fed to an embedding table), which can be
searched from their first continuous tensor on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx, nn

from onnxspect.converters.lowering.logits import LogitsInfo, logits_of
from onnxspect.converters.lowering.lower import LoweredModel, lower
from onnxspect.converters.lowering.simplify import simplify
from onnxspect.converters.lowering.taps import Tap, cuts, split, with_outputs
from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError, caused_by
from onnxspect.engine.subject.class_scores import class_scores
from onnxspect.engine.subject.memory import in_parts
from onnxspect.engine.subject.onnx_model import open_file
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject

#: Operators after which a layer is complete: activations, poolings, and what joins the branches of a block.
_ENDS = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Gelu", "Sigmoid", "Tanh", "HardSwish", "Clip", "Softplus", "Mish"}
    | {"MaxPool", "AveragePool", "Concat", "Add", "Sum", "LayerNormalization"}
)
#: The tap that stands for the images themselves: f is the identity.
PIXELS = "pixels"


@dataclass(frozen=True)
class Embedding:
    """A subject with one of its taps.

    Attributes:
        subject: the classifier.
        tap: ONNX value name, or name of a submodule, or `PIXELS`.
        shape: of one embedding, without the batch axis.
        depth: share of the layers with weights that lie before the tap, in [0, 1].
        both: pixels ``(n, channels, height, width)`` -> (embedding, logits ``(n, classes)``); the embedding as the
            graph has it, so that its gradient is that of the cut.
        first: pixels -> the embedding alone, likewise.
    """

    subject: Subject
    tap: str
    shape: tuple[int, ...]
    depth: float
    both: Callable[[Tensor], tuple[Tensor, Tensor]] = field(repr=False)
    first: Callable[[Tensor], Tensor] = field(repr=False)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Embeddings ``(n, features)`` of pixels ``(n, channels, height, width)``, flattened."""
        return self.first(pixels).reshape(len(pixels), -1)

    def activations(self, images: np.ndarray, batch_size: int = 256) -> Tensor:
        """The layer's value for images ``(n, channels, height, width)`` in [0, 1], as the graph has it, on the CPU."""
        with torch.no_grad():
            parts = [
                self.first(torch.from_numpy(np.ascontiguousarray(part)).to(self.subject.device)).cpu()
                for part in (images[i : i + batch_size] for i in range(0, len(images), batch_size))
            ]
        return torch.cat(parts)

    def answers(self, activations: Tensor, batch_size: int = 256) -> np.ndarray:
        """Predicted classes int64 ``(n,)`` where the layer's value is `activations` (as `activations` gives it).

        Raises:
            OnnxspectError: there is no graph behind the subject, or its second half would need a size of its first.
        """
        with torch.no_grad():
            parts = [
                class_scores(self._second(part.to(self.subject.device)), self.subject.logits).argmax(1).cpu()
                for part in activations.split(batch_size)
            ]
        return torch.cat(parts).numpy()

    @cached_property
    def _second(self) -> fx.GraphModule:
        """g of the cut: from the embedding to the model's scores."""
        return split(self.subject.graph, self.tap, _example(self.subject))[1]


@dataclass(frozen=True)
class _Place:
    """Where a subject can be tapped."""

    name: str
    shape: tuple[int, ...]
    depth: float
    whole: bool  # the end of a layer, and not a value in the middle of one


def embed(subject: Subject, tap: str) -> Embedding:
    """The subject seen at `tap`.

    Args:
        subject: a classifier from a file, or a live module.
        tap: ONNX value name of a cut, name of a submodule (of a live module), or `PIXELS`.

    Raises:
        OnnxspectError: there is no such tap, it is not a cut, or its first axis does not count the images.
    """
    if tap == PIXELS:
        return Embedding(subject, tap, subject.image_shape, 0.0, lambda x: (x, subject(x)), lambda x: x)
    if subject.lowered is not None:
        lowered = subject.lowered
        place = {t.name: t for t in cuts(lowered)}.get(tap)
        if place is None:
            split(lowered, tap)  # says which: no such value, or a path around it (or a second name of a cut)
        both, first = _both_of_graph(subject, lowered, tap), _first_of_graph(subject, lowered, tap)
        depth = place.depth if place is not None else 0.0
    else:
        both = _both_of_module(subject, tap)
        first = lambda pixels: both(pixels)[0]
        depth = dict(zip(_layers(subject), np.linspace(0, 1, len(_layers(subject)) + 1), strict=False)).get(tap, 0.0)
    shape = _shape(subject, both, tap)
    most = subject.images_at_once
    return Embedding(
        subject, tap, shape, float(depth), lambda x: in_parts(both, x, most), lambda x: in_parts(first, x, most)
    )


def places(subject: Subject) -> list[str]:
    """Names of all taps of a subject, from the images on."""
    if subject.lowered is not None:
        return [t.name for t in cuts(subject.lowered)]
    return _layers(subject)[1:]


def choose_taps(subject: Subject, wanted: Sequence[str | int | float]) -> list[str]:
    """Names of the taps that are asked for, each once.

    Args:
        subject: the classifier.
        wanted: for each tap its name; its index among the cuts (an int, or a string of digits that is no name); or a
            depth in [0, 1] (a float, or "auto", which is 0.5), for which the last complete layer that lies no deeper
            and still has positions (height and width, or tokens) is taken, the first one if there is none.

    Raises:
        OnnxspectError: no such tap, or the model has none.
    """
    found: list[str] = []
    for want in wanted:
        name = _tap_of(subject, want)
        if name not in found:
            found.append(name)
    return found


def _tap_of(subject: Subject, want: str | int | float) -> str:
    if want == PIXELS:
        return PIXELS
    if want == "auto":
        return _at_depth(subject, 0.5)
    if isinstance(want, float):
        return _at_depth(subject, want)
    names = places(subject)
    if isinstance(want, str) and (want in names or not want.isdigit()):
        return embed(subject, want).tap
    index = int(want)
    if not 0 <= index < len(names):
        raise OnnxspectError(f"there is no tap {index}", f"`onnxspect info` lists them: 0 to {len(names) - 1}")
    return names[index]


def _at_depth(subject: Subject, depth: float) -> str:
    if subject.lowered is not None:
        known = [_place_of_cut(t) for t in cuts(subject.lowered)]
    else:
        names = _layers(subject)
        depths = np.linspace(0, 1, len(names) + 1)
        known = [
            _Place(n, _shape(subject, _both_of_module(subject, n), n), float(d), True)
            for n, d in zip(names[1:], depths[1:], strict=False)
        ]
    if not known:
        raise OnnxspectError(f"{subject.name}: no internal layer that all paths go through", "detectors need a tap")
    positioned = [p for p in known if len(p.shape) > 1]
    kept = [p for p in positioned if p.whole] or positioned or known
    return ([p for p in kept if p.depth <= depth + 1e-6] or kept[:1])[-1].name


def _place_of_cut(tap: Tap) -> _Place:
    shape = tuple(int(n or 0) for n in (tap.shape or (None,))[1:])
    return _Place(tap.name, shape, tap.depth, tap.operator in _ENDS)


def _both_of_graph(subject: Subject, lowered: LoweredModel, tap: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    module = with_outputs(lowered, [tap, lowered.outputs[0]]).module

    def both(pixels: Tensor) -> tuple[Tensor, Tensor]:
        embedding, answer = module(subject.spec.encode(pixels))
        return embedding, class_scores(answer, subject.logits)

    return both


def _first_of_graph(subject: Subject, lowered: LoweredModel, tap: str) -> Callable[[Tensor], Tensor]:
    module = with_outputs(lowered, [tap]).module

    def first(pixels: Tensor) -> Tensor:
        embedding: Tensor = module(subject.spec.encode(pixels))
        return embedding

    return first


def _both_of_module(subject: Subject, tap: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    module = _module(subject)
    try:
        inner = module.get_submodule(tap)
    except AttributeError as error:
        raise OnnxspectError(f"{subject.name} has no submodule {printable(tap)}") from error

    def both(pixels: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        handle = inner.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = subject.in_one_pass(pixels)
        finally:
            handle.remove()
        if not seen:
            raise OnnxspectError(f"{subject.name}: {printable(tap)} takes no part in the answer")
        return seen[0], logits

    return both


def _module(subject: Subject) -> nn.Module:
    if not isinstance(subject.module, nn.Module):
        raise OnnxspectError(f"{subject.name}: a plain function has no internal layers")
    return subject.module


def _layers(subject: Subject) -> list[str]:
    """Submodules of a live module that hold weights themselves, in the order in which they are declared."""
    named = _module(subject).named_modules()
    return [n for n, m in named if n and any(True for _ in m.parameters(recurse=False))]


def _shape(subject: Subject, both: Callable[[Tensor], tuple[Tensor, Tensor]], tap: str) -> tuple[int, ...]:
    """Shape of one embedding; proves on two batch sizes that the first axis counts the images."""
    shapes = []
    for n in (1, 3):
        with torch.no_grad():
            shapes.append(tuple(both(torch.full((n, *subject.image_shape), 0.5, device=subject.device))[0].shape))
    one, three = shapes
    if not one or three[0] != 3 * one[0] or one[1:] != three[1:]:
        raise OnnxspectError(
            f"{printable(tap)}: the first axis of this value does not count the images (shape {one} for one, {three} "
            "for three)",
            "choose another tap",
        )
    return one[1:] if one[0] == 1 else one


def perturbing(subject: Subject, value: str) -> Subject:
    """A Subject whose "pixels" are the tensor `value` of the model: every search then perturbs that, and not the image.

    Its images are embeddings (see `embedded`), of any range; whatever clips to [0, 1] must not do so.

    Args:
        subject: a classifier from a file.
        value: ONNX value name of a cut.

    Raises:
        OnnxspectError: the subject has no graph, or `value` is no cut of it.
    """
    if subject.lowered is None:
        raise OnnxspectError(f"{subject.name}: only a model from a file can be perturbed at an internal tensor")
    _, behind = split(subject.lowered, value, _example(subject))
    shape = embed(subject, value).shape
    return _from_value_on(subject.lowered, behind, value, shape, subject.logits, subject.device, subject.name)


def embedded(subject: Subject, value: str, samples: Samples, batch_size: int = 256) -> Samples:
    """The samples as `perturbing(subject, value)` takes them: their embeddings in place of their images."""
    embedding = embed(subject, value)
    images = embedding.activations(samples.images, batch_size).reshape(len(samples), *embedding.shape).float()
    return replace(samples, images=images.numpy(), files=())


def from_discrete(
    path: str | Path, value: str, inputs: np.ndarray, labels: np.ndarray, device: str = "cpu"
) -> tuple[Subject, Samples]:
    """A model whose input is no image (token ids, say), as a Subject and Samples from its tensor `value` on.

    Args:
        path: an ONNX file with one input, of any type and shape.
        value: ONNX value name of a cut that is continuous: the output of the embedding table, or anything behind it.
        inputs: clean inputs as the model takes them, ``(n, ...)``.
        labels: class indices ``(n,)``.
        device: where to search.

    Returns:
        the Subject (see `perturbing`) and its Samples: ``(n, *shape of value)`` float32.

    Raises:
        OnnxspectError: the file is not usable, has several inputs, does not run on such inputs, or `value` is no cut.
    """
    if len(inputs) == 0 or len(inputs) != len(labels):
        raise OnnxspectError(f"{len(inputs)} inputs but {len(labels)} labels", "give one label for each input")
    file = open_file(path)
    proto, _ = simplify(file.proto)
    info = logits_of(proto)
    lowered = lower(proto, [info.value])
    if len(lowered.inputs) != 1:
        raise OnnxspectError(f"{path}: the model has {len(lowered.inputs)} inputs, not one")
    before, behind = split(lowered, value, inputs.shape[1:])
    before.to(device), behind.to(device)
    try:
        with torch.no_grad():
            images = before(torch.from_numpy(np.ascontiguousarray(inputs)).to(device)).float().cpu().numpy()
    except Exception as error:  # whatever the untrusted graph raises on these inputs is the same finding
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise caused_by(error, f"{path}: does not run on inputs of shape {inputs.shape[1:]}: {line}") from error
    if len(images) != len(inputs) or images.dtype.kind != "f":
        raise OnnxspectError(f"{printable(value)}: the first axis of this value does not count the inputs")
    subject = _from_value_on(lowered, behind, value, images.shape[1:], info, device, str(path))
    return subject, Samples(images, np.asarray(labels, np.int64), path=str(path))


def _from_value_on(
    lowered: LoweredModel,
    behind: fx.GraphModule,
    value: str,
    shape: tuple[int, ...],
    info: LogitsInfo | None,
    device: str,
    name: str,
) -> Subject:
    kept = {node.name for node in behind.graph.nodes}
    used = {node.target for node in behind.graph.nodes if node.op == "get_attr"}
    start = next(node for node in behind.graph.nodes if node.op == "placeholder")
    cut = replace(
        lowered,
        module=behind,
        inputs=(value,),
        values={k: v for k, v in lowered.values.items() if v in kept} | {value: start.name},
        weights={k: w for k, w in lowered.weights.items() if k in used},
    )

    def module(x: Tensor) -> Tensor:
        return class_scores(behind(x), info)

    with torch.no_grad():
        classes = int(module(torch.zeros(1, *shape, device=device)).reshape(1, -1).shape[1])
    spec = InputSpec(name=f"at {value}")
    # An internal tensor has as many axes as it has; what reads `image_shape` as an image does not meet such a subject.
    return Subject(module, spec, shape, classes, device, f"{name} from {value} on", None, cut, info)  # type: ignore[arg-type]


def _example(subject: Subject) -> tuple[int, ...] | None:
    """Shape of one image as the model's own input tensor has it."""
    if not all(subject.image_shape):
        return None
    with torch.no_grad():
        return tuple(subject.spec.encode(torch.zeros(1, *subject.image_shape)).shape[1:])
