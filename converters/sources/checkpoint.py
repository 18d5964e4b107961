"""Checkpoints as training scripts write them: the one state dict that is meant, found and made to fit the network.

What a script saves beside the weights (a data set, settings, an optimiser, the class of the network) names code of its own. None
of it is needed, and none of it is run: `read_without_code` puts an inert thing in the place of whatever is not a tensor, an array
or a plain container.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.sources.whole_weights import whole_weights
from onnxspect.converters.text import printable

#: Where scripts keep the network that they evaluate, the likeliest first; netC is WaNet's and its followers' classifier.
_USUAL = ("state_dict", "model_state_dict", "model", "net", "network", "netC", "classifier", "weights", "params")
#: What a state dict may be made of: rebuilding tensors and arrays, and containers. (module, name); "" stands for every name.
_PLAIN: frozenset[tuple[str, str]] = frozenset(
    [("collections", "OrderedDict"), ("collections", "defaultdict"), ("_codecs", "encode"), ("builtins", "set")]
    + [
        ("builtins", n)
        for n in ("dict", "list", "tuple", "int", "float", "bool", "bytes", "bytearray", "complex", "slice")
    ]
    + [
        ("torch", n)
        for n in ("Size", "device", "dtype", "Tensor", "float32", "float16", "bfloat16", "int64", "Generator")
    ]
    + [("torch._utils", n) for n in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_qtensor")]
    + [
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch.nn.parameter", "Parameter"),
        ("torch.storage", "UntypedStorage"),
    ]
    + [(m, "_reconstruct") for m in ("numpy.core.multiarray", "numpy._core.multiarray")]
    + [(m, "scalar") for m in ("numpy.core.multiarray", "numpy._core.multiarray")]
    + [("numpy", "ndarray"), ("numpy", "dtype")]
)
_DEEPEST = 4
_OTHER_FILE = "name the file that the script saved the network's weights in"
#: What tools that count operations (thop) leave in a state dict.
_COUNTERS = frozenset(("total_ops", "total_params"))


class Inert:
    """In the place of an object of a class that is not run: it keeps what the pickle gives it, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Whatever it is given is dropped."""

    def __call__(self, *_: Any, **__: Any) -> Inert:
        """A call of what is not run makes another of its kind."""
        return Inert()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, Mapping):
            vars(self).update({str(k): v for k, v in state.items()})

    def __setitem__(self, *_: Any) -> None: ...
    def append(self, *_: Any) -> None:
        """Kept nowhere."""

    def extend(self, *_: Any) -> None:
        """Kept nowhere."""

    def add(self, *_: Any) -> None:
        """Kept nowhere."""


def read_without_code(path: Path) -> Any:
    """What torch.save wrote, with an `Inert` in the place of every object whose class is not on the list.

    Raises:
        Exception: whatever torch raises on a damaged file.
    """
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_guarded_pickle())


def _guarded_pickle() -> ModuleType:
    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            module = "builtins" if module == "__builtin__" else module  # as protocol 2 calls it
            if (module, name) in _PLAIN or (module == "torch" and name.endswith("Storage")):
                return super().find_class(module, name)
            if module == "numpy.dtypes" or (module == "numpy" and name in ("float32", "float64", "int64", "uint8")):
                return super().find_class(module, name)
            return type(name, (Inert,), {})

    found = ModuleType("guarded_pickle")
    found.__dict__.update(vars(pickle))
    found.__dict__.update(
        Unpickler=Unpickler,
        load=lambda file, **options: Unpickler(file, **options).load(),
    )
    return found


@dataclass(frozen=True)
class Candidate:
    """A state dict inside a checkpoint.

    Attributes:
        place: the keys that lead to it, joined by dots; "" where the file is nothing else.
        tensors: by name.
        of_module: read off a pickled network, whose class was not run.
    """

    place: str
    tensors: Mapping[str, torch.Tensor]
    of_module: bool = False


def state_dicts(content: Any) -> list[Candidate]:
    """Every state dict in what a file holds, the likeliest first.

    Raises:
        OnnxspectError: there is none; says what the file has.
    """
    found = sorted(_searched(content, "", _DEEPEST), key=_rank)
    if found:
        return found
    if isinstance(content, Mapping):
        keys = ", ".join(printable(str(k), 30) for k in list(content)[:8])
        raise OnnxspectError(f"is a checkpoint without a state dict; it has {keys}", _OTHER_FILE)
    raise OnnxspectError(f"holds a {type(content).__name__}, not a state dict", _OTHER_FILE)


def _rank(candidate: Candidate) -> tuple[int, int]:
    """By the usual names, the outermost first; what only an optimiser would call so, last."""
    keys = candidate.place.split(".") if candidate.place else []
    if any(w in k.lower() for k in keys for w in ("optim", "sched", "scaler", "momentum")):
        return len(_USUAL) + 1, len(keys)
    return min((_USUAL.index(k) for k in keys if k in _USUAL), default=len(_USUAL) if keys else 0), len(keys)


def _searched(content: Any, place: str, depth: int) -> Iterator[Candidate]:
    if isinstance(content, Inert):
        tensors = _of_module(content)
        if tensors:
            yield Candidate(place, tensors, of_module=True)
            return
        content = vars(content)
    if not isinstance(content, Mapping) or depth == 0:
        return
    own = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor) and isinstance(k, str)}
    if (len(own) > 1 and sum("." in k for k in own) >= len(own) / 2) or (own and len(own) == len(content)):
        yield Candidate(place, own)
        return
    for key, value in content.items():
        if isinstance(key, str):
            yield from _searched(value, f"{place}.{key}".lstrip("."), depth - 1)


def _of_module(stand_in: Inert, depth: int = 64) -> dict[str, torch.Tensor]:
    """The state dict of a pickled network, read off its parts: nn.Module keeps them in three dictionaries."""
    parts = vars(stand_in)
    tensors: dict[str, torch.Tensor] = {}
    held_back = parts.get("_non_persistent_buffers_set")
    transient = held_back if isinstance(held_back, set) else set()
    for kind in ("_parameters", "_buffers"):
        held = parts.get(kind)
        if isinstance(held, Mapping):
            tensors |= {str(k): v for k, v in held.items() if isinstance(v, torch.Tensor) and k not in transient}
    modules = parts.get("_modules")
    if isinstance(modules, Mapping) and depth:
        for name, inner in modules.items():
            if isinstance(inner, Inert):
                tensors |= {f"{name}.{k}": v for k, v in _of_module(inner, depth - 1).items()}
    return tensors


@dataclass(frozen=True)
class Fitted:
    """A state dict under the names of a network.

    Attributes:
        tensors: exactly those that the network wants.
        notes: what was done to get there, a line each.
    """

    tensors: Mapping[str, torch.Tensor]
    notes: tuple[str, ...]


def fitted(candidates: list[Candidate], wanted: Mapping[str, torch.Tensor]) -> Fitted | None:
    """The first candidate that has every tensor of a network, under whatever common prefix; None where none has.

    Args:
        candidates: of `state_dicts`.
        wanted: the network's own state dict.
    """
    fits = [(c, f) for c in candidates if (f := _fit(c, wanted)) is not None]
    if not fits:
        return None
    candidate, found = fits[0]
    notes = list(found.notes)
    if candidate.place and candidate.place.split(".")[0] not in _USUAL:
        notes.insert(0, f"the weights were taken from {printable(candidate.place, 60)}")
    if len(fits) > 1:
        others = ", ".join(printable(c.place or "the outermost", 40) for c, _ in fits[1:4])
        notes.append(f"other weights that would fit were left: {others}")
    return Fitted(found.tensors, tuple(notes))


def _fit(candidate: Candidate, wanted: Mapping[str, torch.Tensor]) -> Fitted | None:
    as_kept = _fit_tensors(candidate.tensors, [], wanted)
    return as_kept or _fit_tensors(*whole_weights(candidate.tensors), wanted)


def _fit_tensors(
    tensors: Mapping[str, torch.Tensor], notes: list[str], wanted: Mapping[str, torch.Tensor]
) -> Fitted | None:
    for prefix in _prefixes(tensors, wanted):
        chosen = {k: tensors.get(prefix + k) for k in wanted}
        missing = [k for k, v in chosen.items() if v is None]
        # Old files lack the counter of BatchNorm, which nothing reads in use.
        if any(not k.endswith("num_batches_tracked") for k in missing):
            continue
        taken = {k: (wanted[k] if v is None else v) for k, v in chosen.items()}
        if any(v.shape != wanted[k].shape for k, v in taken.items()):
            continue
        said = [*notes]
        if prefix:
            by = " (saved from DataParallel)" if prefix.startswith("module.") else ""
            said.append(f"the prefix '{printable(prefix, 60)}' was taken off the names of the weights{by}")
        left = sorted(k for k in tensors if not (k.startswith(prefix) and k[len(prefix) :] in wanted))
        inside = [k for k in left if k.startswith(prefix) and k.rsplit(".", 1)[-1] not in _COUNTERS]
        if inside:  # a network of that name with more weights than the factory's is another network
            continue
        if left:
            shown = ", ".join(printable(k, 40) for k in left[:3])
            said.append(f"{len(left)} tensors beside the network were left ({shown}{', ...' if len(left) > 3 else ''})")
        return Fitted(taken, tuple(said))
    return None


def _prefixes(tensors: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The prefixes under which a network's first weight is found, the shortest first."""
    first = next(iter(wanted), "")
    return sorted(
        {k[: len(k) - len(first)] for k in tensors if k.endswith(first) and (k == first or k[-len(first) - 1] == ".")},
        key=len,
    )
