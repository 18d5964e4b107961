"""The registry of lowerings: (domain, operator, since_version) -> how torch computes it.

A lowering names every schema version it implements. A version nobody named is *unsupported*, however similar it
looks: a new opset may change an operator's meaning without changing its name, and a wrong graph is judged wrongly.
A second registration of the same key raises at import time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx.defs

if TYPE_CHECKING:
    from onnxspect.converters.lowering.node_view import NodeView

#: What a lowering gets and returns: one fx.Node, or one per output of the ONNX node (None where it is not asked for).
Lowering = Callable[["NodeView"], Any]
Key = tuple[str, str, int]


@dataclass(frozen=True)
class Entry:
    """A registered lowering.

    Attributes:
        build: the lowering itself.
        data: the inputs that carry the tensor being computed on; the others (shapes, axes, pads, ...) only steer it.
            None where every input is data. It decides where the node runs: see lowering.py on host and device.
        on_host: true where the result is always a host value (Shape and Size).
    """

    build: Lowering
    data: tuple[int, ...] | None = None
    on_host: bool = False


_LOWERINGS: dict[Key, Entry] = {}


def lowering(
    op_type: str, *since_versions: int, domain: str = "", data: tuple[int, ...] | None = None, on_host: bool = False
) -> Callable[[Lowering], Lowering]:
    """Register the decorated function for `op_type` at each of the schema versions `since_versions`."""

    def register(function: Lowering) -> Lowering:
        for version in since_versions:
            key = (domain, op_type, version)
            if key in _LOWERINGS:
                raise ValueError(f"a second lowering for {key}")
            _LOWERINGS[key] = Entry(function, data, on_host)
        return function

    return register


def find(domain: str, op_type: str, opset: int) -> Entry | None:
    """The lowering of `op_type` as `opset` of `domain` defines it, or None where there is none."""
    version = since_version(domain, op_type, opset)
    return None if version is None else _LOWERINGS.get((domain, op_type, version))


def since_version(domain: str, op_type: str, opset: int) -> int | None:
    """The schema version in force at `opset`, or None where the installed onnx knows no such operator or opset."""
    domain = "" if domain == "ai.onnx" else domain
    if not domain and opset > onnx.defs.onnx_opset_version():
        return None
    try:
        return int(onnx.defs.get_schema(op_type, opset, domain).since_version)
    except onnx.defs.SchemaError:
        # No schema here: operators of other domains are registered by opset 1 of their domain, and so are the
        # experimental ones (ImageScaler, ...) that the first opsets had and old files still use.
        return 1 if (domain, op_type, 1) in _LOWERINGS else None


def registered() -> Iterator[Key]:
    """All keys, sorted: docs/operators.md is made from them."""
    yield from sorted(_LOWERINGS)
