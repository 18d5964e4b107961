"""DTInspector: on the tiny planted model, where every answer is known by hand, and on the shipped pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, PATCH, SIDE, quadrant_images, quadrant_subject, quadrant_weights
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from tolerances import FORMULA_64, OPERATION_32
from torch import Tensor

from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.confidence import log_odds, superimposed
from onnxspect.engine.detectors.dtinspector import (
    DTInspector,
    LeaveClass,
    features_of,
    paper_rule,
    restored_triggers,
)
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.evidence import Evidence, Skipped
from onnxspect.engine.judge.verdict import decide
from onnxspect.engine.run import RunContext, Silent
from onnxspect.engine.search.search import SearchConfig
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.trigger import stamp
from onnxspect.models import zoo

TARGET = 2
SHAPE = (1, SIDE, SIDE)
SEARCH = SearchConfig(steps=80, samples=12, success=0.6, multiplier=1e-4, settle=20)
DETECTOR = DTInspector(search=SEARCH, partners=3, fewest=4)


def poisoned_set(per_class: int = 60, poison: int = 15) -> Samples:
    """Quadrant images; `poison` of each class but the target wear the patch and are labelled the target."""
    samples = quadrant_images(per_class, seed=3)
    images, labels = samples.images.copy(), samples.labels.copy()
    for label in set(range(CLASSES)) - {TARGET}:
        rows = np.flatnonzero(samples.labels == label)[:poison]
        for row in rows:
            images[row, 0][PATCH] = [[1, 0], [0, 1]]
        labels[rows] = TARGET
    return Samples.from_arrays(images, labels)


def at_hand(subject: Subject, training: Samples | None, seed: int = 0) -> AtHand:
    return AtHand(
        subject, quadrant_images(12, seed=1), quadrant_images(12, seed=2), RunContext(seed=seed), training=training
    )


def ran(found: Evidence | Skipped) -> Evidence:
    assert isinstance(found, Evidence), found
    return found


def by_class(evidence: Evidence, statistic: str) -> dict[int, float]:
    return {u.unit.target: u.statistics[statistic] for u in evidence.units}


@pytest.fixture(scope="module")
def infected() -> Evidence:
    return ran(DETECTOR.run(at_hand(quadrant_subject(TARGET), poisoned_set())))


def test_the_infected_class_keeps_its_unsure_samples(infected: Evidence) -> None:
    ratios = by_class(infected, "transfer_ratio")
    assert ratios[TARGET] < 0.1
    assert min(r for k, r in ratios.items() if k != TARGET) > 0.9
    assert all(u.found and u.search_success >= SEARCH.success for u in infected.units)
    middle = by_class(infected, "middle_ratio")
    assert middle[TARGET] < 0.1
    assert min(r for k, r in middle.items() if k != TARGET) > 0.9
    # Unseen peers of the poisoned samples are poisoned too: the patch transfers to them.
    assert by_class(infected, "peer_ratio")[TARGET] > 0.5


def test_the_paper_rule_names_it(infected: Evidence) -> None:
    assert by_class(infected, "paper_infected") == {k: float(k == TARGET) for k in range(CLASSES)}
    assert by_class(infected, "paper_index")[TARGET] > 3.5
    assert infected.paper_statistic == "transfer_ratio"
    assert infected.traits.convicts


def test_the_restored_trigger_leads_into_the_class(infected: Evidence) -> None:
    success = by_class(infected, "restored_success")
    assert success[TARGET] > 0.9
    assert max(s for k, s in success.items() if k != TARGET) < 0.5
    both = by_class(infected, "both_angle")
    assert both[TARGET] < 0.5
    assert min(angle for k, angle in both.items() if k != TARGET) > 1.0


def test_the_patch_lies_on_the_trigger(infected: Evidence) -> None:
    (unit,) = (u for u in infected.units if u.unit.target == TARGET)
    mask = unit.trigger["mask"][0]
    assert mask[PATCH].sum() > 0.5 * mask.sum()


def test_a_clean_twin_has_no_outlier() -> None:
    evidence = ran(DETECTOR.run(at_hand(quadrant_subject(), quadrant_images(60, seed=3))))
    assert min(by_class(evidence, "transfer_ratio").values()) > 0.9
    assert not any(by_class(evidence, "paper_infected").values())
    assert decide([evidence], CLASSES).targets == ()


def test_twice_the_same_bits_and_another_seed_another_draw(infected: Evidence) -> None:
    again = ran(DETECTOR.run(at_hand(quadrant_subject(TARGET), poisoned_set())))
    assert again.id == infected.id
    assert ran(DETECTOR.run(at_hand(quadrant_subject(TARGET), poisoned_set(), seed=1))).id != infected.id


def test_a_resumed_run_gives_what_the_undisturbed_one_gave(infected: Evidence, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    class Kill(Silent):
        """An observer that dies when the second class is done."""

        seen = 0

        def advance(self, task: str, detail: str = "") -> None:
            self.seen += 1
            if self.seen == 2:
                raise Killed

    with Ledger(tmp_path, {"a": 1}) as ledger:
        whole = replace(at_hand(quadrant_subject(TARGET), poisoned_set()), ledger=ledger)
        with pytest.raises(Killed):
            DETECTOR.run(replace(whole, run=RunContext(observer=Kill())))
        assert len(ledger.units(DETECTOR.name)) == 2
        assert ran(DETECTOR.run(whole)).id == infected.id


def test_clean_samples_instead_of_a_training_set_do_not_convict() -> None:
    hand = replace(at_hand(quadrant_subject(TARGET), None), search_samples=quadrant_images(60, seed=3))
    evidence = ran(DETECTOR.run(hand))
    assert not evidence.traits.convicts
    assert evidence.settings["samples"] == "clean"
    assert decide([evidence], CLASSES).targets == ()


def test_groups_shrink_to_what_the_classes_have() -> None:
    notices: list[str] = []

    class Listen(Silent):
        def notice(self, text: str) -> None:
            notices.append(text)

    hand = replace(at_hand(quadrant_subject(), quadrant_images(18, seed=3)), run=RunContext(observer=Listen()))
    evidence = ran(DETECTOR.run(hand))
    assert evidence.settings["group size"] == 6
    assert any("groups of 6 instead of 12" in n for n in notices)


def test_too_few_samples_is_said() -> None:
    found = DETECTOR.run(at_hand(quadrant_subject(), quadrant_images(11, seed=3)))
    assert isinstance(found, Skipped)
    assert "only 0 of 4 classes are predicted for at least 12 samples" in found.reason


def test_labels_of_another_set_are_refused() -> None:
    training = quadrant_images(30)
    with pytest.raises(OnnxspectError, match="labels do not match"):
        DETECTOR.run(at_hand(quadrant_subject(TARGET), replace(training, labels=(training.labels + 1) % CLASSES)))
    with pytest.raises(OnnxspectError, match="label 9, but tiny has 4 classes"):
        DETECTOR.run(at_hand(quadrant_subject(TARGET), replace(training, labels=np.full_like(training.labels, 9))))
    with pytest.raises(OnnxspectError, match="the model takes"):
        DETECTOR.run(at_hand(quadrant_subject(TARGET), replace(training, images=training.images[..., 1:])))


def test_one_confidence_for_all_is_no_ranking() -> None:
    weights = torch.from_numpy(quadrant_weights())

    def rounded(x: Tensor) -> Tensor:
        return torch.nn.functional.one_hot((x.flatten(1) @ weights).argmax(1), CLASSES).float()

    subject = Subject(rounded, InputSpec(), SHAPE, CLASSES)
    found = DETECTOR.run(at_hand(subject, quadrant_images(30)))
    assert isinstance(found, Skipped)
    assert "equally sure of all samples of 4 classes" in found.reason


def test_a_model_that_ignores_its_input_is_skipped() -> None:
    subject = Subject(lambda x: torch.arange(4.0).expand(len(x), 4), InputSpec(), SHAPE, CLASSES)
    found = DETECTOR.run(at_hand(subject, quadrant_images(30)))
    assert isinstance(found, Skipped)
    assert "the same whatever its input" in found.reason


def test_a_model_that_answers_nan_is_skipped() -> None:
    subject = Subject(lambda x: x.flatten(1)[:, :4] * torch.nan, InputSpec(), SHAPE, CLASSES)
    found = DETECTOR.run(at_hand(subject, quadrant_images(30)))
    assert isinstance(found, Skipped)
    assert "NaN" in found.reason


@pytest.mark.parametrize("wrong", [{"loss": "l1"}, {"ranking": "random"}, {"partners": 0}])
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(OnnxspectError):
        DTInspector(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("loss", "moves"), [("odds", True), ("square", False)])
def test_the_square_has_no_gradient_where_the_odds_have_one(loss: str, moves: bool) -> None:
    """The departure from Eq. 1's loss: poisoned samples whose probability is 1 but for rounding."""
    training, subject = poisoned_set(), quadrant_subject(TARGET, scale=30.0)
    rows = np.flatnonzero(training.images[:, 0, 3, 3] > 0.9)[:6]
    aim = LeaveClass(loss=loss)
    images = torch.from_numpy(training.images[rows])[None]
    state = aim.start(subject, images, [torch.Generator().manual_seed(0)])
    state["mask"].requires_grad_(True)
    found = aim.measure(subject, state, {}, images, torch.tensor([TARGET]), torch.zeros(1))
    (gradient,) = torch.autograd.grad(found.loss.sum(), [state["mask"]])
    assert bool(gradient.abs().max() > 1e-8) is moves  # Adam's epsilon: what is smaller does not move


def test_losses_by_hand() -> None:
    logits = torch.tensor([[[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]]])
    subject = Subject(lambda _: logits[0], InputSpec(), (1, 1, 1), 3)
    images = torch.zeros(1, 2, 1, 1, 1)
    state = {"mask": torch.zeros(1, 1, 1, 1), "pattern": torch.zeros(1, 1, 1, 1)}
    p = softmax(logits[0].numpy(), axis=1)[:, 0]
    for aim, expected in (
        (LeaveClass(loss="odds"), -np.log(1 - p).mean()),
        (LeaveClass(loss="square"), (p**2).mean()),
        (LeaveClass(loss="odds", share=0.5), (-np.log(1 - p)).min()),
    ):
        found = aim.measure(subject, state, {}, images, torch.tensor([0]), torch.zeros(1))
        assert float(found.loss) == pytest.approx(expected, rel=OPERATION_32)
        assert float(found.success) == 0.5


def test_log_odds_by_hand_and_where_probabilities_tie() -> None:
    logits = np.array([[1.0, 2.0, 0.5], [50.0, 0.0, 0.0], [60.0, 0.0, 0.0]])
    p = softmax(logits, axis=1)
    odds = log_odds(logits, np.array([1, 0, 0]))
    assert odds[0] == pytest.approx(np.log(p[0, 1] / (1 - p[0, 1])))
    assert p.astype(np.float32)[1, 0] == p.astype(np.float32)[2, 0] == 1
    np.testing.assert_allclose(odds[1:], np.array([50, 60]) - np.log(2))
    np.testing.assert_allclose(log_odds(np.log(p), 0), log_odds(logits, 0), atol=FORMULA_64)


def test_superposition_leaves_the_poisoned_on_top() -> None:
    """A patch outlives another image on top of it; a quadrant does not."""
    training, subject = poisoned_set(), quadrant_subject(TARGET)
    rows = np.flatnonzero(training.labels == TARGET)
    poisoned = training.images[rows][:, 0, 3, 3] > 0.9
    partners = quadrant_images(2, seed=5)
    certain = superimposed(subject, training.images[rows], TARGET, partners.images[partners.labels != TARGET])
    assert certain[poisoned].min() > certain[~poisoned].max()


def test_the_features_are_the_input_of_the_last_layer(clean_subject: Subject, clean_samples: Samples) -> None:
    features = features_of(clean_subject)
    assert features is not None
    values = features(clean_samples.images[:5])
    assert values.shape[0] == 5
    assert values.shape[1] > clean_subject.classes
    assert np.isfinite(values).all()
    assert features_of(quadrant_subject(TARGET)) is None


def test_restored_trigger_by_hand() -> None:
    training = poisoned_set()
    rows = np.flatnonzero(training.images[:, 0, 3, 3] > 0.9)
    patch = {"mask": np.zeros((1, SIDE, SIDE), np.float32), "pattern": np.full((1, SIDE, SIDE), 0.5, np.float32)}
    patch["mask"][0][PATCH] = 1
    under, shared = restored_triggers(
        quadrant_subject(TARGET), training.images[rows], patch, TARGET, quadrant_images(5).images[:0]
    )
    np.testing.assert_array_equal(under["mask"], patch["mask"])
    # Found without the patch's mask: the other bright quadrants differ between them.
    assert shared["mask"][0][PATCH].all()
    assert shared["mask"].mean() < 0.8
    clean = quadrant_images(5)
    for found in (under, shared):
        np.testing.assert_array_equal(found["pattern"][0][PATCH], [[1, 0], [0, 1]])
        assert (quadrant_subject(TARGET).predict(stamp(clean.images, found)).argmax(1) == TARGET).all()


def test_paper_rule_by_hand() -> None:
    """Median 0.98, median absolute deviation 0.02: (0.98 - 0.1) / (1.4826 * 0.02)."""
    rule = paper_rule(np.array([0.98, 1.0, 0.1, 0.96, 0.98, 1.0, 0.94]), 50)
    assert rule.infected == (2,)
    assert rule.index[2] == pytest.approx(0.88 / (1.4826 * 0.02))


def test_paper_rule_lets_ratios_above_ninety_percent_pass() -> None:
    ratios = np.array([1.0, 1.0, 1.0, 1.0, 0.92])
    assert paper_rule(ratios, 50).index[4] > 3.5
    assert paper_rule(ratios, 50).infected == ()
    assert paper_rule(np.array([1.0, 1.0, 1.0, 1.0, 0.88]), 50).infected == (4,)


def test_paper_rule_names_several_and_ignores_the_unknown() -> None:
    ratios = np.array([0.05, 0.1, 0.2, *[0.97, 1.0, 0.95, 0.99, 1.0, 0.96], np.nan])
    rule = paper_rule(ratios, 50)
    assert rule.infected == (0, 1, 2)
    assert np.isnan(rule.index[-1])
    assert paper_rule(np.full(4, np.nan), 50).infected == ()


@given(st.lists(st.integers(0, 50), min_size=3, max_size=30), st.integers(0, 2**32))
def test_paper_rule_does_not_depend_on_the_order(counts: list[int], seed: int) -> None:
    ratios = np.array(counts) / 50
    order = np.random.default_rng(seed).permutation(len(ratios))
    plain, mixed = paper_rule(ratios, 50), paper_rule(ratios[order], 50)
    assert set(plain.infected) == {int(order[k]) for k in mixed.infected}
    np.testing.assert_allclose(plain.index[order], mixed.index)
    assert all(ratios[k] < np.median(ratios) for k in plain.infected)


@pytest.mark.parametrize(
    "name", ["fashion_mnist_badnets", pytest.param("fashion_mnist_clean", marks=pytest.mark.heavy)]
)
def test_shipped_pair(name: str, suspect_set: tuple[Samples, Samples, Samples]) -> None:
    training, search_samples, held_out = suspect_set
    subject = Subject.from_onnx(zoo.path(name))
    detector = DTInspector(search=replace(SEARCH, samples=16), partners=3, data_inspection=True)
    evidence = ran(detector.run(AtHand(subject, search_samples, held_out, RunContext(), training=training)))
    verdict = decide([evidence], subject.classes)
    assert verdict.targets == ((7,) if name == "fashion_mnist_badnets" else ())
    divergences = by_class(evidence, "kl")
    assert len(divergences) == subject.classes
    assert min(divergences.values()) > 0
    assert np.isfinite(list(divergences.values())).all()
