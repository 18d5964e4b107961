"""onnxspect: find, show, patch and prove away backdoors in any image classifier.

The front door. Everything that a user of the library starts from is here, by one import:

    from onnxspect import scan

    report = scan("model.onnx", "clean.npz")
    print(report.verdict, report.targets, report.p_value)

Importing this package loads nothing else, neither torch nor onnx nor numpy; a name is fetched when it is first used.
docs/python.md shows the calls, docs/extending.md how to bring in a detector of one's own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxspect.converters.sources.convert import convert
    from onnxspect.engine.detectors.base import Detector
    from onnxspect.engine.errors import OnnxspectError
    from onnxspect.engine.fleet.many import scan_many
    from onnxspect.engine.jobs.certify import certify
    from onnxspect.engine.jobs.cleanse import cleanse
    from onnxspect.engine.jobs.patch import patch
    from onnxspect.engine.jobs.prove import prove as verify
    from onnxspect.engine.jobs.scan import scan
    from onnxspect.engine.report.result import Report
    from onnxspect.engine.run import RunContext
    from onnxspect.engine.search.search import SearchConfig
    from onnxspect.engine.subject.class_scores import ModelView
    from onnxspect.engine.subject.samples import Samples
    from onnxspect.engine.subject.subject import InputSpec, Subject

    __version__: str

__all__ = [
    "Detector",
    "InputSpec",
    "ModelView",
    "OnnxspectError",
    "Report",
    "RunContext",
    "Samples",
    "SearchConfig",
    "Subject",
    "__version__",
    "certify",
    "cleanse",
    "convert",
    "patch",
    "scan",
    "scan_many",
    "verify",
]

#: Name here -> (module, name there).
_PLACES = {
    "Detector": ("engine.detectors.base", "Detector"),
    "InputSpec": ("engine.subject.subject", "InputSpec"),
    "ModelView": ("engine.subject.class_scores", "ModelView"),
    "OnnxspectError": ("engine.errors", "OnnxspectError"),
    "Report": ("engine.report.result", "Report"),
    "RunContext": ("engine.run", "RunContext"),
    "Samples": ("engine.subject.samples", "Samples"),
    "SearchConfig": ("engine.search.search", "SearchConfig"),
    "Subject": ("engine.subject.subject", "Subject"),
    "certify": ("engine.jobs.certify", "certify"),
    "cleanse": ("engine.jobs.cleanse", "cleanse"),
    "convert": ("converters.sources.convert", "convert"),
    "patch": ("engine.jobs.patch", "patch"),
    "scan": ("engine.jobs.scan", "scan"),
    "scan_many": ("engine.fleet.many", "scan_many"),
    "verify": ("engine.jobs.prove", "prove"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("onnxspect")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, there = _PLACES[name]
    value = getattr(importlib.import_module(f"{__name__}.{module}"), there)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
