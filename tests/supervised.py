"""The command line as a user starts it, in processes of its own; and models that do harm only once they run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from conftest import make_model, quadrant_model, quadrant_weights, saved
from onnx import TensorProto, helper, numpy_helper

MAIN = "from onnxspect.cli.main import main; main()"


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """The lines of stderr that say what stopped it; progress is left out."""
        return [line for line in self.err.splitlines() if line.startswith(("onnxspect:", "  hint:", "Traceback"))]


def started(
    *arguments: object, temporary: Path | None = None, before: str = "", environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """The installed command in a process of its own, after some lines of Python."""
    own = {} if temporary is None else {"TMPDIR": str(temporary)}
    return subprocess.Popen(
        [sys.executable, "-c", f"{before}\n{MAIN}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **own, **(environment or {})},
    )


def command(
    *arguments: object, temporary: Path | None = None, before: str = "", environment: Mapping[str, str] | None = None
) -> Ended:
    """The same, to its end."""
    process = started(*arguments, temporary=temporary, before=before, environment=environment)
    out, err = process.communicate(timeout=300)
    return Ended(process.returncode, out, err)


def _with_batch(nodes: list[onnx.NodeProto], more: list[TensorProto]) -> onnx.ModelProto:
    """The tiny classifier, with nodes that make a float `extra` of the batch size `n` (int64, shape [1]) added to its logits."""
    weights = numpy_helper.from_array(quadrant_weights(), "weight")
    constants = {"zero": np.array(0, np.int64), "first": np.array([0], np.int64), "last": np.array([1], np.int64)}
    return make_model(
        [
            helper.make_node("Shape", ["image"], ["shape"]),
            helper.make_node("Slice", ["shape", "first", "last"], ["n"]),
            *nodes,
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["scores"]),
            helper.make_node("Add", ["scores", "extra"], ["logits"]),
        ],
        [weights, *(numpy_helper.from_array(v, k) for k, v in constants.items()), *more],
    )


def crashing() -> onnx.ModelProto:
    """Harmless at batch size 1; at any other it divides the smallest integer by -1, which the processor answers with a signal."""
    smallest = numpy_helper.from_array(np.array([np.iinfo(np.int64).min], np.int64), "smallest")
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    tiny = numpy_helper.from_array(np.array(0, np.float32), "nothing")
    return _with_batch(
        [
            helper.make_node("Sub", ["n", "one"], ["others"]),
            helper.make_node("Min", ["others", "one"], ["any"]),
            helper.make_node("Add", ["any", "any"], ["twice"]),
            helper.make_node("Sub", ["one", "twice"], ["by"]),
            helper.make_node("Div", ["smallest", "by"], ["quotient"]),
            helper.make_node("Cast", ["quotient"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["real", "nothing"], ["extra"]),
        ],
        [smallest, one, tiny],
    )


def filling() -> onnx.ModelProto:
    """Harmless at batch size 1; with every further image it wants another GiB of memory."""
    size = numpy_helper.from_array(np.array([1 << 28], np.int64), "size")
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    nothing = numpy_helper.from_array(np.array([0], np.float32), "nothing")
    return _with_batch(
        [
            helper.make_node("Sub", ["n", "one"], ["others"]),
            helper.make_node("Mul", ["others", "size"], ["wanted"]),
            helper.make_node("Max", ["wanted", "one"], ["length"]),
            helper.make_node("Expand", ["nothing", "length"], ["long"]),
            helper.make_node("ReduceSum", ["long"], ["extra"], keepdims=0),
        ],
        [size, one, nothing],
    )


def data(folder: Path, per_class: int = 30) -> Path:
    """Clean samples of the tiny classifier, as an npz."""
    from conftest import quadrant_images

    samples = quadrant_images(per_class)
    np.savez(folder / "data.npz", images=samples.images, labels=samples.labels)
    return folder / "data.npz"


def plain(folder: Path, target: int | None = None) -> Path:
    """The tiny classifier as a file."""
    return saved(quadrant_model(target), folder / "model.onnx")
