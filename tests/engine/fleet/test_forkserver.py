"""Commands as copies of a process that has the libraries loaded: real ones, locked in, and what becomes of them when it is killed."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import quadrant_images, quadrant_model, saved

from onnxspect.cli.main import run as command
from onnxspect.engine.fleet.executor import Ended, Job
from onnxspect.engine.fleet.forked import Forkserver
from onnxspect.engine.fleet.local import Size
from onnxspect.engine.fleet.report_of import report_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="copies of a process need Linux")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forkserver]:
    """One for all tests here: its start is most of what they take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET_TOKEN", "hunter2")
        patch.chdir(tmp_path_factory.mktemp("work"))
        made = Forkserver(Size(2, 1, 2 << 30))
        made.start(job("--preset=quick", "--check-only"))  # starts it
        assert ended(made).status == 2
        yield made
        made.stop()


def job(*options: str, model: str = "none.onnx") -> Job:
    return Job(model, ("scan", *options, "--device=cpu", "-q", "--out=out", "--", model), Path("out"))


def ended(server: Forkserver) -> Ended:
    while not (over := server.wait(1.0)):
        pass
    return over[0][1]


def test_a_scan_in_a_copy_is_locked_in_and_says_what_a_scan_alone_says(server: Forkserver) -> None:
    saved(quadrant_model(2), Path("m.onnx"))
    samples = quadrant_images(30)
    np.savez("data.npz", images=samples.images, labels=samples.labels)
    options = ("--data=data.npz", "--preset=quick", "--detector=max-margin", "--require-sandbox")
    server.start(job(*options, model="m.onnx"))
    over = ended(server)
    assert (over.status, over.said) == (3, "")  # one detector alone, without references
    alone = ["scan", "m.onnx", *options[:-1], "--device=cpu", "-q", "--out=alone"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert command(alone) == 3
    report, own = report_of(Path("out")), report_of(Path("alone"))
    assert report is not None
    assert own is not None
    assert report["digest"] == own["digest"]


def test_it_knows_no_secret_and_no_name(server: Forkserver) -> None:
    assert server._server is not None
    process = Path(f"/proc/{server._server.pid}")
    assert b"hunter2" not in (process / "environ").read_bytes()
    assert (process / "comm").read_text() == "onnxspect-fork\n"
    assert len(list((process / "task").iterdir())) == 1  # a fork copies one thread


def test_what_is_wrong_is_said(server: Forkserver) -> None:
    server.start(job("--data=data.npz", "--detector=nope", "--check-only"))
    over = ended(server)
    assert (over.status, over.cause) == (2, "unknown detector 'nope'")
    assert over.hint.startswith("one of ")


def test_killed_with_all_its_commands(server: Forkserver) -> None:
    """They may be tried again, and are, in a new one."""
    server.start(job("--data=data.npz", "--detector=neural-cleanse", model="m.onnx"))
    assert server._server is not None
    os.kill(server._server.pid, signal.SIGKILL)
    over = ended(server)
    assert over.killed
    assert over.status < 0
    server.stop()
