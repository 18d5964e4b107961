"""What a worker may have its supervisor do to its outputs: give them their names, and remove data that nothing names any more."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no worker")


def test_data_that_was_replaced_is_removed_and_nothing_else(tmp_path: Path) -> None:
    from onnxspect.cli import budget, places, supervisor, worker

    target, staging = tmp_path / "out.onnx", tmp_path / "staging"
    staging.mkdir()
    own = [tmp_path / n for n in ("out.onnx.data", "out.onnx.2.data")]
    other = [target, *(tmp_path / n for n in ("out.onnx.json", "data.npz", "xout.onnx.data"))]
    for path in (*own, *other):
        path.write_bytes(b"")
    (tmp_path / "out.onnx.3.data").symlink_to(target)
    touched = places.Places(outputs=[places.Output(target, staging)])
    limits = budget.Limits(1 << 30, 60.0, False)
    with supervisor._Signals() as signals:
        run = supervisor._Run("patch", [], limits, supervisor._Ready(tmp_path, touched), signals, supervisor.anew)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            request = {"outputs": [{"target": str(target), "staging": str(staging), "errno": 0}], "mark": "m"}
            placing = worker._placing(request, theirs)
            answering = threading.Thread(target=lambda: [run._hear(ours) for _ in range(3)])
            answering.start()
            for path in own:
                placing.remove(path)
            with pytest.raises(PermissionError, match="not a regular file"):
                placing.remove(tmp_path / "out.onnx.3.data")
            answering.join()
        assert not any(path.exists() for path in own)
        for path in (*other, tmp_path / ".." / "out.onnx.data", tmp_path / "staging" / "out.onnx.data"):
            assert "refused" in run._remove(str(path))
    assert all(path.exists() for path in other)
