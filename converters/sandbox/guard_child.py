"""The child's side of the guard: lock this process in, do one job on an untrusted file, write down the result.

Run as ``python -P -m onnxspect.converters.sandbox.guard_child``; the request is one line of JSON on standard input (written by
guard.py, so trusted), the results are files in the work folder (read by guard.py, which does not trust them). It
imports nothing heavy until the process may read no foreign file any more.

With ``{"ahead": true}`` it locks its files, imports the job's libraries and waits for the request, which is the next line:
so this can be done before the file is known, while the parent is busy.

With ``{"serve": true}`` it becomes a warm pool: the libraries of the job are imported once, and every further line
is done in a forked copy, so each file still meets a process of its own.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxspect.converters import stages
from onnxspect.converters.errors import Kind, MachineError, OnnxspectError, is_memory
from onnxspect.converters.sandbox import linux as sandbox_linux
from onnxspect.converters.sandbox import lock
from onnxspect.converters.stages import stage
from onnxspect.converters.text import printable

Job = Callable[[dict[str, Any], Path], dict[str, Any]]

# job -> module (any other name is a module itself) with `preload(request)`, which imports what it needs before
# the process is locked in, and `run(request, folder) -> result`.
JOBS = {"probe": "onnxspect.converters.file.probe_job", "convert": "onnxspect.converters.sources.convert_job"}
RESULT = "result.json"
MEMORY = "memory"  # in place of a `Kind`: memory ran out, within limits that the parent set and puts into words
PROBE_MODEL, PROBE_WEIGHTS, PROBE_INFERRED = "model.onnx", "weights.bin", "inferred.onnx"


def main() -> int:
    """Do the job on standard input; the exit status is 0 also where the job ended in an error that was written down."""
    if sys.platform == "linux":
        sandbox_linux.die_with_parent()
    request = json.loads(sys.stdin.readline())
    if request.get("serve"):
        return _serve(request)
    return do(request)


def do(request: dict[str, Any]) -> int:
    """Lock in, preload, limit, run; write down what came of it."""
    folder = Path(request["folder"])
    os.chdir(folder)
    stages.record_in(folder)
    level = lock.Level()
    outcome: dict[str, Any]
    began = False
    try:
        stage("sandbox")
        lock.files(level, request["readable"], [folder])
        job = _preload(request)
        if request.get("ahead"):
            line = sys.stdin.readline()
            if not line:  # the parent has no use for this process
                return 0
            request = json.loads(line)
        _lock_in(request, level)
        began = True
        outcome = _done(job, request, folder)
    except OnnxspectError as error:
        outcome = {"error": error.message, "hint": error.hint, "kind": error.kind.value}
    except BaseException as error:  # the parent is to hear of everything, SystemExit of a framework included
        outcome = {"error": _one_line(error), "kind": MEMORY if is_memory(error) else _kind(error, began).value}
    outcome["applied"], outcome["missing"] = level.applied, level.missing
    (folder / RESULT).write_text(json.dumps(outcome), encoding="utf-8")
    return 0


def _lock_in(request: dict[str, Any], level: lock.Level) -> None:
    """Limits and a filter of system calls, before anything of the file is read."""
    given = request["limits"]
    lock.limits(level, int(given["memory_bytes"]), float(given["seconds"]), int(given["output_bytes"]))
    lock.calls(level)
    if request["require_sandbox"]:
        level.require()
    request["sandbox_missing"] = level.missing


def _done(job: Job, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    stage("start")
    before = _peak_bytes()
    start = time.monotonic()
    _alarm(float(request["limits"]["seconds"]))
    result = job(request, folder)
    _alarm(0)
    return {
        "result": result,
        "seconds": time.monotonic() - start,
        "peak_bytes": max(_peak_bytes() - before, 0),
    }


def _alarm(seconds: float) -> None:
    """End this process after so many seconds, unless the job undoes it; then the parent does."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _serve(first: dict[str, Any]) -> int:
    _preload(first)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if sys.platform != "linux":  # fork is safe here only while no library has threads, which is known of Linux
        raise MachineError("a warm pool needs Linux")
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                sandbox_linux.die_with_parent()
                nowhere = os.open(os.devnull, os.O_RDWR)
                for fd in (0, 1, 2):  # the copy must not talk to the parent in the pool's name
                    os.dup2(nowhere, fd)
                code = do(request)
            finally:
                os._exit(code)
        deadline = time.monotonic() + request["limits"]["seconds"]
        pause = 0.001
        timed_out = False
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline and not timed_out:
                timed_out = True
                os.kill(pid, 9)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.02)
        code = os.waitstatus_to_exitcode(status)
        sys.stdout.write(json.dumps({"code": code, "timed_out": timed_out}) + "\n")
        sys.stdout.flush()
    return 0


def _preload(request: dict[str, Any]) -> Job:
    module = importlib.import_module(JOBS.get(request["job"], request["job"]))
    module.preload(request)
    job: Job = module.run
    return job


def _peak_bytes() -> int:
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _kind(error: BaseException, began: bool) -> Kind:
    """Whom an exception blames that no job expected: a disk, where one failed; else the file, over which a library stumbled.

    What the sandbox refuses (EACCES, EFBIG, EMFILE) was the file's doing too. Before the job began, nothing of the file was
    read: then the fault is ours.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO, errno.EROFS):
        return Kind.MACHINE
    return Kind.INPUT if began else Kind.INTERNAL


def _one_line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    named = text if isinstance(error, RuntimeError) else f"{type(error).__name__}: {text}"
    return printable(" ".join(named.split()), 600)


if __name__ == "__main__":
    # `python -m` runs this file as __main__; jobs that import it by name must meet the same module.
    sys.modules.setdefault("onnxspect.converters.sandbox.guard_child", sys.modules["__main__"])
    sys.exit(main())
