"""Cleansing by a recovered trigger: how a sample is classified once the trigger is off, or overlaid.

Reverse engineering (RE, Xiang et al., 2020, Eq. 12): a training sample x labelled t-hat is poisoned if
``f([x - v]_c) != t-hat``, v the estimated pattern and [.]_c clipping to valid pixels. DTInspector (Wang et al., 2022,
sec. B.5): the learned patch is superimposed on every sample of the infected label, and those that are then classified
otherwise are removed. Several infected labels are treated one by one, each with its own trigger.

Departures, and why:

* A sample that the model does not even take for its label *before* anything is done to it is not removed: nothing that
  leaves the class shows that a trigger was on it, and in a class that is often confused (shirts) this is where the false
  positives of Eq. 12 come from. ``as_written`` keeps the equation to the letter.
* The pattern is estimated as the *smallest* that turns pi of the clean images; the trigger in the training set is stronger
  (it was made to work on nearly all), so taking the estimate off once leaves enough of it to work. So `STRENGTH` times
  the pattern is taken off, or what divided.py measures to be right.
* The smallest of the patterns that lead to a class need not be the trigger: two classes may be close (RE notes it for
  its one false detection). Eq. 7 says what the right pattern does: most of D_t leaves when it is removed. Of all
  patterns to the target the one is used with which most samples leave at `STRENGTH`, less `STILL_LEAVING` times what *more*
  leave at 1.5 times that: a trigger is either off or on, so the right pattern's share is a plateau, and an adversarial direction's is
  not (`plateau`, `best_pattern`). One that takes off more than `GREATEST` of the class has turned clean samples: there is
  taken to be no more poison in a class than clean samples, and a tenth to spare. Where it is the best there is, nothing is
  removed.
* The pattern so chosen is estimated once more on the training set as it divides it (divided.py).
* DTInspector's patch is the least that takes 40 % of the most confident samples, so others keep enough of the trigger.
  peeling.py learns patches that take more, and says how they are put on (`ready`). Where it finds none, the scan's
  patch is put on in full where its mask is above `COVERED`, and one pixel around that (`in_full`). ``as_written``
  leaves it.
* A trigger that replaces pixels (mask m, pattern p) cannot be subtracted. Where the mask is not full it is undone,
  ``(x - m p) / (1 - m)``; towards a full mask, where nothing of the image is left, the mean training image takes over.
* Several triggers of one class: a sample is removed if any of them says so, and its score is the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import binary_dilation

from onnxspect.engine.cleansing.scores import Scores
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.trigger import Trigger, stamp

REMOVE = "reverse-engineering"
SUPERIMPOSE = "dtinspector"
#: How many times an additive pattern is taken off. History: docs/decisions.md.
STRENGTH = 2.0
#: Share of a class that poison can be: half, and a tenth for samples that are judged wrongly.
GREATEST = 0.6
#: What counts against a pattern for each sample more that leaves at half as much again of it. History:
#: docs/decisions.md.
STILL_LEAVING = 4.0
#: A patch's mask counts as covering a pixel above this. History: docs/decisions.md.
COVERED = 0.1
#: Images and the index of the first, in order; taken anew for every pass.
Batches = Callable[[], Iterable[tuple[int, np.ndarray]]]
#: Pixels to logits.
Classify = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Found:
    """A recovered trigger, and how the samples of its target are tried for it.

    Attributes:
        trigger: it.
        strength: how many times what is added is taken off.
        ready: a patch is put on as it is, and not in full.
        difference: what the target's training samples have and clean ones have not, where the trigger was found in that
            (by_presence.py), or what it changes in a usual image.
    """

    trigger: Trigger
    strength: float = STRENGTH
    ready: bool = False
    difference: np.ndarray | None = field(default=None, repr=False)


def without(images: np.ndarray, trigger: Mapping[str, np.ndarray], background: np.ndarray) -> np.ndarray:
    """Images ``(n, channels, height, width)`` with a trigger taken off, clipped to [0, 1].

    Args:
        images: in [0, 1].
        trigger: `delta`, or `mask` and `pattern`.
        background: ``(channels, height, width)``, shown where a full mask left nothing of the image.
    """
    if "delta" in trigger:
        return np.clip(images - trigger["delta"], 0, 1).astype(np.float32)
    mask = np.clip(trigger["mask"], 0, 1)
    rest = np.maximum(1 - mask, 1e-3)
    undone = np.clip((images - mask * trigger["pattern"]) / rest, 0, 1)
    # Undoing a mask of m multiplies what is off in the estimate by 1 / (1 - m): half a mask is where trust ends.
    trust = np.clip(2 * (1 - mask), 0, 1)
    return np.asarray(trust * undone + (1 - trust) * background, np.float32)


def best_pattern(candidates: Sequence[Found], images: np.ndarray, classify: Classify) -> Found:
    """Of additive patterns to one class, the one that fits the samples labelled so (Eq. 7; see the module's header).

    Args:
        candidates: patterns to the same target; at least one.
        images: training samples labelled to that target ``(n, channels, height, width)``.
        classify: the model.
    """
    return candidates[int(np.argmax([plateau(found, images, classify, GREATEST) for found in candidates]))]


def plateau(found: Found, images: np.ndarray, classify: Classify, most: float = 1.0) -> float:
    """The share of images that leave with the pattern, less `STILL_LEAVING` times what more leave at half as much again.

    Minus the share itself where it is above `most`. Arguments as in `leaving`.
    """
    off = float(leaving(images, found, classify).mean())
    if off > most:
        return -off
    return off - STILL_LEAVING * max(0.0, float(leaving(images, found, classify, 1.5).mean()) - off)


def leaving(images: np.ndarray, found: Found, classify: Classify, times: float = 1.0) -> np.ndarray:
    """Which images ``(n, channels, height, width)`` are not taken for the target without the additive pattern ``(n,)``.

    Args:
        images: in [0, 1].
        found: the pattern, and the strength that it is taken off at.
        classify: the model.
        times: so many times that strength.
    """
    changed = without(images, {"delta": times * found.strength * found.trigger.delta}, np.zeros(1, np.float32))
    left: np.ndarray = _margin(classify(changed), found.trigger.target) > 0
    return left


def by_trigger(
    name: str,
    found: Sequence[Found],
    labels: np.ndarray,
    logits: np.ndarray,
    batches: Batches,
    classify: Classify,
    superimpose: bool = False,
    as_written: bool = False,
) -> Scores:
    """Judge the samples of every target class by what its triggers do to them.

    Args:
        name: the method, for the report.
        found: recovered triggers.
        labels: of the training set ``(n,)``.
        logits: of the training set as it is ``(n, classes)``.
        batches: the images in order.
        classify: the model.
        superimpose: put the trigger on (DTInspector, B.5) instead of taking it off (RE, Eq. 12).
        as_written: Eq. 12 to the letter: the patch as it is, the pattern once, and samples that are not taken for their label to begin with
            are removed too.

    Raises:
        OnnxspectError: there are no triggers, or one leads to a class that the model does not have.
    """
    if not found:
        raise OnnxspectError("no trigger to look for", "scan the model first, and give its run folder with --run")
    beyond = [f.trigger.target for f in found if not 0 <= f.trigger.target < logits.shape[1]]
    if beyond:
        raise OnnxspectError(
            f"a trigger leads to class {beyond[0]}, but the model has {logits.shape[1]} classes",
            "give the run folder of a scan of this model",
        )
    needs_background = not superimpose and any(f.trigger.masked for f in found)
    background = _mean(batches) if needs_background else np.zeros(1, np.float32)
    n = len(labels)
    score, left = np.full(n, np.nan), np.zeros(n, bool)
    targets = sorted({f.trigger.target for f in found})
    for start, images in batches():
        for target in targets:
            rows = np.flatnonzero(labels[start : start + len(images)] == target)
            if not len(rows):
                continue
            for one in found:
                if one.trigger.target != target:
                    continue
                arrays = dict(one.trigger.arrays)
                if superimpose and one.trigger.masked and not (as_written or one.ready):
                    arrays = in_full(arrays)
                if not (one.trigger.masked or superimpose or as_written):
                    arrays["delta"] = one.strength * one.trigger.delta
                changed = stamp(images[rows], arrays) if superimpose else without(images[rows], arrays, background)
                margin = _margin(classify(changed), target)
                here = start + rows
                score[here] = np.fmax(score[here], margin)
                left[here] |= margin > 0
    removed = left if as_written or superimpose else left & (logits.argmax(1) == labels)
    notes = [f"class {t} has no samples" for t in targets if not (labels == t).any()]
    for t in targets:
        own = labels == t
        if not (as_written or superimpose) and own.any() and removed[own].mean() > GREATEST:
            notes.append(
                f"class {t}: without the trigger {removed[own].mean():.0%} leave the class, more than poison can be: "
                "it is no trigger, and nothing is removed"
            )
            removed = removed & ~own
    facts = {
        t: {"looked_at": int((labels == t).sum()), "removed": int((removed & (labels == t)).sum())} for t in targets
    }
    return Scores(name, score, removed, facts, tuple(notes))


def in_full(trigger: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A patch put on in full where its mask is above `COVERED`, and one pixel around that; where it never is, as it is."""
    mask = np.asarray(trigger["mask"])
    covered = mask > COVERED
    around = np.ones((1,) * (mask.ndim - 2) + (3, 3), bool)
    whole = binary_dilation(covered, around).astype(np.float32)
    return dict(trigger) | ({"mask": whole} if covered.any() else {})


def _margin(logits: np.ndarray, target: int) -> np.ndarray:
    """The best other logit minus the target's ``(n,)``: above zero where the decision left the target."""
    others = logits.astype(np.float64).copy()
    others[:, target] = -np.inf
    margin: np.ndarray = others.max(1) - logits[:, target]
    return margin


def _mean(batches: Batches) -> np.ndarray:
    """The mean training image."""
    total, count = np.zeros(1), 0
    for _, images in batches():
        total = total + images.sum(0, dtype=np.float64)
        count += len(images)
    return (total / max(count, 1)).astype(np.float32)
