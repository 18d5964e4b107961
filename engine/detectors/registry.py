"""All detectors by name, and what each preset makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from onnxspect.engine.detectors import cepa
from onnxspect.engine.detectors.base import Detector
from onnxspect.engine.detectors.neural_cleanse import NeuralCleanse
from onnxspect.engine.detectors.reverse_engineering import CLIMB, ReverseEngineering
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.search import SearchConfig

#: How hard each preset searches for a mask and a pattern.
PRESETS = {
    "quick": SearchConfig(steps=300, samples=32, settle=30, tolerance=0.02),
    "standard": SearchConfig(),
    "thorough": SearchConfig(steps=1500, samples=128, settle=150, tolerance=0.005),
}

_REVERSE_ENGINEERING = {
    "quick": ReverseEngineering(search=replace(CLIMB, samples=32), pairs=False),
    "standard": ReverseEngineering(),
    "thorough": ReverseEngineering(search=replace(CLIMB, samples=128), scout_samples=16, growth=0.05),
}

#: Name -> what makes the detector for a preset, in the order in which they run.
_MAKERS: Mapping[str, Callable[[str], Detector]] = {
    NeuralCleanse.name: lambda preset: NeuralCleanse(search=PRESETS[preset]),
    ReverseEngineering.name: _REVERSE_ENGINEERING.__getitem__,
    cepa.NAME: cepa.PRESETS.__getitem__,
}
NAMES = tuple(_MAKERS)
#: What runs where the user names no detectors.
_BY_PRESET: Mapping[str, tuple[str, ...]] = {
    "quick": (NeuralCleanse.name, ReverseEngineering.name),
    "standard": (NeuralCleanse.name, ReverseEngineering.name, cepa.NAME),
    "thorough": (NeuralCleanse.name, ReverseEngineering.name, cepa.NAME),
}


def chosen(preset: str, names: Sequence[str] = ()) -> list[Detector]:
    """The detectors of a scan: those that are named, or the preset's, in the order in which they run.

    Raises:
        OnnxspectError: no such preset or detector.
    """
    if preset not in PRESETS:
        raise OnnxspectError(f"unknown preset {preset!r}", f"one of {', '.join(PRESETS)}")
    unknown = [n for n in names if n not in NAMES]
    if unknown:
        raise OnnxspectError(f"unknown detector {unknown[0]!r}", f"one of {', '.join(NAMES)}")
    wanted = set(names or _BY_PRESET[preset])
    return [make(preset) for name, make in _MAKERS.items() if name in wanted]
