"""`onnxspect certify` from files: matrices, pixels, taps, the sanitiser, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import quadrant_images
from tolerances import SOLVED_TWICE_64

from onnxspect.cli.main import run
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.certify import certify


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    """Three Gaussian classes as a matrix of features."""
    rng = np.random.default_rng(0)
    labels = np.arange(150) % 3
    path = tmp_path / "matrix.npz"
    np.savez(path, features=rng.standard_normal((150, 8)) + 1.5 * labels[:, None], labels=labels)
    return path


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    """The tiny world's images."""
    samples = quadrant_images(30)
    path = tmp_path / "pixels.npz"
    np.savez_compressed(path, images=np.round(samples.images[:, 0] * 255).astype(np.uint8), labels=samples.labels)
    return path


def test_a_matrix_gives_a_certificate_twice_the_same(matrix: Path, tmp_path: Path) -> None:
    before = hashlib.sha256(matrix.read_bytes()).hexdigest()
    reports = []
    for name in ("a", "b"):
        done = certify(matrix, (0, 2), tmp_path / name, fractions=(0.0, 0.2), keep=0.8)
        reports.append((tmp_path / name / "certificate.json").read_bytes())
        assert (tmp_path / name / "certificate.png").read_bytes()[:4] == b"\x89PNG"
    assert reports[0] == reports[1]
    assert hashlib.sha256(matrix.read_bytes()).hexdigest() == before
    rows = done.report["certificates"]
    assert [r["poison_points"] for r in rows] == [0, 20]
    assert all(r["upper_bound"] >= r["attack_loss"] - SOLVED_TWICE_64 for r in rows)
    assert all(r["attack_inside_the_set"] for r in rows)
    with np.load(tmp_path / "a" / "attack.npz") as attack:
        assert attack["features"].shape == (20, 8)
        assert set(attack["labels"].tolist()) <= {0, 2}


def test_the_sanitiser_keeps_what_lies_inside(matrix: Path, tmp_path: Path) -> None:
    with np.load(matrix) as archive:
        features, labels = archive["features"].copy(), archive["labels"]
    outliers = np.flatnonzero(labels == 2)[:5]
    features[outliers] += 50.0
    suspect = tmp_path / "suspect.npz"
    np.savez(suspect, features=features, labels=labels)
    certify(matrix, (0, 2), tmp_path / "out", fractions=(0.0,), keep=1.0, suspect=suspect)
    with np.load(tmp_path / "out" / "sanitised.npz") as kept:
        assert sorted(set(np.flatnonzero(labels != 1)) - set(kept["index"].tolist())) == outliers.tolist()
    lines = (tmp_path / "out" / "sanitised.csv").read_text().splitlines()
    assert lines[0] == "index,label,score,decision,detector"
    assert sum(",remove," in line for line in lines) == 5


def test_pixels_and_a_tap_are_features_too(pixels: Path, planted_file: Path, tmp_path: Path) -> None:
    of_pixels = certify(pixels, (0, 1), tmp_path / "p", fractions=(0.1,), integrity="box", radius=1.0)
    assert of_pixels.report["features"]["dimensions"] == 64
    of_tap = certify(pixels, (0, 1), tmp_path / "t", model=planted_file, tap="flat", fractions=(0.1,), radius=1.0)
    assert of_tap.report["features"]["dimensions"] == 64
    assert "tap flat" in of_tap.report["features"]["source"]


def test_the_command_prints_the_report_and_what_it_does_not_certify(
    matrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["certify", str(matrix), "--classes", "0", "1", "--epsilon", "0.1", "-q", "--out", str(tmp_path / "o")]
    assert run([*common, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["set"]["centroids"] == "oracle"
    assert run([*common, "--centroids", "data"]) == 0
    shown = capsys.readouterr().out
    assert "does not certify backdoors" in shown
    assert "upper bound" in shown


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": (0, 0)}, "given twice"),
        ({"classes": (0, 9)}, "no samples of class 9"),
        ({"fractions": (2.0,)}, "0..1"),
        ({"radius": -1.0}, "radius"),
        ({"centroids": "moon"}, "unknown centroids"),
        ({"centroids": "data", "integrity": "box"}, "oracle centroids only"),
        ({"model": "model.onnx"}, "holds features"),
    ],
)
def test_what_does_not_fit_is_refused(matrix: Path, tmp_path: Path, changed: dict, message: str) -> None:  # type: ignore[type-arg]
    settings = {"classes": (0, 1), "fractions": (0.0,)} | changed
    with pytest.raises(OnnxspectError, match=message):
        certify(matrix, out=tmp_path / "out", **settings)


def test_a_matrix_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, features=np.zeros((4, 2, 2)), labels=np.zeros(4, int))
    with pytest.raises(OnnxspectError, match="not numbers"):
        certify(path, (0, 1), tmp_path / "out")
    np.savez(path, features=np.full((4, 8), np.nan), labels=np.arange(4) % 2)
    with pytest.raises(OnnxspectError, match="NaN"):
        certify(path, (0, 1), tmp_path / "out")
