"""Which onnxspect this is."""

from __future__ import annotations

from importlib import metadata


def tool_version() -> str:
    """The installed version of onnxspect."""
    return metadata.version("onnxspect")
