"""Channel Lipschitz pruning (CLP; Zheng et al., 2022): no data, no trigger, no gradient.

For every channel of every convolution an upper bound of its Lipschitz constant (their UCLC) is the spectral norm of its
weights, reshaped to (input channels, kernel area), times ``|gamma| / sqrt(var + eps)`` where a BatchNorm follows. A
backdoor needs a channel that a small trigger moves a lot, so channels above ``mean + u * deviation`` of their layer are
switched off.

Departures: clean samples are at hand, so u is not fixed at 3 but lowered step by step as long as clean accuracy stays
within what may be lost and, where a trigger is known, until it is dead. Dense layers before the last are judged too:
the norm of a neuron's weight row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx
import torch

from onnxspect.engine.errors import InconclusiveError
from onnxspect.engine.mitigation.method import Edit, PatchInput
from onnxspect.engine.mitigation.settings import require
from onnxspect.engine.mitigation.training import Guard, trainable_copy

NAME = "clp"
#: Operators whose channels are judged.
_WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Channels:
    """The channels of one layer: their bounds, and where their weights are.

    Attributes:
        bound: UCLC ``(channels,)``.
        slices: (torch parameter, axis) whose slices switch a channel off.
    """

    bound: np.ndarray
    slices: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class ChannelLipschitz:
    """The method's settings.

    Attributes:
        thresholds: deviations u above the layer's mean, tried in this order (theirs: 3).
    """

    name: ClassVar[str] = NAME
    trains: ClassVar[bool] = False
    mends: ClassVar[bool] = True
    thresholds: tuple[float, ...] = (5.0, 4.0, 3.5, 3.0, 2.5, 2.0, 1.5)

    def __post_init__(self) -> None:
        require(len(self.thresholds) > 0, "clp needs a threshold to try")

    def edit(self, given: PatchInput) -> Edit:
        """Prune the channels that stand out.

        Raises:
            OnnxspectError: no channel stands out, or none can go without losing too much accuracy.
        """
        student, parameters = trainable_copy(given.subject)
        original = {n: p.detach().clone() for n, p in parameters.items()}
        found = channels(given)
        guard = Guard(given.subject, given.clean, given.triggers)
        first = guard.measure(0, student)
        best: tuple[float, dict[str, np.ndarray], int] | None = None
        trials: list[dict[str, float]] = []
        last = -1
        for u in self.thresholds:
            off = [c.bound > c.bound.mean() + u * c.bound.std() for c in found]
            count = int(sum(o.sum() for o in off))
            if count in (0, last):
                continue
            last = count
            with torch.no_grad():
                for name, value in original.items():
                    parameters[name].copy_(value)
                for layer, gone in zip(found, off, strict=True):
                    for name, axis in layer.slices:
                        parameters[name].movedim(axis, 0)[torch.from_numpy(gone)] = 0
            now = guard.measure(len(trials) + 1, student)
            trials.append({"u": u, "pruned": count, "accuracy": now.accuracy, "success": now.success})
            if first.accuracy - now.accuracy > given.accuracy_lost + 0.5 / len(given.clean):
                break
            best = (u, {n: p.detach().cpu().numpy().copy() for n, p in parameters.items()}, count)
            if given.triggers and now.success <= given.success:
                break
        if best is None:
            raise InconclusiveError(
                "no channel can be pruned: "
                + ("none stands out" if not trials else "the first that stand out cost too much clean accuracy")
            )
        return replace(Edit(best[1]), facts={"u": best[0], "pruned": best[2], "trials": trials})


def channels(given: PatchInput) -> list[Channels]:
    """The bounds of every layer whose weights are in the file and its own; the layer of the logits is left out."""
    subject = given.subject
    file, lowered = subject.origin.file, subject.origin.lowered
    by_initializer = {w.initializer: name for name, w in lowered.weights.items()}
    parameters = {n: p.detach().cpu().numpy() for n, p in lowered.module.named_parameters()}
    nodes = list(file.proto.graph.node)
    head = _head(file.proto.graph, subject.logits.value if subject.logits else "")
    uses: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            uses.setdefault(name, []).append(node)
    found = []
    for node in nodes:
        if node.op_type not in _WEIGHTED or node.output[0] in head:
            continue
        names = [by_initializer.get(n, "") for n in (*node.input[1:3], "", "")]
        weight, bias = names[0], names[1]
        if not weight or len(uses[node.input[1]]) > 1:
            continue
        axis = 0 if node.op_type == "Conv" or _transposed(node) else parameters[weight].ndim - 1
        rows = np.moveaxis(parameters[weight], axis, 0)
        bound = _norms(rows)
        slices = [(weight, axis)]
        if bias and parameters[bias].shape == (len(rows),) and len(uses[node.input[2]]) == 1:
            slices.append((bias, 0))
        bound, slices = _with_batch_norm(node, bound, slices, uses, by_initializer, parameters)
        found.append(Channels(bound, tuple(slices)))
    return found


def _head(graph: onnx.GraphProto, logits: str) -> set[str]:
    """Outputs of the layers that the logits come from, through whatever has no weights (pooling, reshaping); not to be pruned.

    A channel of theirs is a class, and without it the target could not be answered at all.
    """
    producers = {o: n for n in graph.node for o in n.output}
    waiting = [logits] if logits in producers else [o.name for o in graph.output]
    found: set[str] = set()
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        node = producers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type in _WEIGHTED:
            found.add(node.output[0])
        else:
            waiting += node.input
    return found


def _norms(rows: np.ndarray) -> np.ndarray:
    """Spectral norm of each channel's weights as a matrix (input channels, kernel area)."""
    if rows.ndim < 3:
        return np.asarray(np.linalg.norm(rows.reshape(len(rows), -1), axis=1))
    return np.array([np.linalg.norm(r.reshape(r.shape[0], -1), 2) for r in rows])


def _transposed(node: onnx.NodeProto) -> bool:
    return node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)


def _with_batch_norm(
    node: onnx.NodeProto,
    bound: np.ndarray,
    slices: list[tuple[str, int]],
    uses: Mapping[str, list[onnx.NodeProto]],
    by_initializer: Mapping[str, str],
    parameters: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """The bounds times the gain of the BatchNorm that alone follows, if one does; and its slices."""
    after = uses.get(node.output[0], [])
    if len(after) != 1 or after[0].op_type != "BatchNormalization":
        return bound, slices
    scale, shift, _, variance = (by_initializer.get(n, "") for n in after[0].input[1:5])
    if not scale or not shift or not variance:
        return bound, slices
    epsilon = next((a.f for a in after[0].attribute if a.name == "epsilon"), 1e-5)
    gain = np.abs(parameters[scale]) / np.sqrt(parameters[variance] + epsilon)
    return bound * gain, [*slices, (scale, 0), (shift, 0)]
