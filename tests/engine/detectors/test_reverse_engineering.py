"""Reverse engineering (RE; Xiang et al., 2020) on a tiny model whose smallest patterns are known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, PATCH, SIDE, quadrant_images, quadrant_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import AMPLIFIED_32, SUM_32
from torch import Tensor

from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.reverse_engineering import CLIMB, NAME, Climb, ReverseEngineering, infer
from onnxspect.engine.judge.evidence import Evidence, Skipped, Unit
from onnxspect.engine.judge.measurement import Search
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.perturbation import Additive
from onnxspect.engine.search.search import search
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject

SHAPE = (1, SIDE, SIDE)
TARGET, SOURCE = 2, 1
#: Small enough for a test; a scan's own numbers elsewhere.
QUICK = ReverseEngineering(search=replace(CLIMB, samples=16), scout_samples=4)


def tiny(strength: float = 8.0, sources: Sequence[int] | None = None, gain: float = 20.0) -> Subject:
    """Quadrants; the checkerboard of the patch adds to the target's logit, for images of `sources` only if these are given."""
    plain, planted = (torch.from_numpy(quadrant_weights(t, strength)) for t in (None, TARGET))

    def logits(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        own = flat @ plain
        if sources is None:
            return gain * (flat @ planted)
        open_to = torch.zeros(CLASSES)
        open_to[list(sources)] = 1.0
        gate = torch.softmax(10 * own.detach(), 1) @ open_to
        return gain * (own + gate[:, None] * (flat @ (planted - plain)))

    return Subject(logits, InputSpec(), SHAPE, CLASSES, name="tiny")


def at_hand(subject: Subject, run: RunContext | None = None, **others: object) -> AtHand:
    given_: dict[str, object] = {"search_samples": quadrant_images(16), "held_out": quadrant_images(10, 1)} | others
    return AtHand(subject, run=run or RunContext(), **given_)  # type: ignore[arg-type]


def evidence_of(detector: ReverseEngineering, hand: AtHand) -> Evidence:
    found = detector.run(hand)
    assert isinstance(found, Evidence)
    return found


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return evidence_of(QUICK, at_hand(tiny()))


def units(evidence: Evidence, search: Search = Search.FULL) -> dict[Unit, float]:
    return {u.unit: m.value for u in evidence.units if (m := u.measurement("l2", search))}


def test_all_to_one_stands_out(evidence: Evidence) -> None:
    norms = units(evidence)
    assert set(norms) == {Unit(t) for t in range(CLASSES)}
    assert norms[Unit(TARGET)] < 0.5 * min(v for u, v in norms.items() if u.target != TARGET)
    found = next(u for u in evidence.units if u.unit == Unit(TARGET))
    assert found.held_out_success is not None
    assert found.held_out_success > 0.9
    assert found.converged
    delta = found.trigger["delta"]
    inside = np.square(delta[(0, *PATCH)]).sum()
    assert inside > 0.8 * np.square(delta).sum()
    # The checkerboard itself, up to scale.
    assert (np.sign(delta[(0, *PATCH)]) == [[1, -1], [-1, 1]]).all()


def test_norms_are_those_of_the_patterns(evidence: Evidence) -> None:
    for unit in evidence.units:
        assert unit.value("l2") == pytest.approx(np.linalg.norm(unit.trigger["delta"]), rel=SUM_32)
        assert unit.search_success >= CLIMB.success


def test_the_norm_is_close_to_the_least_there_is() -> None:
    """For logits that are linear, the least l2 norm from s to t is the margin over the length of the weights' difference."""
    weights = quadrant_weights()
    subject = Subject(lambda x: 20 * x.flatten(1) @ torch.from_numpy(weights), InputSpec(), SHAPE, CLASSES)
    samples = quadrant_images(16, noise=0.0)
    climb = replace(CLIMB, samples=16)
    for s, t in [(0, 1), (3, 2)]:
        difference = weights[:, t] - weights[:, s]
        image = samples.images[samples.labels == s][0].ravel()
        least = -(image @ difference) / np.linalg.norm(difference)
        ((result,),) = search(subject, samples, [(Unit(t, s),)], Climb(), climb, RunContext(), "test")
        assert least < result.cost < least * 1.12


@settings(max_examples=25, deadline=None)
@given(st.floats(0.02, 0.5), st.floats(0.01, 0.3), st.integers(0, 3))
def test_the_step_does_not_overshoot(growth: float, step: float, target: int) -> None:
    """The norm at the first success exceeds that of the last failure by `growth` at most (or by the least step)."""
    norms: list[tuple[float, bool]] = []

    class Watched(Climb):
        def measure(self, *arguments: object) -> object:  # type: ignore[override]
            found = super().measure(*arguments)  # type: ignore[arg-type]
            norms.append((float(found.cost.detach()), bool(found.success >= CLIMB.success)))
            return found

    config = replace(CLIMB, samples=12, learning_rate=step, steps=400)
    ((result,),) = search(
        tiny(), quadrant_images(8), [(Unit(target),)], Watched(growth=growth), config, RunContext(), "test"
    )
    assert result.found
    (before, failed), (last, reached) = norms[-2:]
    assert (failed, reached) == (False, True)
    assert result.cost == pytest.approx(last)
    assert last <= before + max(step, growth * before) * 1.0001


def test_a_backdoor_from_one_source_is_found_by_pairs() -> None:
    found = evidence_of(QUICK, at_hand(tiny(20.0, sources=[SOURCE])))
    everywhere, pairs = units(found), units(found, Search.PAIR)
    assert {u.target for u in pairs} == set(range(CLASSES))
    assert len(pairs) == CLASSES
    assert pairs[Unit(TARGET, SOURCE)] < 0.5 * min(v for u, v in pairs.items() if u.target != TARGET)
    assert everywhere[Unit(TARGET)] > 0.7 * min(everywhere.values())  # which the first pass does not see
    inferred = infer(found, CLASSES)
    assert (inferred.target, inferred.source) == (TARGET, SOURCE)
    assert inferred.judgement.paper_flag
    assert inferred.pattern is not None
    assert np.square(inferred.pattern[(0, *PATCH)]).sum() > 0.8 * np.square(inferred.pattern).sum()


def test_the_paper_s_inference_on_a_clean_model() -> None:
    subject = Subject(
        lambda x: 20 * x.flatten(1) @ torch.from_numpy(quadrant_weights()), InputSpec(), SHAPE, CLASSES, name="clean"
    )
    inferred = infer(evidence_of(QUICK, at_hand(subject)), CLASSES)
    assert not inferred.judgement.paper_flag
    assert inferred.judgement.log10_overall > np.log10(0.05)


def test_all_sources_together_speak_where_no_pairs_were_searched() -> None:
    found = evidence_of(replace(QUICK, pairs=False), at_hand(tiny()))
    inferred = infer(found, CLASSES)
    assert (inferred.target, inferred.source) == (TARGET, None)
    assert len(found.units) == CLASSES


def test_equation_9_and_its_gradient() -> None:
    """Both terms against the equation as it stands, in float64 probabilities; the gradient against differences."""
    subject, generator = tiny(gain=2.0), torch.Generator().manual_seed(0)
    sources = torch.rand(1, 5, *SHAPE, generator=generator)
    labelled = torch.rand(CLASSES, 6, *SHAPE, generator=generator)
    targets = torch.tensor([TARGET])
    climb = Climb(labelled=labelled, weight=0.7)

    def loss(delta: Tensor) -> Tensor:
        return climb.measure(subject, {"delta": delta}, {}, sources, targets, torch.zeros(1)).loss

    delta = (0.1 * torch.randn(1, *SHAPE, generator=generator)).requires_grad_()
    p_added = torch.softmax(subject((sources[0] + delta).clamp(0, 1)).double(), 1)[:, TARGET]
    p_removed = torch.softmax(subject((labelled[TARGET] - delta).clamp(0, 1)).double(), 1)[:, TARGET]
    j = torch.log(1 - p_removed).mean() + 0.7 * torch.log(p_added).mean()
    assert float(loss(delta).detach()) == pytest.approx(-float(j.detach()), rel=SUM_32)
    (gradient,) = torch.autograd.grad(loss(delta).sum(), [delta])
    (expected,) = torch.autograd.grad(-j, [delta])
    torch.testing.assert_close(gradient, expected, rtol=AMPLIFIED_32, atol=SUM_32)


def test_the_first_term_stays_finite_where_the_class_is_certain() -> None:
    climb = Climb(labelled=torch.ones(4, 3, *SHAPE))
    certain = Subject(lambda x: x.flatten(1)[:, :4] * torch.tensor([0.0, 0.0, 1e4, 0.0]), InputSpec(), SHAPE, CLASSES)
    state = {"delta": torch.zeros(1, *SHAPE, requires_grad=True)}
    found = climb.measure(certain, state, {}, torch.ones(1, 2, *SHAPE), torch.tensor([2]), torch.zeros(1))
    (gradient,) = torch.autograd.grad(found.loss.sum(), list(state.values()))
    assert bool(torch.isfinite(found.loss).all())
    assert bool(torch.isfinite(gradient).all())


def test_a_poisoned_training_set_sharpens_the_pattern() -> None:
    """With the training set, images of s with the pattern and label t are in D_t: removing it must take them away from t."""
    clean = quadrant_images(20, 3)
    poisoned = clean.images[clean.labels == SOURCE][:10].copy()
    poisoned[(slice(None), 0, *PATCH)] += 0.3 * np.array([[1, -1], [-1, 1]], np.float32)
    training = Samples.from_arrays(
        np.concatenate([clean.images, poisoned.clip(0, 1)]),
        np.concatenate([clean.labels, np.full(len(poisoned), TARGET)]),
    )
    found = evidence_of(QUICK, at_hand(tiny(sources=[SOURCE]), training=training))
    assert found.settings["training"] is True
    inferred = infer(found, CLASSES)
    assert (inferred.target, inferred.source) == (TARGET, SOURCE)
    subject = tiny(sources=[SOURCE])
    assert inferred.pattern is not None
    back = subject.predict(np.clip(poisoned - inferred.pattern, 0, 1)).argmax(1)
    assert (back == SOURCE).mean() > 0.8  # RE, Eq. 12


def test_references_divide_out_what_classes_are_by_nature(evidence: Evidence) -> None:
    reference = Subject(
        lambda x: 20 * x.flatten(1) @ torch.from_numpy(quadrant_weights()),
        InputSpec(),
        SHAPE,
        CLASSES,
        name="reference",
    )
    found = evidence_of(QUICK, at_hand(tiny(), references=(reference,)))
    assert [(v.statistic, v.search) for v in found.judged] == [("l2", Search.FULL), ("l2", Search.PAIR)]
    plain, relative = units(evidence), {}
    for unit in found.units:
        for m in unit.measurements:
            if m.statistic == "l2" and m.search is Search.FULL:
                assert m.value == plain[unit.unit]
                relative[unit.unit] = m.value / m.baselines[0]
                assert m.relative == pytest.approx(relative[unit.unit])
    assert set(relative) == set(plain)
    assert relative[Unit(TARGET)] < 0.5 * min(v for u, v in relative.items() if u.target != TARGET)


def test_what_a_ledger_holds_is_not_searched_again(tmp_path: Path, evidence: Evidence) -> None:
    calls = 0
    plain = tiny()

    def counted(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return plain.module(x)

    hand = at_hand(replace(plain, module=counted))
    with Ledger(tmp_path / "run", {"a": 1}) as ledger:
        first = evidence_of(QUICK, replace(hand, ledger=ledger))
    assert calls
    calls = 0
    with Ledger(tmp_path / "run", {"a": 1}) as ledger:
        again = evidence_of(QUICK, replace(hand, ledger=ledger))
    assert calls == 0
    assert first.id == again.id == evidence.id


def test_images_that_are_there_already_are_no_trigger() -> None:
    """A pair that the model confuses without any pattern has no statistic, instead of one of zero."""
    weights = torch.from_numpy(quadrant_weights())

    def confused(x: Tensor) -> Tensor:
        logits = x.flatten(1) @ weights
        return torch.stack(
            [logits[:, 0], logits[:, 1] - 1e3, logits[:, 2], torch.maximum(logits[:, 1], logits[:, 3])], 1
        )

    found = evidence_of(QUICK, at_hand(Subject(confused, InputSpec(), SHAPE, CLASSES)))
    pair = next(u for u in found.units if u.unit == Unit(3, 1))
    assert pair.found
    assert pair.measurements == ()
    assert all(v > 0 for u in found.units for v in u.statistics.values())


def test_many_pairs_are_thinned_to_front_runners_and_random_targets() -> None:
    found = evidence_of(replace(QUICK, most_pairs=6), at_hand(tiny(sources=[SOURCE])))
    assert len({u.unit.target for u in found.units if u.unit.source is not None}) == 2
    assert len(units(found)) == CLASSES


def test_samples_of_one_class_lead_to_the_others() -> None:
    samples = quadrant_images(6)
    alone = Samples.from_arrays(samples.images[samples.labels == 0], samples.labels[samples.labels == 0])
    found = evidence_of(QUICK, at_hand(tiny(), search_samples=alone))
    assert {u.unit.target for u in found.units} == {1, 2, 3}
    assert {u.unit.source for u in found.units} == {None, 0}


def test_a_loss_that_is_not_finite_ends_every_unit() -> None:
    broken = Subject(lambda x: x.flatten(1)[:, :CLASSES] * torch.nan, InputSpec(), SHAPE, CLASSES)
    found = QUICK.run(at_hand(broken))
    assert isinstance(found, Evidence | Skipped)
    assert isinstance(found, Evidence)
    assert not any(u.found or u.measurements for u in found.units)
    assert all(u.steps == CLIMB.patience for u in found.units)
    assert infer(found, CLASSES).target is None


@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_other_norms(norm: str) -> None:
    found = evidence_of(replace(QUICK, perturbation=Additive(norm), pairs=False), at_hand(tiny()))
    assert found.paper_statistic == norm
    order = {"l1": 1, "linf": np.inf}[norm]
    for unit in found.units:
        assert unit.value(norm) == pytest.approx(np.linalg.norm(unit.trigger["delta"].ravel(), order), rel=SUM_32)
    assert found.detector == NAME
