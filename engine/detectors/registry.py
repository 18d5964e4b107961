"""All detectors by name, and what each preset makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from onnxspect.engine.detectors import cepa
from onnxspect.engine.detectors.base import Detector
from onnxspect.engine.detectors.dtinspector import DTInspector
from onnxspect.engine.detectors.max_margin import MaxMargin
from onnxspect.engine.detectors.neural_cleanse import NeuralCleanse
from onnxspect.engine.detectors.reverse_engineering import CLIMB, ReverseEngineering
from onnxspect.engine.detectors.training_difference import TrainingDifference
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.search.search import SearchConfig

#: How hard each preset searches for a mask and a pattern.
PRESETS = {
    "quick": SearchConfig(steps=250, samples=24, settle=20, tolerance=0.03),
    "standard": SearchConfig(samples=48, settle=30, tolerance=0.015),
    "thorough": SearchConfig(steps=1500, samples=128, settle=150, tolerance=0.005),
}

_REVERSE_ENGINEERING = {
    "quick": ReverseEngineering(search=replace(CLIMB, samples=24), pairs=False),
    "standard": ReverseEngineering(),
    "thorough": ReverseEngineering(search=replace(CLIMB, samples=128), scout_samples=16, growth=0.05),
}

_DTINSPECTOR = {"quick": DTInspector(partners=4), "standard": DTInspector(), "thorough": DTInspector()}
_MAX_MARGIN = {
    "quick": MaxMargin(search=replace(MaxMargin().search, steps=30)),
    "standard": MaxMargin(),
    "thorough": MaxMargin(),
}

#: Name -> what makes the detector for a preset, in the order in which they run.
_MAKERS: Mapping[str, Callable[[str], Detector]] = {
    MaxMargin.name: _MAX_MARGIN.__getitem__,
    NeuralCleanse.name: lambda preset: NeuralCleanse(
        search=PRESETS[preset], pairs=preset != "quick", scouts=_REVERSE_ENGINEERING[preset]
    ),
    ReverseEngineering.name: _REVERSE_ENGINEERING.__getitem__,
    cepa.NAME: cepa.PRESETS.__getitem__,
    DTInspector.name: _DTINSPECTOR.__getitem__,
    TrainingDifference.name: lambda _: TrainingDifference(),
}
NAMES = tuple(_MAKERS)
#: What runs where the user names no detectors.
_BY_PRESET: Mapping[str, tuple[str, ...]] = {
    "quick": (MaxMargin.name, NeuralCleanse.name, ReverseEngineering.name),
    "standard": (MaxMargin.name, NeuralCleanse.name, ReverseEngineering.name, cepa.NAME),
    "thorough": (MaxMargin.name, NeuralCleanse.name, ReverseEngineering.name, cepa.NAME, DTInspector.name),
}
#: What runs beside them where a training set is given.
_WITH_TRAINING_SET = (DTInspector.name, TrainingDifference.name)


def chosen(preset: str, names: Sequence[str] = (), with_training_set: bool = False) -> list[Detector]:
    """The detectors of a scan: those that are named, or the preset's, in the order in which they run.

    Args:
        preset: quick, standard or thorough.
        names: of the detectors that the user wants; none leaves it to the preset.
        with_training_set: a training set is at hand.

    Raises:
        OnnxspectError: no such preset or detector.
    """
    if preset not in PRESETS:
        raise OnnxspectError(f"unknown preset {preset!r}", f"one of {', '.join(PRESETS)}")
    unknown = [n for n in names if n not in NAMES]
    if unknown:
        raise OnnxspectError(f"unknown detector {unknown[0]!r}", f"one of {', '.join(NAMES)}")
    wanted = set(names or (*_BY_PRESET[preset], *(_WITH_TRAINING_SET if with_training_set else ())))
    return [make(preset) for name, make in _MAKERS.items() if name in wanted]
