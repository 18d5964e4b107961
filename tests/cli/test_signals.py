"""A command that is told to end does so in one line, at any moment, and leaves nothing behind.

Three seeded moments here; ``make signals`` sends fifty to every command (benchmarks/signals.py).
"""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

import pytest
import signalled

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
CASES = list(zip(("info", "scan", "certify"), reversed(signalled.SIGNALS), strict=True))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    signalled.prepare(folder)
    return folder


@pytest.mark.parametrize(("command", "number"), CASES, ids=[f"{c}-{n.name}" for c, n in CASES])
def test_one_line_and_nothing_left(command: str, number: signal.Signals, work: Path, tmp_path: Path) -> None:
    found, _ = signalled.problems(command, number, random.Random(f"{command} {number}").uniform(0, 3), work, tmp_path)
    assert found == []
