"""Networks that timm and torchvision make by name, where these are installed: ``--factory timm:resnet18``.

Nothing is downloaded: the network is made without weights, and gets those of the file. How many classes and channels it has is
read off them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.sources.checkpoint import Candidate, fitted
from onnxspect.converters.sources.exported import Source
from onnxspect.converters.text import printable

#: What both libraries train and measure at, where a model does not say otherwise.
_SIZE = 224


def library_network(source: Source, candidates: list[Candidate]) -> tuple[Any, tuple[int, ...]] | None:
    """(the network, the shape of one image) that a factory such as "timm:resnet18" names; None for a factory of the user's own.

    Raises:
        OnnxspectError: the library is not installed or has no such network.
    """
    if not of_library(source):
        return None
    library, _, name = source.factory.partition(":")
    make = _MAKERS[library](name)
    plain = make()
    wanted = plain.state_dict()
    if fitted(candidates, wanted) is None:
        options = _of_weights(candidates, wanted)
        if options:
            plain = make(**options)
    shape = getattr(plain, "default_cfg", {}).get("input_size") or (3, _SIZE, _SIZE)
    channels = _first_channels(plain.state_dict())
    return plain, (channels or int(shape[0]), int(shape[1]), int(shape[2]))


def of_library(source: Source) -> bool:
    """Whether the factory names a network of a library, and not a function of a module of the user's own."""
    library = source.factory.partition(":")[0]
    return library in _MAKERS and not any((Path(f) / f"{library}.py").exists() for f in source.search_path)


def _timm(name: str) -> Callable[..., Any]:
    try:
        import timm
    except ImportError:
        raise _missing("timm") from None
    if name not in timm.list_models() and name.split(".")[0] not in timm.list_models():
        raise OnnxspectError(
            f"timm {timm.__version__} has no network {printable(name, 60)}",
            "the names are those that the library itself lists",
        )
    return lambda **options: timm.create_model(name, pretrained=False, **options)


def _torchvision(name: str) -> Callable[..., Any]:
    try:
        from torchvision import models
    except ImportError:
        raise _missing("torchvision") from None
    if name not in models.list_models():
        raise OnnxspectError(
            f"torchvision has no network {printable(name, 60)}", "the names are those that the library itself lists"
        )
    return lambda **options: models.get_model(
        name, weights=None, **{k: v for k, v in options.items() if k != "in_chans"}
    )


def _missing(library: str) -> OnnxspectError:
    return OnnxspectError(
        f"the factory names {library}, which is not installed",
        f"python -m pip install {library}, or give a function of your own: --factory package.module:function",
    )


def _of_weights(candidates: list[Candidate], wanted: Mapping[str, Any]) -> dict[str, int]:
    """Classes and channels by the shapes of weights that differ from the library's own."""
    names = list(wanted)
    for candidate in candidates:
        for key, tensor in candidate.tensors.items():
            own = next((n for n in names if key == n or key.endswith(f".{n}")), None)
            if own is None or tensor.shape == wanted[own].shape:
                continue
            if tensor.shape[1:] == wanted[own].shape[1:]:
                found = {"num_classes": int(tensor.shape[0])}
                channels = _first_channels(candidate.tensors)
                return found | ({"in_chans": channels} if channels != _first_channels(wanted) and channels else {})
    return {}


def _first_channels(tensors: Mapping[str, Any]) -> int:
    """Input channels of the first convolution."""
    return next((int(t.shape[1]) for t in tensors.values() if t.ndim == 4 and t.shape[1] in (1, 3)), 0)


_MAKERS: Mapping[str, Callable[[str], Callable[..., Any]]] = {"timm": _timm, "torchvision": _torchvision}
