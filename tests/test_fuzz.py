"""Mutants of what is parsed: some new ones on every change of the code, and every input that ever broke a promise."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "benchmarks"))  # the script finds its neighbours there
FUZZ: Any = importlib.import_module("fuzz")
TARGET: Any = importlib.import_module("fuzz_target")
PARSERS: Any = importlib.import_module("fuzz_parsers")
TARGETS = {t.name: t for t in FUZZ.TARGETS}
#: Their mutants are a test of their own (converters/file/test_onnx_file.py); what is kept of them is replayed here.
ELSEWHERE = "onnx-run"
KEPT = sorted(p for p in (HERE / "fuzz_kept").glob("*/*") if p.is_file())
#: Mutants a target: a second or so each.
COUNT = {"ledger": 60, "archive": 250, "options": 200, "pickle": 300, "onnx": 200, "signed": 150, "report": 40}
OTHERS = 30
#: Seeds that are refused, by their place.
REFUSED = {"onnx": [1], "ledger": [0], "signed": [1], "archive": [0, 1, 2, 3, 4], "picture": [8]}


@pytest.mark.parametrize("name", [n for n in TARGETS if n != ELSEWHERE])
def test_seeds_are_taken(name: str) -> None:
    """But for those that are refused by right: hostile, or with something missing beside them."""
    ends = [TARGET.attempt(TARGETS[name].check, data) for data in TARGETS[name].seeds()]
    assert {problem for _, problem in ends} == {None}
    assert [i for i, (how, _) in enumerate(ends) if how == TARGET.REFUSED] == REFUSED.get(name, [])


@pytest.mark.parametrize("name", [n for n in TARGETS if n != ELSEWHERE])
def test_seeded_mutants(name: str) -> None:
    seeds = TARGETS[name].seeds()
    for i in range(COUNT.get(name, OTHERS)):
        data = TARGETS[name].mutate(seeds, 1, i)
        assert TARGET.broken(TARGETS[name], data) is None, (name, i, data[:200])


@pytest.mark.parametrize("path", KEPT, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_kept_inputs(path: Path) -> None:
    assert TARGET.broken(TARGETS[path.parent.name], path.read_bytes()) is None


def test_the_comparison_sees_what_a_scanner_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle can fail: a scanner that is blind for one opcode is found out."""
    hostile = PARSERS._pickles()[2]
    assert PARSERS.imported(hostile) == {"posix.system"}
    monkeypatch.setattr(PARSERS, "scan", lambda _: type("Blind", (), {"globals": []}))
    assert "the unpickler imports" in str(TARGET.broken(TARGETS["pickle"], hostile))


def test_mutants_depend_on_seed_and_number_alone() -> None:
    seeds = [b"abc" * 50, b"xyz" * 50]
    assert TARGET.mutant(seeds, 1, 7) == TARGET.mutant(seeds, 1, 7)
    assert TARGET.mutant(seeds, 1, 7) != TARGET.mutant(seeds, 2, 7)


@pytest.mark.skipif(sys.platform != "linux", reason="a child locks itself in")
def test_a_child_that_dies_or_hangs_costs_one_mutant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness can fail, and lives: one mutant kills its child, one never ends, one breaks a promise, the rest are counted."""
    child: Any = importlib.import_module("fuzz_child")
    monkeypatch.setattr(child, "SECONDS", 0.5)

    def check(data: bytes, _: Path) -> str:
        if data == b"3":
            os.kill(os.getpid(), signal.SIGSEGV)
        while data == b"5":
            pass
        if data == b"7":
            raise KeyError("of no kind that is expected")
        return str(TARGET.TAKEN)

    target = TARGET.Target("toy", list, check, lambda _seeds, _seed, i: b"%d" % i)
    children = child.Children()
    ended = list(children.run(target, [], 0, range(10)))
    assert [e.index for e in ended] == list(range(10))
    assert [e.index for e in ended if e.died] == [3, 5]
    assert "SIGSEGV" in ended[3].outcome
    assert "took more than" in ended[5].outcome
    assert "KeyError" in ended[7].problem
    assert children.started == 3
    tally = FUZZ.Tally(tmp_path)
    for one in ended:
        tally.add(target, one, b"data" if one.problem or one.died else None)
    assert (len(tally.deaths), len(tally.broken)) == (2, 1)
    assert [p.read_bytes() for p in tmp_path.glob("toy/*")] == [b"data"]
