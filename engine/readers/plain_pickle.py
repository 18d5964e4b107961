"""The pickles of CIFAR's Python version, read without running any code: dicts, lists, text, numbers and arrays of bytes.

`pickle` calls whatever a file names. Here the only names that a file may use are those of numpy's arrays, and they stand for
classes of this module, which keep an array's bytes and check its size. Everything else is refused by name.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError

#: Types that an array may have, as numpy names them.
_TYPES = frozenset({"u1", "i1", "i4", "i8", "f4", "f8", "b1"})


class _Type:
    """Stands for numpy.dtype."""

    def __init__(self, name: object = "", *_: object) -> None:
        self.name = name.decode("latin-1") if isinstance(name, bytes) else str(name)
        self.order = "<"

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", b"<", b">", b"|"):
            order = state[1]
            self.order = order.decode() if isinstance(order, bytes) else str(order)

    def dtype(self) -> np.dtype[Any]:
        """The type itself."""
        if self.name not in _TYPES:
            raise pickle.UnpicklingError(f"an array of {printable(self.name, 20)}")
        return np.dtype(self.order + self.name)


class _Array:
    """Stands for numpy.ndarray."""

    value: np.ndarray

    def __setstate__(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise pickle.UnpicklingError("an array of another form")
        _, shape, kind, fortran, data = state
        if isinstance(data, str):
            data = data.encode("latin-1")
        plain = isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)
        if not plain or not isinstance(kind, _Type) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array of another form")
        self.value = np.frombuffer(data, kind.dtype()).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: object, *_: object) -> bytes:
    if not isinstance(text, str):
        raise pickle.UnpicklingError("bytes of another form")
    return text.encode("latin-1")


_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """One of the few names; anything else is not looked up."""
        if (module, name) not in _NAMES:
            raise _NamedError(f"it asks for {printable(f'{module}.{name}', 80)}")
        return _NAMES[module, name]


class _NamedError(pickle.UnpicklingError):
    """A file that would run something."""


def read(data: bytes, where: str) -> dict[str, Any]:
    """The dict that a pickle holds, keys as text, arrays as numpy's.

    Raises:
        OnnxspectError: it holds anything but plain data, or is damaged.
    """
    try:
        found = _Reader(io.BytesIO(data), encoding="latin-1").load()
    except _NamedError as error:
        raise OnnxspectError(
            f"{where}: a pickle that is no plain data: {error}", "it was not run; do not unpickle it"
        ) from error
    except Exception as error:  # a damaged pickle raises anything
        raise OnnxspectError(
            f"{where}: not a readable pickle ({printable(str(error), 80)})",
            "the published CIFAR files are meant: fetch them again",
        ) from error
    if not isinstance(found, dict):
        raise OnnxspectError(f"{where}: holds no dict", "the published CIFAR files are meant: fetch them again")
    named = {k.decode("latin-1") if isinstance(k, bytes) else str(k): v for k, v in found.items()}
    return {k: v.value if isinstance(v, _Array) and hasattr(v, "value") else v for k, v in named.items()}
