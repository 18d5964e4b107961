"""Shared by the tests of `convert`: making other frameworks' models, and checking a conversion from all sides."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.proof.parity import check_gradients, check_parity
from onnxspect.converters.sources.convert import Conversion, convert

HERE = Path(__file__).parent
NEEDS = {
    "keras": ("keras", "h5py", "torch"),
    "tensorflow": ("tensorflow", "tf2onnx", "tf_keras"),
    "jax": ("jax", "flax", "jax2onnx", "orbax"),
    "sklearn": ("sklearn", "skl2onnx", "skops"),
    "torch": ("torch", "onnxscript"),
}


def reference_folder() -> Path:
    """Models of others: `reference` in, or beside, the folder that ONNXSPECT_DATA names; the tests skip without it."""
    root = Path(os.environ.get("ONNXSPECT_DATA") or os.devnull)
    return next((p for p in (root / "reference", root.parent / "reference") if p.is_dir()), root / "reference")


#: conftest.py makes the folder, one for all workers of a run.
HOME = "ONNXSPECT_TEST_MODELS"


def installed(kind: str) -> bool:
    """Whether a framework is there; found without importing it."""
    return all(importlib.util.find_spec(name) is not None for name in NEEDS[kind])


def needs(kind: str) -> pytest.MarkDecorator:
    """Skip where the framework is not installed (the fast tests need none of them)."""
    return pytest.mark.skipif(not installed(kind), reason=f"needs {', '.join(NEEDS[kind])}")


@functools.cache
def made(kind: str, *names: str) -> Path:
    """The folder of models that framework_models.py makes, in a process of its own, once a run for all workers."""
    folder = Path(os.environ[HOME]) / "-".join((kind, *names))
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _make(folder, kind, names)
    return folder


def _make(folder: Path, kind: str, names: Sequence[str]) -> None:
    """Into a folder beside it first: what failed half way is nobody's model."""
    part = folder.with_suffix(".part")
    part.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(HERE / "framework_models.py"), kind, str(part), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    part.rename(folder)


def converted(source: Path, out: Path, **options: Any) -> Conversion:
    """Convert, with this folder's factories in reach."""
    return convert(source, out, search_path=[HERE], **options)


def refused(source: Path, folder: Path, **options: Any) -> OnnxspectError:
    """The error of a conversion: one line that names the file, and nothing written."""
    out = folder / "refused.onnx"
    with pytest.raises(OnnxspectError) as caught:
        converted(source, out, **options)
    assert source.name in caught.value.message
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not out.with_name(out.name + ".json").exists()
    return caught.value


def verify(made: Conversion, *, gradients: bool = True) -> None:
    """onnxruntime against torch on the converted file, at several batch sizes, and gradients in float64.

    That onnxruntime equals the framework is part of converting; here its report is looked at too.
    """
    assert made.parity.difference <= made.parity.allowed
    assert made.parity.same_class == 1.0
    assert made.parity.spread > 10 * made.parity.difference, "the models of the tests depend on their input"
    proto = onnx.load(made.out)
    lowered = lower(proto)
    low, high = made.value_range or (0.0, 1.0)
    rng = np.random.default_rng(5)
    images = (low + (high - low) * rng.random((made.batch or 3, *made.sample_shape))).astype(np.float32)
    check_parity(proto, lowered, images, batch_sizes=() if made.batch else (1, 2, 5))
    if gradients:
        assert all(check_gradients(lowered, images[:2], directions=2).slopes)
