"""The promise of the command line, held by real processes: whatever a file does, the command ends in a line, and cleanly."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import supervised
from conftest import quadrant_images, saved
from PIL import Image

from onnxspect.cli.main import run
from onnxspect.converters.sandbox import linux

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there a command runs in one process")
locked = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64") or linux.landlock_version() < 1,
    reason="needs Linux with Landlock, on x86-64 or aarch64",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that do harm from batch 2 on, samples, and a finished run of the harmless one with a backdoor."""
    folder = tmp_path_factory.mktemp("hostile")
    saved(supervised.crashing(), folder / "crashing.onnx")
    saved(supervised.filling(), folder / "filling.onnx")
    supervised.plain(folder, target=2)
    supervised.data(folder)
    found = run(
        ["scan", str(folder / "model.onnx"), "--data", str(folder / "data.npz"), "--preset", "quick", "-q"]
        + ["--detector", "neural-cleanse", "--out", str(folder / "run")]
    )
    assert found == 1
    return folder


#: Another command that opens the model in the same worker, as one that runs by default does.
ALIKE = pytest.mark.heavy


def line_of(command: str, work: Path, model: str, out: Path) -> list[object]:
    """A command that opens `model`."""
    file, data = work / model, work / "data.npz"
    return {
        "info": ["info", file],
        "scan": ["scan", file, "--data", data, "--preset", "quick", "--out", out / "new"],
        "patch": ["patch", file, "--run", work / "run", "--data", data, "-o", out / "p.onnx"],
        "verify": ["verify", file, "--against", work / "model.onnx", "--data", data, "--run", work / "run"],
    }[command]


@pytest.mark.parametrize(
    "command", ["info", pytest.param("scan", marks=ALIKE), "patch", pytest.param("verify", marks=ALIKE)]
)
def test_a_model_that_crashes_whoever_runs_it(command: str, work: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "out").mkdir()
    ended = supervised.command(*line_of(command, work, "crashing.onnx", tmp_path / "out"), temporary=tmp_path / "tmp")
    assert ended.status == 4, ended.err
    assert ended.out == ""
    assert ended.said[0].startswith("onnxspect: the worker crashed (SIGFPE in "), ended.err
    assert len(ended.said) == 2
    assert list((tmp_path / "tmp").iterdir()) == []
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are kept on Linux only")
@pytest.mark.parametrize(
    "command", [pytest.param("info", marks=ALIKE), "scan", pytest.param("patch", marks=ALIKE), "verify"]
)
def test_a_model_that_fills_memory(command: str, work: Path, tmp_path: Path) -> None:
    ended = supervised.command(*line_of(command, work, "filling.onnx", tmp_path), "--max-memory", "600M")
    assert ended.status == 4, ended.err
    assert len(ended.said) == 2
    assert "memory" in ended.said[0]
    assert "--max-memory" in ended.said[1] or "memory" in ended.said[1]
    assert list(tmp_path.iterdir()) == []


def test_time_is_a_limit_too(work: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    ended = supervised.command("info", work / "model.onnx", "--max-seconds", "1", temporary=tmp_path)
    assert (ended.status, ended.out) == (4, "")
    assert ended.said[0].startswith("onnxspect: took more than 1 s (")
    assert time.monotonic() - start < 30
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are found in /proc")
def test_a_worker_that_was_killed_and_the_scan_after_it(work: Path, tmp_path: Path) -> None:
    """As the kernel does it when memory runs out: a line, status 4, and what was finished is in the ledger."""
    asked = ["scan", work / "model.onnx", "--data", work / "data.npz", "--preset", "quick", "--device", "cpu"]
    asked += ["--detector", "neural-cleanse", "--out", tmp_path / "run"]
    (tmp_path / "tmp").mkdir()
    process = supervised.started(*asked, temporary=tmp_path / "tmp")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("neural-cleanse on reference 0 1/"):
            break
    (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4
    said = [line for line in err.splitlines() if not line.startswith("neural-cleanse")]
    assert said[0].startswith(
        "onnxspect: the worker was killed, as when memory runs out (in neural-cleanse on reference 0)"
    )
    assert len(said) == 2
    assert list((tmp_path / "tmp").iterdir()) == []
    # To the end and to the same report goes test_end_to_end.py.
    again = supervised.started(*asked, temporary=tmp_path / "tmp")
    assert again.stderr is not None
    begun = next(line for line in again.stderr if line.startswith("neural-cleanse on reference 0: 4 to do, "))
    assert "done before" in begun
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=60)
    assert again.returncode == 4


@locked
def test_where_a_measure_is_missing_it_is_said_or_refused(work: Path) -> None:
    """Landlock taken away from the command by a filter of its own, as in a container that does not let it through."""
    without = (
        "import ctypes, errno, struct\n"
        "from onnxspect.converters.sandbox import linux as l\n"
        "l.no_new_privileges()\n"
        "steps = [(0x20,0,0,0), (0x15,0,1,444), (0x06,0,0,0x00050000|errno.ENOSYS), (0x06,0,0,0x7FFF0000)]\n"
        "code = ctypes.create_string_buffer(b''.join(struct.pack('=HBBI', *s) for s in steps))\n"
        "header = ctypes.create_string_buffer(struct.pack('@HP', len(steps), ctypes.addressof(code)))\n"
        "assert l._syscall(l._SECCOMP[l.platform.machine()], 1, 0, header) == 0\n"
    )
    refused = supervised.command("info", work / "model.onnx", "--require-sandbox", before=without)
    assert (refused.status, refused.out) == (2, "")
    assert "Landlock missing" in refused.said[0]
    said = supervised.command("info", work / "model.onnx", before=without)
    assert said.status == 0
    assert "not locked in completely: this system lacks Landlock" in said.err
    here = supervised.command("info", work / "model.onnx", "--require-sandbox")
    assert here.status == 0
    assert "not locked in" not in here.err


#: What a worker that was taken over would try, in place of the command; each line printed says what came of one attempt.
TAKEN_OVER = """
import ctypes, os, socket, subprocess, sys
from onnxspect.cli import main as command_line, worker

def attempt(name, deed):
    try:
        print(name, "did", deed())
    except OSError as error:
        print(name, "refused", error.errno)

def run(arguments, level, memory_bytes):
    secret, model, out, gone = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    def failing(value):
        if value < 0:
            raise OSError(ctypes.get_errno(), "")
        return value
    attempt("model", lambda: len(open(model, "rb").read()))
    attempt("result", lambda: open(os.path.join(out, "own"), "w").write("x"))
    attempt("secret", lambda: open(secret).read())
    attempt("listing", lambda: os.listdir(os.path.dirname(secret)))
    attempt("overwriting", lambda: open(model, "r+b").write(b"x"))
    attempt("elsewhere", lambda: open(gone, "w").write("x"))
    attempt("program", lambda: subprocess.run(["/bin/true"]))
    attempt("fork", os.fork)
    attempt("socket", lambda: socket.socket().fileno())
    attempt("memory", lambda: failing(libc.shmget(0x5A18, 4096, 0o1666)))
    attempt("queue", lambda: failing(libc.msgget(0x5A18, 0o1666)))
    attempt("parent", lambda: os.kill(os.getppid(), 0))
    attempt("environment of the parent", lambda: open(f"/proc/{os.getppid()}/environ", "rb").read(1))
    print("level", *level.applied, "missing", *level.missing)
    return 0

command_line.run = run
worker.main()
"""


@locked
def test_a_worker_that_was_taken_over(work: Path, tmp_path: Path) -> None:
    """The real worker and supervisor; only what the worker does once it is locked in is a hostile program's."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("token")
    (tmp_path / "out").mkdir()
    gone = tmp_path / "gone"
    code = tmp_path / "taken_over.py"
    code.write_text(TAKEN_OVER)
    arguments = [str(tmp_path / "secret" / "key"), str(work / "model.onnx"), str(tmp_path / "out"), str(gone)]
    before = (
        "import subprocess as s\n"
        "start = s.Popen.__init__\n"
        "def other(self, command, *a, **k):\n"
        f"    start(self, [command[0], '-P', {str(code)!r}, *{arguments!r}] if 'onnxspect.cli.worker' in command else command, *a, **k)\n"
        "s.Popen.__init__ = other\n"
    )
    ended = supervised.command(
        "scan", work / "model.onnx", "--data", work / "data.npz", "--out", tmp_path / "out", before=before
    )
    assert ended.status == 0, ended.err
    lines = dict(line.split(" ", 1) for line in ended.out.splitlines() if not line.startswith("environment"))
    assert lines.pop("model").startswith("did ")
    assert lines.pop("result") == "did 1"
    level = lines.pop("level")
    assert "seccomp" in level
    assert level.endswith("missing")
    assert all(what.startswith("refused ") for what in lines.values()), lines
    assert "environment of the parent refused" in ended.out
    assert "token" not in ended.out
    assert not gone.exists()


@pytest.mark.parametrize("rows", ["pics/{}.png", "{}"])
def test_pictures_beside_a_list_are_read(rows: str, tmp_path: Path) -> None:
    """The worker may read what lies beside the list, and not list their folder; a list of names alone is looked up in folders beside it."""
    (tmp_path / "set" / "pics").mkdir(parents=True)
    for i in range(4):
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(tmp_path / "set" / "pics" / f"{i}.png")
    lines = "".join(f"{rows.format(i)},{i % 2}\n" for i in range(4))
    (tmp_path / "set" / "list.csv").write_text(f"file,label\n{lines}")
    ended = supervised.command("data", tmp_path / "set" / "list.csv", "--json")
    assert ended.status == 0, ended.err
    assert json.loads(ended.out)["images"] == 4


def test_outputs_are_whole_and_alone(work: Path, tmp_path: Path) -> None:
    """The worker may not write in an output's folder; the supervisor renames what it made. Nothing else is there afterwards."""
    ended = supervised.command("convert", work / "model.onnx", "-o", tmp_path / "copy.onnx", "--json")
    assert ended.status == 0, ended.err
    assert ended.out == (tmp_path / "copy.onnx.json").read_text()  # said from memory: what has its name, it cannot read
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.onnx", "copy.onnx.json"]
    assert (tmp_path / "copy.onnx").read_bytes() == (work / "model.onnx").read_bytes()
    assert (tmp_path / "copy.onnx").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def test_external_data_beside_a_model_is_read(tmp_path: Path) -> None:
    """A patch of a model with external data: read from beside it, written beside the output."""
    model = onnx.load(supervised.plain(tmp_path))
    onnx.save(model, tmp_path / "outside.onnx", save_as_external_data=True, location="outside.bin", size_threshold=0)
    ended = supervised.command("info", tmp_path / "outside.onnx")
    assert ended.status == 0, ended.err


def test_a_usage_error_needs_no_worker(work: Path) -> None:
    start = time.monotonic()
    ended = supervised.command("scan", work / "model.onnx", "--data", work / "data.npz", "--nonsense")
    assert (ended.status, ended.out) == (2, "")
    assert "No such option" in ended.err
    assert "--nonsense" in ended.err
    assert "Usage: onnxspect scan" in ended.err
    assert time.monotonic() - start < 10


def _cpu_seconds(code: str, *arguments: object) -> float:
    """Processor time of a process and all that it waited for: the least of two."""
    import resource

    found = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


def test_help_is_there_at_once() -> None:
    """0.10 s of processor time on the machine it was written on (0.15 s are promised); twice that for a slower one."""
    assert _cpu_seconds(supervised.MAIN, "--help") < 0.3


@pytest.mark.heavy
def test_what_the_worker_costs(work: Path) -> None:
    """The same command with and without a worker, side by side: less than 0.3 s more, and as much again for a busy machine."""
    alone = _cpu_seconds("import sys; from onnxspect.cli.main import run; sys.exit(run())", "report", work / "run")
    with_worker = _cpu_seconds(supervised.MAIN, "report", work / "run")
    assert with_worker - alone < 0.6


def test_samples_beside_the_files_asked_for_are_not_readable(work: Path, tmp_path: Path) -> None:
    """A folder of images with a link out of it: what it leads to was not given, so it is not read."""
    from PIL import Image

    samples = quadrant_images(30)
    for i, (image, label) in enumerate(zip(samples.images, samples.labels, strict=True)):
        folder = tmp_path / "data" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(image[0] * 255).astype(np.uint8)).save(folder / f"{i}.png")
    (tmp_path / "outside.png").write_bytes((tmp_path / "data" / "0").iterdir().__next__().read_bytes())
    (tmp_path / "data" / "0" / "link.png").symlink_to(tmp_path / "outside.png")
    ended = supervised.command(
        "scan", work / "model.onnx", "--data", tmp_path / "data", "--preset", "quick", "--out", tmp_path / "run"
    )
    assert ended.status in (2, 4)
    assert "link.png" in ended.said[0]
