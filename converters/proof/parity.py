"""Proof that a torch graph is the file: onnxruntime (optimisations off) against torch, values and gradients.

Compared are the outputs of the torch graph and, on request, taps inside it, on given and on seeded inputs at several
batch sizes. A difference is measured against the largest magnitude of the tensor it is in, because rounding errors
scale with what was summed, not with what the sum came to. There is one table of tolerances (parity_table.py), by the
precision that the file itself computes in.

Gradients are compared with central differences in float64, along directions of length 1. In float32 two correct
gradients of a ReLU network may differ by percents where an activation sits on its kink; in float64 that vanishes, if
the step is short: a random direction of one image that is not normalised has the length 400, and a step of 1e-5 of it
crosses many of the half a million kinks of a deep network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto

from onnxspect.converters.errors import InternalError, OnnxspectError, caused_by, is_memory
from onnxspect.converters.file.oversized import weight_bytes
from onnxspect.converters.file.runtime_refusal import way_out
from onnxspect.converters.lowering.functions import inline_functions
from onnxspect.converters.lowering.knowledge import Knowledge, learn
from onnxspect.converters.lowering.lower import LoweredModel
from onnxspect.converters.lowering.taps import cuts, with_outputs
from onnxspect.converters.proof.grids import reaches
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.converters.proof.tolerances import ABSOLUTE, TOLERANCES
from onnxspect.converters.text import printable

#: Relative error allowed between a directional derivative and its central difference, both in float64.
GRADIENT_TOLERANCE = 1e-4
#: Lengths of the steps to either side, in units of the input. Long ones cross kinks; short ones drown in rounding.
GRADIENT_STEPS = (1e-5, 1e-6, 1e-7)
#: A session over more bytes of weights than that is not kept from one check to the next.
KEPT_WEIGHTS = 256 << 20

_QUANTIZED = frozenset(
    ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
)


@dataclass(frozen=True)
class TensorParity:
    """How far apart torch and onnxruntime are on one tensor.

    Attributes:
        name: ONNX value name.
        batch: number of samples.
        difference: largest |torch - onnxruntime|.
        scale: largest |onnxruntime|; of a value on a quantiser's grid what the grid reaches, where that is more (grids.py).
        smallest: differences up to this are none (`parity_table.ABSOLUTE`).
    """

    name: str
    batch: int
    difference: float
    scale: float
    smallest: float

    @property
    def relative(self) -> float:
        """The difference as a fraction of the scale; 0 where it is as good as none."""
        return 0.0 if self.difference <= self.smallest else self.difference / max(self.scale, self.smallest)


@dataclass(frozen=True)
class ParityReport:
    """Result of `check_parity`: it holds (else the check raises).

    Attributes:
        precision: row of `TOLERANCES` that applies.
        tolerance: its value.
        tensors: everything that was compared, in the graph's order for each batch.
    """

    precision: str
    tolerance: float
    tensors: tuple[TensorParity, ...]

    @property
    def worst(self) -> TensorParity:
        """The tensor with the largest relative difference."""
        return max(self.tensors, key=lambda t: t.relative)


@dataclass(frozen=True)
class GradientReport:
    """Result of `check_gradients`: it holds (else the check raises).

    Attributes:
        errors: relative error for each random direction.
        slopes: the derivative along each.
    """

    errors: tuple[float, ...]
    slopes: tuple[float, ...]


def precision_of(model: onnx.ModelProto, knowledge: Knowledge | None = None) -> str:
    """The row of `TOLERANCES` for a file: the coarsest precision that it computes in."""
    if any(node.op_type in _QUANTIZED for node in model.graph.node):
        return "quantized"
    known = knowledge or learn(model)
    produced = {name for node in model.graph.node for name in node.output}
    dtypes = {dtype for name, dtype in known.dtypes.items() if name in produced}
    if TensorProto.BFLOAT16 in dtypes:
        return "bfloat16"
    if TensorProto.FLOAT16 in dtypes:
        return "float16"
    if TensorProto.DOUBLE in dtypes and TensorProto.FLOAT not in dtypes:
        return "float64"
    return "float32"


def check_parity(
    model: onnx.ModelProto | bytes,
    lowered: LoweredModel,
    inputs: np.ndarray | Sequence[np.ndarray] = (),
    *,
    batch_sizes: Sequence[int] = (1, 2, 5),
    taps: Sequence[str] = (),
    seed: int = 0,
) -> ParityReport:
    """Compare a torch graph with onnxruntime on the file it came from; see `Comparison`."""
    proto = onnx.ModelProto.FromString(model) if isinstance(model, bytes) else model
    return Comparison(proto, lowered, taps).check(inputs, batch_sizes=batch_sizes, seed=seed)


class Comparison:
    """A torch graph beside an onnxruntime session over the file it came from, which is made when it is first needed.

    Args:
        model: the original ModelProto.
        lowered: the torch graph of it, on the CPU or a GPU.
        taps: ONNX value names inside the graph that are compared besides its outputs; every cut by default.
        knowledge: what is inferred of the values of `model`, its functions inlined, where that is at hand.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        lowered: LoweredModel,
        taps: Sequence[str] | None = None,
        knowledge: Knowledge | None = None,
    ) -> None:
        self.lowered = lowered
        self._proto = inline_functions(model)
        self._taps, self._knowledge = taps, knowledge

    def check(
        self,
        inputs: np.ndarray | Sequence[np.ndarray] = (),
        *,
        batch_sizes: Sequence[int] = (1, 2, 5),
        seed: int = 0,
    ) -> ParityReport:
        """Run both and compare.

        Args:
            inputs: batches for its one input, in the file's own layout and range; compared besides the seeded ones.
            batch_sizes: of the seeded inputs, uniform in [0, 1]. Where the input leaves sizes other than the batch open,
                they are taken from `inputs`; without such there are no seeded inputs.
            seed: of the seeded inputs.

        Raises:
            OnnxspectError: naming the first tensor, in the graph's order, that differs by more than the tolerance; or
                saying that onnxruntime or torch cannot run the model.
        """
        given = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
        name, smallest, tolerance = self.lowered.inputs[0], ABSOLUTE[self.precision], TOLERANCES[self.precision]
        outputs = set(self.lowered.outputs)
        found: list[TensorParity] = []
        try:
            for batch in (*given, *_seeded(self._oracle, name, given, batch_sizes, seed)):
                for row in _compare(
                    self._oracle, self._instrumented, name, batch, self._instrumented.outputs, outputs, smallest
                ):
                    row = replace(row, scale=max(row.scale, self._reaches.get(row.name, 0.0)))
                    found.append(row)
                    if not row.relative <= tolerance:  # also where it is not a number
                        raise InternalError(
                            f"the torch graph differs from onnxruntime at {printable(row.name)} by {row.difference:.3g}, "
                            f"where values reach {row.scale:.3g} ({self.precision}: {tolerance:.0e} of that is allowed, "
                            f"n={row.batch})",
                            "this is a fault of the conversion, not of your model: please report it with the file",
                        )
        finally:
            if weight_bytes(self._proto) > KEPT_WEIGHTS:
                self.release()
        if not found:
            raise OnnxspectError(
                "nothing to compare the torch graph with onnxruntime on: the model leaves the sizes of its input open",
                "give some images",
            )
        return ParityReport(self.precision, tolerance, tuple(found))

    def release(self) -> None:
        """Let the session go, which holds a copy of the weights; the next check makes it again."""
        self.__dict__.pop("_oracle", None)

    @cached_property
    def precision(self) -> str:
        """The row of `TOLERANCES` for the file."""
        return precision_of(self._proto, self._knowledge)

    @cached_property
    def _reaches(self) -> dict[str, float]:
        return reaches(self._proto) if self.precision == "quantized" else {}

    @cached_property
    def _instrumented(self) -> LoweredModel:
        taps = self._taps
        if taps is None:
            produced = {name for node in self._proto.graph.node for name in node.output}
            taps = [tap.name for tap in cuts(self.lowered) if tap.name in produced]
        return with_outputs(self.lowered, _in_order(self._proto, [*taps, *self.lowered.outputs]))

    @cached_property
    def _oracle(self) -> Oracle:
        return Oracle(self._proto, outputs=self._instrumented.outputs)


def check_gradients(
    lowered: LoweredModel,
    inputs: np.ndarray,
    *,
    directions: int = 3,
    seed: int = 0,
    tolerance: float = GRADIENT_TOLERANCE,
) -> GradientReport:
    """Compare the gradient of a random projection of the first output with central differences, in float64.

    The derivative is taken along directions of length 1, the sum of a random one and of the gradient's own: along a
    random one alone the derivative is the gradient's length over the root of the number of pixels, and drowns in
    rounding. Of the steps of `GRADIENT_STEPS` the best counts: one that happens to cross a kink of a ReLU is no fault of
    the gradient. Not for quantized models, whose gradient is the straight-through one by intention.

    Args:
        lowered: the torch graph; it is copied to float64, on its device.
        inputs: one batch for its one input, floating point.
        directions: how many random directions.
        seed: of directions and projections.
        tolerance: on the relative error.

    Raises:
        OnnxspectError: the two disagree along some direction.
    """
    module = copy.deepcopy(lowered.module).double()
    device = _device(lowered)
    generator = np.random.default_rng(seed)
    x = torch.from_numpy(np.asarray(inputs, np.float64)).to(device)
    errors: list[float] = []
    slopes: list[float] = []
    for _ in range(directions):
        direction = torch.from_numpy(generator.standard_normal(tuple(x.shape))).to(device)
        with torch.no_grad():
            out = _first(module(x))
        projection = torch.from_numpy(generator.standard_normal(tuple(out.shape))).to(device)
        error, slope = _slope_error(module, x, direction, projection)
        errors.append(error)
        slopes.append(slope)
        if not error <= tolerance:
            raise InternalError(
                f"the gradient of the torch graph is wrong: the derivative along a random direction is off by "
                f"{error:.2e} of itself (allowed {tolerance:.0e})",
                "this is a fault of the conversion, not of your model: please report it with the file",
            )
    return GradientReport(tuple(errors), tuple(slopes))


def _slope_error(
    module: Callable[[torch.Tensor], Any], x: torch.Tensor, direction: torch.Tensor, projection: torch.Tensor
) -> tuple[float, float]:
    """Relative error, at the best step, of the derivative of sum(projection * module(x)), and the derivative itself."""
    leaf = x.clone().requires_grad_(True)
    terms = _first(module(leaf)) * projection
    # An output that depends on the input in jumps alone has a gradient of zero, and a slope of zero to confirm it.
    grads = torch.autograd.grad(terms.sum(), leaf, allow_unused=True) if terms.requires_grad else (None,)
    gradient = grads[0] if grads[0] is not None else torch.zeros_like(x)
    direction = direction / direction.norm()
    if gradient.any():
        direction = direction + gradient / gradient.norm()
        direction /= direction.norm()
    slope = float((gradient * direction).sum())
    # float64 rounding of the two sums that are subtracted: below it there is no derivative to be seen.
    rounding = 1e-14 * float(terms.detach().abs().sum())
    errors = []
    with torch.no_grad():
        for step in GRADIENT_STEPS:
            ahead, behind = (_first(module(x + s * direction)) for s in (step, -step))
            difference = float(((ahead - behind) * projection).sum()) / (2 * step)
            larger = max(abs(slope), abs(difference))
            errors.append(0.0 if larger <= rounding / step else abs(difference - slope) / larger)
    return min(errors), slope


def _compare(
    oracle: Oracle,
    lowered: LoweredModel,
    name: str,
    batch: np.ndarray,
    names: Sequence[str],
    outputs: set[str],
    smallest: float,
) -> Iterator[TensorParity]:
    """Rows for one batch, in the order of `names`.

    Where onnxruntime takes several runs for the batch, only the outputs are compared: how the parts of an inner value
    fit together is known for these alone.
    """
    fed = _whole_groups(oracle, name, np.ascontiguousarray(batch, dtype=oracle.dtype(name)))
    expected = _run_oracle(oracle, name, fed, names)
    wide = fed.astype(np.float32) if fed.dtype == np.float16 else fed
    x = torch.from_numpy(wide).to(_device(lowered))
    with torch.no_grad():
        try:
            found = lowered.module(x.to(_working(lowered, x.dtype)) if x.is_floating_point() else x)
        except Exception as error:  # torch raises many types; all mean that this graph does not run
            line = (str(error).splitlines() or [type(error).__name__])[0]
            message = f"the torch graph does not run on a batch of {len(batch)}, and onnxruntime does: {line}"
            raise caused_by(error, message, otherwise=InternalError) from error
    results = found if isinstance(found, tuple) else (found,)
    for value, chunks, result in zip(names, zip(*expected, strict=True), results, strict=True):
        if len(chunks) == 1 or value in outputs:
            yield _row(value, len(batch), chunks, result.cpu().numpy(), smallest)


def _run_oracle(oracle: Oracle, name: str, fed: np.ndarray, names: Sequence[str]) -> list[list[np.ndarray]]:
    """onnxruntime's answers, one list of tensors for each run that the batch takes.

    A file made for a fixed batch (in its input, or somewhere inside) is run that many samples at a time.
    """
    fixed = oracle.inputs[name][0][0] if oracle.inputs[name][0] else None
    if isinstance(fixed, int) and fixed > 0 and len(fed) != fixed:
        return [oracle.run({name: fed[i : i + fixed]}, names) for i in range(0, len(fed), fixed)]
    try:
        return [oracle.run({name: fed}, names)]
    except Exception as error:  # onnxruntime's exceptions have no common base
        if len(fed) > 1 and not is_memory(error):
            try:
                return [oracle.run({name: fed[i : i + 1]}, names) for i in range(len(fed))]
            except Exception:
                pass
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise caused_by(error, f"onnxruntime cannot run the model: {line}", way_out(line)) from error


def _whole_groups(oracle: Oracle, name: str, fed: np.ndarray) -> np.ndarray:
    """A batch for a file that takes so many images at a time: filled up with its own last image."""
    fixed = oracle.inputs[name][0][0] if oracle.inputs[name][0] else None
    missing = -len(fed) % fixed if isinstance(fixed, int) and fixed > 0 else 0
    return np.concatenate([fed, np.repeat(fed[-1:], missing, axis=0)]) if missing and len(fed) else fed


def _row(name: str, batch: int, chunks: Sequence[np.ndarray], found: np.ndarray, smallest: float) -> TensorParity:
    expected = np.concatenate([np.asarray(c).reshape(-1) for c in chunks])
    if expected.size != found.size and len(chunks) > 1 and chunks[0].size == found.size:
        expected = chunks[0].reshape(-1)  # a value without a batch axis
    if expected.size != found.size:
        raise InternalError(
            f"the torch graph differs from onnxruntime at {printable(name)}: its shape is {found.shape}, "
            f"not {np.asarray(chunks[0]).shape} (batch of {batch})"
        )
    a, b = found.reshape(-1).astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(a - b)
    if np.isfinite(apart).all():  # then so are both
        largest = float(np.abs(b, out=b).max(initial=0.0))
        return TensorParity(name, batch, float(apart.max(initial=0.0)), largest, smallest)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    difference = np.where(same, 0.0, apart)
    finite = np.abs(b[np.isfinite(b)])
    return TensorParity(name, batch, float(difference.max(initial=0.0)), float(finite.max(initial=0.0)), smallest)


def _seeded(
    oracle: Oracle, name: str, given: Sequence[np.ndarray], batch_sizes: Sequence[int], seed: int
) -> Iterator[np.ndarray]:
    shape, dtype = oracle.inputs[name][0], oracle.dtype(name)
    if not shape:  # without any: as the given ones are
        if not given:
            return
        shape = (None, *given[0].shape[1:])
    sizes: list[int] = []
    for axis, size in enumerate(shape[1:], 1):
        if isinstance(size, int) and size > 0:
            sizes.append(size)
        elif given:
            sizes.append(given[0].shape[axis])
        else:
            return
    fixed = shape[0] if shape and isinstance(shape[0], int) and shape[0] > 0 else 1
    generator = np.random.default_rng(seed)
    for batch in batch_sizes if fixed == 1 else (fixed, 2 * fixed):
        if np.issubdtype(dtype, np.floating):
            yield generator.random((batch, *sizes)).astype(dtype)
        else:
            high = {np.bool_: 2, np.int8: 128}.get(dtype, 256)
            yield generator.integers(0, high, (batch, *sizes)).astype(dtype)


def _in_order(model: onnx.ModelProto, names: Sequence[str]) -> list[str]:
    """`names`, each once, as the graph computes them."""
    position = {name: i for i, node in enumerate(model.graph.node) for name in node.output}
    return sorted(dict.fromkeys(names), key=lambda name: position.get(name, -1))


def _first(result: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result


def _working(lowered: LoweredModel, own: torch.dtype) -> torch.dtype:
    """The floating-point type that the torch graph computes in now; `own` is the file's."""
    known = dict(lowered.module.named_buffers()).get("_working")
    if known is not None:
        return known.dtype
    return next((p.dtype for p in lowered.module.parameters()), own)


def _device(lowered: LoweredModel) -> torch.device:
    return next((t.device for t in lowered.module.parameters()), torch.device("cpu"))
