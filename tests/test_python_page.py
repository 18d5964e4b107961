"""The page about Python: its examples run, in order, as they stand."""

from __future__ import annotations

import ast
import builtins
import re
from pathlib import Path

import pytest

from onnxspect.cli.cmd_demo import _models, _parts

PAGE = Path(__file__).parent.parent / "docs" / "python.md"


def blocks() -> list[str]:
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(found) == 3
    return found


def test_what_the_examples_import_is_there() -> None:
    """And they are Python, which uses nothing that it did not make or import; the demo, which is always tested, makes the same calls."""
    known = set(dir(builtins))
    for block in blocks():
        tree = ast.parse(block)
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), str(PAGE), "exec", dont_inherit=True), {})  # noqa: S102 - our own page
        known |= {(a.asname or a.name).split(".")[0] for node in imports for a in node.names}
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        known |= {n.id for n in names if isinstance(n.ctx, ast.Store)}
        assert {n.id for n in names if isinstance(n.ctx, ast.Load)} <= known


@pytest.mark.heavy
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    _parts(Path("demo"))
    _models(Path("demo"))
    names: dict[str, object] = {}
    for block in blocks():
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)  # noqa: S102 - our own page
    shown = capsys.readouterr().out
    assert "backdoored (7,)" in shown
    assert "(1, 28, 28) (1, 28, 28) [[" in shown
    assert "unlearn [" in shown
    assert "True ()" in shown
    assert "True BACKDOORED  demo/fashion_mnist_badnets.onnx" in shown
    assert shown.rstrip().endswith("True")
