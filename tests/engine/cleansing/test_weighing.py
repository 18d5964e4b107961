"""Several methods' decisions weighed by how well their scores separate, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cleansing_support import TARGET, listening_model, poisoned_set
from conftest import saved

from onnxspect.cli.main import run as command_line
from onnxspect.engine.cleansing.by_activation import CLUSTERING, SPECTRAL
from onnxspect.engine.cleansing.by_presence import PRESENCE, TRIGGER_BEARING
from onnxspect.engine.cleansing.by_trigger import REMOVE
from onnxspect.engine.cleansing.scores import Scores
from onnxspect.engine.cleansing.weighing import separation, weighed

LABELS = np.repeat([0, 1], 200)
RNG = np.random.default_rng(0)
#: Scores of 200 samples, of which 40 lie ten deviations above the rest.
TWO_GROUPS = np.where(np.arange(200) < 40, 10.0, 0.0) + RNG.normal(size=200)
ONE_GROUP = RNG.normal(size=200)


def method(name: str, score: np.ndarray, removed: np.ndarray) -> Scores:
    """A method that scored class 0 alone."""
    rest = np.full(200, np.nan)
    return Scores(name, np.concatenate([score, rest]), np.concatenate([removed, np.zeros(200, bool)]))


def test_what_cuts_one_group_in_two_does_not_separate() -> None:
    assert separation(ONE_GROUP, ONE_GROUP > 0) == pytest.approx(2.65, abs=0.3)
    even = np.linspace(0, 1, 200)
    assert separation(even, even > 0.5) == pytest.approx(3.46, abs=0.1)
    assert separation(TWO_GROUPS, TWO_GROUPS > 5) > 8
    assert separation(ONE_GROUP, np.zeros(200, bool)) == 0


def test_the_one_that_separates_decides_and_the_other_is_said() -> None:
    few = np.arange(200) >= 198
    bearing = method(TRIGGER_BEARING, np.where(few, 12.0, 0.0) + 2 * RNG.normal(size=200), few)
    clustering = method(CLUSTERING, TWO_GROUPS, TWO_GROUPS > 5)
    found = weighed([bearing, clustering], LABELS)
    assert np.array_equal(found.scores.removed, clustering.removed)
    assert np.array_equal(found.scores.score[:200], TWO_GROUPS)
    assert any("activation-clustering decides" in n and "40 of 200" in n for n in found.notes)
    assert any("trigger-bearing disagrees: it would remove 2 samples, 0 of them the same" in n for n in found.notes)


def test_a_fixed_share_of_one_group_counts_for_nothing() -> None:
    found = weighed([method(SPECTRAL, ONE_GROUP**2, np.quantile(ONE_GROUP**2, 0.925) < ONE_GROUP**2)], LABELS)
    assert not found.scores.removed.any() or "separation" in found.notes[0]
    halves = weighed([method(CLUSTERING, ONE_GROUP, ONE_GROUP > 0)], LABELS)
    assert not halves.scores.removed.any()
    assert any("no two groups are there" in n for n in halves.notes)
    assert any("no proof that the set is clean" in n for n in halves.notes)


def test_the_training_difference_goes_before_all() -> None:
    few = np.arange(200) < 20
    found = weighed([method(CLUSTERING, TWO_GROUPS, TWO_GROUPS > 5), method(PRESENCE, ONE_GROUP, few)], LABELS)
    assert np.array_equal(found.scores.removed[:200], few)


def test_next_to_nothing_is_said() -> None:
    labels = np.zeros(1000, int)
    one = np.arange(1000) < 1
    found = weighed([Scores(REMOVE, np.where(one, 5.0, 0.0) + RNG.normal(size=1000), one)], labels)
    assert found.scores.removed.sum() == 1
    assert any("next to nothing was found: 1 of 1000" in n for n in found.notes)


def test_the_old_name_of_a_method_is_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(listening_model(), tmp_path / "m.onnx")
    samples, _ = poisoned_set(per_class=10, stamped=4)
    np.savez(tmp_path / "t.npz", images=np.round(samples.images[:, 0] * 255).astype(np.uint8), labels=samples.labels)
    arguments = [
        "cleanse",
        str(model),
        "--train",
        str(tmp_path / "t.npz"),
        "--scale",
        "1",
        "--out",
        str(tmp_path / "o"),
        "-q",
    ]
    for name in ("carriers", "trigger-bearing"):
        assert command_line([*arguments, "--detector", name, "--target", str(TARGET)]) == 2
        assert "found by a scan" in capsys.readouterr().err


@pytest.mark.parametrize(("n", "removed"), [(40, 3), (100, 8), (2000, 150)])
def test_the_end_of_one_group_is_no_group(n: int, removed: int) -> None:
    rng = np.random.default_rng(4)
    counted = 0
    for _ in range(40):
        score = rng.standard_normal(n) ** 2
        mask = np.zeros(n, bool)
        mask[np.argsort(-score)[:removed]] = True
        counted += weighed([Scores(SPECTRAL, score, mask)], np.zeros(n, np.int64)).scores.removed.any()
    assert counted == 0


def test_a_group_far_off_counts_for_spectral_signatures() -> None:
    rng = np.random.default_rng(4)
    projection = rng.standard_normal(100)
    projection[:8] += 12
    mask = np.zeros(100, bool)
    mask[:8] = True
    found = weighed([Scores(SPECTRAL, (projection - projection.mean()) ** 2, mask)], np.zeros(100, np.int64))
    assert np.flatnonzero(found.scores.removed).tolist() == list(range(8))
