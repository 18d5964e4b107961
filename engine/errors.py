"""The one user-facing error, re-exported where engine code looks for it."""

from onnxspect.converters.errors import OnnxspectError

__all__ = ["OnnxspectError"]
