"""Mutants of what is parsed: some new ones on every change of the code, and every input that ever broke a promise."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def _fuzz() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz", HERE.parent / "benchmarks" / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FUZZ = _fuzz()
TARGETS = {t.name: t for t in FUZZ.TARGETS}
KEPT = sorted(p for p in (HERE / "fuzz_kept").glob("*/*") if p.is_file())
#: Mutants a target: a second or so each.
COUNT = {"ledger": 60, "archive": 400, "options": 1000, "pickle": 800, "onnx": 300, "signed": 150, "report": 200}


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_taken(name: str) -> None:
    for data in TARGETS[name].seeds():
        assert FUZZ.broken(TARGETS[name], data) is None


@pytest.mark.parametrize("name", TARGETS)
def test_seeded_mutants(name: str) -> None:
    seeds = TARGETS[name].seeds()
    for i in range(COUNT[name]):
        data = FUZZ.mutant(seeds, 1, i)
        assert FUZZ.broken(TARGETS[name], data) is None, (name, i, data[:200])


@pytest.mark.parametrize("path", KEPT, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_kept_inputs(path: Path) -> None:
    assert FUZZ.broken(TARGETS[path.parent.name], path.read_bytes()) is None


def test_the_comparison_sees_what_a_scanner_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle can fail: a scanner that is blind for one opcode is found out."""
    hostile = FUZZ._pickles()[2]
    assert FUZZ.imported(hostile) == {"posix.system"}
    monkeypatch.setattr(FUZZ, "scan", lambda _: type("Blind", (), {"globals": []}))
    assert "the unpickler imports" in str(FUZZ.broken(TARGETS["pickle"], hostile))


def test_mutants_depend_on_seed_and_number_alone() -> None:
    seeds = [b"abc" * 50, b"xyz" * 50]
    assert FUZZ.mutant(seeds, 1, 7) == FUZZ.mutant(seeds, 1, 7)
    assert FUZZ.mutant(seeds, 1, 7) != FUZZ.mutant(seeds, 2, 7)
