"""kill -9 at random moments of a scan; the report must be the undisturbed one, and nothing may be done twice.

    python benchmarks/kill_resume.py [--moments 50] [--tiny | --model FILE --data FILE] [--preset quick] [--detector NAME ...] [--out FILE]

The same scan is run once undisturbed, then again and again in fresh folders, killed at moments drawn evenly from the time
that is left, and resumed, until --moments kills have happened. Every scan that was killed must end with the exit status,
the digest and (but for times) the very report of the undisturbed one, and no unit may be reported as finished twice.
Exits with 1 where any did not.

With --forked what is killed is a fork of this process, which has all libraries loaded: the job without the command's supervisor, and
without the seconds of start-up that each kill costs otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import of_tests

from onnxspect.cli import main as command_line
from onnxspect.engine.run import RunContext
from onnxspect.models import zoo

#: Progress lines on stderr: "neural-cleanse on reference 0 4/10, 12 s left: class 3: l1 9.1".
_DONE = re.compile(r"^(.+?)(?: \d+/\d+(?:, \d+ s left)?): (class \d+|\d+ to \d+|every class to another): ")
#: After so many kills a scan is let finish, so that several scans share the kills.
KILLS_A_SCAN = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--model", type=Path, default=zoo.path("fashion_mnist_badnets"))
    parser.add_argument("--data", type=Path, default=zoo.path("fashion_mnist_test"))
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="the tests' four-class model and reverse-engineering alone: a scan of seconds",
    )
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--detector", action="append", default=[], help="as of onnxspect scan")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--forked", action="store_true", help="kill forks of this process, not whole commands")
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args(arguments)
    rng = RunContext(asked.seed).numpy_generator("moments")
    start = _forked if asked.forked else _started
    if asked.forked:
        command_line.load("scan")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if asked.tiny:
            asked.model, asked.data = _tiny(place)
            asked.detector = asked.detector or ["reverse-engineering"]
        command = ["scan", str(asked.model)]
        command += ["--data", str(asked.data), "--preset", asked.preset, "--json"]
        for name in asked.detector:
            command += ["--detector", name]
        started = time.perf_counter()
        undisturbed = _finished(start([*command, "--out", str(place / "undisturbed")]))
        whole = time.perf_counter() - started
        print(f"undisturbed: exit {undisturbed['status']}, digest {undisturbed['digest']}, {whole:.0f} s", flush=True)
        kills: list[float] = []
        failures: list[str] = []
        scans = 0
        while len(kills) < asked.moments:
            scans += 1
            run, left = place / f"run {scans}", whole
            seen: list[str] = []
            for _ in range(min(KILLS_A_SCAN, asked.moments - len(kills))):
                moment = float(rng.uniform(0, max(left, 1.0)))
                killed, lines = _killed(start([*command, "--out", str(run)]), moment)
                seen += lines
                if not killed:
                    break  # it had finished before
                kills.append(moment)
                left -= moment
                print(f"scan {scans}: killed after {moment:.1f} s, {len(lines)} units finished", flush=True)
            resumed = _finished(start([*command, "--out", str(run)]))
            seen += resumed["lines"]
            twice = sorted({line for line in seen if seen.count(line) > 1})
            if twice:
                failures.append(f"scan {scans}: done twice: {', '.join(twice[:3])}")
            failures += [
                f"scan {scans}: another {k}" for k in ("status", "digest", "report") if resumed[k] != undisturbed[k]
            ]
            print(f"scan {scans}: digest {resumed['digest']}, {'; '.join(failures) or 'the same'}", flush=True)
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": asked.model.name,
        "tiny": asked.tiny,
        "preset": asked.preset,
        "detectors": asked.detector,
        "seed": asked.seed,
        "machine": {"python": platform.python_version(), "processor": platform.machine(), "system": platform.system()},
        "versions": {p: metadata.version(p) for p in ("onnxspect", "torch")},
        "undisturbed_seconds": whole,
        "killed": "forks" if asked.forked else "commands",
        "kills": len(kills),
        "scans": scans,
        "failures": failures,
    }
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(kills)} kills in {scans} scans: {'; '.join(failures) or 'every report is the undisturbed one'}")
    return 1 if failures else 0


def _tiny(folder: Path) -> tuple[Path, Path]:
    """A planted model of four classes, and its clean samples."""
    sys.path.insert(0, str(of_tests.FOLDER))
    supervised = of_tests.module_of_tests("supervised")
    return supervised.plain(folder, target=2), supervised.data(folder)


@dataclass
class _Scan:
    """A scan that was started.

    Attributes:
        kill: ends it at once.
        wait: its exit status; None where it takes longer than so many seconds.
        out, err: what it writes.
    """

    kill: Callable[[], None]
    wait: Callable[[float | None], int | None]
    out: IO[bytes]
    err: IO[bytes]

    def said(self) -> tuple[str, str]:
        """What it wrote, once it has ended."""
        texts = []
        for stream in (self.out, self.err):
            stream.seek(0)
            texts.append(stream.read().decode())
            stream.close()
        return texts[0], texts[1]


def _started(arguments: list[str]) -> _Scan:
    """The command, as a user starts it."""
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  # closed when they have been read
    process = subprocess.Popen([sys.executable, "-m", "onnxspect", *arguments], stdout=out, stderr=err)

    def wait(seconds: float | None) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(seconds)
        return None

    return _Scan(process.kill, wait, out, err)


def _forked(arguments: list[str]) -> _Scan:
    """The same job in a fork of this process."""
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  # closed when they have been read
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            for stream, number in ((out, 1), (err, 2)):
                os.dup2(stream.fileno(), number)
            status = command_line.run(arguments)
            sys.stdout.flush()
        finally:
            os._exit(status)
    handle = os.pidfd_open(pid)

    def wait(seconds: float | None) -> int | None:
        if seconds is not None and not select.select([handle], [], [], seconds)[0]:
            return None
        _, status = os.waitpid(pid, 0)
        os.close(handle)
        return os.waitstatus_to_exitcode(status)

    return _Scan(lambda: os.kill(pid, signal.SIGKILL), wait, out, err)


def _finished(scan: _Scan) -> dict[str, Any]:
    """A scan run to its end: status, digest, the report without times, units that it reports as done."""
    status = scan.wait(None)
    out, err = scan.said()
    if status not in (0, 1, 3):
        raise SystemExit(f"the scan failed with exit status {status}: {err[-500:]}")
    report = json.loads(out)
    return {"status": status, "digest": report["digest"], "report": _timeless(report), "lines": _units(err)}


def _killed(scan: _Scan, moment: float) -> tuple[bool, list[str]]:
    """(whether it was still running after `moment` seconds and was killed, units that it had finished)."""
    alive = scan.wait(moment) is None
    if alive:
        scan.kill()
        scan.wait(None)
    return alive, _units(scan.said()[1])


def _units(said: str) -> list[str]:
    return [f"{found[1]}: {found[2]}" for line in said.splitlines() if (found := _DONE.match(line))]


def _timeless(value: object) -> object:
    """A report without what a clock or the folder's name puts into it."""
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in ("seconds", "finished", "folder")}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
