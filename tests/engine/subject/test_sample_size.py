"""How many clean samples a verdict takes: counted before the search, named by class, and the number that was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, make_model, quadrant_images, quadrant_weights, saved
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxspect.cli.main import run
from onnxspect.engine.jobs.scan import SEARCH_SHARE, scan
from onnxspect.engine.judge.null_model import FEWEST_CLASSES
from onnxspect.engine.judge.thresholds import FEWEST_HELD_OUT
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.sample_size import (
    LEAST,
    LEAST_OF_OTHERS,
    LEAST_OF_TEN,
    SampleCounts,
    advice,
    enough_of_each,
    shortfalls,
)
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec
from onnxspect.models import zoo

DERIVED = Path(__file__).parents[3] / "benchmarks" / "results" / "sample_size.json"


def divided(of_class: list[int], names: tuple[str, ...] = ()) -> SampleCounts:
    """So many samples of each class, divided as a scan divides them."""
    labels = np.repeat(np.arange(len(of_class)), of_class)
    samples = Samples.from_arrays(np.zeros((len(labels), 2, 2, 1), np.uint8), labels, names)
    return SampleCounts.of(*samples.split(SEARCH_SHARE, np.random.default_rng(0)), len(of_class))


def test_the_least_number_is_the_one_that_was_measured() -> None:
    derived = json.loads(DERIVED.read_text())
    assert derived["least"] == LEAST_OF_TEN
    by_size = {row["samples_a_class"]: row for row in derived["by_size"]}
    enough = [row for n, row in by_size.items() if n >= LEAST_OF_TEN]
    assert enough
    assert all(row["power"] >= derived["wanted_power"] == 0.9 and row["false_alarms"] == 0 for row in enough)
    fewer = max(n for n in by_size if n < LEAST_OF_TEN)
    assert by_size[fewer]["power"] < 0.9 or by_size[fewer]["false_alarms"] > 0
    assert 9 * fewer < LEAST_OF_OTHERS
    assert {"date", "machine", "versions", "seeds", "command"} <= set(derived)


@given(st.integers(FEWEST_CLASSES, 300))
def test_what_is_advised_is_enough_and_one_less_is_not(classes: int) -> None:
    n = enough_of_each(classes)
    assert shortfalls(divided([n] * classes)) == ()
    assert n == 2 or shortfalls(divided([n - 1] * classes))


def test_of_ten_classes_it_is_the_measured_number() -> None:
    assert enough_of_each(10) == LEAST_OF_TEN
    assert enough_of_each(1000) == 2


def test_one_image_a_class() -> None:
    counts = divided([1] * 10)
    assert sum(counts.held_out) == 5  # of classes with one sample every other one is held out
    few, unseen = shortfalls(counts)
    assert few == f"10 clean samples are too few for a verdict (at least {LEAST})"
    assert f"4 to 5 that no search sees, for any class (at least {FEWEST_HELD_OUT})" in unseen
    assert advice(counts) == (
        f"give at least {LEAST_OF_TEN} clean samples of each of the 10 classes: classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 have 1"
    )


def test_classes_without_samples_are_named() -> None:
    counts = divided([0, 3, 0, 40, 40], ("cat", "dog", "emu", "fox"))
    assert counts.without == (0, 2)
    assert counts.listed(counts.without) == "classes 0 (cat), 2 (emu)"
    stated = advice(divided([0, 3, 0, 1, 1], ("cat", "dog", "emu", "fox")))
    assert "classes 1 (dog), 3 (fox), 4 have 1 to 3" in stated
    assert "classes 0 (cat), 2 (emu) have none" in stated
    assert divided([0] * 99 + [1]).listed(range(99)).endswith("11 and 87 more")


def test_a_class_that_has_nearly_all_samples_lacks_others() -> None:
    """What leads to it can be searched for on the others' few samples alone; what leads to the others on all of its own."""
    few, unseen = shortfalls(divided([200, *[1] * 9], ("zero",)))
    assert few == f"too few clean samples of other classes: 9 to lead to class 0 (zero) (at least {LEAST_OF_OTHERS})"
    assert "4 that no search sees, for class 0 (zero)" in unseen


def test_what_chance_draws_unevenly_is_enough() -> None:
    """A hundred images drawn at random are ten a class, but for their sampling error."""
    assert shortfalls(divided([14, 6, 10, 9, 12, 8, 11, 7, 13, 10])) == ()


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_need_as_many_samples(classes: int) -> None:
    counts = divided([500] * classes)
    assert shortfalls(counts) == ()
    few = divided([20] * classes)
    assert shortfalls(few) == (f"{20 * classes} clean samples are too few for a verdict (at least 100)",)
    assert f"at least {-(-100 // classes)} clean samples of each of the {classes} classes" in advice(few)


@given(st.lists(st.integers(0, 60), min_size=4, max_size=12).filter(any))
def test_more_samples_never_lack_more(of_class: list[int]) -> None:
    before = shortfalls(divided(of_class))
    after = shortfalls(divided([2 * n for n in of_class]))
    assert len(after) <= len(before)


class Heard:
    """An observer that remembers what it is told."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.notices: list[str] = []

    def start(self, task: str, total: int, done: int = 0) -> None:
        self.started.append(task)

    def advance(self, task: str, text: str) -> None:
        pass

    def finish(self, task: str) -> None:
        pass

    def notice(self, text: str) -> None:
        self.notices.append(text)


def kept(samples: Samples, path: Path) -> Path:
    np.savez(path, images=samples.images.transpose(0, 2, 3, 1), labels=samples.labels)
    return path


@pytest.mark.parametrize("seed", [0, 1])
def test_one_image_a_class_ends_before_any_search(seed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The shipped infected model was called clean on ten images."""
    one = tmp_path / "one.npz"
    with np.load(zoo.path("fashion_mnist_test")) as archive:
        rows = [np.flatnonzero(archive["labels"] == k)[seed] for k in range(10)]
        np.savez(one, images=archive["images"][rows], labels=archive["labels"][rows])
    model, out = zoo.path("fashion_mnist_badnets"), tmp_path / "run"
    asked = ["scan", str(model), "--data", str(one), "--preset", "quick", "--seed", str(seed), "--out", str(out)]
    assert run(asked) == 3
    said = capfd.readouterr()
    assert said.out == ""
    assert "one.npz: 10 clean samples are too few for a verdict" in said.err
    assert f"give at least {LEAST_OF_TEN} clean samples of each of the 10 classes" in said.err
    assert "neural-cleanse" not in said.err
    assert "reference" not in said.err
    assert not list(out.rglob("reference-*.npz"))


def _small(classes: int, folder: Path) -> Path:
    """The tiny classifier cut to its first classes, as a file."""
    weights = numpy_helper.from_array(quadrant_weights()[:, :classes].copy(), "weight")
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    return saved(make_model(nodes, [weights], out=("N", classes)), folder / f"{classes}.onnx")


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_without_references_have_no_verdict(classes: int, tmp_path: Path) -> None:
    samples = quadrant_images(60)
    data = kept(samples.take(np.flatnonzero(samples.labels < classes)), tmp_path / "data.npz")
    stated = scan(_small(classes, tmp_path), data, tmp_path / "named", "quick", ["max-margin"], InputSpec()).report
    assert (stated["verdict"], stated["targets"]) == ("inconclusive", [])
    said = f"{classes} classes are too few to tell an outlier from chance (at least 4, or 5 reference networks)"
    assert stated["reasons"].count("no detector ran") == 1 or stated["reasons"].count(said) == 1


def test_a_named_detector_searches_all_the_same_and_says_what_is_lacking(planted_file: Path, tmp_path: Path) -> None:
    heard = Heard()
    data = kept(quadrant_images(1), tmp_path / "one.npz")
    report = scan(
        planted_file, data, tmp_path / "run", "quick", ["neural-cleanse"], InputSpec(), run=RunContext(observer=heard)
    ).report
    assert (report["verdict"], report["targets"]) == ("inconclusive", [])
    assert any("4 clean samples are too few for a verdict" in r for r in report["reasons"])
    assert any(f"give at least {enough_of_each(CLASSES)} clean samples" in r for r in report["reasons"])
    assert any("there will be no verdict" in n for n in heard.notices)


def test_classes_without_a_clean_sample_are_said_before_and_after(planted_file: Path, tmp_path: Path) -> None:
    samples = quadrant_images(40)
    data = kept(samples.take(np.flatnonzero(samples.labels != 1)), tmp_path / "three.npz")
    heard = Heard()
    report = scan(
        planted_file, data, tmp_path / "run", "quick", ["max-margin"], InputSpec(), run=RunContext(observer=heard)
    ).report
    assert any("no clean sample of class 1" in n for n in heard.notices)
    assert any("no clean sample of class 1" in limit for limit in report["limits"])
