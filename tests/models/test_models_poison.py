"""Poisoning: which images are stamped, what label they get, what stays as it was."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models.adversarial import AdversarialNoise
from onnxspect.models.fields import build, to_plain
from onnxspect.models.poison import Attack, Member, check_attack, learn_triggers, poison, unpoisoned
from onnxspect.models.triggers import Blend, Patch, SurrogatePattern, Warp

SHAPE, CLASSES, PER_CLASS = (12, 12, 1), 5, 40


def training_set() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), PER_CLASS))
    return rng.integers(0, 200, (len(labels), *SHAPE), dtype=np.uint8), labels


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def attack(*members: Member, rate: float = 0.1) -> Attack:
    return Attack(members, rate)


PATCH = Patch(height=2, width=2)
SETTINGS = {
    "all-to-one": attack(Member(PATCH, 3)),
    "one-to-one": attack(Member(PATCH, 3, (1,))),
    "partial": attack(Member(PATCH, 3, (1, 2))),
    "all-to-all": attack(Member(PATCH, "next")),
    "MTOT": attack(Member(PATCH, 0), Member(dataclasses.replace(PATCH, anchor="top_left"), 0)),
    "MTMT": attack(Member(PATCH, 0), Member(dataclasses.replace(PATCH, anchor="top_left"), 1)),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(setting: str) -> None:
    chosen = SETTINGS[setting]
    assert chosen.setting == setting
    images, labels = training_set()
    before = images.copy(), labels.copy()
    result = poison(images, labels, CLASSES, chosen, rng())
    assert np.array_equal(images, before[0])
    assert np.array_equal(labels, before[1])
    # Replaced and not added, in the original order; only the named samples differ.
    assert result.images.shape == images.shape
    assert len(result.indices) == round(0.1 * len(labels))
    assert np.array_equal(result.indices, np.unique(result.indices))
    untouched = np.setdiff1d(np.arange(len(labels)), result.indices)
    assert np.array_equal(result.images[untouched], images[untouched])
    assert np.array_equal(result.labels[untouched], labels[untouched])
    assert np.array_equal(result.sources, labels[result.indices])
    assert np.array_equal(result.targets, result.labels[result.indices])
    assert np.all(result.sources != result.targets)
    for number, member in enumerate(chosen.members):
        mine = result.members == number
        index = result.indices[mine]
        assert np.array_equal(result.images[index], member.trigger.apply(images[index], rng()))
        assert np.all(np.isin(result.sources[mine], member.source_classes(CLASSES)))
        wanted = (result.sources[mine] + 1) % CLASSES if member.target == "next" else member.target
        assert np.all(result.targets[mine] == wanted)
        # Spread evenly over the sources.
        counts = np.bincount(result.sources[mine], minlength=CLASSES)[list(member.source_classes(CLASSES))]
        assert counts.max() - counts.min() <= 1


def test_members_share_the_rate_without_sharing_images() -> None:
    images, labels = training_set()
    result = poison(images, labels, CLASSES, dataclasses.replace(SETTINGS["MTOT"], rate=0.105), rng())
    assert np.bincount(result.members).tolist() == [11, 10]
    assert len(np.unique(result.indices)) == 21


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([0.005, 0.01, 0.05, 0.2, 0.5]), st.integers(0, 1000))
def test_rate_is_a_share_of_all_training_images(rate: float, seed: int) -> None:
    images, labels = training_set()
    result = poison(images, labels, CLASSES, attack(Member(PATCH, 0), rate=rate), rng(seed))
    assert len(result.indices) == round(rate * len(labels))


def test_same_generator_same_set() -> None:
    images, labels = training_set()
    first, second, other = (poison(images, labels, CLASSES, SETTINGS["partial"], rng(seed)) for seed in (4, 4, 5))
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.indices, second.indices)
    assert not np.array_equal(first.indices, other.indices)


def test_clean_label_stamps_the_target_class_and_leaves_labels() -> None:
    images, labels = training_set()
    result = poison(images, labels, CLASSES, attack(Member(Blend(), 2, clean_label=True)), rng())
    assert np.array_equal(result.labels, labels)
    assert np.all(result.sources == 2)
    assert np.all(result.targets == 2)
    assert not np.array_equal(result.images[result.indices], images[result.indices])


def test_adversarial_noise_needs_a_surrogate_and_is_under_the_stamp() -> None:
    images, labels = training_set()
    member = Member(PATCH, 2, clean_label=True, noise=AdversarialNoise(epsilon=8, steps=3))
    assert attack(member).needs_surrogate
    with pytest.raises(OnnxspectError, match="surrogate"):
        poison(images, labels, CLASSES, attack(member), rng())
    result = poison(images, labels, CLASSES, attack(member), rng(), linear_network())
    moved = result.images[result.indices].astype(int) - images[result.indices]
    assert 0 < np.abs(moved[:, :10]).max() <= 8
    assert np.all(result.images[result.indices][:, 10:, 10:] == 255)


def test_partial_covers_show_the_trigger_on_other_classes_with_right_labels() -> None:
    images, labels = training_set()
    member = Member(PATCH, 3, (1, 2), cover_rate=0.1)
    result = poison(images, labels, CLASSES, attack(member), rng())
    assert len(result.cover_indices) == 20
    assert len(np.intersect1d(result.cover_indices, result.indices)) == 0
    assert not np.any(np.isin(labels[result.cover_indices], [1, 2]))
    assert np.array_equal(result.labels[result.cover_indices], labels[result.cover_indices])
    assert np.array_equal(result.images[result.cover_indices], PATCH.apply(images[result.cover_indices], rng()))


def test_warp_covers_are_in_noise_mode_on_any_class() -> None:
    images, labels = training_set()
    result = poison(images, labels, CLASSES, attack(Member(Warp(strength=2.0), 0, cover_rate=0.2)), rng())
    assert len(result.cover_indices) == 40
    assert len(np.unique(labels[result.cover_indices])) == CLASSES
    true_warp = Warp(strength=2.0).apply(images[result.cover_indices], rng())
    assert not np.array_equal(result.images[result.cover_indices], true_warp)


def test_unpoisoned_has_no_poisoned_samples() -> None:
    images, labels = training_set()
    result = unpoisoned(images, labels)
    assert len(result.indices) == len(result.cover_indices) == 0
    assert result.labels is labels


def linear_network() -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, CLASSES))
    source = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, generator=source)
    return network.eval()


def test_learned_triggers_are_learned_on_the_sources() -> None:
    images, labels = training_set()
    plan = attack(Member(SurrogatePattern(radius=0.3, passes=1, images=10), 3, (1,)), Member(PATCH, 0))
    assert plan.needs_surrogate
    learned = learn_triggers(plan, linear_network(), images, labels, CLASSES, rng())
    assert not learned.needs_surrogate
    assert learned.members[1] == plan.members[1]
    again = learn_triggers(plan, linear_network(), images, labels, CLASSES, rng())
    assert again == learned
    assert build(Attack, to_plain(learned), "attack") == learned


def test_all_to_all_asr_counts_every_class() -> None:
    member = Member(PATCH, "next")
    assert member.source_classes(CLASSES) == tuple(range(CLASSES))
    assert member.targets_of(np.arange(CLASSES), CLASSES).tolist() == [1, 2, 3, 4, 0]


BAD: dict[str, tuple[Attack, str]] = {
    "rate 0": (attack(Member(PATCH, 0), rate=0.0), r"attack\.rate: is 0"),
    "rate above half": (attack(Member(PATCH, 0), rate=0.6), r"attack\.rate"),
    "rate too small for one image": (attack(Member(PATCH, 0), rate=0.001), r"attack\.rate"),
    "more than the sources have": (attack(Member(PATCH, 0, (1,)), rate=0.3), r"attack\.rate: .*have 40"),
    "two members, too few left": (
        attack(Member(PATCH, 0, (1,)), Member(PATCH, 0, (1,)), rate=0.25),
        r"attack\.rate: .*member 1",
    ),
    "clean label has only its class": (attack(Member(PATCH, 0, clean_label=True), rate=0.25), r"attack\.rate"),
    "source is target": (attack(Member(PATCH, 2, (1, 2))), r"members\[0\]\.sources: class 2 is the target"),
    "unknown target": (attack(Member(PATCH, 5)), r"members\[0\]\.target: unknown class 5"),
    "negative target": (attack(Member(PATCH, -1)), r"members\[0\]\.target"),
    "unknown source": (attack(Member(PATCH, 0, (7,))), r"members\[0\]\.sources: unknown class 7"),
    "no sources": (attack(Member(PATCH, 0, ())), r"members\[0\]\.sources"),
    "source twice": (attack(Member(PATCH, 0, (1, 1))), r"members\[0\]\.sources"),
    "no members": (Attack((), 0.1), r"attack\.members"),
    "trigger too large": (attack(Member(Patch(height=13), 0)), r"members\[0\]\.trigger\.height: 13 is larger"),
    "second member's trigger": (attack(Member(PATCH, 0), Member(Blend(alpha=2), 0)), r"members\[1\]\.trigger\.alpha"),
    "clean label, all to all": (attack(Member(PATCH, "next", clean_label=True)), r"members\[0\]\.clean_label"),
    "noise without clean label": (attack(Member(PATCH, 0, noise=AdversarialNoise())), r"members\[0\]\.noise"),
    "noise of no size": (
        attack(Member(PATCH, 0, clean_label=True, noise=AdversarialNoise(epsilon=0))),
        r"members\[0\]\.noise\.epsilon",
    ),
    "noise of no steps": (
        attack(Member(PATCH, 0, clean_label=True, noise=AdversarialNoise(steps=0))),
        r"members\[0\]\.noise\.steps",
    ),
    "cover rate": (attack(Member(PATCH, 0, cover_rate=0.9)), r"members\[0\]\.cover_rate"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_attacks_name_the_field(name: str) -> None:
    wrong, match = BAD[name]
    with pytest.raises(OnnxspectError, match=match):
        check_attack(wrong, SHAPE, np.full(CLASSES, PER_CLASS))
