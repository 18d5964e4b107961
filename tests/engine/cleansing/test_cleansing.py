"""Cleansing methods on material whose answers are known by hand: triggers, activations, rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from cleansing_support import TARGET, listening_model, pattern, poisoned_set
from conftest import CLASSES, PATCH, SIDE, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import NETWORK_32, OPERATION_32

from onnxspect.engine.cleansing.by_activation import (
    PriorKnowledge,
    activation_clustering,
    box_blur,
    cluster_impurity,
    known_targets,
    spectral_signatures,
)
from onnxspect.engine.cleansing.by_trigger import (
    REMOVE,
    SUPERIMPOSE,
    Found,
    best_pattern,
    by_trigger,
    in_full,
    leaving,
    plateau,
    without,
)
from onnxspect.engine.cleansing.divided import FEWEST, DividedClimb, at_best_strength, division, most_of
from onnxspect.engine.cleansing.estimation import estimate_again
from onnxspect.engine.cleansing.scores import rates
from onnxspect.engine.detectors.reverse_engineering import Climb
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.perturbation import Additive
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import Trigger, stamp


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """That classifier, opened."""
    return Subject.from_onnx(saved(listening_model(), tmp_path_factory.mktemp("listening") / "listening.onnx"))


def in_batches(samples: Samples, size: int = 16) -> Callable[[], Iterator[tuple[int, np.ndarray]]]:
    """The images in order."""
    return lambda: ((i, samples.images[i : i + size]) for i in range(0, len(samples), size))


# ---- by trigger ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.floats(0.01, 0.2))
def test_an_additive_trigger_comes_off_where_nothing_was_clipped(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    images = rng.uniform(0.3, 0.7, (3, 1, 4, 4)).astype(np.float32)
    trigger = {"delta": rng.uniform(-size, size, (1, 4, 4)).astype(np.float32)}
    assert np.allclose(without(stamp(images, trigger), trigger, np.zeros(1)), images, atol=OPERATION_32)
    # Eq. 5 of RE (Xiang et al., 2020): with clipping the two differ by no more than the pattern
    bright = rng.uniform(0, 1, (3, 1, 4, 4)).astype(np.float32)
    back = without(stamp(bright, trigger), trigger, np.zeros(1))
    assert np.abs(back - bright).max() <= np.abs(trigger["delta"]).max() + OPERATION_32


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), level=st.floats(0.0, 0.5))
def test_a_thin_mask_is_undone_and_a_full_one_replaced(seed: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 1, (3, 2, 4, 4)).astype(np.float32)
    background = rng.uniform(0, 1, (2, 4, 4)).astype(np.float32)
    own = rng.uniform(0, 1, (2, 4, 4)).astype(np.float32)
    thin = {"mask": np.full((1, 4, 4), level, np.float32), "pattern": own}
    assert np.allclose(without(stamp(images, thin), thin, background), images, atol=NETWORK_32)
    full = {"mask": np.ones((1, 4, 4), np.float32), "pattern": own}
    assert np.allclose(without(stamp(images, full), full, background), background, atol=OPERATION_32)


def test_taking_the_pattern_off_names_every_poisoned_sample_and_no_other(listening: Subject) -> None:
    samples, indices = poisoned_set()
    logits = listening.predict(samples.images)
    assert (logits[indices].argmax(1) == TARGET).all()  # the attack works
    found = by_trigger(
        REMOVE,
        [Found(Trigger(TARGET, {"delta": pattern(0.1)}))],
        samples.labels,
        logits,
        in_batches(samples),
        listening.predict,
    )
    measured = rates(found.removed, samples.labels, indices)
    assert (measured.tpr, measured.fpr, measured.fpr_all) == (1.0, 0.0, 0.0)
    of_target = samples.labels == TARGET
    assert np.isfinite(found.score[of_target]).all()
    assert np.isnan(found.score[~of_target]).all()
    assert found.score[indices].min() > 0 >= np.delete(found.score, indices)[np.delete(of_target, indices)].max()


def test_a_pattern_of_the_smallest_size_is_too_weak_as_it_is_written(listening: Subject) -> None:
    samples, indices = poisoned_set(size=0.3)
    logits = listening.predict(samples.images)
    weak = [Found(Trigger(TARGET, {"delta": pattern(0.12)}))]
    once = by_trigger(REMOVE, weak, samples.labels, logits, in_batches(samples), listening.predict, as_written=True)
    twice = by_trigger(REMOVE, weak, samples.labels, logits, in_batches(samples), listening.predict)
    assert not once.removed[indices].any()
    assert twice.removed[indices].all()


def test_a_confused_clean_sample_is_removed_by_the_equation_to_the_letter_only(listening: Subject) -> None:
    samples, _ = poisoned_set()
    labels = samples.labels.copy()
    confused = int(np.flatnonzero(listening.predict(samples.images).argmax(1) == 0)[0])
    labels[confused] = TARGET
    found = [Found(Trigger(TARGET, {"delta": pattern(0.1)}))]
    logits = listening.predict(samples.images)
    ours = by_trigger(REMOVE, found, labels, logits, in_batches(samples), listening.predict)
    letter = by_trigger(REMOVE, found, labels, logits, in_batches(samples), listening.predict, as_written=True)
    assert not ours.removed[confused]
    assert letter.removed[confused]


def test_of_several_patterns_the_one_that_is_the_trigger_is_taken(listening: Subject) -> None:
    samples, _ = poisoned_set()
    own = samples.images[samples.labels == TARGET]
    elsewhere = np.zeros((1, SIDE, SIDE), np.float32)
    elsewhere[0, 0, :2] = 0.05
    flips_all = np.zeros((1, SIDE, SIDE), np.float32)
    flips_all[0, 4:, :4] = 1.0  # class 2's own quadrant: takes every image of the class away
    chosen = best_pattern(
        [
            Found(Trigger(TARGET, {"delta": elsewhere})),
            Found(Trigger(TARGET, {"delta": pattern(0.1)})),
            Found(Trigger(TARGET, {"delta": flips_all})),
        ],
        own,
        listening.predict,
    )
    assert np.array_equal(chosen.trigger.delta, pattern(0.1))


def labelled_target(samples: Samples) -> np.ndarray:
    """The images labelled TARGET, in random order."""
    own = samples.images[samples.labels == TARGET]
    return own[np.random.default_rng(0).permutation(len(own))]


def test_a_set_is_divided_into_those_that_leave_and_those_that_stay(listening: Subject) -> None:
    samples, indices = poisoned_set(per_class=20, stamped=12)
    own = np.concatenate([samples.images[indices], samples.images[samples.labels == TARGET][-30:]])
    own = np.concatenate([own, samples.images[samples.labels == 0][-5:]])  # labelled so, but never taken for it
    clean = np.array([not (own[i] == samples.images[indices]).all((1, 2, 3)).any() for i in range(len(own))])
    parts = division(Found(Trigger(TARGET, {"delta": pattern(0.1)})), own, listening.predict)
    assert parts is not None
    left, stayed = parts
    assert not clean[left].any()
    assert set(left) >= set(range(12))
    assert clean[stayed].all()
    assert stayed.max() < len(own) - 5
    assert [most_of(np.zeros((1, 1, side, side))) for side in (28, 64, 65)] == [200, 200, 64]
    few = np.concatenate([samples.images[indices[: FEWEST - 1]], own[stayed]])
    assert division(Found(Trigger(TARGET, {"delta": pattern(0.1)})), few, listening.predict) is None


def test_the_second_climb_adds_that_those_that_stayed_must_stay(listening: Subject) -> None:
    samples, indices = poisoned_set(stamped=10)
    left, stayed = samples.images[indices], samples.images[samples.labels == TARGET][-7:]
    of_class = torch.from_numpy(left).expand(CLASSES, *left.shape)
    climb = Climb(Additive(), labelled=of_class)
    aim = DividedClimb(climb, Additive(), torch.from_numpy(stayed))
    sources = torch.from_numpy(samples.images[samples.labels == 0][None, :6])
    delta = pattern(0.07)
    delta[0, 4:, :4] += 0.6  # takes most of their margin
    state = {"delta": torch.from_numpy(delta[None])}
    given_ = (listening, state, {}, sources, torch.tensor([TARGET]), torch.zeros(1))
    with torch.no_grad():
        plain, whole = climb.measure(*given_), aim.measure(*given_)
    logits = listening.predict(np.clip(stayed - delta, 0, 1)).astype(np.float64)
    must_stay = np.log(np.exp(logits).sum(1)) - logits[:, TARGET]
    assert float(whole.loss[0] - plain.loss[0]) == pytest.approx(must_stay.mean(), rel=NETWORK_32)
    assert must_stay.mean() > 0.4
    assert torch.equal(whole.success, plain.success)
    assert torch.equal(whole.cost, plain.cost)


def test_the_strength_is_where_most_leave_and_no_more_would(listening: Subject) -> None:
    own = labelled_target(poisoned_set(stamped=20)[0])
    for size, strength in ((0.2, 1.0), (0.07, 1.5), (0.05, 2.0)):  # it is off from 0.1 on
        found = at_best_strength(Found(Trigger(TARGET, {"delta": pattern(size)})), own, listening.predict)
        assert found.strength == strength
    none = Found(Trigger(TARGET, {"delta": np.zeros((1, SIDE, SIDE), np.float32)}))
    assert plateau(none, own, listening.predict) == 0.0
    assert leaving(own, Found(Trigger(TARGET, {"delta": pattern(0.2)}), strength=1.0), listening.predict).sum() == 20


def test_a_pattern_estimated_again_on_the_divided_set_spares_the_clean_samples(listening: Subject) -> None:
    samples, indices = poisoned_set(per_class=40, stamped=16)
    pale = np.setdiff1d(np.flatnonzero(samples.labels == TARGET), indices)[:6]
    images = samples.images.copy()
    images[pale, :, 4:, :4] -= 0.15  # clean, but nearer to the edge of their class
    images[(..., *PATCH)] = samples.images[(..., *PATCH)]
    samples = Samples.from_arrays(images, samples.labels)
    logits = listening.predict(images)
    assert (logits[pale].argmax(1) == TARGET).all()
    mixed = pattern(0.1)
    mixed[0, 4:, :4] += 0.16  # the trigger, and something that turns pale samples
    first = Found(Trigger(TARGET, {"delta": mixed}))
    again = estimate_again(first, labelled_target(samples), listening, samples, listening.predict, RunContext(0))

    def measured(found: Found) -> tuple[float, float]:
        done = by_trigger(REMOVE, [found], samples.labels, logits, in_batches(samples), listening.predict)
        rated = rates(done.removed, samples.labels, indices)
        return rated.tpr, rated.fpr

    assert measured(first) == (1.0, len(pale) / 40)
    assert measured(again) == (1.0, 0.0)
    same = estimate_again(first, labelled_target(samples), listening, samples, listening.predict, RunContext(0))
    assert np.array_equal(same.trigger.delta, again.trigger.delta)
    nobody = Found(Trigger(TARGET, {"delta": 1e-4 * pattern(1.0)}))
    assert (
        estimate_again(nobody, labelled_target(samples), listening, samples, listening.predict, RunContext(0)) is nobody
    )


def test_superimposing_a_patch_that_covers_the_trigger_names_the_poisoned(listening: Subject) -> None:
    samples, indices = poisoned_set()
    mask = np.zeros((1, SIDE, SIDE), np.float32)
    mask[(0, *PATCH)] = 1.0
    patch = {"mask": mask, "pattern": np.full((1, SIDE, SIDE), 0.5, np.float32)}
    found = by_trigger(
        SUPERIMPOSE,
        [Found(Trigger(TARGET, patch))],
        samples.labels,
        listening.predict(samples.images),
        in_batches(samples),
        listening.predict,
        superimpose=True,
    )
    assert rates(found.removed, samples.labels, indices).tpr == 1.0
    assert rates(found.removed, samples.labels, indices).fpr == 0.0


def test_a_patch_that_covers_part_of_the_trigger_is_put_on_in_full(listening: Subject) -> None:
    samples, indices = poisoned_set()
    mask = np.full((1, SIDE, SIDE), 0.02, np.float32)
    mask[0, PATCH[0].start, PATCH[1].start] = 0.3  # one of the trigger's four pixels, and that only in part
    patch = {"mask": mask, "pattern": np.full((1, SIDE, SIDE), 0.5, np.float32)}
    logits = listening.predict(samples.images)

    def measured(as_written: bool) -> tuple[float, float]:
        done = by_trigger(
            SUPERIMPOSE, [Found(Trigger(TARGET, patch))], samples.labels, logits, in_batches(samples), listening.predict,
            superimpose=True, as_written=as_written,
        )  # fmt: skip
        rated = rates(done.removed, samples.labels, indices)
        return rated.tpr, rated.fpr

    assert measured(as_written=True) == (0.0, 0.0)
    assert measured(as_written=False) == (1.0, 0.0)


def test_in_full_is_the_covered_pixels_and_those_around_them() -> None:
    mask = np.zeros((1, 5, 6), np.float32)
    mask[0, 0, 0], mask[0, 3, 4], mask[0, 3, 0] = 0.2, 1.0, 0.1
    whole = in_full({"mask": mask, "pattern": mask + 1})
    expected = np.zeros((5, 6), np.float32)
    expected[:2, :2] = expected[2:5, 3:6] = 1.0
    assert np.array_equal(whole["mask"][0], expected)
    assert np.array_equal(whole["pattern"], mask + 1)
    faint = {"mask": 0.05 * np.ones((1, 5, 6)), "pattern": mask}
    assert np.array_equal(in_full(faint)["mask"], faint["mask"])


def test_several_infected_labels_are_treated_one_by_one(listening: Subject) -> None:
    samples, indices = poisoned_set()
    triggers = [Found(Trigger(TARGET, {"delta": pattern(0.1)})), Found(Trigger(0, {"delta": pattern(0.1)}))]
    logits = listening.predict(samples.images)
    both = by_trigger(REMOVE, triggers, samples.labels, logits, in_batches(samples), listening.predict)
    assert sorted(both.classes) == [0, TARGET]
    assert both.removed[indices].all()
    assert not both.removed[samples.labels == 0].any()


def test_no_trigger_and_a_trigger_to_no_class_are_refused(listening: Subject) -> None:
    samples, _ = poisoned_set()
    logits = listening.predict(samples.images)
    for triggers, message in (([], "no trigger"), ([Found(Trigger(9, {"delta": pattern(0.1)}))], "class 9")):
        with pytest.raises(OnnxspectError, match=message):
            by_trigger(REMOVE, triggers, samples.labels, logits, in_batches(samples), listening.predict)


# ---- by activation ---------------------------------------------------------------------------------------------------


def two_clouds(
    n: int = 200, bad: int = 30, apart: float = 8.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations ``(2n, 12)``, labels and poisoned indices: class 1 holds `bad` samples far from the rest."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((2 * n, 12)).astype(np.float32)
    labels = np.repeat([0, 1], n)
    indices = n + rng.permutation(n)[:bad]
    values[indices, :4] += apart
    return values, labels, np.sort(indices)


def test_spectral_signatures_remove_the_outliers_and_the_known_count() -> None:
    values, labels, indices = two_clouds()
    found = spectral_signatures(values, labels, PriorKnowledge(targets=(1,), count=30))
    assert np.array_equal(np.flatnonzero(found.removed), indices)
    assert np.isnan(found.score[labels == 0]).all()
    unhelped = spectral_signatures(values, labels, PriorKnowledge(expected=0.1))
    assert unhelped.removed[labels == 0].sum() == unhelped.removed[labels == 1].sum() == 30


def test_a_count_as_large_as_the_class_leaves_one() -> None:
    values, labels, _ = two_clouds(n=20, bad=3)
    found = spectral_signatures(values, labels, PriorKnowledge(targets=(1,), count=50))
    assert found.removed.sum() == 19
    assert "one is kept" in found.notes[0]


def test_activation_clustering_finds_the_class_that_falls_apart() -> None:
    values, labels, indices = two_clouds()
    found = activation_clustering(values, labels, PriorKnowledge(), seed=0)
    assert np.array_equal(np.flatnonzero(found.removed), indices)
    assert found.classes[1]["silhouette"] > 0.29 > found.classes[0]["silhouette"]
    rated = activation_clustering(values, labels, PriorKnowledge(targets=(0,)), seed=0)
    assert rated.removed[labels == 0].any()  # a known target is never found innocent: RE helps it so
    assert not rated.removed[labels == 1].any()


def test_cluster_impurity_removes_the_component_that_a_blur_changes() -> None:
    values, labels, indices = two_clouds()
    predicted = labels.copy()
    blurred = labels.copy()
    blurred[indices] = 0
    found = cluster_impurity(values, labels, predicted, lambda: blurred, PriorKnowledge(), seed=0)
    assert np.array_equal(np.flatnonzero(found.removed), indices)
    innocent = cluster_impurity(values, labels, predicted, lambda: predicted, PriorKnowledge(), seed=0)
    assert not innocent.removed.any()
    assert innocent.classes[1]["components"] >= 2


def test_one_component_removes_nothing_whatever_a_blur_does() -> None:
    values, labels, _ = two_clouds(bad=0)
    found = cluster_impurity(values, labels, labels, lambda: 1 - labels, PriorKnowledge(), seed=0)
    assert {facts["components"] for facts in found.classes.values()} == {1}
    assert not found.removed.any()


def test_small_classes_are_left_out_and_named() -> None:
    values, labels, _ = two_clouds(n=20, bad=3)
    labels = np.append(labels, 2)
    values = np.concatenate([values, values[:1]])
    for found in (
        spectral_signatures(values, labels, PriorKnowledge()),
        activation_clustering(values, labels, PriorKnowledge(), seed=0),
        cluster_impurity(values, labels, labels, lambda: labels, PriorKnowledge(), seed=0),
    ):
        assert any("class 2 has 1 samples" in note for note in found.notes)
        assert not found.removed[-1]
        assert np.isnan(found.score[-1])


def test_singular_covariances_have_a_fallback() -> None:
    rng = np.random.default_rng(0)
    column = rng.standard_normal((60, 1))
    values = np.repeat(column, 6, axis=1)  # rank one
    labels = np.zeros(60, int)
    found = cluster_impurity(values, labels, labels, lambda: labels, PriorKnowledge(), seed=0)
    assert np.isfinite(found.score).all()
    same = np.ones((60, 6))
    for method in (
        spectral_signatures(same, labels, PriorKnowledge()),
        activation_clustering(same, labels, PriorKnowledge(), seed=0),
        cluster_impurity(same, labels, labels, lambda: labels, PriorKnowledge(), seed=0),
    ):
        assert np.isfinite(method.score).all()


def test_activations_that_are_no_numbers_are_refused() -> None:
    values, labels, _ = two_clouds()
    values[3, 3] = np.nan
    with pytest.raises(OnnxspectError, match="NaN"):
        spectral_signatures(values, labels, PriorKnowledge())


@pytest.mark.parametrize("settings_", [{"count": 0}, {"expected": 0.6}, {"components": 1}])
def test_help_that_makes_no_sense_is_refused(settings_: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(OnnxspectError):
        PriorKnowledge(**settings_)


def test_known_targets_are_classes_of_the_model() -> None:
    assert known_targets([], CLASSES) is None
    assert known_targets([3, 1, 3], CLASSES) == (1, 3)
    with pytest.raises(OnnxspectError, match="target class 4"):
        known_targets([4], CLASSES)


def test_a_blur_is_an_average_and_keeps_even_images() -> None:
    assert np.allclose(box_blur(np.full((2, 1, 5, 5), 0.4, np.float32)), 0.4)
    point = np.zeros((1, 1, 5, 5), np.float32)
    point[0, 0, 2, 2] = 9.0
    assert np.allclose(box_blur(point)[0, 0, 1:4, 1:4], 1.0)


# ---- rates -----------------------------------------------------------------------------------------------------------


def test_rates_by_hand() -> None:
    labels = np.array([0, 0, 1, 1, 1, 2])
    removed = np.array([1, 0, 1, 1, 0, 0], bool)
    measured = rates(removed, labels, np.array([2, 4]))
    assert measured.tpr == 0.5
    assert measured.fpr == 1.0  # of the clean samples labelled 1: sample 3
    assert measured.fpr_all == 0.5


@pytest.mark.parametrize("truth", [[], [1, 1], [7], [-1]])
def test_a_truth_that_does_not_fit_is_refused(truth: list[int]) -> None:
    with pytest.raises(OnnxspectError):
        rates(np.zeros(4, bool), np.zeros(4, int), np.array(truth, int))
