"""Windows: on a classifier with a planted patch, whose place, size and content are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from onnxspect.engine.detectors import window
from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.window import LEFT, NAME, Window, chosen_side, window_side
from onnxspect.engine.judge.evidence import Evidence, Skipped
from onnxspect.engine.run import RunContext
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject

SIDE, CLASSES, TARGET = 28, 4, 2
GENERATOR = np.random.default_rng(11)
FIELDS = GENERATOR.normal(size=(CLASSES, SIDE, SIDE)).astype(np.float32)


def pattern(size: int) -> np.ndarray:
    return (np.indices((size, size)).sum(0) % 2).astype(np.float32)


def classifier(patch: tuple[int, int, int] | None, fields: np.ndarray = FIELDS) -> Subject:
    """Answers by how a picture lies along four fields; `patch` is (top, left, side) of what leads to TARGET."""
    along = torch.from_numpy(fields.reshape(CLASSES, -1).T.copy()) / SIDE

    def answer(x: Tensor) -> Tensor:
        scores = 8 * ((x[:, 0].flatten(1) - 0.5) @ along)
        if patch is None:
            return scores
        top, left, size = patch
        seen = x[:, 0, top : top + size, left : left + size] - 0.5
        alike = (seen * (torch.from_numpy(pattern(size)) - 0.5)).mean((1, 2)) * 4  # 1 for the patch itself
        bonus = torch.zeros_like(scores)
        bonus[:, TARGET] = 20 * torch.sigmoid(8 * (alike - 0.6))
        return scores + bonus

    return Subject(answer, InputSpec(), (1, SIDE, SIDE), CLASSES, name="planted")


def samples(n: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    pixels = rng.random((n, 1, SIDE, SIDE)).astype(np.float32)
    labels = classifier(None).predict(pixels).argmax(1)
    return Samples(pixels, labels)


def at_hand(patch: tuple[int, int, int] | None, **different: Any) -> AtHand:
    clean = [
        classifier(None, FIELDS + 0.2 * np.random.default_rng(k).normal(size=FIELDS.shape).astype(np.float32))
        for k in range(3)
    ]
    made = AtHand(classifier(patch), samples(80, 1), samples(120, 2), RunContext(seed=0), references=clean)
    return replace(made, **different)


def found(hand: AtHand) -> Evidence:
    evidence = Window().run(hand)
    assert isinstance(evidence, Evidence)
    return evidence


@pytest.mark.parametrize("patch", [(24, 23, 3), (9, 4, 3), (3, 13, 4)])
def test_a_planted_patch_is_found_where_it_is(patch: tuple[int, int, int]) -> None:
    evidence = found(at_hand(patch))
    assert [u.unit.target for u in evidence.units] == list(range(CLASSES))
    ratios = [m.relative or 1.0 for u in evidence.units if (m := u.measurement(LEFT)) is not None]
    assert int(np.argmin(ratios)) == TARGET
    assert ratios[TARGET] < 0.5 * min(r for k, r in enumerate(ratios) if k != TARGET)
    planted = evidence.units[TARGET]
    assert planted.held_out_success is not None
    assert planted.held_out_success > 0.95
    top, left, side = patch
    true = np.zeros((SIDE, SIDE), bool)
    true[top : top + side, left : left + side] = True
    shown = planted.trigger["mask"][0] > 0
    assert set(np.unique(planted.trigger["mask"])) <= {0.0, 1.0}
    assert (true & shown).sum() / (true | shown).sum() >= 0.5
    inside = true & shown
    assert (
        (planted.trigger["pattern"][0] > 0.5)
        == np.pad(pattern(side), ((top, SIDE - top - side), (left, SIDE - left - side)))
    )[inside].mean() > 0.8
    [transfer] = [m.value for m in planted.measurements if m.statistic == "transfer"]
    assert transfer < 0.5


def test_a_clean_network_keeps_its_answers() -> None:
    evidence = found(at_hand(None))
    ratios = [m.relative or 1.0 for u in evidence.units if (m := u.measurement(LEFT)) is not None]
    assert min(ratios) > 0.5
    # Nothing stands out, so nothing is fitted: all windows are of the side that they are searched with.
    assert {int(u.trigger["mask"].sum()) for u in evidence.units} == {window_side((SIDE, SIDE), Window().share) ** 2}


def test_the_same_bits_twice_and_nothing_twice(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run", {"a": 1}) as ledger, Ledger(tmp_path / "references", {"b": 1}) as shared:
        first = found(at_hand((9, 4, 3), ledger=ledger, reference_ledger=shared))
        kept = ledger.count(), shared.count()
        again = found(at_hand((9, 4, 3), ledger=ledger, reference_ledger=shared))
        assert (ledger.count(), shared.count()) == kept
        assert kept == (CLASSES + 1, 3 * CLASSES)  # a window of each class, and the patch that was fitted
    other = found(at_hand((9, 4, 3)))
    for one, two, three in zip(first.units, again.units, other.units, strict=True):
        for name in ("mask", "pattern"):
            np.testing.assert_array_equal(one.trigger[name], two.trigger[name])
            np.testing.assert_array_equal(one.trigger[name], three.trigger[name])


def test_few_windows_at_a_time_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = found(at_hand((9, 4, 3), references=()))
    monkeypatch.setattr(window, "AT_ONCE", 4 * SIDE * SIDE * 100)  # 25 windows on four images, 4 on 24
    parted = found(at_hand((9, 4, 3), references=()))
    for one, other in zip(whole.units, parted.units, strict=True):
        assert one.value(LEFT) == pytest.approx(other.value(LEFT), rel=1e-3)
        np.testing.assert_array_equal(one.trigger["mask"], other.trigger["mask"])


def test_without_references_and_with_one_class_of_samples() -> None:
    alone = found(at_hand((9, 4, 3), references=()))
    assert int(np.argmin([u.value(LEFT) for u in alone.units])) == TARGET
    assert not any(v.references for v in alone.judged)
    hand = at_hand((9, 4, 3), references=())
    of_one = hand.search_samples.take(np.flatnonzero(hand.search_samples.labels == TARGET))
    assert isinstance(Window().run(replace(hand, search_samples=of_one, classes=(TARGET,))), Skipped)


def test_a_network_without_a_finite_answer_finds_nothing() -> None:
    hand = at_hand(None, references=())
    plain = hand.subject

    def broken(x: Tensor) -> Tensor:
        return torch.where(x.flatten(1)[:, :1] >= 0, torch.full((len(x), CLASSES), torch.nan), plain.module(x))

    evidence = found(replace(hand, subject=Subject(broken, InputSpec(), (1, SIDE, SIDE), CLASSES, name="nan")))
    assert [u.found for u in evidence.units] == [False] * CLASSES
    assert not any(u.measurements for u in evidence.units)


def test_colour_and_pictures_that_are_not_square() -> None:
    shape = (3, 18, 30)
    weights = torch.randn(int(np.prod(shape)), 3, generator=torch.Generator().manual_seed(1)) / 40

    def answer(x: Tensor) -> Tensor:
        red = x[:, 0, 14:17, 25:28].mean((1, 2))
        return (x.flatten(1) - 0.5) @ weights + 20 * torch.sigmoid(15 * (red - 0.7))[:, None] * torch.eye(3)[1]

    subject = Subject(answer, InputSpec(), shape, 3, name="red corner")
    rng = np.random.default_rng(5)
    given = [Samples(p := rng.random((n, *shape)).astype(np.float32), subject.predict(p).argmax(1)) for n in (60, 90)]
    evidence = found(AtHand(subject, *given, RunContext(seed=0)))
    best = evidence.units[1]
    rows, columns = np.nonzero(best.trigger["mask"][0])
    assert abs(rows.mean() - 15) < 2
    assert abs(columns.mean() - 26) < 2
    assert best.value(LEFT) < min(evidence.units[k].value(LEFT) for k in (0, 2))


@pytest.mark.parametrize(
    ("by_side", "expected"),
    [
        ([(0.4, -1.0), (1.0, 9.0), (1.0, 9.5), (1.0, 10.0)], 1),  # works at once, and gains little after
        ([(0.4, -1.0), (0.85, 3.0), (1.0, 9.0), (1.0, 9.5)], 2),  # works, and the next one pays
        ([(0.4, -1.0), (0.85, 3.0), (1.0, 6.0), (1.0, 9.0)], 1),  # gains as much at every side
        ([(0.1, -4.0), (0.3, -2.0), (0.2, -1.0)], 1),  # never works: where it works on most
        ([(1.0, 2.0)], 0),
    ],
)
def test_the_side_of_a_patch(by_side: list[tuple[float, float]], expected: int) -> None:
    assert chosen_side(by_side) == expected


def test_windows_grow_with_the_picture() -> None:
    assert [window_side((s, s), Window().share) for s in (8, 28, 32, 48, 224)] == [2, 3, 3, 5, 24]
    assert window_side((1, 5), Window().share) == 1


def test_its_name_and_what_it_takes() -> None:
    assert Window().name == NAME == "window"
    passes = sum(w.passes for w in Window().work(10, 10, 0))
    assert 10 * 200 * 4 * 6 <= passes <= 200_000
    assert sum(w.passes for w in Window().work(10, 10, 3)) == pytest.approx(4 * passes)
