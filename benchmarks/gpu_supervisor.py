"""Starts everything that the GPU benchmark measures in a process of its own, and keeps what came of it.

Standard library only, so that a crash, a full card or a time limit is one row's result.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_machine import card_memory, hardware, unpack_wheels
from gpu_plan import JOBS, Job, time_for
from gpu_words import in_a_line

PACKAGES = ("onnxspect", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "scipy", "scikit-learn")
#: What a slow processor may take longer with --tiny than a job's limit.
TINY_PATIENCE = 5


@dataclass(frozen=True)
class Ran:
    """How a process ended.

    Attributes:
        seconds: wall time.
        status: exit status; None where it was killed at its limit.
        out, err: what it wrote.
    """

    seconds: float
    status: int | None
    out: str = field(repr=False)
    err: str = field(repr=False)

    @property
    def complaint(self) -> str:
        """Why it gave no result, in a line."""
        if self.status is None:
            return f"killed after {self.seconds:.0f} s"
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        return f"exit status {self.status}: {' | '.join(lines[-2:])[-400:]}"


class Failed(Exception):
    """A job ended without a result; the text says why."""


class Supervisor:
    """One run of the benchmark: its folder, its clock and its rows.

    Attributes:
        rows: filled so far, as JSON values.
        job: the present one.
        asked: names of the jobs that are to run.
        on_cpu: how the shipped pair's scans on the CPU ended.
    """

    def __init__(
        self,
        bundle: Path,
        work: Path,
        out: Path,
        device: str,
        minutes: float,
        seed: int,
        tiny: bool,
        commands: Mapping[str, Callable[[Supervisor], None]],
    ) -> None:
        self.bundle, self.work, self.out, self.device, self.seed, self.tiny = bundle, work, out, device, seed, tiny
        self._commands, self._rows = commands, {r.name: r for j in JOBS for r in j.rows}
        self.started = time.monotonic()
        self.deadline = self.started + 60 * minutes
        self.rows: list[dict[str, Any]] = []
        self.done: dict[str, bool] = {}
        self.asked: set[str] = set()
        self.on_cpu: list[Ran] = []
        # An installed package has its bytecode beside it; what a bare machine keeps without is compiled here once, at the start.
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPYCACHEPREFIX": str(work / "bytecode")}
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)  # images of containers set it
        self.header: dict[str, Any] = {
            "benchmark": "gpu",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": device,
            "tiny": tiny,
            "seed": seed,
            "minutes": minutes,
            "jobs": "all",
        }
        self.job: Job | None = None
        self._limit = 0.0
        self._began = 0.0

    def begin(self, installed: bool) -> None:
        """Unpack what is missing, and say what this is run on; what an earlier run left in the folder goes."""
        for left in ("site", "runs", "logs", "imagenet"):
            shutil.rmtree(self.work / left, ignore_errors=True)
        unpacked = [] if installed else unpack_wheels(self.bundle / "wheels", self.work / "site")
        if unpacked:
            paths = [str(self.work / "site"), os.environ.get("PYTHONPATH", "")]
            self.environment["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
        file = self.bundle / "bundle.json"
        self.header |= {
            "hardware": hardware(),
            "versions": self._versions(),
            "from_the_bundle": unpacked,
            "bundle_commit": json.loads(file.read_text())["commit"] if file.is_file() else "unknown",
        }
        if installed:
            self.header["bundle_commit"] = "not used: --installed"
        if not installed:
            self.header["compiling_seconds"] = self._compile()
        self.keep()
        print(f"{self.header['hardware']}\n{self.header['versions']}", flush=True)

    def _compile(self) -> float:
        """What commands import is compiled and kept, and matplotlib's list of fonts made, as on a machine where they ran before; seconds."""
        code = "from onnxspect.cli import worker; from onnxspect.cli.main import COMMANDS; worker.load_all(COMMANDS)"
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, cwd=self.work, env=self.environment, check=False
        )
        return round(time.monotonic() - started, 1)

    def _versions(self) -> dict[str, str | None]:
        """Of the packages as the measured processes see them."""
        code = (
            "import json, sys\nfrom importlib import metadata\nfound = {}\n"
            "for name in sys.argv[1:]:\n"
            "  try: found[name] = metadata.version(name)\n"
            "  except metadata.PackageNotFoundError: found[name] = None\n"
            "print(json.dumps(found | {'python': sys.version.split()[0]}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *PACKAGES], capture_output=True, text=True, cwd=self.work, env=self.environment
        )
        versions: dict[str, str | None] = json.loads(done.stdout) if done.returncode == 0 else {}
        return versions

    def do(self, job: Job) -> None:
        """One job, whatever happens to it."""
        self.job, self._began = job, time.monotonic()
        self._rows |= {r.name: r for r in job.rows}
        self._limit, why = time_for(job, self.deadline - self._began, self.done, TINY_PATIENCE if self.tiny else 1)
        self.done[job.name] = False
        if not self._limit:
            for row in job.rows:
                self.fill(row.name, None, "skipped", why)
            return
        try:
            self._commands[job.name](self)
            self.done[job.name] = True
        except Failed as error:
            self._rest("timed out" if str(error).startswith("killed") else "failed", str(error))
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            self._rest("failed", f"{type(error).__name__}: {error}")

    def end_within(self, seconds: float) -> None:
        """The present job is over that many seconds from now, if it is not over earlier."""
        self._limit = min(self._limit, time.monotonic() - self._began + seconds)

    def _rest(self, outcome: str, why: str) -> None:
        """The rows of the present job that nothing filled."""
        assert self.job is not None
        filled = {r["name"] for r in self.rows}
        for row in self.job.rows:
            if row.name not in filled:
                self.fill(row.name, None, outcome, why)

    def fill(self, name: str, value: float | None, outcome: str = "measured", detail: str = "", **more: Any) -> None:
        """One row is known; the file is written."""
        row = self._rows[name]
        met = None if row.goal is None or value is None else value <= row.goal
        line = {
            "name": row.name,
            "what": row.what,
            "unit": row.unit,
            "goal": row.goal,
            "before": row.before,
            "outcome": outcome,
            "value": None if value is None else round(value, 4),
            "met": met,
            "detail": self._without_paths(detail),
            "at_second": round(time.monotonic() - self.started, 1),
            **more,
        }
        self.rows.append(line)
        self.keep()
        print(in_a_line(line), flush=True)

    def _without_paths(self, text: str) -> str:
        """Results are for others to read: nothing of this machine's folders."""
        for folder in (self.work, self.bundle, Path.home()):
            text = text.replace(f"{folder}/", "")
        return text

    def keep(self) -> None:
        """Write the file, whole or not at all."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        partial = self.out.with_name(self.out.name + ".partial")
        seconds = round(time.monotonic() - self.started, 1)
        partial.write_text(json.dumps({**self.header, "seconds": seconds, "rows": self.rows}, indent=1) + "\n")
        partial.replace(self.out)

    def end(self) -> None:
        """All jobs have had their turn."""
        self.header["ended"] = True
        self.keep()

    def run(
        self, commands: Sequence[Sequence[str]], tick: Callable[[], None] = lambda: None
    ) -> tuple[list[Ran], float]:
        """Run commands at the same time until all have ended or the job's limit is over.

        Returns:
            How each ended, and the most memory in MiB that was in use on the card beyond what was before (0: not known).
        """
        assert self.job is not None
        deadline = self._began + self._limit
        folder = self.work / "logs"
        folder.mkdir(exist_ok=True)
        with card_memory() as most, contextlib.ExitStack() as stack:
            running = []
            for i, command in enumerate(commands):
                name = f"{self.job.name}-{len(list(folder.iterdir()))}-{i}"
                out = stack.enter_context((folder / f"{name}.out").open("w+"))
                err = stack.enter_context((folder / f"{name}.err").open("w+"))
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    cwd=self.work,  # not the repository's root, whose folder onnxspect/ would hide the installed package
                    env=self.environment,
                    start_new_session=True,
                )
                stack.callback(end_group, process)
                running.append((process, time.monotonic(), out, err))
            seconds: list[float | None] = [None] * len(running)
            while None in seconds and time.monotonic() < deadline:
                time.sleep(0.02)
                for i, (process, since, _, _) in enumerate(running):
                    if seconds[i] is None and process.poll() is not None:
                        seconds[i] = time.monotonic() - since
                tick()
            ran = []
            for known, (process, since, out, err) in zip(seconds, running, strict=True):
                status = process.poll() if known is not None else None
                end_group(process)
                texts = [(f.seek(0), f.read())[1] for f in (out, err)]
                ran.append(Ran(known if known is not None else time.monotonic() - since, status, *texts))
            peak = most()
        return ran, peak

    def tool(self, *arguments: str) -> list[str]:
        """A command line of the tool; reports as JSON, no progress."""
        return [sys.executable, "-m", "onnxspect", *arguments, "--seed", str(self.seed), "--json", "--quiet"]

    def scan(self, model: str, data: str, preset: str, folder: str, *more: str, device: str = "") -> list[str]:
        """A scan's command line; in --tiny with the one detector that takes no reference networks where none is named."""
        if self.tiny and not more:
            more = ("--detector", "max-margin")
        return self.tool(
            *("scan", model, "--data", data, "--preset", preset, "--out", folder, "--device", device or self.device),
            *more,
        )

    def jobs_script(self, part: str, *others: Sequence[str]) -> list[Ran]:
        """A part of gpu_jobs.py, beside other commands; its rows are filled as it writes them."""
        file = self.work / f"{part}.jsonl"
        file.unlink(missing_ok=True)
        seen = 0

        def follow() -> None:
            nonlocal seen
            lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
            for line in lines[seen:]:
                if not line.endswith("\n"):
                    break
                seen += 1
                self.fill(**json.loads(line))

        command = [
            sys.executable,
            str(Path(__file__).resolve().with_name("gpu_jobs.py")),
            part,
            "--work",
            str(self.work),
        ]
        command += [
            "--bundle",
            str(self.bundle),
            "--device",
            self.device,
            "--seed",
            str(self.seed),
            "--rows",
            str(file),
        ]
        ran, _ = self.run([command + (["--tiny"] if self.tiny else []), *others], follow)
        follow()
        if ran[0].status != 0:
            raise Failed(ran[0].complaint)
        return ran


def end_group(process: subprocess.Popen[str]) -> None:
    """The process and its children are gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def report_of(ran: Ran) -> dict[str, Any]:
    """What a scan printed.

    Raises:
        Failed: it printed no report, or was killed.
    """
    if ran.status not in (0, 1, 3) or not ran.out.strip():
        raise Failed(ran.complaint)
    report: dict[str, Any] = json.loads(ran.out)
    return report
