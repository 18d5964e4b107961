"""The methods of `patch`, in one place, the cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxspect.converters import plugins
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.clp import ChannelLipschitz
from onnxspect.engine.mitigation.cut import Cut
from onnxspect.engine.mitigation.fine_prune import FinePrune
from onnxspect.engine.mitigation.fine_tune import FineTune
from onnxspect.engine.mitigation.ibau import AdversarialUnlearning
from onnxspect.engine.mitigation.input_filter import InputFilter
from onnxspect.engine.mitigation.method import Method
from onnxspect.engine.mitigation.prune import Prune
from onnxspect.engine.mitigation.settings import find, method_name, with_settings
from onnxspect.engine.mitigation.target_logit_suppression import TargetLogitSuppression
from onnxspect.engine.mitigation.unlearn import Unlearn

AUTO = "auto"


@dataclass(frozen=True)
class Registered:
    """One method.

    Attributes:
        make: its settings' class.
        automatic: whether `auto` tries it. It does not try fine-tuning, which is the control, Fine-Pruning, which
            is fine-tuning again, nor the cut, which the job tries first where a part of the graph is the backdoor, nor the filter,
            which asks whoever runs the file to read what it rejects. Nor adversarial
            unlearning, which costs accuracy (docs/decisions.md).
        summary: one line for `--help`.
    """

    make: Callable[..., Method]
    automatic: bool
    summary: str


#: By name, in order of cost: seconds without a gradient, then one training; and then what leaves the backdoor where it is.
METHODS: dict[str, Registered] = {
    "cut": Registered(
        Cut,
        False,
        "freeze dormant logic of the graph at what it is on clean images; auto tries it where that was found",
    ),
    "clp": Registered(ChannelLipschitz, True, "channel Lipschitz pruning: needs no trigger"),
    "prune": Registered(Prune, True, "switch off the neurons that the trigger excites"),
    "unlearn": Registered(Unlearn, True, "retrain on stamped images with their right answers"),
    "withhold": Registered(
        TargetLogitSuppression, True, "suppress the target's logit in stamped images (also suppress-target)"
    ),
    "ibau": Registered(AdversarialUnlearning, False, "adversarial unlearning: retrain against the worst change"),
    "fine-tune": Registered(FineTune, False, "retrain on clean samples: the control"),
    "fine-prune": Registered(FinePrune, False, "prune what clean images leave silent, then fine-tune"),
    "input-filter": Registered(InputFilter, False, "reject stamped images: outputs backdoor_score and rejected"),
}
CHOICES = (AUTO, *METHODS)


#: Name -> the class of its settings.
MAKERS: dict[str, Callable[..., Method]] = {name: entry.make for name, entry in METHODS.items()}


def canonical(name: str) -> str:
    """The name of a method, also of an alias (``suppress-target``) or in its spelling up to 0.1.0 (``fine_tune``).

    Other texts are returned as they are.
    """
    return method_name(name) if method_name(name) in CHOICES else name


def _fields(entry: Registered) -> set[str]:
    """The names of a method's settings."""
    return set(entry.make.__dataclass_fields__)  # type: ignore[attr-defined]


def chosen(name: str | Method, **settings: Any) -> list[Method]:
    """The methods to try for a name: one, or for "auto" several in order of cost.

    Args:
        name: of a method of this project's or of an installed package's, or "auto"; or a method itself.
        settings: by field name: passed on to each method that has a setting of that name; or as "method.key" (settings.py):
            of that one.

    Raises:
        OnnxspectError: an unknown name, what is no method, a setting that no chosen method has, or one that is given in both ways.
    """
    if not isinstance(name, str):
        if settings:
            raise OnnxspectError(
                f"settings for {name!r:.80}, which has its own", "give a method's name, or set its fields"
            )
        return [_checked(name, f"{name!r:.80}")]
    name = canonical(name)
    if name not in CHOICES:
        return [_brought(name, settings)]
    entries = {n: e for n, e in METHODS.items() if (e.automatic if name == AUTO else n == name)}
    shared = {k: v for k, v in settings.items() if "." not in k}
    own = _own({k: v for k, v in settings.items() if "." in k}, entries)
    made: list[Method] = []
    used: set[str] = set()
    for method, entry in entries.items():
        known = {k: v for k, v in shared.items() if k in _fields(entry)}
        twice = sorted(known.keys() & {path[0] for path in own[method]})
        if twice:
            raise OnnxspectError(f"{twice[0]} of {method} is given twice", "give one of the two")
        used |= known.keys()
        made.append(with_settings(entry.make(**known), own[method]))
    unused = sorted(shared.keys() - used)
    if unused:
        having = {s: [n for n, e in METHODS.items() if s in _fields(e)] for s in unused}
        raise OnnxspectError(
            f"method {name} has no setting {', '.join(unused)}",
            "; ".join(f"{s} is a setting of {', '.join(names)}" for s, names in having.items() if names),
        )
    return made


def _own(settings: Mapping[str, Any], entries: Mapping[str, Registered]) -> dict[str, dict[tuple[str, ...], Any]]:
    """The settings of single methods: method -> path of fields -> value."""
    own: dict[str, dict[tuple[str, ...], Any]] = {method: {} for method in entries}
    for full, value in settings.items():
        method, _, key = full.partition(".")
        method = method_name(method)
        setting = find(method, key, MAKERS, full)
        if method not in own:
            raise OnnxspectError(
                f"{full}: {method} is not among the methods to try ({', '.join(entries)})",
                "leave it away, or name the method with --method",
            )
        own[method][setting.path] = value
    return own


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
            "an object with `name`, `trains`, `mends` and `edit(given)` (engine/mitigation/method.py)",
        )
    found: Method = method
    return found
