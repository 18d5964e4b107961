"""Five kinds of error, each with its exit status, as the command line tells them."""

from __future__ import annotations

import errno
import json
import os
import platform
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import quadrant_images, quadrant_model, saved
from patch_support import neuron_model, patch_trigger

from onnxspect.cli import exit_status
from onnxspect.cli.main import run
from onnxspect.converters.errors import CLASSES, caused_by, is_memory
from onnxspect.engine.errors import (
    InconclusiveError,
    InternalError,
    Kind,
    MachineError,
    OnnxspectError,
    classified,
    unwritable,
    writing,
)
from onnxspect.engine.store import FILE, Ledger

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits and devices")
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux devices and file systems")
STATUS = {Kind.INPUT: 2, Kind.HOSTILE: 1, Kind.INCONCLUSIVE: 3, Kind.MACHINE: 4, Kind.INTERNAL: 4}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(quadrant_model(), tmp_path / "model.onnx")


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """What `certify` takes; it needs no model and no child process."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    path = tmp_path / "features.npz"
    np.savez(path, features=rng.random((80, 8)) + labels[:, None], labels=labels)
    return path


def certifying(features: Path, out: Path) -> list[str]:
    return ["certify", str(features), "--classes", "0", "1", "--epsilon", "0", "--radius", "1", "-q", "--out", str(out)]


def in_a_process(
    arguments: list[str], before: str = "", stdout: int | None = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, after some lines of Python."""
    code = f"import sys\n{before}\nfrom onnxspect.cli.main import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
    )


# --- the table ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_its_class_and_its_status(kind: Kind) -> None:
    assert CLASSES[kind].kind is kind
    assert exit_status.OF_KIND[kind] == STATUS[kind]
    assert set(exit_status.OF_KIND) == set(Kind)


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_ends_the_command_line_with_its_status(
    kind: Kind, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise CLASSES[kind]("the fact", "the way out")

    monkeypatch.setattr("onnxspect.cli.cmd_info.describe", fails)
    assert run(["info", str(model)]) == STATUS[kind]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("onnxspect: the fact\n  hint: the way out\n")
    assert ("please send" in said.err) == (kind is Kind.INTERNAL)


@pytest.mark.parametrize("kind", Kind)
def test_a_place_in_front_and_another_cause_keep_the_kind(kind: Kind) -> None:
    error = CLASSES[kind]("fact", "hint")
    moved = error.at("file.npz")
    assert (type(moved), moved.message, moved.hint) == (CLASSES[kind], "file.npz: fact", "hint")
    assert caused_by(error, "while reading").kind is kind
    assert classified(error) is error


# --- the user's input --------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_the_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(tmp_path / "none.onnx")]) == 2
    assert "none.onnx" in capsys.readouterr().err


def test_an_output_that_cannot_have_that_name_is_the_users(features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(certifying(features, features / "inside")) == 2
    assert "cannot be made a folder" in capsys.readouterr().err


# --- not enough evidence, goals missed ---------------------------------------------------------------------------------------


def test_goals_missed_and_too_little_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    infected = saved(neuron_model(), tmp_path / "infected.onnx")
    own = tmp_path / "own.npz"
    np.savez(own, **patch_trigger().arrays, target=patch_trigger().target)  # type: ignore[arg-type]
    many, few = tmp_path / "many.npz", tmp_path / "few.npz"
    for path, count in ((many, 25), (few, 1)):
        samples = quadrant_images(count, 2)
        np.savez(path, images=samples.images, labels=samples.labels)
    same = ["verify", str(infected), "--against", str(infected), "--trigger", str(own), "--device", "cpu", "-q"]
    assert run([*same, "--data", str(many)]) == 3  # as `patch` ends where it misses its goals
    assert "NOT PROVEN" in capsys.readouterr().out
    assert run([*same, "--data", str(few), "--strip"]) == 3
    assert "too few for STRIP" in capsys.readouterr().err


# --- the machine, a damaged run ----------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("form", [["--json"], []])
def test_a_report_that_does_not_arrive(model: Path, form: list[str]) -> None:
    """A full disk behind stdout: status 4, and not Python's own 120."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = in_a_process(["info", str(model), *form], stdout=full)
    finally:
        os.close(full)
    assert done.returncode == 4
    assert done.stderr.startswith("onnxspect: standard output: cannot be written (No space left on device)")
    assert len(done.stderr.splitlines()) == 2


@posix
def test_no_room_for_a_result(features: Path, tmp_path: Path) -> None:
    limit = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))"
    )
    done = in_a_process(certifying(features, tmp_path / "out"), limit)
    assert done.returncode == 4, done.stderr
    assert "attack.npz: cannot be written (File too large)" in done.stderr
    assert "hint: make room" in done.stderr
    assert not (tmp_path / "out").exists()  # it was made for the result, and nothing came into it


@posix
def test_no_room_for_a_ledger(model: Path, tmp_path: Path) -> None:
    samples = quadrant_images(10)
    np.savez(tmp_path / "data.npz", images=samples.images, labels=samples.labels)
    # The probe's files are small and pass; the ledger does not.
    limit = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))"
    )
    done = in_a_process(
        ["scan", str(model), "--data", str(tmp_path / "data.npz"), "--out", str(tmp_path / "run")], limit
    )
    assert done.returncode == 4, done.stderr
    assert f"onnxspect: {tmp_path / 'run'}" in done.stderr


@linux
def test_where_nobody_may_write(features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Root may write in a read-only folder, but not in sysfs."""
    if not Path("/sys").is_dir():
        pytest.skip("no sysfs here")
    assert run(certifying(features, Path("/sys/onnxspect"))) == 4
    assert "onnxspect: /sys/onnxspect: cannot be made a folder" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["no database", "pages", "report cut short", "row of another shape"])
def test_a_damaged_run(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    with Ledger(folder, {"model": "abc"}) as ledger:
        ledger.set_fact("report", json.dumps({"verdict": "clean", "padding": "x" * 20_000}))
    file = folder / FILE
    if damage == "no database":
        file.write_bytes(b"not at all" * 1000)
    elif damage == "pages":
        data = bytearray(file.read_bytes())
        data[4096:] = np.random.default_rng(0).bytes(len(data) - 4096)
        file.write_bytes(bytes(data))
    else:
        text = '{"verdict": "cl' if damage == "report cut short" else "17"
        with sqlite3.connect(file) as database:
            database.execute("UPDATE facts SET value = ? WHERE name = 'report'", (text,))
        database.close()
    assert run(["report", str(folder)]) == 4
    err = capsys.readouterr().err
    assert f"onnxspect: {file}: " in err
    assert "damaged" in err
    assert "Traceback" not in err


def test_a_header_that_claims_a_pebibyte_asks_for_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an array's header says is held against what is there before memory is asked for, even where the user's limit allows it."""
    monkeypatch.setenv("ONNXSPECT_MAX_DATA_BYTES", str(2**60))
    path = tmp_path / "huge.npz"
    header = tmp_path / "features.npy"
    with header.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**30, 2**17)})
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.write(header, "features.npy")
        archive.write(header, "labels.npy")
    assert run(certifying(path, tmp_path / "out")) == 2
    assert "0 bytes for an array of shape (1073741824, 131072)" in capsys.readouterr().err


def test_torch_out_of_memory_is_the_machines() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    on_cpu, on_gpu = caught.value, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    for error in (on_cpu, on_gpu, MemoryError()):
        assert isinstance(classified(error), MachineError)
        assert isinstance(caused_by(error, "does not run"), MachineError)
    assert not is_memory(ValueError("no file named 'out of memory.npz'"))


# --- one cause, one kind -----------------------------------------------------------------------------------------------------

_USERS = [errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP]
_MACHINES = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EFBIG, errno.EMFILE]


@pytest.mark.parametrize("number", [*_USERS, *_MACHINES, errno.EACCES, errno.EPERM])
def test_the_file_systems_answers(number: int) -> None:
    error = OSError(number, os.strerror(number), "/data/x.npz")
    allowed = number in (errno.EACCES, errno.EPERM)
    machine = number in _MACHINES
    assert isinstance(unwritable(Path("out"), error), MachineError) == (machine or allowed)
    assert isinstance(caused_by(error, "x.npz: not readable"), MachineError) == machine
    assert "/data/x.npz: " in classified(error).message
    with pytest.raises(OnnxspectError, match=r"out\.png: cannot be written") as caught, writing(Path("out.png")):
        raise error
    assert (caught.value.kind is Kind.MACHINE) == (machine or allowed)


def test_what_has_no_name_is_not_the_users() -> None:
    """tempfile says "no such file" where no temporary folder can be written."""
    assert isinstance(classified(FileNotFoundError(errno.ENOENT, "No usable temporary directory")), MachineError)
    assert isinstance(classified(sqlite3.OperationalError("disk I/O error")), MachineError)
    assert isinstance(caused_by(OSError("image file is truncated"), "x.png: not readable"), OnnxspectError)
    assert caused_by(OSError("image file is truncated"), "x.png").kind is Kind.INPUT
    assert caused_by(KeyError("a"), "odd", otherwise=InternalError).kind is Kind.INTERNAL
    assert InconclusiveError("few").kind is Kind.INCONCLUSIVE


# --- a fault of ours ---------------------------------------------------------------------------------------------------------


def test_a_fault_of_ours_says_what_to_send(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("logits")

    monkeypatch.setattr("onnxspect.cli.cmd_info.describe", broken)
    monkeypatch.delenv("ONNXSPECT_DEBUG", raising=False)
    assert run(["info", str(model), "--json"]) == 4
    err = capsys.readouterr().err
    for words in (
        "onnxspect: unexpected failure: KeyError: 'logits'",
        "not of your input",
        f"Python {platform.python_version()}",
        platform.platform(),
        "torch ",
        f"command: onnxspect info {model} --json",
        "ONNXSPECT_DEBUG=1",
    ):
        assert words in err
    assert "Traceback" not in err
    monkeypatch.setenv("ONNXSPECT_DEBUG", "1")
    with pytest.raises(KeyError):
        run(["info", str(model)])
