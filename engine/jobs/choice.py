"""What a scan is made with: its detectors as the user wants them, their settings as text, and how samples are divided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

from onnxspect.engine.detectors.base import Detector
from onnxspect.engine.detectors.cepa import Cepa
from onnxspect.engine.detectors.registry import chosen
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.search.search import SearchConfig

#: Share of the clean samples that searches see; the rest is for held-out validation, and for proofs.
SEARCH_SHARE = 0.5


def wanted_detectors(
    preset: str,
    named: str | Detector | Sequence[str | Detector],
    with_training_set: bool,
    search: SearchConfig | Mapping[str, Any] | None,
    classes: int,
    taps: Sequence[str],
    perturb_at: str,
) -> list[Detector]:
    """The detectors of a scan of a model of so many classes (0: not known yet), at the layers that the user wants.

    Raises:
        OnnxspectError: they cannot be had so; says why.
    """
    wanted = chosen(preset, named, with_training_set, search, classes)
    able = [_aimed(d, taps, perturb_at) for d in wanted]
    if (taps or perturb_at) and not any(isinstance(d, Cepa) for d in able):
        raise OnnxspectError(
            "taps are cepa's, which does not run", "name it with --detector, or choose a more thorough preset"
        )
    return able


def _aimed(detector: Detector, taps: Sequence[str], perturb_at: str) -> Detector:
    """CEPA at the user's layers; every other detector as it is."""
    if not isinstance(detector, Cepa):
        return detector
    wanted = tuple(int(t) if t.isdecimal() else t for t in taps)
    return replace(detector, taps=wanted or detector.taps, perturb_at=perturb_at)


def settings_of(detector: Detector) -> dict[str, str]:
    """A detector's settings as text; of classes that are not this project's (it, or a perturbation), their names too."""
    parts = {"": detector, **vars(detector)}
    kinds = {name: type(value) for name, value in parts.items() if is_dataclass(value)}
    foreign = {
        f"{name}.class".lstrip("."): f"{kind.__module__}.{kind.__qualname__}"
        for name, kind in kinds.items()
        if not kind.__module__.startswith("onnxspect.")
    }
    return {k: str(v) for k, v in detector.settings().items()} | foreign
