"""onnxspect: find, show, patch and prove away backdoors in any image classifier.

Importing this package loads nothing else; every name is fetched when it is first used.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("onnxspect")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
