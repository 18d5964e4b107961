"""A command that is told to end does so in one line, at any moment, and leaves nothing behind.

A few seeded moments here; ``make signals`` sends fifty of each to every command (ONNXSPECT_SIGNALS).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import supervised

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
MANY = int(os.environ.get("ONNXSPECT_SIGNALS", "0"))
COMMANDS = ("info", "scan", "convert", "certify", "report")
SIGNALS = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)]
CASES = (
    [(command, number, seed) for command in COMMANDS for number in SIGNALS for seed in range(MANY)]
    if MANY
    else [(command, number, 0) for command, number in zip(("info", "scan", "certify"), reversed(SIGNALS), strict=True)]
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    supervised.plain(folder, target=2)
    supervised.data(folder)
    return folder


def line_of(command: str, work: Path, out: Path) -> list[object]:
    model, data = work / "model.onnx", work / "data.npz"
    return {
        "info": ["info", model],
        "scan": ["scan", model, "--data", data, "--preset", "quick", "--out", out / "run"],
        "convert": ["convert", model, "-o", out / "copy.onnx"],
        "certify": ["certify", data, "--classes", "0", "1", "--out", out / "certificate"],
        "report": ["report", work / "run"],
    }[command]


def mine(mark: str) -> list[str]:
    """Processes with this word in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (place / "environ").read_bytes():
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.mark.parametrize(("command", "number", "seed"), CASES, ids=[f"{c}-{n.name}-{s}" for c, n, s in CASES])
def test_one_line_and_nothing_left(command: str, number: signal.Signals, seed: int, work: Path, tmp_path: Path) -> None:
    rng = random.Random(f"{command} {number} {seed}")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "out").mkdir()
    mark = f"PYTHON_MARK_{os.getpid()}_{rng.getrandbits(40)}"
    process = supervised.started(
        *line_of(command, work, tmp_path / "out"), temporary=tmp_path / "tmp", environment={"PYTHONMARK": mark}
    )
    # Python itself needs a moment before any line of ours can listen.
    deadline = time.monotonic() + 20
    while not any((tmp_path / "tmp").iterdir()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 3))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    said = [line for line in err.splitlines() if line.startswith("onnxspect:")]
    if "interrupted" in err:
        assert process.returncode == 4
        assert said == [err.splitlines()[-1]]
        assert said[0].startswith(f"onnxspect: interrupted by {number.name} (")
    else:  # it was done before
        assert process.returncode in (0, 1, 2, 3), (err, out)
    assert "Traceback" not in err
    assert list((tmp_path / "tmp").iterdir()) == []
    left = [
        p.name for p in (tmp_path / "out").rglob("*") if p.name.endswith(".part") or p.name.startswith(".onnxspect-")
    ]
    assert left == []
    if Path("/proc").is_dir():
        assert mine(mark) == []
