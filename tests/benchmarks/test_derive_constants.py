"""Constants are what the committed measurements give (benchmarks/derive_constants.py)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "derive_constants.py"


def loaded() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))  # as for a script, whose folder is where it finds the others
    spec = importlib.util.spec_from_file_location("derive_constants", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["derive_constants"] = module  # a dataclass looks its module up
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


DERIVE = loaded()


@pytest.mark.parametrize("one", DERIVE.DERIVED, ids=lambda one: one.name)
def test_the_code_has_what_the_measurements_give(one: object) -> None:
    assert one.in_code() == one.measured(), "run: python benchmarks/derive_constants.py"  # type: ignore[attr-defined]


def test_a_constant_that_differs_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(DERIVE, "DERIVED", (DERIVE.Derived("x", lambda: 1, lambda: 2), DERIVE.Derived("y", int, int)))
    assert DERIVE.main() == 1
    assert capsys.readouterr().out.splitlines() == ["DIFFER  x  code 1  measured 2", "same    y  code 0  measured 0"]
