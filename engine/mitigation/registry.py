"""The methods of `patch`, in one place, the cheapest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onnxspect.converters import plugins
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.clp import ChannelLipschitz
from onnxspect.engine.mitigation.fine_prune import FinePrune
from onnxspect.engine.mitigation.fine_tune import FineTune
from onnxspect.engine.mitigation.ibau import AdversarialUnlearning
from onnxspect.engine.mitigation.input_filter import InputFilter
from onnxspect.engine.mitigation.method import Method
from onnxspect.engine.mitigation.prune import Prune
from onnxspect.engine.mitigation.unlearn import Unlearn
from onnxspect.engine.mitigation.withhold import Withhold

AUTO = "auto"


@dataclass(frozen=True)
class Registered:
    """One method.

    Attributes:
        make: its settings' class.
        automatic: whether `auto` tries it. It does not try fine-tuning, which is the control, Fine-Pruning, which
            is fine-tuning again, nor the filter, which asks whoever runs the file to read what it rejects. Nor adversarial
            unlearning: of 35 models auto came to it with eight, and it cost these 3 to 20 points of accuracy.
        summary: one line for `--help`.
    """

    make: Callable[..., Method]
    automatic: bool
    summary: str


#: By name, in order of cost: seconds without a gradient, then one training; and then what leaves the backdoor where it is.
METHODS: dict[str, Registered] = {
    "clp": Registered(ChannelLipschitz, True, "channel Lipschitz pruning: needs no trigger"),
    "prune": Registered(Prune, True, "switch off the neurons that the trigger excites"),
    "unlearn": Registered(Unlearn, True, "retrain on stamped images with their right answers"),
    "withhold": Registered(Withhold, True, "take the target's class score from images that look stamped"),
    "ibau": Registered(AdversarialUnlearning, False, "adversarial unlearning: retrain against the worst change"),
    "fine_tune": Registered(FineTune, False, "retrain on clean samples: the control"),
    "fine_prune": Registered(FinePrune, False, "prune what clean images leave silent, then fine-tune"),
    "input_filter": Registered(InputFilter, False, "reject stamped images: outputs backdoor_score and rejected"),
}
CHOICES = (AUTO, *METHODS)


def _fields(entry: Registered) -> set[str]:
    """The names of a method's settings."""
    return set(entry.make.__dataclass_fields__)  # type: ignore[attr-defined]


def chosen(name: str | Method, **settings: Any) -> list[Method]:
    """The methods to try for a name: one, or for "auto" several in order of cost.

    Args:
        name: of a method of this project's or of an installed package's, or "auto"; or a method itself.
        settings: passed on to each method that has a setting of that name.

    Raises:
        OnnxspectError: an unknown name, what is no method, or a setting that no chosen method has.
    """
    if not isinstance(name, str):
        if settings:
            raise OnnxspectError(
                f"settings for {name!r:.80}, which has its own", "give a method's name, or set its fields"
            )
        return [_checked(name, f"{name!r:.80}")]
    if name not in CHOICES:
        return [_brought(name, settings)]
    entries = [e for n, e in METHODS.items() if (e.automatic if name == AUTO else n == name)]
    made: list[Method] = []
    used: set[str] = set()
    for entry in entries:
        known = {k: v for k, v in settings.items() if k in _fields(entry)}
        used |= known.keys()
        made.append(entry.make(**known))
    unused = sorted(settings.keys() - used)
    if unused:
        having = {s: [n for n, e in METHODS.items() if s in _fields(e)] for s in unused}
        raise OnnxspectError(
            f"method {name} has no setting {', '.join(unused)}",
            "; ".join(f"{s} is a setting of {', '.join(names)}" for s, names in having.items() if names),
        )
    return made


def _brought(name: str, settings: dict[str, Any]) -> Method:
    """A method of an installed package."""
    brought = plugins.names(plugins.MITIGATIONS)
    if name not in brought:
        raise OnnxspectError(f"unknown method {name!r}", f"one of {', '.join((*CHOICES, *brought))}")
    make = plugins.load(plugins.MITIGATIONS, name)
    try:
        return _checked(make(**settings), f"the method {name!r} of an installed package")
    except TypeError as error:  # not to be called, or not with these settings
        raise OnnxspectError(f"the method {name!r} of an installed package cannot be made: {error}") from error


def _checked(method: Any, what: str) -> Method:
    lacking = [a for a in ("name", "trains", "mends", "edit") if not hasattr(method, a)]
    if isinstance(method, type) or lacking or not callable(method.edit):
        raise OnnxspectError(
            f"{what} is no method" + (f": it has no {', '.join(lacking)}" if lacking else ""),
            "an object with `name`, `trains`, `mends` and `edit(case)` (engine/mitigation/method.py)",
        )
    found: Method = method
    return found
