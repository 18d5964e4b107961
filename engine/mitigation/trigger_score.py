"""The trigger score: how far an image moves the last layers as a trigger does; one score a target class.

At each of the last few layers the direction is taken that separates stamped from clean images best (discriminant.py), in
deviations of clean images that had no part in it, and the layers' scores are added. Where the attacker's trigger is not the
one recovered, the last layers before the logits are where the two agree: every image that is led to the target has to
pass there. The score is linear in the activations, so it can be part of the file (graph_edit.py): the input filter
(input_filter.py) rejects by it, and target-logit suppression (`withhold`, target_logit_suppression.py) suppresses the target's logit by
it.

The recovered trigger is stamped at half, once and twice its strength, and as whole pixels, because the attacker's own
differs from it; a trigger with a source is stamped on images of its source alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxspect.converters.lowering.taps import Tap, cuts
from onnxspect.engine.errors import InconclusiveError
from onnxspect.engine.mitigation.discriminant import Discriminant, Shift, fitted
from onnxspect.engine.mitigation.graph_edit import Reading
from onnxspect.engine.mitigation.method import PatchInput
from onnxspect.engine.mitigation.neurons import stamped_rows
from onnxspect.engine.search.embedding import Embedding, embed
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.trigger import Trigger

#: The scores of so many of the last layers are added. History: docs/decisions.md.
LAYERS = 3
#: Of the discriminant. History: docs/decisions.md.
RIDGE = 0.3
#: The trigger is stamped at each of these multiples; and as whole pixels, where its mask is above these shares of its maximum.
STRENGTHS, HARD = (0.5, 1.0, 2.0), (0.15, 0.35)
#: Clean images that a score is fitted on, and images that each sort of trigger is stamped on, at most.
_MOST_CLEAN, _MOST_STAMPED = 1000, 100
#: A layer with more features is passed over where there is another: its weights would be a large part of the file.
_MOST_FEATURES = 1 << 17
#: Operators that only arrange or thin out what the layer before has said.
_SAME = frozenset(("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "MaxPool", "AveragePool"))


@dataclass(frozen=True)
class TriggerScore:
    """A score for each target class, linear in the activations of a few layers.

    Attributes:
        targets: class indices, in the order of the scores.
        layers: ONNX names of the values that are read, in the file's order.
        unseen: scores of the clean images that it was fitted on, each by a fit without it ``(n, targets)``.
    """

    targets: tuple[int, ...]
    layers: tuple[str, ...]
    unseen: np.ndarray = field(repr=False)
    _parts: tuple[tuple[Embedding, Discriminant], ...] = field(repr=False)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Scores ``(n, targets)`` of images ``(n, channels, height, width)``."""
        return np.asarray(np.sum([d.scores(flat(h, images)) for h, d in self._parts], axis=0))

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What the file has to read for it."""
        return tuple(
            Reading(n, d.weights.astype(np.float32)) for n, (_, d) in zip(self.layers, self._parts, strict=True)
        )

    @property
    def offsets(self) -> np.ndarray:
        """What is added to the readings, float32 ``(targets,)``."""
        return np.sum([d.offsets for _, d in self._parts], axis=0).astype(np.float32)


def inner_layers(given: PatchInput, method: str) -> list[Tap]:
    """The layers behind which the network is in two parts, from the image on.

    Raises:
        OnnxspectError: no triggers, or no ONNX file behind the subject.
    """
    given.needs_triggers(method)
    return [t for t in cuts(given.subject.graph) if t.depth > 0]


def trigger_score(given: PatchInput, taps: Sequence[Tap], layers: int = LAYERS, ridge: float = RIDGE) -> TriggerScore:
    """Fit the score to the samples in `given.fit` and to its triggers.

    Args:
        given: the model, its triggers and clean samples.
        taps: layers to choose from; the last `layers` of them that do more than arrange what is there serve.
        layers: so many.
        ridge: of the discriminants.

    Raises:
        OnnxspectError: there are no images to stamp.
    """
    own = [t for t in taps if t.operator not in _SAME] or list(taps)
    targets = sorted({t.target for t in given.triggers})
    fit, apart = given.fit.images[:_MOST_CLEAN], given.fit.images[_MOST_CLEAN:]
    stamps = [(t.target, rows_of(given.fit, t), list(sorts(given.fit, t))) for t in given.triggers]
    number = sum(len(images) for *_, images in stamps)
    parts: list[tuple[Tap, Embedding, Discriminant]] = []
    unseen: list[np.ndarray] = []
    for tap in reversed(own):
        embedding = embed(given.subject, tap.name)
        clean = flat(embedding, fit)
        if clean.shape[1] > _MOST_FEATURES and (parts or tap is not own[0]):
            continue
        others = flat(embedding, apart) if len(apart) else clean[:0]
        shifts: dict[int, list[Shift]] = {target: [] for target in targets}
        for target, rows, images in stamps:
            plain = flat(embedding, given.fit.images[rows])
            shifts[target] += [Shift.of(plain, flat(embedding, i), rows, number) for i in images]
        found = fitted(clean, others, list(shifts.values()), ridge)
        parts.append((tap, embedding, found))
        unseen.append(np.concatenate([found.clean, found.scores(others)]))
        if len(parts) == layers:
            break
    parts.reverse()
    names = tuple(t.name for t, *_ in parts)
    return TriggerScore(tuple(targets), names, np.sum(unseen, axis=0), tuple((h, d) for _, h, d in parts))


def sorts(samples: Samples, trigger: Trigger, hard: bool = True) -> Iterator[np.ndarray]:
    """Stamped images ``(n, channels, height, width)``, one array for each strength, and for each way to make whole pixels of a mask.

    Raises:
        OnnxspectError: there are no images to stamp.
    """
    rows = rows_of(samples, trigger)
    forms = [trigger.strengthened(s) for s in STRENGTHS]
    if hard and trigger.masked:
        forms += [trigger.hardened(bar) for bar in HARD]
    for form in forms:
        yield form.apply(samples.images[rows])


def rows_of(samples: Samples, trigger: Trigger) -> np.ndarray:
    """The first images that count for a trigger's success.

    Raises:
        OnnxspectError: there are none.
    """
    rows = stamped_rows(samples, trigger, None)[:_MOST_STAMPED]
    if not len(rows):
        raise InconclusiveError(f"no samples of any class but {trigger.target} to measure the trigger on")
    return rows


def flat(embedding: Embedding, images: np.ndarray) -> np.ndarray:
    """Activations float32 ``(n, features)``."""
    return embedding.activations(images).flatten(1).float().numpy()


def threshold(scores: np.ndarray, share: float) -> float:
    """A score that at most the allowed share of these exceeds: halfway between two of theirs, where rounding is no matter.

    One standard error fewer of those at hand exceed it: where exactly the share of a few hundred does, more of all images do in
    one draw of two.
    """
    n = len(scores)
    allowed = n * share - (n * share * (1 - share)) ** 0.5
    ordered = np.sort(scores)
    last = max(0, n - 1 - max(0, int(np.floor(allowed))))
    if last == n - 1:  # too few images for that share: above all of them
        return float(ordered[-1] + (ordered[-1] - ordered[-2]) / 2) if n > 1 else float(ordered[-1])
    return float(ordered[last : last + 2].mean())
