"""The papers' networks, one family a file, found by name through one registry."""

from onnxspect.models.architectures import dense, keras_plain, plain, residual, vit
from onnxspect.models.architectures.registry import Architecture, check, get, names

__all__ = ["Architecture", "check", "dense", "get", "keras_plain", "names", "plain", "residual", "vit"]
