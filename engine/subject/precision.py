"""The numerics policy: which arithmetic judges, and which only searches. The one place that says so, on every device.

*Judging* is everything that is compared with onnxruntime or reported: parity, preflight accuracy, held-out success, the
cost and success of a trigger that was found. It is computed in IEEE float32 (float64 where the file is). cuDNN convolves
float32 in TF32 by default, which keeps ten bits of the mantissa; `judging` turns that off for convolutions,
recurrent layers and matrix products, for as long as a job runs, and puts back what it found.

*Searching* is what only looks for a candidate: the gradient steps of a search, and of a trigger that moves while a model is
retrained against it. On a GPU that has it they run in bfloat16 (`searching`, by autocast, which is bound to the thread). The
candidate's own state, its update rule, the multiplier and the cost stay in float32, and what the search ends with is measured
again by judging. Training is no search: what it ends with cannot be measured again in another format. A patched model's
answers may move by 0.05 nats, which is less than a bfloat16 score is rounded by.

TF32 is not used: every GPU that has it has bfloat16 too, which is twice as fast, and autocast needs no setting of the process.

On a CPU both are IEEE float32. `emulated` makes a CPU behave as a GPU does, for tests: what is searched runs in bfloat16, and
outside `judging` the operands of convolutions and matrix products are rounded to TF32, as cuDNN's default does.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: The formats of a search by name, as the report has them.
FLOAT32, BFLOAT16 = "float32", "bfloat16"

_emulating: ContextVar[bool] = ContextVar("emulating", default=False)
_lock = threading.Lock()
_depth = 0
_found: dict[str, Any] = {}


@dataclass(frozen=True)
class Precision:
    """Which formats a job computes in.

    Attributes:
        search: of the gradient steps of searches, "float32" or "bfloat16".
        judge: of everything that is reported.
    """

    search: str = FLOAT32
    judge: str = FLOAT32


def precision_on(device: str) -> Precision:
    """The policy for "cpu", "cuda" or "cuda:1"."""
    return Precision(search=BFLOAT16 if _fast(device) else FLOAT32)


def _fast(device: str) -> bool:
    if device == "cpu":
        return _emulating.get()
    # Emulated bfloat16, before Ampere, is slower than float32.
    return torch.cuda.get_device_capability(torch.device(device)) >= (8, 0)


@contextlib.contextmanager
def judging() -> Iterator[None]:
    """float32 in IEEE arithmetic on every device, and on a GPU the same bits every time; scoped, and may be nested.

    Inside `searching` it ends that for as long as it lasts. The other settings are the process's, so of several threads
    the first one makes them and the last one puts back what was. torch warns where an operator has no deterministic kernel.
    """
    global _depth
    with _lock:
        if _depth == 0:
            _found.update(_settings())
            _set(dict.fromkeys(_found, _OFF) | (_DETERMINISTIC if torch.cuda.is_available() else {}))
        _depth += 1
    try:
        with contextlib.ExitStack() as off:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    off.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _set(_found)
                _found.clear()


@contextlib.contextmanager
def searching(device: str) -> Iterator[None]:
    """Gradient steps of a search: bfloat16 where `precision_on` says so, else as outside; bound to the thread."""
    if not _fast(device):
        yield
        return
    # Weights are frozen, so a cache of their casts would never be filled, but it would outlive a captured graph's memory.
    with torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=False):
        yield


def is_searching(device_type: str) -> bool:
    """Whether this thread is inside `searching` in a fast format."""
    return torch.is_autocast_enabled(device_type)


def as_searched(pixels: Tensor) -> Tensor:
    """Pixels ``(n, channels, height, width)``, channels last inside `searching`: tensor cores take their operands so."""
    return pixels.to(memory_format=torch.channels_last) if is_searching(pixels.device.type) else pixels


def is_judging() -> bool:
    """Whether some job has turned TF32 off."""
    return _depth > 0


_OFF = "ieee"
#: What makes a GPU's kernels give the same bits every time; memory that a kernel will fill need not be filled before.
_DETERMINISTIC = {"benchmark": False, "deterministic": (True, True), "fill": False}


def _owners() -> dict[str, Any]:
    """Name -> the object whose `fp32_precision` it is; fewer than three before torch 2.9."""
    backends: Any = torch.backends
    owners = {
        "matmul": backends.cuda.matmul,
        "convolution": getattr(backends.cudnn, "conv", None),
        "recurrent": getattr(backends.cudnn, "rnn", None),
    }
    return {k: v for k, v in owners.items() if v is not None and _has_precision(v)}


def _has_precision(owner: Any) -> bool:
    """Whether the object has such a setting."""
    try:
        return isinstance(owner.fp32_precision, str)
    except (AttributeError, RuntimeError):
        return False


def _settings() -> dict[str, Any]:
    """What holds now, by name."""
    owners = _owners()
    if len(owners) == 3:
        found: dict[str, Any] = {k: v.fp32_precision for k, v in owners.items()}
    else:
        found = {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}
    if torch.cuda.is_available():
        found |= {
            "benchmark": torch.backends.cudnn.benchmark,
            "deterministic": (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            "fill": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        }
    return found


def _set(values: dict[str, Any]) -> None:
    owners = _owners()
    if len(owners) == 3:
        for name, owner in owners.items():
            owner.fp32_precision = values[name]
    else:
        torch.backends.cuda.matmul.allow_tf32 = values["matmul"] not in (_OFF, False)
        torch.backends.cudnn.allow_tf32 = values["cudnn"] not in (_OFF, False)
    if "deterministic" in values:
        torch.backends.cudnn.benchmark = values["benchmark"]
        enabled, warn_only = values["deterministic"]
        # What torch.use_deterministic_algorithms calls, after it has imported torch's compiler: six seconds of a scan, for nothing.
        torch._C._set_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = values["fill"]  # type: ignore[attr-defined]


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """A CPU that computes as a GPU does by default: TF32 outside `judging`, bfloat16 inside `searching`; for tests."""
    token = _emulating.set(True)
    try:
        with _RoundsOperands():
            yield
    finally:
        _emulating.reset(token)


def to_tf32(values: Tensor) -> Tensor:
    """float32 values rounded to TF32's ten bits of mantissa, to nearest, ties to even; NaN and infinity stay."""
    bits = values.contiguous().view(torch.int32)
    rounded = (bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF
    return torch.where(torch.isfinite(values), rounded.view(torch.float32), values)


#: Operator -> which of its arguments are multiplied with each other.
_MULTIPLIED = {
    getattr(torch.ops.aten, name).default: positions
    for name, positions in {
        "convolution": (0, 1),
        "convolution_backward": (0, 1, 2),
        "mm": (0, 1),
        "addmm": (1, 2),
        "bmm": (0, 1),
        "baddbmm": (1, 2),
        "mv": (0, 1),
        "addmv": (1, 2),
        "dot": (0, 1),
    }.items()
}


class _RoundsOperands(TorchDispatchMode):
    """Rounds the operands of convolutions and matrix products to TF32 where no job has asked for IEEE float32."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_judging():
            which = _MULTIPLIED.get(func, ())
            args = tuple(to_tf32(a) if i in which and a.dtype is torch.float32 else a for i, a in enumerate(args))
        return func(*args, **(kwargs or {}))
