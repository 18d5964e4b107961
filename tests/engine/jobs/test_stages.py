"""What a time-out or a crash names: the stage that was under way, whatever way of reporting was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import supervised

from onnxspect.cli.console import Progressing
from onnxspect.cli.json_lines import JsonLines
from onnxspect.converters import stages
from onnxspect.engine.jobs.certify import certify
from onnxspect.engine.jobs.describe_data import describe_data
from onnxspect.engine.run import Observer, RunContext


@pytest.mark.parametrize("observer", [JsonLines(), Progressing(quiet=True), Progressing(quiet=False)])
def test_a_task_that_begins_is_the_stage(observer: Observer, capsys: pytest.CaptureFixture[str]) -> None:
    stages.stage("before")
    observer.start("searching", 3)
    assert stages.current() == "searching"
    observer.finish("searching")
    capsys.readouterr()


def test_samples_that_are_read_are_a_stage(tmp_path: Path) -> None:
    stages.stage("before")
    describe_data(supervised.data(tmp_path))
    assert stages.current() == "reading the samples"


def test_a_certificate_notes_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[str] = []
    monkeypatch.setattr("onnxspect.engine.jobs.certify.stage", noted.append)
    certify(supervised.data(tmp_path), (0, 1), tmp_path / "out", fractions=(0.1,), run=RunContext(0))
    assert noted == ["reading the samples", "fitting the sanitiser"]
