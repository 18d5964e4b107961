"""Faults of the disk at every write: the old file or the new one, whole; the right status; the path in the message."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import supervised
from fault_scenarios import KINDS, SCENARIOS

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes the faults."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs a C compiler on Linux")
    library = tmp_path_factory.mktemp("shim") / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, HERE / "faults.c", "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def ended(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """How every write ended under every fault."""
    done = subprocess.run(
        [sys.executable, HERE / "fault_scenarios.py", tmp_path_factory.mktemp("faults")],
        env={**os.environ, "LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def armed(shim: Path, part: str, kind: int) -> dict[str, str]:
    """The environment of a command whose first change of a file with `part` in its path fails, and all after it."""
    return {
        "LD_PRELOAD": str(shim),
        "ONNXSPECT_FAULT_PATH": part,
        "ONNXSPECT_FAULT_KIND": str(kind),
        "ONNXSPECT_FAULT_NTH": "1",
    }


@pytest.mark.parametrize("fault", KINDS)
@pytest.mark.parametrize("write", SCENARIOS)
def test_old_or_new_and_whole(write: str, fault: str, ended: list[dict[str, object]]) -> None:
    rows = [row for row in ended if (row["write"], row["fault"]) == (write, fault)]
    met = [row for row in rows if row["ended"] != "done"]
    assert rows
    for row in rows:
        assert row["state"] in ("old", "new"), row
        if row["ended"] == "done":
            assert row["state"] == "new", row
        else:
            assert row["state"] == "old" or fault in ("killed", "broken", "full", "read-only"), row
        if row["ended"] not in ("killed", "done"):
            assert row["ended"] == "machine", row
            assert "/case/" in str(row["message"]), row
        if row["ended"] != "killed":
            assert row["parts"] == [], row
    if fault in ("interrupted", "short"):
        assert met == []  # a write that is cut short or interrupted goes on
    else:
        assert met


@pytest.mark.parametrize(
    ("fault", "words"), [("full", "No space left"), ("broken", "Input/output"), ("read-only", "Read-only")]
)
def test_a_whole_command(fault: str, words: str, shim: Path, tmp_path: Path) -> None:
    """The converted file, through supervisor and worker."""
    source = supervised.plain(tmp_path)
    out = tmp_path / "copy.onnx"
    out.write_bytes(b"old")
    ended = supervised.command(
        "convert", source, "-o", out,
environment=armed(shim, ".copy.onnx.", KINDS[fault]),
    )  # fmt: skip
    assert ended.status == 4, ended.err
    assert ended.said[0].startswith(f"onnxspect: {out}: cannot be written ({words}")
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.onnx", "model.onnx"]


def test_a_full_temporary_folder_is_named(shim: Path, tmp_path: Path) -> None:
    """What the child is handed does not fit: the path says where room is needed."""
    source = supervised.plain(tmp_path)
    (tmp_path / "tmp").mkdir()
    ended = supervised.command(
        "info", source, temporary=tmp_path / "tmp",
environment=armed(shim, "/model.onnx", KINDS["full"]),
    )  # fmt: skip
    assert ended.status == 4, ended.err
    assert f"onnxspect: {tmp_path / 'tmp'}/" in ended.said[0]
    assert "No space left on device" in ended.said[0]
    assert list((tmp_path / "tmp").iterdir()) == []
