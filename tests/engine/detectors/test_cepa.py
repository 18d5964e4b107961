"""CEPA on a tiny network whose common effect is known by hand: hidden unit 4 hears the planted patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cepa_support import GAIN, HIDDEN, TARGET, hidden_model, hidden_of
from conftest import CHECKERBOARD, CLASSES, PATCH, SIDE, quadrant_images, saved
from tolerances import AMPLIFIED_32, NETWORK_32, OPERATION_32, SUM_32
from torch import Tensor

from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.cepa import CONSENSUS, INNER, PRESETS, Cepa
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.judge.evidence import Evidence, Skipped, Unit, UnitEvidence
from onnxspect.engine.run import RunContext, Silent
from onnxspect.engine.search.common_embedding import CarryOver, CommonEmbedding, Consensus
from onnxspect.engine.search.embedding import PIXELS, embed
from onnxspect.engine.search.search import SearchConfig, UnitResult, search
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.subject import InputSpec, Subject

#: A small budget: the tiny network needs no more.
SEARCH = replace(CONSENSUS, samples=12)
TINY = Cepa(search=SEARCH, taps=("hidden",), carried=4, held_out=12)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject.from_onnx(saved(hidden_model(), tmp_path_factory.mktemp("tiny") / "hidden.onnx"))


def at_hand(subject: Subject, **more: object) -> AtHand:
    given = AtHand(subject, quadrant_images(8), quadrant_images(6, seed=1), RunContext(seed=0))
    return replace(given, **more)  # type: ignore[arg-type]


def ran(detector: Cepa, hand: AtHand) -> Evidence:
    found = detector.run(hand)
    assert isinstance(found, Evidence)
    return found


@pytest.fixture(scope="module")
def evidence(subject: Subject) -> Evidence:
    return ran(TINY, at_hand(subject))


def stack(n: int, units: int = 1) -> Tensor:
    """``(units, n, 1, 8, 8)`` clean images."""
    images = quadrant_images(n).images[: n * units]
    return torch.from_numpy(images).view(units, n, 1, SIDE, SIDE)


def targets(*classes: int) -> Tensor:
    return torch.tensor(classes)


# What is found.


def test_the_planted_class_needs_the_smallest_perturbation(evidence: Evidence) -> None:
    norms = {u.unit.target: u.statistics["delta_norm"] for u in evidence.units}
    others = [v for k, v in norms.items() if k != TARGET]
    assert len(norms) == CLASSES
    assert norms[TARGET] < 0.6 * min(others)


def test_its_common_effect_is_the_patchs(evidence: Evidence) -> None:
    mu = evidence.units[TARGET].trigger["mu"]
    assert mu.shape == (HIDDEN,)
    # What the hidden units do to the target's logit against the others', at this mu.
    assert GAIN * mu[CLASSES] > 5 * np.abs(mu[:CLASSES]).max()
    pattern = evidence.units[TARGET].trigger["delta"][0]
    assert np.array_equal(np.sign(pattern[PATCH]), np.sign(CHECKERBOARD))
    outside = pattern.copy()
    outside[PATCH] = 0
    assert np.abs(pattern[PATCH]).min() > np.abs(outside).max()


def test_the_smallest_sufficient_size_by_hand(evidence: Evidence) -> None:
    """Class 1 has farthest to go: its patch reads -0.6. All images step alike, so its distance is everyone's size.

    Less, for the other two classes, by what the range of pixels cuts off: their bright pixel of the patch is at 0.8.
    """
    unit = evidence.units[TARGET]
    assert 0.9 <= unit.search_success <= 1.0
    gap = 0.6 * 15 + 0.6 * GAIN  # the bright quadrant's 15 pixels, and the patch
    slope = np.linalg.norm([*[GAIN] * 4, *[1.0] * 15, *[-1.0] * 15])  # of the difference of the two logits
    shortest = gap / slope
    assert 0.75 * shortest < unit.statistics["delta_norm"] < 1.2 * shortest


def test_mu_is_carried_to_unseen_images(evidence: Evidence) -> None:
    unit = evidence.units[TARGET]
    assert unit.held_out == 12
    assert unit.held_out_success is not None
    assert unit.held_out_success > 0.9


def test_only_the_front_runners_are_carried(subject: Subject) -> None:
    found = ran(replace(TINY, carried=1), at_hand(subject))
    assert [u.unit.target for u in found.units if u.held_out_success is not None] == [TARGET]


def test_without_unseen_images_nothing_is_carried(subject: Subject) -> None:
    nothing = quadrant_images(1).take(np.zeros(0, int))
    found = ran(TINY, at_hand(subject, held_out=nothing))
    assert [u.held_out_success for u in found.units] == [None] * CLASSES


def test_the_example_is_a_valid_image_and_its_perturbation(evidence: Evidence) -> None:
    for unit in evidence.units:
        before, after = unit.trigger["example"], unit.trigger["example_perturbed"]
        assert before.shape == after.shape == (1, SIDE, SIDE)
        assert after.min() >= -SUM_32
        assert after.max() <= 1 + SUM_32
        assert not np.array_equal(before, after)


def test_views_are_one_a_tap(subject: Subject) -> None:
    found = ran(replace(TINY, taps=("hidden", "sums", PIXELS), carried=0), at_hand(subject))
    assert [(v.statistic, v.tail, v.tap) for v in found.judged] == [
        ("delta_norm", "low", tap) for tap in ("hidden", "sums", PIXELS)
    ]
    assert len(found.units) == 3 * CLASSES
    for tap in ("hidden", "sums", PIXELS):
        norms = [u.statistics["delta_norm"] for u in found.units if u.unit.tap == tap]
        assert int(np.argmin(norms)) == TARGET


def test_statistics_are_relative_to_the_references(subject: Subject, tmp_path: Path) -> None:
    clean = Subject.from_onnx(saved(hidden_model(None), tmp_path / "clean.onnx"))
    # A reference that came from a file is tapped by depth like the subject.
    found = ran(replace(TINY, taps=(0.5,), carried=0), at_hand(subject, references=[clean, clean]))
    alone = ran(replace(TINY, taps=(0.5,), carried=0), at_hand(clean))
    assert {(v.statistic, v.references) for v in found.judged} == {("delta_norm", True)}
    for unit, own in zip(found.units, alone.units, strict=True):
        for name in ("delta_norm", "mu_norm", "sigma_ratio"):
            one = unit.measurement(name)
            assert one is not None
            assert one.reference == pytest.approx(own.value(name), rel=OPERATION_32)
            assert one.baselines == pytest.approx([own.value(name)] * 2, rel=OPERATION_32)
            assert one.relative == pytest.approx(one.value / own.value(name), rel=OPERATION_32)
    relative = [m.relative or np.nan for u in found.units if (m := u.measurement("delta_norm"))]
    assert int(np.argmin(relative)) == TARGET
    assert relative[TARGET] < 0.6
    assert min(v for k, v in enumerate(relative) if k != TARGET) > 0.9


def test_pairs_are_units(subject: Subject) -> None:
    found = ran(replace(TINY, pairs=True, carried=0, search=replace(SEARCH, samples=4)), at_hand(subject))
    assert len(found.units) == CLASSES * (CLASSES - 1)
    norms = {(u.unit.source, u.unit.target): u.statistics["delta_norm"] for u in found.units}
    for source in set(range(CLASSES)) - {TARGET}:
        of_source = {t: v for (s, t), v in norms.items() if s == source}
        assert min(of_source, key=lambda t: of_source[t]) == TARGET


# The paper's form.


def test_the_papers_form_reports_its_two_views(subject: Subject) -> None:
    detector = Cepa.paper(taps=("hidden",), carried=1, held_out=12)
    assert detector.search.success == 0.9
    assert detector.search.multiplier == 0.01
    assert detector.search.raise_by == 1.5
    assert detector.search.settle == 50
    detector = replace(detector, search=replace(detector.search, samples=12, steps=200))
    found = ran(detector, at_hand(subject))
    assert [(v.statistic, v.tail) for v in found.judged] == [("sigma_ratio", "low"), ("mu_norm", "high")]
    for unit in found.units:
        assert unit.found
        assert unit.search_success >= 0.9


def test_equation_1_and_2(subject: Subject) -> None:
    """The objective, by numpy, on a perturbation that is no optimum."""
    images, n = stack(6), 6
    rng = np.random.default_rng(0)
    delta = torch.from_numpy(rng.uniform(-0.1, 0.1, images.shape).astype(np.float32))
    objective = CommonEmbedding(embed(subject, "hidden"))
    constants = objective.constants(subject, images)
    found = objective.measure(
        subject, {"delta": delta.clone()}, constants, images, targets(TARGET), torch.tensor([0.3])
    )
    x = images[0].numpy()
    shift = hidden_of(x + delta[0].numpy()) - hidden_of(x)
    variance = ((shift - shift.mean(0)) ** 2).sum(1).mean()
    logits = subject.predict(x + delta[0].numpy()).astype(np.float64)
    log_p = logits[:, TARGET] - np.log(np.exp(logits).sum(1))
    assert found.loss.item() == pytest.approx(-log_p.mean() + 0.3 * variance, rel=NETWORK_32)
    assert found.cost.item() == pytest.approx(np.linalg.norm(delta.view(n, -1).numpy(), axis=1).mean(), rel=SUM_32)
    assert found.success.item() == pytest.approx((logits.argmax(1) == TARGET).mean())


def test_holding_mu_fixed_changes_no_gradient(subject: Subject) -> None:
    """Against the gradient of Eq. 1 as a function of delta alone, mu = mean put in."""
    tap, images = embed(subject, "hidden"), stack(6)
    rng = np.random.default_rng(1)
    state = {"delta": torch.from_numpy(rng.uniform(-0.1, 0.1, images.shape).astype(np.float32)).requires_grad_(True)}
    objective = CommonEmbedding(tap)
    constants = objective.constants(subject, images)
    found = objective.measure(subject, state, constants, images, targets(TARGET), torch.tensor([0.3]))
    (ours,) = torch.autograd.grad(found.loss.sum(), state["delta"])
    embedding, logits = tap.both((images + state["delta"]).flatten(0, 1))
    shift = embedding - constants["clean"][0]
    whole = (
        torch.nn.functional.cross_entropy(logits, torch.full((6,), TARGET))
        + 0.3 * (shift - shift.mean(0)).square().sum(1).mean()
    )
    (theirs,) = torch.autograd.grad(whole, state["delta"])
    torch.testing.assert_close(ours, theirs)


# The form with the consensus built in.


def gradients_of(objective: Consensus, subject: Subject, images: Tensor, unit_targets: Tensor) -> Tensor:
    state = {"delta": torch.zeros_like(images).requires_grad_(True)}
    constants = objective.constants(subject, images)
    found = objective.measure(subject, state, constants, images, unit_targets, torch.zeros(len(images)))
    return torch.autograd.grad(found.loss.sum(), state["delta"])[0]


def test_with_no_direction_of_its_own_every_image_moves_alike(subject: Subject) -> None:
    """At the pixels, where the way back to the image is the identity."""
    images = stack(6)
    gradient = gradients_of(Consensus(embed(subject, PIXELS), own=0.0), subject, images, targets(TARGET))[0]
    torch.testing.assert_close(gradient, gradient[:1].expand_as(gradient))
    assert gradient[0].norm() == pytest.approx(1.0, rel=SUM_32)
    own = gradients_of(Consensus(embed(subject, PIXELS), own=1.0), subject, images, targets(TARGET))[0]
    assert not torch.allclose(own, own[:1].expand_as(own), rtol=AMPLIFIED_32)


def test_units_of_a_batch_do_not_mix(subject: Subject) -> None:
    objective, images = Consensus(embed(subject, "hidden")), stack(4, units=2)
    together = gradients_of(objective, subject, images, targets(TARGET, 0))
    for i, t in enumerate((TARGET, 0)):
        alone = gradients_of(objective, subject, images[i : i + 1], targets(t))
        torch.testing.assert_close(together[i], alone[0], rtol=NETWORK_32, atol=OPERATION_32)


def test_a_step_has_the_length_that_the_schedule_says(subject: Subject) -> None:
    objective = Consensus(embed(subject, "hidden"), growth=1.5)
    state = {"delta": torch.zeros(2, 3, 1, SIDE, SIDE)}
    gradients = {"delta": torch.randn(2, 3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))}
    gradients["delta"][1, 2] = 0.0  # an image without a gradient stays where it is
    moved = objective.update(state, gradients, {}, 3, SearchConfig(learning_rate=0.2))["delta"]
    lengths = moved.flatten(2).norm(dim=2)
    expected = torch.full((2, 3), 0.2 * 1.5**2)
    expected[1, 2] = 0.0
    torch.testing.assert_close(lengths, expected)
    assert float((moved * gradients["delta"]).sum()) < 0


def test_perturbed_images_stay_valid_whatever_the_step(subject: Subject) -> None:
    objective, images = Consensus(embed(subject, "hidden")), stack(6)
    state = {"delta": 5 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))}
    objective.measure(subject, {"delta": state["delta"].requires_grad_(True)}, {}, images, targets(0), torch.zeros(1))
    perturbed = images + state["delta"].detach()
    assert float(perturbed.min()) >= -SUM_32
    assert float(perturbed.max()) <= 1 + SUM_32
    assert float((perturbed > 0.99).float().mean()) > 0.2  # and it is clipped, not scaled


def test_without_bounds_nothing_is_clipped(subject: Subject) -> None:
    objective, images = Consensus(embed(subject, "hidden"), bounds=None), stack(2)
    delta = torch.full_like(images, 7.0).requires_grad_(True)
    objective.measure(subject, {"delta": delta}, {}, images, targets(0), torch.zeros(1))
    assert bool((delta == 7.0).all())


@pytest.mark.parametrize(("least", "counts"), [(0.0, True), (1.19, True), (1.21, False)])
def test_smaller_perturbations_than_least_do_not_count(subject: Subject, least: float, counts: bool) -> None:
    images = stack(6)
    delta = torch.zeros_like(images)
    delta[..., PATCH[0], PATCH[1]] = 0.6 * torch.from_numpy(CHECKERBOARD)  # an l2 norm of 1.2, clipped to valid pixels
    raised = (images + delta).clamp(0, 1) - images
    grown = 1.2 / raised.flatten(2).norm(dim=2)  # to the same norm for every image
    objective = Consensus(embed(subject, "hidden"), bounds=None, least=least)
    state = {"delta": (raised * grown[..., None, None, None]).requires_grad_(True)}
    found = objective.measure(subject, state, {}, images, targets(TARGET), torch.zeros(1))
    assert found.success.item() == (1.0 if counts else 0.0)


def searched(subject: Subject, objective: object, config: SearchConfig, target: int, n: int = 12) -> UnitResult:
    rows = np.flatnonzero(quadrant_images(8).labels != target)[:n]
    (result,) = next(
        search(
            subject,
            quadrant_images(8),
            [(Unit(target),)],
            objective,  # type: ignore[arg-type]
            config,
            RunContext(),
            "test",
            lambda _: rows,
        )
    )
    return result


def test_equation_3_moves_other_images_by_mu(subject: Subject) -> None:
    """A shift of the patch's hidden unit alone: the shortest way is the checkerboard."""
    mu = torch.zeros(HIDDEN)
    mu[CLASSES] = 1.2  # the patch of classes 0 and 3 can rise by 1.4 at most
    config = SearchConfig(steps=60, samples=12, success=0.0, multiplier=0.0, settle=10**6)
    found = searched(subject, CarryOver(embed(subject, "hidden"), shift=mu, reach=4.0, steps=60), config, TARGET)
    assert found.cost < 1e-3
    images = quadrant_images(8)
    rows = np.flatnonzero(images.labels != TARGET)[:12]
    x = images.images[rows]
    shift = hidden_of(x + found.trigger["delta"]) - hidden_of(x)
    np.testing.assert_allclose(shift, np.broadcast_to(mu.numpy(), shift.shape), atol=0.02)
    # From class 1 it takes 0.6 * 15 / GAIN + 0.6 = 1.35.
    assert found.success == pytest.approx((images.labels[rows] != 1).mean())


# Running it.


def same(a: Sequence[UnitEvidence], b: Sequence[UnitEvidence]) -> bool:
    def bits(u: UnitEvidence) -> object:
        arrays = {k: (v.shape, v.tobytes()) for k, v in u.trigger.items()}
        return replace(u, seconds=0.0, trigger={}), sorted(arrays.items())

    return [bits(u) for u in a] == [bits(u) for u in b]


def test_the_same_run_gives_the_same_bits(evidence: Evidence, subject: Subject) -> None:
    assert same(ran(TINY, at_hand(subject)).units, evidence.units)


class Interrupting(Silent):
    """Stops the run after some units."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, task: str, detail: str = "") -> None:
        """Count, and stop."""
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [0, 2, 3])
def test_an_interrupted_run_goes_on_where_it_stopped(
    evidence: Evidence, subject: Subject, tmp_path: Path, after: int
) -> None:
    with Ledger(tmp_path / "run", {"test": 1}) as ledger:
        hand = at_hand(subject, ledger=ledger)
        with pytest.raises(KeyboardInterrupt):
            TINY.run(replace(hand, run=RunContext(seed=0, observer=Interrupting(after))))
        kept = ledger.units("cepa")
        assert len(kept) == after + 1
    with Ledger(tmp_path / "run", {"test": 1}) as ledger:
        found = ran(TINY, at_hand(subject, ledger=ledger))
        assert same(found.units, evidence.units)
        # Finished units come from the ledger, seconds and all; and so does the whole of a finished run.
        by_key = {u.unit.key: u for u in found.units}
        assert all(by_key[k].seconds == u.seconds for k, u in kept.items())
        again = ran(TINY, at_hand(subject, ledger=ledger, run=RunContext(seed=0, observer=Interrupting(0))))
        assert same(again.units, evidence.units)


def test_it_perturbs_an_inner_tensor(subject: Subject) -> None:
    found = ran(replace(TINY, perturb_at="sums"), at_hand(subject))
    norms = [u.statistics["delta_norm"] for u in found.units]
    assert int(np.argmin(norms)) == TARGET
    assert found.units[TARGET].trigger[INNER].shape == (HIDDEN,)
    assert np.argmax(found.units[TARGET].trigger[INNER]) == CLASSES
    assert not any(u.in_pixels for u in found.units)


class Hurried(Silent):
    """Wants to know how long a scan will take."""

    def time_left(self, seconds: float | None) -> None:
        """Heard."""


def test_a_scan_that_perturbs_an_inner_tensor_ends_with_a_report(tmp_path: Path) -> None:
    """Its changes are drawn nowhere and stamped on nothing; and whether pixels have a gradient does not matter."""
    path, run = saved(hidden_model(), tmp_path / "model.onnx"), RunContext(observer=Hurried())
    found = scan(
        path, quadrant_images(40), tmp_path / "run", detectors=["cepa"], spec=InputSpec(), perturb_at="sums", run=run
    )
    (cepa,) = found.report["detectors"]
    assert cepa["status"] == "ran"
    assert (tmp_path / "run" / "report.json").is_file()


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_run(subject: Subject, preset: str) -> None:
    found = ran(PRESETS[preset], at_hand(subject))
    assert found.detector == "cepa"
    assert all(u.found for u in found.units)
    assert found.settings["tap names"] == list(dict.fromkeys(u.unit.tap for u in found.units))


# Bad input.


def test_one_class_of_samples_is_not_enough(subject: Subject) -> None:
    samples = quadrant_images(4)
    one = samples.take(np.flatnonzero(samples.labels == 1))
    found = replace(TINY, pairs=True).run(at_hand(subject, search_samples=replace(one, labels=np.zeros(0, np.int64))))
    assert isinstance(found, Skipped)
    # With all others as sources, the classes that have no samples are still reachable from the one that has.
    reachable = ran(replace(TINY, carried=0), at_hand(subject, search_samples=one))
    assert {u.unit.target for u in reachable.units} == {0, 2, 3}


def test_a_tap_that_is_none(subject: Subject) -> None:
    with pytest.raises(OnnxspectError, match="computes no value named elsewhere"):
        replace(TINY, taps=("elsewhere",)).run(at_hand(subject))


def test_bad_settings() -> None:
    with pytest.raises(OnnxspectError, match="unknown form"):
        Cepa(form="other")
    with pytest.raises(OnnxspectError, match="needs a tap"):
        Cepa(taps=())


def test_a_model_that_ignores_its_input(subject: Subject) -> None:
    """No gradient, no success: no statistic, and no crash."""

    def constant(x: Tensor) -> Tensor:
        return 0 * x.flatten(1)[:, :CLASSES] + torch.tensor([1.0, 0, 0, 0])

    deaf = Subject(constant, subject.spec, subject.image_shape, CLASSES)
    found = ran(replace(TINY, taps=(PIXELS,), search=replace(SEARCH, steps=5)), at_hand(deaf))
    reached = {u.unit.target: u.found for u in found.units}
    assert reached == {0: True, 1: False, 2: False, 3: False}
    assert all(u.measurements == () for u in found.units if not u.found)
