"""What a worker does in which order before it reads a byte."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import onnxspect.models.zoo as zoo

#: A worker of `info` whose torch has a GPU, the start of which makes a socket as CUDA's driver does.
WORKER = """
import contextlib, io, json, os, socket, sys, threading, torch
request = json.loads(sys.argv[1])
started, plain = [], torch.zeros

def zeros(*sizes, device=None, **more):
    if device != "cuda:1":
        return plain(*sizes, device=device, **more)
    started.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    raise RuntimeError("what goes wrong here is said later")

torch.zeros = zeros
from onnxspect.cli import worker
status = worker.serve(request)
try:
    socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    later = "made"
except PermissionError:
    later = "refused"
print(json.dumps([status, len(started), later]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="workers lock themselves in on Linux")
def test_a_gpu_is_woken_before_sockets_are_refused(tmp_path: Path) -> None:
    model = zoo.path("fashion_mnist_clean")
    ours, theirs = socket.socketpair()
    request = {
        "arguments": ["info", str(model), "--json"],
        "readable": [str(model)],
        "writable": [str(tmp_path)],
        "devices": ["/dev/null"],
        "device": "cuda:1",
        "outputs": [],
        "folder": str(tmp_path),
        "mark": "w0-",
        "control": theirs.fileno(),
        "memory_bytes": 8 << 30,
        "seconds": 100,
        "require_sandbox": True,
    }
    environment = {**os.environ, "TMPDIR": str(tmp_path), "ORT_DISABLE_TELEMETRY": "1"}
    with ours, theirs:
        done = subprocess.run(
            [sys.executable, "-c", WORKER, json.dumps(request)],
            capture_output=True,
            text=True,
            pass_fds=(theirs.fileno(),),
            env=environment,
            check=False,
        )
    assert done.stdout, done.stderr
    status, started, later = json.loads(done.stdout.splitlines()[-1])
    assert (status, started, later) == (0, 1, "refused")
