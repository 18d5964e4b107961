"""A float file as it is often shipped: in eight bits, made by onnxruntime's own quantiser."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from onnxspect.converters.errors import caused_by

#: Operators of a file that is in integers already.
_INTEGER = frozenset(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"))


def is_integer(model: onnx.ModelProto) -> bool:
    """Whether a file computes in integers already."""
    return any(n.op_type in _INTEGER or n.op_type.startswith("QLinear") for n in model.graph.node)


class _Reader(CalibrationDataReader):
    def __init__(self, name: str, rows: np.ndarray, step: int) -> None:
        self._rows: Iterator[dict[str, np.ndarray]] = iter(
            [{name: rows[i : i + step]} for i in range(0, len(rows) - step + 1, step)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


def _static(source: Path, target: Path, name: str, rows: np.ndarray, step: int) -> None:
    quantize_static(source, target, _Reader(name, rows, step), QuantFormat.QDQ, per_channel=True)


def _dynamic(source: Path, target: Path, *_: object) -> None:
    model = onnx.load(source)
    # torch's exporter declares weights among the inner values too, and the quantiser turns some of them round.
    weights = {t.name for t in model.graph.initializer}
    inner = [v for v in model.graph.value_info if v.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(inner)
    quantize_dynamic(model, target, weight_type=QuantType.QUInt8)


#: How a file is quantised -> who does it.
QUANTISERS: Mapping[str, Callable[[Path, Path, str, np.ndarray, int], None]] = {
    "int8, static": _static,
    "int8, dynamic": _dynamic,
}


def quantise(how: str, source: Path, target: Path, name: str, rows: np.ndarray, step: int = 1) -> Path:
    """Write a quantised copy of a file.

    Args:
        how: one of `QUANTISERS`.
        source, target: the float file, and where the copy goes.
        name: of its input.
        rows: what is calibrated on, ``(n, ...)`` as the model takes it.
        step: rows a call.

    Raises:
        OnnxspectError: onnxruntime's quantiser refuses the file.
    """
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it gives advice on every file
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            QUANTISERS[how](source, target, name, rows, step)
    except Exception as error:  # a family of exceptions without a common base
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise caused_by(error, f"onnxruntime cannot quantise the file ({how}): {line}") from error
    finally:
        logging.getLogger().setLevel(level)
    return target
