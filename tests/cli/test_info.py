"""`onnxspect info --second-opinion`, as a user types it."""

from __future__ import annotations

import json

import pytest

from onnxspect.cli import exit_status
from onnxspect.cli.main import run
from onnxspect.converters.proof import second_opinion
from onnxspect.models import zoo

MODEL = str(zoo.path("fashion_mnist_clean"))


def test_without_the_library_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(second_opinion, "available", lambda: False)
    second_opinion._library.cache_clear()
    assert run(["info", MODEL, "--second-opinion"]) == exit_status.USAGE
    assert "pip install --no-deps onnx2torch" in capsys.readouterr().err


@pytest.mark.skipif(not second_opinion.available(), reason="onnx2torch is not installed")
def test_it_is_printed_and_given_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", MODEL, "--second-opinion"]) == exit_status.CLEAN
    assert "all three agree" in capsys.readouterr().out
    assert run(["info", MODEL, "--second-opinion", "--json"]) == exit_status.CLEAN
    assert json.loads(capsys.readouterr().out)["second_opinion"]["agrees"] is True
