"""The page about bringing in one's own: its examples run as they stand, as arguments and as an installed package's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import quadrant_images, quadrant_model, quadrant_weights, saved
from tolerances import NETWORK_32

from onnxspect import OnnxspectError, scan
from onnxspect.converters import plugins
from onnxspect.converters.sources.formats import detect
from onnxspect.engine.detectors.neural_cleanse import NeuralCleanse
from onnxspect.engine.detectors.registry import chosen as detectors
from onnxspect.engine.jobs.choice import settings_of
from onnxspect.engine.mitigation.registry import chosen as methods

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def executed(blocks: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the page's blocks define, in a module of their own."""
    page = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), page.__dict__)  # noqa: S102 - our own page
    return page.__dict__


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted model and clean samples, as the page calls them."""
    folder = tmp_path_factory.mktemp("own")
    saved(quadrant_model(2), folder / "planted.onnx")
    samples = quadrant_images(30)
    np.savez(folder / "clean.npz", images=samples.images, labels=samples.labels)
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's classes as an installed package: its modules, and the metadata that an installer writes."""
    site = tmp_path_factory.mktemp("site")
    detector, _, perturbation, mitigation, _, described, opener = BLOCKS
    (site / "my_package").mkdir()
    (site / "my_package" / "__init__.py").write_text(detector + perturbation + mitigation)
    (site / "my_format").mkdir()
    (site / "my_format" / "__init__.py").write_text(described)
    (site / "my_format" / "opener.py").write_text(opener)
    info = site / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    entries = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    listed = "".join(e.replace('[project.entry-points."', "[").replace('"]', "]").replace('"', "") for e in entries)
    (info / "entry_points.txt").write_text(listed + "[onnxspect.others]\nbroken = my_package:Missing\n")
    return site


def test_the_examples_run(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(world)
    assert len(BLOCKS) == 7
    executed(BLOCKS[:5], monkeypatch)
    shown = capsys.readouterr().out
    assert "backdoored (2,) [[1.0, 1.0], [1.0, 1.0]]" in shown
    assert re.search(r"clip-weights \[\(1\.0, 0\.0\)\]", shown)


def test_the_detector_is_short() -> None:
    code = [line for line in BLOCKS[0].splitlines() if line.strip() and not line.strip().startswith(("#", '"""'))]
    assert len(code) <= 50


def test_a_package_brings_a_detector_and_a_mitigation_in(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [d.name for d in detectors("standard")]
    with pytest.raises(OnnxspectError, match="unknown detector 'known-patches'"):
        detectors("quick", ["known-patches"])
    monkeypatch.syspath_prepend(str(package))
    assert plugins.names(plugins.DETECTORS) == ("known-patches",)
    assert [d.name for d in detectors("standard")] == before  # that it is installed changes no scan
    made = detectors("quick", ["known-patches", "max-margin"])
    assert [d.name for d in made] == ["max-margin", "known-patches"]
    (method,) = methods("clip-weights", deviations=2.0)
    assert (method.name, method.deviations) == ("clip-weights", 2.0)  # type: ignore[attr-defined]
    with pytest.raises(OnnxspectError, match="cannot be made"):
        methods("clip-weights", rounds=1)


def test_a_package_that_cannot_be_imported_says_so(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(package))
    with pytest.raises(OnnxspectError, match=r"'broken' \(my_package:Missing\) cannot be imported: AttributeError"):
        plugins.load("onnxspect.others", "broken")


def test_a_package_brings_a_source_format_in(package: Path, tmp_path: Path) -> None:
    """In a process of its own, started as a user's is: the child that opens the file finds the package by PYTHONPATH."""
    source = tmp_path / "model.txt"
    np.savetxt(source, quadrant_weights(2).T, header="LINEAR 1", comments="")
    with pytest.raises(OnnxspectError, match="of no format that is known"):
        detect(source)
    code = "import sys, onnxspect; print(onnxspect.convert(sys.argv[1], sys.argv[2]).exporter); print('my_format.opener' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path / "model.onnx")],
        env={"PYTHONPATH": str(package), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["linear-text", "False"]
    images = quadrant_images(2).images
    (logits,) = onnxruntime.InferenceSession(str(tmp_path / "model.onnx")).run(None, {"image": images})
    np.testing.assert_allclose(logits, images.reshape(8, -1) @ quadrant_weights(2), rtol=NETWORK_32, atol=NETWORK_32)


def test_two_perturbations_are_two_fingerprints(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without settings to tell them apart, their classes do."""
    names = executed([BLOCKS[0], BLOCKS[2]], monkeypatch)
    ours, theirs = settings_of(NeuralCleanse()), settings_of(names["tinted"])
    assert "perturbation.class" not in ours
    assert theirs["perturbation.class"] == "page.Tint"
    scan(world / "planted.onnx", world / "clean.npz", tmp_path, detectors=[names["KnownPatches"](side=3)])
    with pytest.raises(OnnxspectError, match="a run with other detectors"):
        scan(world / "planted.onnx", world / "clean.npz", tmp_path, detectors=[names["KnownPatches"]()])


def test_what_is_no_detector() -> None:
    for wrong, said in (
        (3, "3 is no detector"),
        (type("Mine", (), {}), "is no detector"),
        ("nc", "unknown detector 'nc'"),
    ):
        with pytest.raises(OnnxspectError, match=said):
            detectors("quick", [wrong])  # type: ignore[list-item]
    with pytest.raises(OnnxspectError, match="is no method"):
        methods(object())  # type: ignore[arg-type]
