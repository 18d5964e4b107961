"""Cleansing by presence: samples that bear the difference are separated from those that do not, whatever their labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, PATCH, quadrant_images, quadrant_model, saved

from onnxspect.engine.cleansing.by_presence import PRESENCE, TRIGGER_BEARING, by_found, by_presence
from onnxspect.engine.detectors.training_difference import difference
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.cleanse import cleanse
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.activations import TrainingSet, open_training_set
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec

TARGET = 2


def written(samples: Samples, path: Path) -> Path:
    np.savez(path, images=np.round(samples.images[:, 0] * 255).astype(np.uint8), labels=samples.labels)
    return path


@pytest.fixture(scope="module")
def clean_label(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A training set whose TARGET images wear the patch, every second one, rightly labelled; and which."""
    samples = quadrant_images(60, seed=3, noise=0.1)
    rows = np.flatnonzero(samples.labels == TARGET)[::2]
    for row in rows:
        samples.images[row, 0][PATCH] = [[1, 0], [0, 1]]
    return written(samples, tmp_path_factory.mktemp("presence") / "train.npz"), rows


def opened(path: Path) -> TrainingSet:
    return open_training_set(path, None)


def own_difference(training: TrainingSet, label: int) -> np.ndarray:
    own = training.take(np.flatnonzero(training.labels == label)).images
    genuine = quadrant_images(60, seed=4, noise=0.1)
    return difference(own, genuine.images[genuine.labels == label])


def test_rightly_labelled_poison_is_found_to_the_sample(clean_label: tuple[Path, np.ndarray]) -> None:
    path, rows = clean_label
    training = opened(path)
    scores = by_presence({TARGET: own_difference(training, TARGET)}, training, 0, RunContext(0))
    assert np.flatnonzero(scores.removed).tolist() == rows.tolist()
    assert scores.classes[TARGET]["removed"] == len(rows)
    assert np.isnan(scores.score[training.labels != TARGET]).all()
    own = training.labels == TARGET
    assert (scores.score[own & scores.removed] > 0).all()
    assert (scores.score[own & ~scores.removed] <= 0).all()


def test_a_class_may_be_in_some_batches_only(clean_label: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    with np.load(clean_label[0]) as archive:
        order = np.argsort(archive["labels"], kind="stable")
        images, labels = archive["images"][order], archive["labels"][order]
    np.savez(tmp_path / "sorted.npz", images=np.repeat(images, 6, 0), labels=np.repeat(labels, 6))
    training = opened(tmp_path / "sorted.npz")
    first = next(iter(training.batches()))[1]
    assert len(first) < len(training)
    assert TARGET not in training.labels[: len(first)]
    scores = by_presence({TARGET: own_difference(training, TARGET)}, training, 0, RunContext(0))
    assert scores.removed.sum() == 6 * len(clean_label[1])


def test_a_class_without_poison_loses_nothing(clean_label: tuple[Path, np.ndarray]) -> None:
    training = opened(clean_label[0])
    scores = by_presence({0: own_difference(training, 0)}, training, 0, RunContext(0))
    assert not scores.removed.any()
    assert any("no sample stands out" in note for note in scores.notes)


def test_a_class_with_few_samples_is_not_divided(tmp_path: Path) -> None:
    samples = quadrant_images(60, seed=3)
    kept = np.sort(np.concatenate([np.flatnonzero(samples.labels == 0)[:5], np.flatnonzero(samples.labels != 0)]))
    training = opened(written(samples.take(kept), tmp_path / "few.npz"))
    scores = by_presence({0: np.ones((1, 8, 8), np.float32)}, training, 0, RunContext(0))
    assert not scores.removed.any()
    assert "class 0 has fewer than 20 samples: not divided" in scores.notes


def changes(training: TrainingSet) -> np.ndarray:
    """What the patch changes in a usual image of another class."""
    mask, pattern = np.zeros((2, 1, 8, 8), np.float32)
    mask[0][PATCH], pattern[0][PATCH] = 1, [[1, 0], [0, 1]]
    others = training.take(np.flatnonzero(training.labels != TARGET)).images.mean(0)
    return np.asarray(mask * (pattern - others))


def test_what_a_search_found_tells_who_carries_it(clean_label: tuple[Path, np.ndarray]) -> None:
    """Of several triggers to a class those that part it count, each for its own samples."""
    training = opened(clean_label[0])
    own = changes(training)
    nothing = np.zeros_like(own)
    nothing[0, 0, 0] = 1.0
    for found in ([own], [nothing, own], [own, nothing]):
        scores = by_found([(TARGET, d) for d in found], training, 0, RunContext(0))
        assert np.flatnonzero(scores.removed).tolist() == clean_label[1].tolist()
        assert (scores.detector, scores.classes[TARGET]["removed"]) == (TRIGGER_BEARING, len(clean_label[1]))
        rows = training.labels == TARGET
        assert scores.score[rows & scores.removed].min() > scores.score[rows & ~scores.removed].max()


def test_a_trigger_in_opposite_phase_does_not_take_the_clean_samples(clean_label: tuple[Path, np.ndarray]) -> None:
    with np.load(clean_label[0]) as archive:
        images, labels = archive["images"], archive["labels"]
    spare = np.flatnonzero(np.isin(np.arange(len(labels)), clean_label[1][::2]))  # so that the clean ones are the most
    kept = np.setdiff1d(np.arange(len(labels)), spare)
    path = clean_label[0].with_name("fewer.npz")
    np.savez(path, images=images[kept], labels=labels[kept])
    training = opened(path)
    scores = by_found([(TARGET, -changes(training))], training, 0, RunContext(0))
    assert not scores.removed.any()
    assert any("nothing is removed" in note for note in scores.notes)


def test_a_scan_without_the_training_set_serves_too(clean_label: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, rows = clean_label
    model = saved(quadrant_model(TARGET), tmp_path / "model.onnx")
    data = written(quadrant_images(30, seed=5, noise=0.1), tmp_path / "clean.npz")
    scan(model, data, tmp_path / "run", "quick", ["reverse-engineering"], InputSpec())
    done = cleanse(model, path, tmp_path / "out", tmp_path / "run", targets=[TARGET])
    assert [m["name"] for m in done.report["methods"]][:2] == ["reverse-engineering", TRIGGER_BEARING]
    assert set(rows) <= set(np.flatnonzero(done.removed).tolist())
    assert any("one with --train" in note for note in done.report["notes"])
    for method in (PRESENCE, "dtinspector"):
        with pytest.raises(OnnxspectError, match="which this run had not"):
            cleanse(model, path, tmp_path / "again", tmp_path / "run", detectors=[method], targets=[TARGET])
    with pytest.raises(OnnxspectError, match="found by a scan"):
        cleanse(model, path, tmp_path / "again", detectors=[TRIGGER_BEARING])
    with pytest.raises(OnnxspectError, match="cannot be made a folder"):
        cleanse(model, path, data, tmp_path / "run")


def test_from_the_scan_to_the_cleansed_set(clean_label: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    """What Eq. 12 and B.5 cannot see: without their trigger these samples are what their label says."""
    path, rows = clean_label
    model = saved(quadrant_model(TARGET), tmp_path / "model.onnx")
    data = written(quadrant_images(30, seed=5, noise=0.1), tmp_path / "clean.npz")
    result = scan(model, data, tmp_path / "run", "quick", [PRESENCE], InputSpec(), train=path)
    assert result.report["targets"] == [TARGET]
    np.savez(tmp_path / "truth.npz", indices=rows)
    done = cleanse(model, path, tmp_path / "out", tmp_path / "run", truth=tmp_path / "truth.npz")
    assert next(m["name"] for m in done.report["methods"]) == PRESENCE
    assert done.report["rates"] == {"tpr": 1.0, "fpr": 0.0, "fpr_all": 0.0, "poisoned": len(rows)}
    assert result.report["model"]["classes"] == CLASSES
