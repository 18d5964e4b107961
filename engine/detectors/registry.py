"""All detectors by name, and what each preset makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from onnxspect.converters import plugins
from onnxspect.engine.detectors import cepa
from onnxspect.engine.detectors.attractor import FEWEST_TO_CONVICT, Attractor
from onnxspect.engine.detectors.base import Detector
from onnxspect.engine.detectors.dtinspector import DTInspector
from onnxspect.engine.detectors.graph_logic import GraphLogic
from onnxspect.engine.detectors.max_margin import MaxMargin
from onnxspect.engine.detectors.neural_cleanse import NeuralCleanse
from onnxspect.engine.detectors.reverse_engineering import CLIMB, ReverseEngineering
from onnxspect.engine.detectors.training_difference import TrainingDifference
from onnxspect.engine.detectors.warp import Warp
from onnxspect.engine.detectors.window import Window
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

#: How often Neural Cleanse searches which classes again. History: docs/decisions.md.
_RESTARTS: Mapping[str, Mapping[str, Any]] = {
    "quick": {"restarts": 1, "restarted": 2, "beside": 2},
    "standard": {"restarts": 1, "restarted": 10, "beside": 4},
    "thorough": {"restarts": 2, "restarted": 10, "beside": 4},
}
_DTINSPECTOR = {"quick": DTInspector(partners=4), "standard": DTInspector(), "thorough": DTInspector()}
_MAX_MARGIN = {
    "quick": MaxMargin(search=replace(MaxMargin().search, steps=30)),
    "standard": MaxMargin(),
    "thorough": MaxMargin(),
}
_WARP = {
    "quick": Warp(search=replace(Warp().search, steps=100, samples=24)),
    "standard": Warp(),
    "thorough": Warp(search=replace(Warp().search, steps=400, samples=128, settle=30, tolerance=0.02)),
}
_ATTRACTOR = {
    "quick": Attractor(),
    "standard": Attractor(starts=4, destinations=4, rounds=4),
    "thorough": Attractor(starts=6, destinations=6, rounds=6),
}

#: Name -> what makes the detector for a preset, in the order in which they run.
_MAKERS: Mapping[str, Callable[[str], Detector]] = {
    GraphLogic.name: lambda _: GraphLogic(),
    Attractor.name: _ATTRACTOR.__getitem__,
    MaxMargin.name: _MAX_MARGIN.__getitem__,
    NeuralCleanse.name: lambda preset: replace(
        NeuralCleanse(search=PRESETS[preset], pairs=preset != "quick", scouts=_REVERSE_ENGINEERING[preset]),
        **_RESTARTS[preset],
    ),
    ReverseEngineering.name: _REVERSE_ENGINEERING.__getitem__,
    Window.name: lambda _: Window(),
    Warp.name: _WARP.__getitem__,
    cepa.NAME: cepa.PRESETS.__getitem__,
    DTInspector.name: _DTINSPECTOR.__getitem__,
    TrainingDifference.name: lambda _: TrainingDifference(),
}
NAMES = tuple(_MAKERS)
_STANDARD = (
    GraphLogic.name,
    MaxMargin.name,
    NeuralCleanse.name,
    ReverseEngineering.name,
    Window.name,
    Warp.name,
    cepa.NAME,
)
#: What runs where the user names no detectors.
_BY_PRESET: Mapping[str, tuple[str, ...]] = {
    "quick": (GraphLogic.name, MaxMargin.name, NeuralCleanse.name, ReverseEngineering.name),
    "standard": _STANDARD,
    "thorough": (*_STANDARD, DTInspector.name),
}
#: The same for models of at least MANY_CLASSES: a search of each class is left to the most patient preset.
MANY_CLASSES = FEWEST_TO_CONVICT
_OF_MANY_CLASSES: Mapping[str, tuple[str, ...]] = {
    "quick": (GraphLogic.name, Attractor.name),
    "standard": (GraphLogic.name, Attractor.name),
    "thorough": (GraphLogic.name, Attractor.name, NeuralCleanse.name, ReverseEngineering.name, Warp.name),
}
#: What runs beside them where a training set is given.
_WITH_TRAINING_SET = (DTInspector.name, TrainingDifference.name)


def chosen(
    preset: str,
    names: str | Detector | Sequence[str | Detector] = (),
    with_training_set: bool = False,
    search: SearchConfig | Mapping[str, Any] | None = None,
    classes: int = 0,
) -> list[Detector]:
    """The detectors of a scan: those that are named or given, or the preset's, in the order in which they run.

    Args:
        preset: quick, standard or thorough.
        names: what the user wants: names (of this project's detectors, or of an installed package's), or detectors
            themselves, which stand in for those of the same name; none leaves it to the preset.
        with_training_set: a training set is at hand.
        search: how hard to search, in place of the preset's; a mapping changes the fields that it names.
        classes: how many the model has; 0 where that is not known yet.

    Raises:
        OnnxspectError: no such preset or detector, or a field that SearchConfig does not have.
    """
    if preset not in PRESETS:
        raise OnnxspectError(f"unknown preset {preset!r}", f"one of {', '.join(PRESETS)}")
    asked = [names] if isinstance(names, str | Detector) else list(names)
    if not asked:
        usual = _OF_MANY_CLASSES if classes >= MANY_CLASSES else _BY_PRESET
        asked = [*usual[preset], *(_WITH_TRAINING_SET if with_training_set else ())]
    given = [n if isinstance(n, Detector) else _named(n, preset) for n in asked]
    by_name = {d.name: d for d in given}
    for name in by_name:
        same = [d for d in given if d.name == name]
        if any(d != same[0] for d in same):
            raise OnnxspectError(f"two detectors are called {name!r}", "give one of them another name")
    ordered = [n for n in NAMES if n in by_name] + [n for n in by_name if n not in NAMES]
    return searching([by_name[n] for n in ordered], search)


def _named(name: object, preset: str) -> Detector:
    if not isinstance(name, str):
        hint = f"give a name, or an object of a class derived from Detector ({', '.join(NAMES)})"
        if isinstance(name, type) and issubclass(name, Detector):
            hint = f"give an object: {name.__name__}()"
        raise OnnxspectError(f"{name!r:.80} is no detector", hint)
    if name in _MAKERS:
        return _MAKERS[name](preset)
    brought = plugins.names(plugins.DETECTORS)
    if name not in brought:
        raise OnnxspectError(f"unknown detector {name!r}", f"one of {', '.join((*NAMES, *brought))}")
    made = plugins.load(plugins.DETECTORS, name)
    try:
        detector = made() if callable(made) else made
    except Exception as error:  # whatever a foreign class raises is the same finding
        raise OnnxspectError(f"the detector {name!r} of an installed package cannot be made: {error}") from error
    if not isinstance(detector, Detector) or detector.name != name:
        raise OnnxspectError(
            f"what an installed package brings in as the detector {name!r} is {detector!r:.80}",
            "it must be a class derived from Detector, made without arguments, whose `name` is that",
        )
    return detector


def searching(detectors: Sequence[Detector], search: SearchConfig | Mapping[str, Any] | None) -> list[Detector]:
    """The detectors, searching as hard as is asked for; those that do not search stay as they are.

    Args:
        detectors: whose field `search` is changed.
        search: a whole SearchConfig, or the fields that are to change; None changes nothing.

    Raises:
        OnnxspectError: no such field, a value of another type, or none of the detectors searches.
    """
    if search is None:
        return list(detectors)
    if not isinstance(search, SearchConfig | Mapping):
        raise OnnxspectError(f"search is {search!r:.80}", "a SearchConfig, or a mapping such as {'steps': 100}")
    if isinstance(search, Mapping):
        _check_fields(search)
    found: list[Detector] = []
    for detector in detectors:
        known = getattr(detector, "search", None)
        if isinstance(known, SearchConfig):
            config = search if isinstance(search, SearchConfig) else replace(known, **search)
            changed: Any = detector  # a frozen dataclass, which the base class cannot say
            detector = replace(changed, search=config)
        found.append(detector)
    if not any(isinstance(getattr(d, "search", None), SearchConfig) for d in found):
        raise OnnxspectError(f"search is given, and {', '.join(d.name for d in found)} searches nothing")
    return found


def _check_fields(search: Mapping[str, Any]) -> None:
    usual = {f.name: f.default for f in fields(SearchConfig)}
    for name, value in search.items():
        if name not in usual:
            raise OnnxspectError(f"SearchConfig has no field {name!r}", f"one of {', '.join(usual)}")
        wanted = type(usual[name])
        if isinstance(value, bool) != (wanted is bool) or not isinstance(
            value, (int, float) if wanted is float else wanted
        ):
            raise OnnxspectError(f"search: {name} is {value!r:.60}, not of type {wanted.__name__}")
