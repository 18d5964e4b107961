"""The page about Python: its examples run, in order, as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onnxspect.cli.cmd_demo import _models, _parts

PAGE = Path(__file__).parent.parent / "docs" / "python.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    _parts(Path("demo"))
    _models(Path("demo"))
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)  # noqa: S102 - our own page
    shown = capsys.readouterr().out
    assert "backdoored (7,)" in shown
    assert "(1, 28, 28) (1, 28, 28) [[" in shown
    assert "unlearn [" in shown
    assert "True ()" in shown
    assert "True BACKDOORED  demo/fashion_mnist_badnets.onnx" in shown
    assert shown.rstrip().endswith("True")
