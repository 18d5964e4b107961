"""A command that gets a signal while it runs: what it says, how it ends and what it leaves."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import supervised

SIGNALS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
#: Those that read nothing but a model and its samples.
PLAIN = ("info", "scan", "convert", "certify", "data", "diff", "demo")
#: And those that need what other commands have left: `prepare_all`.
COMMANDS = (*PLAIN, "scan of many", "patch", "verify", "cleanse", "report", "view", "references")
_READY_SECONDS, _END_SECONDS = 30.0, 90.0


def prepare(work: Path) -> None:
    """A planted model and its clean samples."""
    supervised.plain(work, target=2)
    supervised.data(work)


def prepare_all(work: Path) -> None:
    """A finished scan besides, a second model, and a request for references."""
    prepare(work)
    (work / "second.onnx").write_bytes((work / "model.onnx").read_bytes())
    asked = ["scan", work / "model.onnx", "--data", work / "data.npz", "--preset", "quick"]
    scanned = supervised.command(*asked, "--detector", "neural-cleanse", "--out", work / "run")
    assert scanned.status == 1, scanned.err
    supervised.command(*asked, "--shelf", work / "shelf", "--out", work / "asking")
    assert (work / "asking" / "references-wanted.json").is_file()


def line_of(command: str, work: Path, out: Path) -> list[object]:
    """Its command line, on what lies in `work`; what it makes goes to `out`."""
    model, data = work / "model.onnx", work / "data.npz"
    searched = ["--data", data, "--preset", "quick"]
    return {
        "info": ["info", model],
        "scan": ["scan", model, *searched, "--out", out / "run"],
        "scan of many": ["scan", model, work / "second.onnx", *searched, "--out", out / "runs", "--no-cache"],
        "convert": ["convert", model, "-o", out / "copy.onnx"],
        "certify": ["certify", data, "--classes", "0", "1", "--out", out / "certificate"],
        "data": ["data", data, "--pictures", out / "pictures.png"],
        "diff": ["diff", model, model],
        "demo": ["demo", "--out", out / "demo"],
        "patch": ["patch", model, "--run", work / "run", "--data", data, "-o", out / "patched.onnx"],
        "verify": ["verify", model, "--against", model, "--run", work / "run", "--data", data],
        "cleanse": ["cleanse", model, "--train", data, "--out", out / "cleansed"],
        "report": ["report", work / "run", "--format", "html"],
        "view": ["view", work / "run"],
        "references": ["references", work / "asking" / "references-wanted.json", *searched, "--out", out / "shelf"],
    }[command]  # fmt: skip


def problems(command: str, number: int, seconds: float, work: Path, place: Path) -> tuple[list[str], bool]:
    """Start it, and send it a signal.

    Args:
        command: one of COMMANDS.
        number: of the signal.
        seconds: before it is sent, from the moment at which the command listens for signals. Before that, for some tenths of a second,
            the signal ends Python, which has made nothing yet.
        work: with what `prepare` or `prepare_all` has made.
        place: an empty folder, for its temporary files and what it makes.

    Returns:
        What is not as it should be; whether the signal came before it had ended by itself.
    """
    temporary, out = place / "tmp", place / "out"
    temporary.mkdir()
    out.mkdir()
    mark = f"mark-{secrets.token_hex(8)}"
    if signal.getsignal(number) is signal.SIG_IGN:
        raise ValueError(f"{signal.Signals(number).name} is ignored here, and so by every command that is started")
    process = supervised.started(*line_of(command, work, out), temporary=temporary, environment={"PYTHONMARK": mark})
    wait_for_its_handler(process)
    time.sleep(seconds)
    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return [f"it had not ended after {_END_SECONDS:.0f} s"], True
    name = signal.Signals(number).name
    wanted = (0, "") if command == "view" and number == signal.SIGINT else (4, f"onnxspect: interrupted by {name} (")
    if command == "scan of many":
        wanted = (4, "onnxspect: interrupted")
    said = [line for line in err.splitlines() if line.startswith("onnxspect:")]
    interrupted = "interrupted" in err or (wanted[0] == 0 and process.returncode == 0)
    found = []
    if not interrupted and process.returncode not in (0, 1, 2, 3):
        found.append(f"status {process.returncode}: {err[-200:]!r}")
    if interrupted and (process.returncode != wanted[0] or [s.startswith(wanted[1]) for s in said] not in ([True], [])):
        found.append(f"status {process.returncode}, {said}")
    if interrupted and wanted[0] and not said:
        found.append(f"no line says so: {err[-200:]!r}")
    if "Traceback" in err:
        found.append(f"a traceback: {err[-400:]!r}")
    found += [f"left: {p.name}" for p in temporary.iterdir()]
    left = (p.name for p in out.rglob("*"))
    found += [f"left: {n}" for n in left if n.endswith(".part") or n.startswith(".onnxspect-")]
    found += [f"still running: {one}" for one in _running(mark)]
    return found, interrupted


def wait_for_its_handler(process: subprocess.Popen[str]) -> None:
    """Until it catches SIGTERM, as the kernel's mask of caught signals says; without such a mask, half a second."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        time.sleep(0.5)
        return
    until = time.monotonic() + _READY_SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            mask = next(s.split()[1] for s in status.read_text().splitlines() if s.startswith("SigCgt:"))
        except OSError:
            return
        if int(mask, 16) & 1 << (signal.SIGTERM - 1):
            return
        time.sleep(0.005)


def _running(mark: str) -> Sequence[str]:
    """Processes with this word in their environment, a moment later at most."""
    for pause in (0.0, 0.2, 1.0):
        time.sleep(pause)
        found = [*_with(mark)]
        if not found:
            return []
    return found


def _with(mark: str) -> list[str]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if int(place.name) != os.getpid() and mark.encode() in (place / "environ").read_bytes():
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found
