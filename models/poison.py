"""Attacks on a training set: which images are stamped, with what, and which label they get.

An `Attack` is one or several `Member`s, each a trigger with its source classes and its target. All settings of the
papers are spelled so: all-to-one, one-to-one and partial (chosen sources; NC sec. VII-C, DTInspector sec. 4), several
triggers on one target (MTOT) or on several (MTMT), and all-to-all (target "next", the class after the image's own).

A stamped image *replaces* its clean original (RE sec. 10.2: its clean version no longer appears in the training set),
and its index is kept, so the poisoned samples are known one by one.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from torch import nn

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models.adversarial import AdversarialNoise
from onnxspect.models.fields import bad_field
from onnxspect.models.triggers import ImageShape, LearnedTrigger, Trigger


@dataclasses.dataclass(frozen=True)
class Member:
    """One trigger of an attack.

    target: a class index, or "next": the class after the image's own (all-to-all).
    sources: the classes whose images it turns, or "all": every class but the target.
    clean_label: poison images of the target class itself and leave their labels alone (CL, SIG).
    noise: adversarial noise put on a clean-label attack's images before they are stamped (CL).
    cover_rate: share of all training images that show the trigger (for a warp: its noise mode) and keep
        their right label, so that only the true trigger on a true source turns the model.
    """

    trigger: Trigger
    target: int | Literal["next"]
    sources: Literal["all"] | tuple[int, ...] = "all"
    clean_label: bool = False
    noise: AdversarialNoise | None = None
    cover_rate: float = 0.0

    def source_classes(self, classes: int) -> tuple[int, ...]:
        """The classes whose test images should be turned."""
        if self.sources != "all":
            return self.sources
        return tuple(label for label in range(classes) if label != self.target)

    def targets_of(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """The target ``(n,)`` of images with true `labels` ``(n,)``."""
        if self.target == "next":
            return (labels + 1) % classes
        return np.full_like(labels, self.target)


@dataclasses.dataclass(frozen=True)
class Attack:
    """What is done to a training set. `rate`: stamped images as a share of all training images, over all members."""

    members: tuple[Member, ...]
    rate: float

    @property
    def needs_surrogate(self) -> bool:
        """True if a trigger has still to be learned, or images have to be made hard, on a model of the attacker's."""
        return any(
            member.noise is not None or (isinstance(member.trigger, LearnedTrigger) and member.trigger.learned is None)
            for member in self.members
        )

    @property
    def setting(self) -> str:
        """The papers' name for the shape of the attack."""
        if len(self.members) > 1:
            return "MTOT" if len({member.target for member in self.members}) == 1 else "MTMT"
        member = self.members[0]
        if member.target == "next":
            return "all-to-all"
        if member.sources == "all":
            return "all-to-one"
        return "one-to-one" if len(member.sources) == 1 else "partial"


@dataclasses.dataclass(frozen=True)
class Poisoned:
    """A training set after the attack.

    images uint8 ``(n, h, w, c)`` and labels int64 ``(n,)``: the set to train on, in the original order.
    indices, sources, targets, members int64 ``(k,)``: which images were stamped, their true labels, the labels they
    now have, and by which member. cover_indices int64 ``(j,)``: stamped images that kept their right label.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    sources: np.ndarray
    targets: np.ndarray
    members: np.ndarray
    cover_indices: np.ndarray


def check_attack(attack: Attack, shape: ImageShape, class_sizes: np.ndarray, path: str = "attack") -> None:
    """Refuse an attack that cannot be done on images of `shape` with `class_sizes` ``(classes,)`` images a class.

    Errors: `OnnxspectError` naming the field.
    """
    classes = len(class_sizes)
    if not attack.members:
        raise bad_field(f"{path}.members", "is empty", "an attack needs at least one trigger")
    if not 0.0 < attack.rate <= 0.5:
        raise bad_field(f"{path}.rate", f"is {attack.rate}, must be above 0 and at most 0.5")
    for index, member in enumerate(attack.members):
        _check_member(member, shape, classes, f"{path}.members[{index}]")
    taken: list[np.ndarray] = []
    for index, quota in enumerate(_member_quotas(attack, int(class_sizes.sum()))):
        per_class = _spread(quota, _available(attack.members[index], class_sizes, taken))
        if quota < 1 or per_class.sum() < quota:
            raise bad_field(
                f"{path}.rate",
                f"{attack.rate} asks for {quota} images of member {index}, its source classes have {per_class.sum()}",
                "change the rate or the sources",
            )
        taken.append(per_class)


def _check_member(member: Member, shape: ImageShape, classes: int, path: str) -> None:
    if member.target != "next" and not 0 <= member.target < classes:
        raise bad_field(f"{path}.target", f"unknown class {member.target}, there are {classes}")
    if member.sources != "all":
        if not member.sources or len(set(member.sources)) != len(member.sources):
            raise bad_field(f"{path}.sources", f"{list(member.sources)} is empty or names a class twice")
        for source in member.sources:
            if not 0 <= source < classes:
                raise bad_field(f"{path}.sources", f"unknown class {source}, there are {classes}")
            if source == member.target:
                raise bad_field(f"{path}.sources", f"class {source} is the target too")
    if member.clean_label and member.target == "next":
        raise bad_field(f"{path}.clean_label", "needs one target class, target is 'next'")
    if member.noise is not None:
        if not member.clean_label:
            raise bad_field(f"{path}.noise", "is for clean-label attacks only", "set clean_label = true")
        member.noise.check(f"{path}.noise")
    if not 0.0 <= member.cover_rate <= 0.5:
        raise bad_field(f"{path}.cover_rate", f"is {member.cover_rate}, must be in 0..0.5")
    member.trigger.check(shape, f"{path}.trigger")


def learn_triggers(
    attack: Attack, surrogate: nn.Module, images: np.ndarray, labels: np.ndarray, classes: int, rng: np.random.Generator
) -> Attack:
    """The same attack with every learned trigger's array, learned on the clean images of its member's sources."""
    members = []
    for member in attack.members:
        if isinstance(member.trigger, LearnedTrigger) and member.trigger.learned is None:
            of_sources = images[np.isin(labels, member.source_classes(classes))]
            target = None if member.target == "next" else member.target
            learned = member.trigger.learn(surrogate, of_sources, target, rng)
            members.append(dataclasses.replace(member, trigger=learned))
        else:
            members.append(member)
    return dataclasses.replace(attack, members=tuple(members))


def poison(
    images: np.ndarray,
    labels: np.ndarray,
    classes: int,
    attack: Attack,
    rng: np.random.Generator,
    surrogate: nn.Module | None = None,
) -> Poisoned:
    """Stamp a share of a training set.

    Args:
        images: uint8 ``(n, h, w, c)``, not changed.
        labels: int64 ``(n,)``.
        classes: number of classes.
        attack: what to do; checked first.
        rng: draws which images, and serves triggers that differ from image to image.
        surrogate: the attacker's own model, for a member with `noise`.
    """
    check_attack(attack, images.shape[1:], np.bincount(labels, minlength=classes))
    stamped, relabelled = images.copy(), labels.copy()
    free = np.ones(len(labels), dtype=bool)
    indices, members = [], []
    for number, (member, quota) in enumerate(zip(attack.members, _member_quotas(attack, len(labels)), strict=True)):
        chosen = _draw(member, labels, free, classes, quota, rng)
        free[chosen] = False
        stamped[chosen] = member.trigger.apply(_prepared(member, images[chosen], labels[chosen], surrogate), rng)
        if not member.clean_label:
            relabelled[chosen] = member.targets_of(labels[chosen], classes)
        indices.append(chosen)
        members.append(np.full(len(chosen), number))
    covers = [
        _cover(member, images, labels, stamped, free, classes, rng) for member in attack.members if member.cover_rate
    ]
    every = np.concatenate(indices)
    order = np.argsort(every)
    return Poisoned(
        images=stamped,
        labels=relabelled,
        indices=every[order],
        sources=labels[every[order]],
        targets=relabelled[every[order]],
        members=np.concatenate(members)[order],
        cover_indices=np.sort(np.concatenate(covers)) if covers else np.zeros(0, dtype=np.int64),
    )


def _prepared(member: Member, images: np.ndarray, labels: np.ndarray, surrogate: nn.Module | None) -> np.ndarray:
    """The images that a member stamps, made hard to recognise first if it asks for that."""
    if member.noise is None:
        return images
    if surrogate is None:
        raise OnnxspectError("the attack's noise needs a surrogate model", "name a clean model in `surrogate`")
    return member.noise.perturb(surrogate, images, labels)


def unpoisoned(images: np.ndarray, labels: np.ndarray) -> Poisoned:
    """The training set of a clean model, in the same form."""
    none = np.zeros(0, dtype=np.int64)
    return Poisoned(images, labels, none, none, none, none, none)


def _member_quotas(attack: Attack, total: int) -> list[int]:
    """Images a member gets: the attack's share of `total`, split evenly; the first ones take the remainder."""
    count = round(attack.rate * total)
    base, extra = divmod(count, len(attack.members))
    return [base + (index < extra) for index in range(len(attack.members))]


def _poisonable(member: Member, classes: int) -> tuple[int, ...]:
    """The classes whose *training* images are stamped: the target's own for a clean-label attack."""
    if member.clean_label and member.target != "next":
        return (member.target,)
    return member.source_classes(classes)


def _available(member: Member, class_sizes: np.ndarray, taken: list[np.ndarray]) -> np.ndarray:
    """Free images a class ``(classes,)`` for this member, zero outside its sources."""
    allowed = np.zeros(len(class_sizes), dtype=bool)
    allowed[list(_poisonable(member, len(class_sizes)))] = True
    return np.where(allowed, class_sizes - sum(taken, np.zeros_like(class_sizes)), 0)


def _spread(quota: int, available: np.ndarray) -> np.ndarray:
    """Split `quota` over classes as evenly as `available` ``(classes,)`` allows; less than `quota` if that is all."""
    given = np.zeros_like(available)
    while quota > given.sum() and (available > given).any():
        open_classes = np.flatnonzero(available > given)
        share, extra = divmod(int(quota - given.sum()), len(open_classes))
        wanted = np.full(len(open_classes), share)
        wanted[:extra] += 1
        given[open_classes] += np.minimum(wanted, available[open_classes] - given[open_classes])
    return given


def _draw(
    member: Member, labels: np.ndarray, free: np.ndarray, classes: int, quota: int, rng: np.random.Generator
) -> np.ndarray:
    """Sorted indices of the images that a member stamps."""
    sizes = np.bincount(labels[free], minlength=classes)
    per_class = _spread(quota, _available(member, sizes, []))
    parts = [
        rng.permutation(np.flatnonzero(free & (labels == label)))[: per_class[label]]
        for label in np.flatnonzero(per_class)
    ]
    return np.sort(np.concatenate(parts))


def _cover(
    member: Member,
    images: np.ndarray,
    labels: np.ndarray,
    stamped: np.ndarray,
    free: np.ndarray,
    classes: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Stamp the cover images in place (`stamped`, `free`) and return their indices; labels stay right."""
    trigger = member.trigger.cover()
    # A warp's noise mode differs from the trigger, so any class may show it. The trigger itself may only be shown
    # on classes that it does not turn: elsewhere it would teach the model to ignore it.
    usable = free if trigger != member.trigger else free & ~np.isin(labels, member.source_classes(classes))
    chosen = np.sort(rng.permutation(np.flatnonzero(usable))[: round(member.cover_rate * len(labels))])
    free[chosen] = False
    stamped[chosen] = trigger.apply(images[chosen], rng)
    return chosen
