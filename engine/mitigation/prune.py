"""Pruning (Neural Cleanse, Wang et al., 2019, sec. VI-B): switch off neurons that the trigger excites and clean images do not.

Neurons of a layer are ranked by the gap between their mean activation on stamped and on clean images, and switched off
from the largest gap on "until the pruned model is no longer responsive to the reversed trigger". The layer is the last
convolutional one (the paper prunes the second to last layer, and in sec. VI-B reports that the last convolutional layer
works better for some models); a layer of one's own; or the best of several, chosen by trial: the one that costs the
least clean accuracy at the point where the trigger is dead.

The paper stops by the reversed trigger as it is. It is the smallest that works, and the attacker's own is stronger; so
a mask is also stamped at twice its strength, and both must be dead.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from onnxspect.converters.text import printable
from onnxspect.engine.errors import InconclusiveError
from onnxspect.engine.mitigation.method import Edit, PatchInput
from onnxspect.engine.mitigation.neurons import (
    MOST_IMAGES,
    Layer,
    activation_gap,
    curve_points,
    last_convolutional,
    layers,
    masked,
    named_layer,
    stamped_rows,
    success_on,
    switch_off,
)
from onnxspect.engine.mitigation.settings import require
from onnxspect.engine.search.embedding import embed
from onnxspect.engine.trigger import Trigger

NAME = "prune"
#: Values of `Prune.layer` that are no value names.
LAST, BEST = "last-conv", "best"
PICTURE = "pruning.png"


@dataclass(frozen=True)
class Point:
    """One point of the curve, on clean samples.

    Attributes:
        pruned: neurons that are switched off.
        accuracy: clean accuracy.
        success: of the trigger that works best.
    """

    pruned: int
    accuracy: float
    success: float


@dataclass(frozen=True)
class Trial:
    """One layer's curve.

    Attributes:
        layer: ONNX value name.
        neurons: how many it has.
        exact: by weights alone (else by a mask node).
        curve: points, from none pruned on.
        chosen: index of the point where the trigger is dead, or of the best compromise where it never is.
        dead: whether it is.
    """

    layer: str
    neurons: int
    exact: bool
    curve: tuple[Point, ...]
    chosen: int
    dead: bool

    @property
    def point(self) -> Point:
        """The chosen one."""
        return self.curve[self.chosen]


@dataclass(frozen=True)
class Prune:
    """The method's settings.

    Attributes:
        layer: "last-conv", "best" (by trial), or the ONNX value name of a layer.
        trials: at most so many layers are tried for "best", the deepest first.
        strengths: a mask counts at each of these multiples.
    """

    name: ClassVar[str] = NAME
    trains: ClassVar[bool] = False
    mends: ClassVar[bool] = True
    layer: str = BEST
    trials: int = 4
    strengths: tuple[float, ...] = (1.0, 2.0)

    def __post_init__(self) -> None:
        require(self.trials >= 1, "prune tries at least one layer")
        require(len(self.strengths) > 0 and min(self.strengths) > 0, "strengths of prune are above 0")

    def edit(self, given: PatchInput) -> Edit:
        """Prune at the chosen layer.

        Raises:
            OnnxspectError: no triggers, or no such layer.
        """
        given.needs_triggers(NAME)
        triggers = self._strengthened(given.triggers)
        found = self._candidates(layers(given.subject, every=self.layer not in (LAST, BEST)))
        trials, edits = [], []
        for layer in found:
            trial, off = self._try(given, layer, triggers)
            trials.append(trial)
            edits.append((layer, off))
        best = min(range(len(trials)), key=lambda i: (not trials[i].dead, _cost(trials[i]), not trials[i].exact))
        layer, off = edits[best]
        edit = switch_off(given.subject, layer, off)
        facts = {"layer": trials[best].layer, "exact": layer.exact, "pruned": trials[best].point.pruned}
        facts |= {"neurons": layer.neurons, "trials": [asdict(t) for t in trials]}
        return replace(edit, facts=facts, pictures={PICTURE: picture(trials, best)})

    def _strengthened(self, triggers: Sequence[Trigger]) -> list[Trigger]:
        """Masks at every strength; additive triggers as they are, and only for targets without a mask.

        Twice the smallest additive change is an adversarial example to any model, infected or not.
        """
        masks = {t.target for t in triggers if t.masked}
        strong = [t.strengthened(s) for t in triggers if t.masked for s in self.strengths]
        return [*strong, *(t for t in triggers if t.target not in masks)]

    def _candidates(self, known: Sequence[Layer]) -> list[Layer]:
        if self.layer == LAST:
            return [last_convolutional(known)]
        if self.layer != BEST:
            return [named_layer(known, self.layer)]
        if not known:
            last_convolutional(known)
        return list(known)[-self.trials :]

    def _try(self, given: PatchInput, layer: Layer, triggers: Sequence[Trigger]) -> tuple[Trial, np.ndarray]:
        """The curve of one layer, and which neurons its chosen point switches off."""
        embedding = embed(given.subject, layer.tap.name)
        gap = activation_gap(embedding, layer, given.fit, triggers)
        clean_samples = given.clean
        order = np.argsort(-gap, kind="stable")
        clean = embedding.activations(clean_samples.images)
        before = embedding.answers(clean)
        stamped, labels = {}, {}
        for i, trigger in enumerate(triggers):
            rows = stamped_rows(clean_samples, trigger, before)[:MOST_IMAGES]
            labels[i] = clean_samples.labels[rows]
            stamped[i] = embedding.activations(trigger.apply(clean_samples.images[rows])) if len(rows) else None
        if all(s is None for s in stamped.values()):
            raise InconclusiveError(f"no samples of any class but {triggers[0].target} to measure the trigger on")
        curve = []
        for pruned in curve_points(layer.neurons):
            keep = np.ones(layer.neurons, bool)
            keep[order[:pruned]] = False
            answers = embedding.answers(masked(clean, layer, keep))
            hits = {
                i: np.empty(0, np.int64) if s is None else embedding.answers(masked(s, layer, keep))
                for i, s in stamped.items()
            }
            accuracy = float((answers == clean_samples.labels).mean())
            curve.append(Point(pruned, accuracy, success_on(hits, labels, triggers)))
            if curve[-1].success <= given.success or accuracy < curve[0].accuracy - 0.2:
                break
        dead = curve[-1].success <= given.success
        chosen = len(curve) - 1 if dead else int(np.argmax([p.accuracy - p.success for p in curve]))
        off = np.zeros(layer.neurons, bool)
        off[order[: curve[chosen].pruned]] = True
        trial = Trial(layer.tap.name, layer.neurons, layer.exact, tuple(curve), chosen, dead)
        return trial, off


def _cost(trial: Trial) -> float:
    """What a trial's chosen point costs: accuracy, and success where the trigger is not dead."""
    return trial.curve[0].accuracy - trial.point.accuracy + (0.0 if trial.dead else trial.point.success)


def picture(trials: Sequence[Trial], best: int) -> bytes:
    """Clean accuracy and success of the trigger against the share of neurons pruned (Neural Cleanse, Fig. 9), as PNG."""
    figure = Figure(figsize=(3.4 * len(trials) + 0.6, 3.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for i, trial in enumerate(trials):
        axes = figure.add_subplot(1, len(trials), i + 1)
        pruned = [100 * p.pruned / trial.neurons for p in trial.curve]
        axes.plot(pruned, [100 * p.accuracy for p in trial.curve], color="#2c3e50", label="clean accuracy")
        axes.plot(pruned, [100 * p.success for p in trial.curve], color="#c0392b", label="trigger's success")
        axes.axvline(pruned[trial.chosen], color="#7f8c8d", linewidth=0.8, linestyle="--")
        axes.set_ylim(-2, 102)
        axes.set_xlabel(f"neurons pruned (% of {trial.neurons})", fontsize=8)
        mark = "  (chosen)" if i == best else ""
        axes.set_title(f"{printable(trial.layer)[-34:]}{mark}", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        if i == 0:
            axes.set_ylabel("%", fontsize=8)
            axes.legend(frameon=False, fontsize=7)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
