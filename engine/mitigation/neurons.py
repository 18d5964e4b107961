"""Neurons: the channels of a layer, what clean and stamped images make of them, and how one is switched off.

A layer is a tap (converters/lowering/taps.py): a value through which everything passes, so that the rest of the model can be run
on changed activations alone. A neuron is one channel of it (one feature of a flat layer).

Switching a neuron off means that it answers 0 for every image (Neural Cleanse, Wang et al., 2019, sec. VI-B: "set these
neurons' output value to 0 during inference"). Where the value comes from a Conv, BatchNormalization, Gemm or MatMul
through nothing but functions that map zero to zero channel by channel (ReLU and its relatives, pooling), that is done
exactly by zeroing the channel's weights and bias, and the graph stays as it was. Everywhere else (a sum of two
branches, a concatenation, a sigmoid, weights that two layers share) a mask node does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from onnxspect.converters.lowering.taps import Tap, cuts
from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.graph_edit import Mask
from onnxspect.engine.mitigation.method import Edit
from onnxspect.engine.search.embedding import Embedding
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import Trigger

#: Elementwise functions f with f(0) = 0, and pooling: a channel of zeros stays one of zeros.
_KEEPS_ZERO = frozenset(
    ("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "HardSwish", "Mish", "Tanh", "Softsign", "Erf")
    + ("ThresholdedRelu", "Identity", "Dropout", "Cast", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
)
_RESHAPES = frozenset(("Flatten", "Reshape", "Squeeze"))
#: Images on which activations are measured, at most.
MOST_IMAGES = 256


@dataclass(frozen=True)
class Slice:
    """A part of an initializer that belongs to each neuron: index `axis`."""

    initializer: str
    axis: int


@dataclass(frozen=True)
class Layer:
    """A tap with its neurons.

    Attributes:
        tap: the cut.
        axis: the neurons' axis in its value.
        rank: number of axes of the value.
        neurons: how many.
        sources: the initializers whose slices switch a neuron off exactly; empty where a mask node is needed.
    """

    tap: Tap
    axis: int
    rank: int
    neurons: int
    sources: tuple[Slice, ...]

    @property
    def exact(self) -> bool:
        """Whether weights alone can switch its neurons off."""
        return bool(self.sources)


def layers(subject: Subject, every: bool = False) -> list[Layer]:
    """The layers of a subject whose neurons can be switched off, from the image on.

    Values that hold the same neurons in another form (after an activation function, after pooling) count once: the last
    of them that weights can switch off, or else the last; with `every` each counts.

    Raises:
        OnnxspectError: no ONNX file behind the subject.
    """
    lowered, proto = subject.origin.lowered, subject.origin.file.proto
    graph = _Graph(proto, {w.initializer for w in lowered.weights.values()})
    found: list[Layer] = []
    for tap in cuts(lowered):
        if tap.shape is None or not graph.feeds_weights(tap.name):
            continue
        axis = graph.channel_axis(tap.name, len(tap.shape))
        neurons = tap.shape[axis] if axis is not None else None
        if axis is None or neurons is None or neurons < 2 or tap.depth <= 0:
            continue
        if not every and found and tap.operator in _RESHAPES and found[-1].tap.depth == tap.depth:
            continue  # the same activations in a row: a feature of it is one place of a neuron, and no neuron
        sources = graph.sources(tap.name, axis, len(tap.shape), neurons)
        layer = Layer(tap, axis, len(tap.shape), neurons, sources)
        same = found and (found[-1].neurons, found[-1].tap.depth, found[-1].rank) == (neurons, tap.depth, layer.rank)
        if same and not every:
            # The same neurons further on; but an exact way to switch them off is not given up for a later name.
            if layer.exact or not found[-1].exact:
                found[-1] = layer
            continue
        found.append(layer)
    return found


def last_convolutional(candidates: Sequence[Layer]) -> Layer:
    """The last layer with spatial axes, or the last of all where none has (Neural Cleanse prunes the second to last layer).

    Raises:
        OnnxspectError: there are no layers.
    """
    if not candidates:
        raise OnnxspectError(
            "no inner layer of this model is a cut whose neurons can be distinguished",
            "a method that needs no layer, such as --method unlearn",
        )
    return next((layer for layer in reversed(candidates) if layer.rank == 4), candidates[-1])


def named_layer(candidates: Sequence[Layer], name: str) -> Layer:
    """The layer of a tap, by ONNX value name.

    Raises:
        OnnxspectError: no such layer; names those that there are.
    """
    for layer in candidates:
        if layer.tap.name == name:
            return layer
    known = ", ".join(printable(layer.tap.name) for layer in candidates)
    raise OnnxspectError(f"{printable(name)}: no layer whose neurons can be pruned", f"one of {known}")


def per_neuron(activations: Tensor, layer: Layer) -> np.ndarray:
    """Mean activation ``(n, neurons)`` over all axes but the batch and the neurons'."""
    others = [i for i in range(1, activations.ndim) if i != layer.axis]
    return (activations.mean(others) if others else activations).numpy()


def masked(activations: Tensor, layer: Layer, keep: np.ndarray) -> Tensor:
    """Activations with the neurons that are not kept at 0."""
    shape = [-1 if i == layer.axis else 1 for i in range(activations.ndim)]
    return activations * torch.from_numpy(keep.astype(np.float32)).to(activations.dtype).view(shape)


def stamped_rows(samples: Samples, trigger: Trigger, answers: np.ndarray | None) -> np.ndarray:
    """Rows that count for a trigger's success."""
    return np.flatnonzero(trigger.counts_on(samples.labels, answers))


def scale_of(clean: np.ndarray) -> np.ndarray:
    """Each neuron's deviation on clean images ``(features,)``, a thousandth of the largest more.

    A neuron that clean images leave silent is not infinitely informative: few clean images show only that it is rare.

    Args:
        clean: activations ``(n, features)``.
    """
    deviation = clean.std(0)
    return np.asarray(deviation + 1e-3 * float(deviation.max() or 1.0))


def activation_gap(embedding: Embedding, layer: Layer, samples: Samples, triggers: Sequence[Trigger]) -> np.ndarray:
    """How much more each neuron answers to stamped than to clean images ``(neurons,)``: Neural Cleanse, sec. VI-B.

    With several triggers it is the largest of their gaps, each divided by its own maximum, so that none drowns.
    """
    clean_images = samples.images[:MOST_IMAGES]
    clean = per_neuron(embedding.activations(clean_images), layer).mean(0)
    gaps = []
    for trigger in triggers:
        rows = np.flatnonzero(samples.labels != trigger.target)[:MOST_IMAGES]
        stamped = trigger.apply(samples.images[rows])
        gap = per_neuron(embedding.activations(stamped), layer).mean(0) - clean
        gaps.append(gap / (np.abs(gap).max() or 1.0))
    return np.max(gaps, axis=0)


def switch_off(subject: Subject, layer: Layer, off: np.ndarray) -> Edit:
    """The edit that switches neurons off: weights where that is exact, else a mask node.

    Args:
        subject: the classifier.
        layer: where.
        off: bool ``(neurons,)``.
    """
    if not layer.exact:
        return Edit(additions=(Mask(layer.tap.name, layer.axis, layer.rank, ~off),))
    return Edit(values=zeroed(subject, layer, off))


def zeroed(subject: Subject, layer: Layer, off: np.ndarray) -> dict[str, np.ndarray]:
    """Torch parameter name -> value in which the neurons' weights are 0."""
    assert subject.lowered is not None
    parameters = dict(subject.lowered.module.named_parameters())
    by_initializer = {w.initializer: name for name, w in subject.lowered.weights.items()}
    values = {}
    for source in layer.sources:
        name = by_initializer[source.initializer]
        value = parameters[name].detach().cpu().numpy().copy()
        np.moveaxis(value, source.axis, 0)[off] = 0
        values[name] = value
    return values


class _Graph:
    """The nodes of a file, walked backwards."""

    def __init__(self, model: onnx.ModelProto, writable: set[str]) -> None:
        self.producers = {o: n for n in model.graph.node for o in n.output if o}
        self._writable = writable
        self._shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
        self._constants = {
            n.output[0]: n.attribute[0].t
            for n in model.graph.node
            if n.op_type == "Constant" and len(n.attribute) == 1 and n.attribute[0].name == "value"
        }
        self._shapes |= {name: tuple(t.dims) for name, t in self._constants.items()}
        self._initializers = {t.name: t for t in model.graph.initializer}
        weighty = ("Conv", "ConvTranspose", "Gemm", "MatMul")
        self._before = {o: i for i, n in enumerate(model.graph.node) for o in n.output if o}
        self._last = max((i for i, n in enumerate(model.graph.node) if n.op_type in weighty), default=-1)
        self._uses: dict[str, int] = {}
        for node in model.graph.node:
            for name in node.input:
                self._uses[name] = self._uses.get(name, 0) + 1
        for output in model.graph.output:
            self._uses[output.name] = self._uses.get(output.name, 0) + 1

    def feeds_weights(self, value: str) -> bool:
        """Whether a layer with weights is still to come: what follows the last one are class scores, not neurons."""
        return self._before.get(value, self._last) < self._last

    def channel_axis(self, value: str, rank: int) -> int | None:
        """The axis of `value` that holds its neurons."""
        if rank in (2, 3):
            return rank - 1
        if rank != 4:
            return None
        axis = self._layout(value, 0)
        return 1 if axis is None else axis

    def _layout(self, value: str, depth: int) -> int | None:
        """Walk back to a convolution, through what keeps the axes and through transpositions."""
        node = self.producers.get(value)
        if node is None or depth > 40:
            return None
        if node.op_type in ("Conv", "ConvTranspose", "BatchNormalization"):
            return 1
        for name in node.input[:2]:
            if name in self.producers and name not in self._constants:
                axis = self._layout(name, depth + 1)
                if axis is None:
                    continue
                if node.op_type == "Transpose":
                    return _order(node).index(axis)
                return axis
        return None

    def sources(self, value: str, axis: int, rank: int, neurons: int) -> tuple[Slice, ...]:
        """The slices whose zeros make every neuron of `value` answer 0, or nothing where there are none."""
        biases: list[Slice] = []
        for _ in range(40):
            node = self.producers.get(value)
            if node is None:
                return ()
            if node.op_type in _KEEPS_ZERO or self._clip_keeps_zero(node):
                value = node.input[0]
            elif node.op_type == "Transpose" and rank == 4:
                axis = _order(node)[axis]
                value = node.input[0]
            elif node.op_type == "Add":
                # A bias of its own node: x + b, with x from a MatMul or Conv.
                bias = next((i for i in node.input if i in self._shapes), None)
                where = self._bias_axis(self._shapes.get(bias or "", ()), axis, rank, neurons)
                if bias is None or where is None or biases:
                    return ()
                biases.append(Slice(bias, where))
                value = next(i for i in node.input if i != bias)
            else:
                found = [*self._own(node, axis, rank, neurons), *biases]
                usable = all(self._only_ours(s, neurons) for s in found)
                return tuple(found) if self._own(node, axis, rank, neurons) and usable else ()
            if self._uses.get(value, 0) != 1:
                return ()  # someone else reads the value before the tap
        return ()

    def _own(self, node: onnx.NodeProto, axis: int, rank: int, neurons: int) -> list[Slice]:
        """The slices of a layer with weights."""
        names = [*node.input, "", "", ""]
        if node.op_type == "Conv" and axis == 1:
            return [Slice(n, 0) for n in names[1:3] if n]
        if node.op_type == "ConvTranspose" and axis == 1 and self._shapes.get(names[1], (0, 0))[1] == neurons:
            return [Slice(names[1], 1), *([Slice(names[2], 0)] if names[2] else [])]
        if node.op_type == "BatchNormalization" and axis == 1:
            return [Slice(names[1], 0), Slice(names[2], 0)]
        if node.op_type == "Gemm" and rank == 2:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            found = [Slice(names[1], 0 if transposed else 1)]
            if names[2]:
                shape = self._shapes.get(names[2], ())
                where = self._bias_axis(shape, axis, rank, neurons)
                if where is None:
                    return []
                found.append(Slice(names[2], where))
            return found
        if node.op_type == "MatMul" and axis == rank - 1 and len(self._shapes.get(names[1], ())) == 2:
            return [Slice(names[1], 1)]
        return []

    def _bias_axis(self, shape: tuple[int, ...], axis: int, rank: int, neurons: int) -> int | None:
        """Which axis of a broadcast operand of this shape lies along the neurons' axis."""
        where = axis - (rank - len(shape))
        return where if 0 <= where < len(shape) and shape[where] == neurons else None

    def _only_ours(self, source: Slice, neurons: int) -> bool:
        shape = self._shapes.get(source.initializer, ())
        fits = source.axis < len(shape) and shape[source.axis] == neurons
        return fits and source.initializer in self._writable and self._uses.get(source.initializer, 0) == 1

    def _clip_keeps_zero(self, node: onnx.NodeProto) -> bool:
        """Whether a Clip leaves 0 alone."""
        if node.op_type != "Clip":
            return False
        bounds = {a.name: a.f for a in node.attribute}
        for name, given in zip(("min", "max"), [*node.input[1:3], "", ""], strict=False):
            if given:
                tensor = self._initializers.get(given) or self._constants.get(given)
                if tensor is None:
                    return False
                bounds[name] = float(numpy_helper.to_array(tensor).reshape(()))
        return bounds.get("min", -1.0) <= 0 <= bounds.get("max", 1.0)


def _order(transpose: onnx.NodeProto) -> list[int]:
    """The permutation of a Transpose of four axes."""
    return list(next((a.ints for a in transpose.attribute if a.name == "perm"), (3, 2, 1, 0)))


def curve_points(neurons: int, most: int = 48) -> list[int]:
    """How many neurons to prune at each point of a curve: all counts where they are few, else ever larger steps."""
    if neurons <= most:
        return list(range(neurons))
    return sorted({round(neurons * (i / most) ** 1.5) for i in range(most)})


def success_on(
    answers: Mapping[int, np.ndarray], labels: Mapping[int, np.ndarray], triggers: Sequence[Trigger]
) -> float:
    """The largest share of stamped images that some trigger leads; their answers and labels by trigger index."""
    led = (t.leads(answers[i], labels[i]) for i, t in enumerate(triggers) if len(answers[i]))
    return max((float(there.mean()) for there in led), default=0.0)
