"""What a GPU makes of onnxspect, on a bare CUDA machine without network: `make gpu`, or from the bundle alone

    python gpu.py --bundle DIR --out FILE.json [--device cuda] [--minutes 8] [--only quick,standard] [--tiny] [--installed]

DIR is what `make gpu-bundle` laid out (benchmarks/gpu_bundle.py). The machine needs Python 3.12, torch, onnx, onnxruntime, numpy, scipy and
scikit-learn; what else is missing is unpacked from DIR/wheels. It trains a backdoored wide ResNet-18 (CIFAR-10) and a backdoored network
of 43 classes (GTSRB), and measures whole commands from files to report, single searches, single steps, and whether the GPU says what the
CPU says; the goal stands beside every row. docs/gpu.md explains the rows.

This file is the supervisor: it imports nothing but the standard library and starts everything that is measured in a process of its own
(commands of the tool, or gpu_jobs.py), so that a crash, a full card or a time limit is one row's result. Jobs run in the order of their
importance; what no longer fits into --minutes is skipped and says so. FILE is written anew after every row.

--tiny runs all of it on a CPU in four minutes of processor time, on small networks and images, to show that it works; its figures mean
nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("onnxspect", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "scipy", "scikit-learn")
#: Seconds of the whole that are kept for the end: the table, the last write.
RESERVE = 3.0
#: What a slow processor may take longer with --tiny than a job's limit.
TINY_PATIENCE = 5
#: How many scans share the card in the job `sharing`.
SHARING = 6
GIB = 1024.0  # MiB


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: its key.
        what: what is measured, in words.
        unit: of value and goal.
        goal: at most so much; None where there is no goal.
        before: what was measured before any work on GPUs, on one H100 with torch 2.11+cu130.
    """

    name: str
    what: str
    unit: str = "s"
    goal: float | None = None
    before: str = ""


@dataclass(frozen=True)
class Job:
    """One piece of work that fills rows.

    Attributes:
        name: what --only takes.
        rows: that it fills.
        limit: seconds after which it is killed.
        least: seconds that must be left for it to be started.
        needs: jobs that must have left what it works on.
    """

    name: str
    rows: tuple[Row, ...]
    limit: float
    least: float
    needs: tuple[str, ...] = ()


WIDE, SIGNS = "wide ResNet-18, CIFAR-10", "43 classes, GTSRB"

#: All jobs, the most important first.
JOBS = (
    Job(
        "prepare",
        (
            Row("train_wide", f"training: {WIDE}, with a backdoor"),
            Row("train_signs", f"training: {SIGNS}, with a backdoor"),
        ),
        limit=170,
        least=60,
    ),
    Job(
        "quick",
        (Row("quick", f"scan --preset quick, {WIDE}", goal=6, before="20.5 s; refused with TF32"),),
        90,
        6,
        ("prepare",),
    ),
    Job(
        "standard",
        (
            Row("standard", f"scan --preset standard, {WIDE}", goal=15),
            Row("nc_inside", "of it neural-cleanse: 10 labels and pairs", goal=3, before="13.6 s"),
            Row("re_inside", "of it reverse-engineering: 90 pairs", goal=3, before="6.7 s"),
            Row("cepa_inside", "of it cepa", before="1.2 s"),
            Row("margin_inside", "of it max-margin", before="0.7 s"),
        ),
        120,
        15,
        ("prepare",),
    ),
    Job(
        "steps",
        (
            Row("pass_fp32", "forward and back to 480 images, IEEE float32", "ms", before="50.4 ms"),
            Row("pass_tf32", "the same, TF32", "ms"),
            Row("pass_bf16", "the same, bf16 autocast, channels-last", "ms", before="8.7 ms"),
            Row("pass_best", "the same, bf16, channels-last, BatchNorm folded", "ms"),
            Row("pass_graph", "the same as a CUDA graph", "ms"),
            Row("step", "one search step, 10 units x 48 images", "ms", before="60.6 ms"),
            Row("overhead", "search step / fastest bare pass", "", goal=1.15, before="7.0"),
            Row("launches", "calls of the host that launch work, a step", "", before="334"),
            Row("kernels", "kernels on the chip, a step", ""),
            Row("busy", "of a step's time the chip is not busy", "%", before="2"),
        ),
        100,
        25,
        ("prepare",),
    ),
    Job(
        "shipped",
        (Row("shipped", "shipped pair: verdicts or targets that differ from the CPU's", "of 2", goal=0),),
        60,
        8,
        ("prepare",),
    ),
    Job("patch", (Row("patch", f"patch --method unlearn, {WIDE}", goal=10),), 90, 10, ("standard",)),
    Job(
        "signs",
        (Row("signs", f"scan --preset standard, {SIGNS}", goal=20, before="1 of 6 sharing the card ended in 170 s"),),
        120,
        20,
        ("prepare",),
    ),
    Job(
        "lite0",
        (
            Row("lite0", "scan --preset quick, EfficientNet-Lite0, 1,000 classes", goal=60, before="out of memory"),
            Row("lite0_memory", "of it the most memory on the card", "GiB", goal=16, before="> 79 GiB"),
        ),
        100,
        30,
    ),
    Job("thorough", (Row("thorough", f"scan --preset thorough, {WIDE}", goal=45),), 130, 40, ("prepare",)),
    Job("again", (Row("again", "the quick scan's command again, its run folder kept"),), 30, 5, ("quick",)),
    Job(
        "opens",
        (Row("refused", "networks that are refused when opened", "", goal=0, before="22 of 22"),),
        90,
        30,
    ),
    *(
        Job(
            f"alone_{short}",
            (Row(f"alone_{short}", f"--detector {detector} alone, standard: its searches", goal=goal, before=before),),
            60,
            8,
            ("prepare",),
        )
        for short, detector, goal, before in (
            ("nc", "neural-cleanse", 3, "13.6 s"),
            ("re", "reverse-engineering", 3, "6.7 s"),
            ("cepa", "cepa", None, "1.2 s"),
            ("margin", "max-margin", None, "0.7 s"),
        )
    ),
    Job(
        "sharing",
        (
            Row(
                "sharing",
                f"{SHARING} scans at once, standard, {SIGNS}: not ended",
                f"of {SHARING}",
                goal=0,
                before="5 of 6",
            ),
            Row("sharing_seconds", "the same: until the last one ended"),
        ),
        170,
        60,
        ("prepare",),
    ),
)
SHIPPED = ("fashion_mnist_badnets", "fashion_mnist_clean")
DETECTORS = {"nc": "neural-cleanse", "re": "reverse-engineering", "cepa": "cepa", "margin": "max-margin"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit status 0 unless nothing could be prepared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parent
    parser.add_argument(
        "--bundle", type=Path, default=here if (here / "bundle.json").is_file() else here.parent / "bundle"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="cuda, and cpu with --tiny")
    parser.add_argument("--minutes", type=float, default=8, help="for everything")
    parser.add_argument("--only", help="these jobs, by name, and what they need: " + ", ".join(j.name for j in JOBS))
    parser.add_argument("--tiny", action="store_true", help="everything small, on a CPU")
    parser.add_argument("--installed", action="store_true", help="the onnxspect of this Python, not the bundle's wheel")
    parser.add_argument("--work", type=Path, help="keep models, run folders and logs here")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    try:
        jobs = chosen(asked.only)
    except ValueError as error:
        parser.error(str(error))
    if not (asked.bundle / "data").is_dir():
        parser.error(f"{asked.bundle}: no bundle there; `make gpu-bundle` lays one out")
    device = asked.device or ("cpu" if asked.tiny else "cuda")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a stopped benchmark stops what it started
    with contextlib.ExitStack() as stack:
        work = asked.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxspect-gpu-")))
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(asked.bundle.resolve(), work.resolve(), asked.out, device, asked.minutes, asked.seed, asked.tiny)
        bench.asked = {j.name for j in jobs}
        if asked.only:
            bench.header["jobs"] = sorted(bench.asked)
        bench.begin(asked.installed)
        for job in jobs:
            bench.do(job)
        bench.end()
    print(table(bench.rows))
    return 0 if bench.rows and any(r["outcome"] == "measured" for r in bench.rows) else 1


def chosen(only: str | None) -> list[Job]:
    """The jobs to run in order: all, or those named (comma-separated) with all that they need.

    Raises:
        ValueError: no such job.
    """
    if only is None:
        return list(JOBS)
    by_name = {j.name: j for j in JOBS}
    waiting, wanted = [n.strip() for n in only.split(",") if n.strip()], set()
    while waiting:
        name = waiting.pop()
        if name not in by_name:
            raise ValueError(f"no job {name!r}; one of {', '.join(by_name)}")
        if name not in wanted:
            wanted.add(name)
            waiting += by_name[name].needs
    return [j for j in JOBS if j.name in wanted]


def time_for(job: Job, left: float, done: Mapping[str, bool], patience: float = 1) -> tuple[float, str]:
    """(seconds it may take, "") or (0, why it is skipped).

    Args:
        job: the next one.
        left: seconds until everything must have ended.
        done: job -> whether it left what others need, of those that ran or were skipped.
        patience: the limits of jobs are multiplied by it.
    """
    missing = [n for n in job.needs if not done.get(n)]
    if missing:
        return 0, f"needs {', '.join(missing)}"
    may = min(job.limit * patience, left - RESERVE)
    if may < job.least:
        return 0, f"{max(left, 0):.0f} s left, it may need {job.least:.0f}"
    return may, ""


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


class Bench:
    """One run of the benchmark: its folder, its clock and its rows.

    Attributes:
        rows: filled so far, as JSON values.
    """

    def __init__(self, bundle: Path, work: Path, out: Path, device: str, minutes: float, seed: int, tiny: bool) -> None:
        self.bundle, self.work, self.out, self.device, self.seed, self.tiny = bundle, work, out, device, seed, tiny
        self.started = time.monotonic()
        self.deadline = self.started + 60 * minutes
        self.rows: list[dict[str, Any]] = []
        self.done: dict[str, bool] = {}
        self.asked: set[str] = set()
        self.on_cpu: list[Ran] = []
        # An installed package has its bytecode beside it; what a bare machine keeps read-only is compiled once, in the training job.
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPYCACHEPREFIX": str(work / "bytecode")}
        self.header: dict[str, Any] = {
            "benchmark": "gpu",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": device,
            "tiny": tiny,
            "seed": seed,
            "minutes": minutes,
            "jobs": "all",
        }
        self._job: Job | None = None
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
        told = self.bundle / "bundle.json"
        self.header |= {
            "hardware": hardware(),
            "versions": self._versions(),
            "from_the_bundle": unpacked,
            "bundle_commit": json.loads(told.read_text())["commit"] if told.is_file() else "unknown",
        }
        if installed:
            self.header["bundle_commit"] = "not used: --installed"
        self.keep()
        print(f"{self.header['hardware']}\n{self.header['versions']}", flush=True)

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
        self._job, self._began = job, time.monotonic()
        self._limit, why = time_for(job, self.deadline - self._began, self.done, TINY_PATIENCE if self.tiny else 1)
        self.done[job.name] = False
        if not self._limit:
            for row in job.rows:
                self.fill(row.name, None, "skipped", why)
            return
        try:
            getattr(self, f"_do_{job.name}", self._do_alone)()
            self.done[job.name] = True
        except Failed as error:
            self._rest("timed out" if str(error).startswith("killed") else "failed", str(error))
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            self._rest("failed", f"{type(error).__name__}: {error}")

    def _rest(self, outcome: str, why: str) -> None:
        """The rows of the present job that nothing filled."""
        assert self._job is not None
        filled = {r["name"] for r in self.rows}
        for row in self._job.rows:
            if row.name not in filled:
                self.fill(row.name, None, outcome, why)

    def fill(self, name: str, value: float | None, outcome: str = "measured", detail: str = "", **more: Any) -> None:
        """One row is known; the file is written."""
        row = next(r for j in JOBS for r in j.rows if r.name == name)
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

    # Processes

    def run(
        self, commands: Sequence[Sequence[str]], tick: Callable[[], None] = lambda: None
    ) -> tuple[list[Ran], float]:
        """Run commands at the same time until all have ended or the job's limit is over.

        Returns:
            How each ended, and the most memory in MiB that was in use on the card beyond what was before (0: not known).
        """
        assert self._job is not None
        deadline = self._began + self._limit
        folder = self.work / "logs"
        folder.mkdir(exist_ok=True)
        with card_memory() as most, contextlib.ExitStack() as stack:
            running = []
            for i, command in enumerate(commands):
                name = f"{self._job.name}-{len(list(folder.iterdir()))}-{i}"
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
        told = self.work / f"{part}.jsonl"
        told.unlink(missing_ok=True)
        seen = 0

        def follow() -> None:
            nonlocal seen
            lines = told.read_text().splitlines(keepends=True) if told.is_file() else []
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
            "--told",
            str(told),
        ]
        ran, _ = self.run([command + (["--tiny"] if self.tiny else []), *others], follow)
        follow()
        if ran[0].status != 0:
            raise Failed(ran[0].complaint)
        return ran

    # Jobs: _do_<name>

    def _do_prepare(self) -> None:
        beside = [self._shipped_scan(model, "cpu") for model in SHIPPED] if "shipped" in self.asked else []
        self.on_cpu = self.jobs_script("prepare", *beside)[1:]

    def _do_steps(self) -> None:
        self.jobs_script("steps")

    def _do_opens(self) -> None:
        self.jobs_script("opens")

    def _scanned(self, row: str, command: Sequence[str], trained: str) -> tuple[dict[str, Any], float]:
        """One scan's report and peak memory in MiB; its row filled with the command's wall time."""
        (ran,), peak = self.run([command])
        report = report_of(ran)
        planted = next((r["target"] for r in self.rows if r["name"] == trained), None)
        self.fill(row, ran.seconds, "measured", verdict_in_words(report, planted), **told_by(report, peak))
        return report, peak

    def _do_quick(self) -> None:
        # --tiny: the one whole preset, reference networks and all
        more = ("--detector", "max-margin", "--detector", "neural-cleanse") if self.tiny else ()
        self._scanned("quick", self.scan("wide.onnx", "wide.npz", "quick", "runs/quick", *more), "train_wide")

    def _do_again(self) -> None:
        more = ("--detector", "max-margin", "--detector", "neural-cleanse") if self.tiny else ()
        self._scanned("again", self.scan("wide.onnx", "wide.npz", "quick", "runs/quick", *more), "train_wide")

    def _do_standard(self) -> None:
        more = tuple(a for d in ("max-margin", "cepa") for a in ("--detector", d)) if self.tiny else ()
        report, _ = self._scanned(
            "standard", self.scan("wide.onnx", "wide.npz", "standard", "runs/standard", *more), "train_wide"
        )
        for short, detector in DETECTORS.items():
            found = next((d for d in report["detectors"] if d["name"] == detector), None)
            if found is None or found["status"] != "ran":
                why = "not in the report" if found is None else found["reason"]
                self.fill(f"{short}_inside", None, "skipped", why)
            else:
                self.fill(f"{short}_inside", found["seconds"], "measured", budget_in_words(found))

    def _do_thorough(self) -> None:
        self._scanned("thorough", self.scan("wide.onnx", "wide.npz", "thorough", "runs/thorough"), "train_wide")

    def _do_signs(self) -> None:
        self._scanned("signs", self.scan("signs.onnx", "signs.npz", "standard", "runs/signs"), "train_signs")

    def _do_alone(self) -> None:
        assert self._job is not None
        name = self._job.name
        detector = "max-margin" if self.tiny else DETECTORS[name.removeprefix("alone_")]
        folder = f"runs/{name}"
        (ran,), peak = self.run([self.scan("wide.onnx", "wide.npz", "standard", folder, "--detector", detector)])
        report = report_of(ran)
        found = report["detectors"][0]
        if found["status"] != "ran":
            raise Failed(found["reason"])
        words = f"{budget_in_words(found)}; whole command {ran.seconds:.1f} s"
        self.fill(name, found["seconds"], "measured", words, **told_by(report, peak))

    def _do_shipped(self) -> None:
        differ, words, pairs = 0, [], []
        for model, on_cpu in zip(SHIPPED, self.on_cpu, strict=True):
            (ran,), _ = self.run([self._shipped_scan(model, self.device)])
            there, here = report_of(ran), report_of(on_cpu)
            said = [(r["verdict"], r["targets"]) for r in (there, here)]
            differ += said[0] != said[1]
            words.append(
                f"{model}: {in_words(*said[0])} in {ran.seconds:.1f} s, CPU: {in_words(*said[1])} in {on_cpu.seconds:.1f} s"
            )
            kept = ("verdict", "targets", "p_value", "digest")
            pairs.append({"model": model, "device": {k: there[k] for k in kept}, "cpu": {k: here[k] for k in kept}})
        self.fill("shipped", differ, "measured", "; ".join(words), verdicts=pairs)

    def _shipped_scan(self, model: str, device: str) -> list[str]:
        """A scan of a shipped model, on the shipped images."""
        code = "import onnxspect.models.zoo as zoo, sys; print(*map(zoo.path, sys.argv[1:]), sep='\\n')"
        done = subprocess.run(
            [sys.executable, "-c", code, model, "fashion_mnist_test"],
            capture_output=True,
            text=True,
            cwd=self.work,
            env=self.environment,
            check=False,
        )
        if done.returncode:
            raise Failed(f"no shipped models: {(done.stderr.splitlines() or ['?'])[-1]}")
        file, data = done.stdout.splitlines()[-2:]
        # the device asked for may be the CPU too (--tiny): two folders all the same
        folder = f"runs/{model}-{device}-{len(self.done)}"
        return self.scan(file, data, "quick", folder, device=device)

    def _do_patch(self) -> None:
        options = ["--run", "runs/standard", "--data", "wide.npz", "-o", "patched.onnx", "--method", "unlearn"]
        if self.tiny:  # max-margin convicts nobody
            options += ["--target", "1", "--rounds", "1", "--max-success", "1", "--max-accuracy-lost", "1"]
        (ran,), peak = self.run([self.tool("patch", "wide.onnx", *options, "--device", self.device)])
        if ran.status == 3:
            self.fill("patch", ran.seconds, "goals missed", ran.complaint)
        elif ran.status != 0:
            raise Failed(ran.complaint)
        else:
            self.fill("patch", ran.seconds, "measured", "patched and proven", **({"peak_mib": peak} if peak else {}))

    def _do_lite0(self) -> None:
        folder = self.bundle / "imagenet"
        if not folder.is_dir():
            for name in ("lite0", "lite0_memory"):
                self.fill(name, None, "skipped", "not in the bundle (make gpu-bundle IMAGENET=DIR)")
            return
        with zipfile.ZipFile(folder / "lite0.zip") as archive:
            model = archive.extract(archive.namelist()[0], self.work)
        with zipfile.ZipFile(folder / "images.zip") as archive:
            archive.extractall(self.work / "imagenet")
        if self.tiny:  # what is tried is the limit
            self._limit = min(self._limit, time.monotonic() - self._began + 6)
        (ran,), peak = self.run([self.scan(model, str(self.work / "imagenet"), "quick", "runs/lite0")])
        most = f"the most memory until then: {peak / GIB:.1f} GiB" if peak else "memory of the card not known"
        if ran.status is None:
            self.fill("lite0", None, "timed out", f"{ran.complaint}; {most}", peak_mib=peak)
        else:
            report = report_of(ran)
            self.fill("lite0", ran.seconds, "measured", verdict_in_words(report, 291), **told_by(report, peak))
        if peak:
            self.fill("lite0_memory", peak / GIB)
        else:
            self.fill("lite0_memory", None, "skipped", most)

    def _do_sharing(self) -> None:
        commands = [self.scan("signs.onnx", "signs.npz", "standard", f"runs/sharing-{i}") for i in range(SHARING)]
        ran, peak = self.run(commands)
        ended = [r for r in ran if r.status in (0, 1, 3)]
        others = sorted({r.complaint for r in ran if r not in ended})
        more = {"peak_mib": peak} if peak else {}
        self.fill("sharing", SHARING - len(ended), "measured", "; ".join(others)[:400], **more)
        if others:
            self.fill("sharing_seconds", None, "failed", "not all ended")
        else:
            self.fill("sharing_seconds", max(r.seconds for r in ran))


def end_group(process: subprocess.Popen[str]) -> None:
    """The process and its children are gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def card_memory() -> Iterator[Callable[[], float]]:
    """Watches the first card; the value tells the most memory in MiB in use since, beyond what was in use before.

    What nvidia-smi counts is what the driver gave: weights, activations, the allocator's reserve and 0.5 GiB of CUDA's own.
    0 where there is no nvidia-smi.
    """
    query = ["nvidia-smi", "-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    if shutil.which("nvidia-smi") is None:
        yield lambda: 0.0
        return
    with tempfile.TemporaryFile("w+") as told:
        before = megabytes(subprocess.run(query, capture_output=True, text=True, check=False).stdout)
        watching = subprocess.Popen([*query, "-lms", "200"], stdout=told, stderr=subprocess.DEVNULL, text=True)

        def most() -> float:
            told.seek(0)
            return max(0.0, max(megabytes(told.read()), default=0.0) - min(before, default=0.0))

        try:
            yield most
        finally:
            watching.kill()
            watching.wait()


def megabytes(text: str) -> list[float]:
    """The numbers in nvidia-smi's answer, one a line; others are no numbers."""
    return [float(line) for line in text.splitlines() if line.strip().replace(".", "", 1).isdigit()]


def unpack_wheels(folder: Path, site: Path) -> list[str]:
    """Unpack those wheels whose package this Python lacks, and onnxspect's in any case; returns their file names.

    A wheel of pure files and libraries is a zip file to be put on the path (as `pip install --target` does); none of these has scripts
    that anyone calls.

    Raises:
        SystemExit: a missing package's wheel is for another Python.
    """
    site.mkdir(parents=True, exist_ok=True)
    unpacked = []
    for wheel in sorted(folder.glob("*.whl")):
        name, tag = wheel.name.split("-")[0], wheel.name.split("-")[-3]
        if name != "onnxspect" and has(name):
            continue
        own = (f"cp{sys.version_info.major}{sys.version_info.minor}", "py3", "abi3", "py2.py3")
        if tag not in own:
            sys.exit(f"{name} is missing, and {wheel.name} is not for Python {platform.python_version()}")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        unpacked.append(wheel.name)
    return unpacked


def has(package: str) -> bool:
    """Whether this Python has a package, by its distribution's name."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def hardware() -> dict[str, Any]:
    """Cards and driver as nvidia-smi names them, the processor and its threads."""
    told: dict[str, Any] = {
        "processor": processor(),
        "threads": os.cpu_count(),
        "system": platform.platform(),
        "cards": [],
    }
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        told["cards"] = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return told


def processor() -> str:
    """Its model's name where the system tells it, else its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def report_of(ran: Ran) -> dict[str, Any]:
    """What a scan printed.

    Raises:
        Failed: it printed no report, or was killed.
    """
    if ran.status not in (0, 1, 3) or not ran.out.strip():
        raise Failed(ran.complaint)
    report: dict[str, Any] = json.loads(ran.out)
    return report


def told_by(report: Mapping[str, Any], peak: float) -> dict[str, Any]:
    """What a row keeps of a report beside its time."""
    kept = {k: report[k] for k in ("verdict", "targets", "p_value", "digest")}
    kept["search_seconds"] = round(sum(d.get("seconds", 0.0) for d in report["detectors"]), 3)
    kept["gradient_steps"] = sum(d.get("budget", {}).get("gradient_steps", 0) for d in report["detectors"])
    if peak:
        kept["peak_mib"] = peak
    # which precision searched and which judged, where the report says it
    return kept | {k: report[k] for k in ("precision", "numerics") if k in report}


def verdict_in_words(report: Mapping[str, Any], planted: int | None) -> str:
    """ "backdoored [7] (planted: 7); searches 5.9 s"."""
    told = in_words(report["verdict"], report["targets"])
    told += "" if planted is None else f" (planted: {planted})"
    return f"{told}; searches {sum(d.get('seconds', 0.0) for d in report['detectors']):.1f} s"


def in_words(verdict: str, targets: Sequence[int]) -> str:
    """ "backdoored [7]", "clean"."""
    return f"{verdict} {list(targets)}" if targets else verdict


def budget_in_words(detector: Mapping[str, Any]) -> str:
    """ "55 units, 2821 steps"."""
    budget = detector["budget"]
    return f"{budget['units']} units, {budget['gradient_steps']} steps"


def value_in_words(row: Mapping[str, Any]) -> str:
    """A row's value with its unit, or why there is none."""
    if row["value"] is None:
        return str(row["outcome"])
    digits = (
        0
        if float(row["value"]).is_integer() and row["unit"] not in ("s", "ms", "GiB")
        else 2
        if row["value"] < 10
        else 1
    )
    text = f"{row['value']:.{digits}f} {row['unit']}".strip()
    return text if row["outcome"] == "measured" else f"{text} ({row['outcome']})"


def goal_in_words(row: Mapping[str, Any]) -> str:
    """A row's goal, "-" where it has none."""
    return "-" if row["goal"] is None else f"{row['goal']:g} {row['unit']}".strip()


def met_in_words(row: Mapping[str, Any]) -> str:
    """Whether the goal was met: yes, no, or "-" where there was none, or nothing to compare."""
    if row["goal"] is None:
        return "-"
    if row["met"] is None:
        return "-" if row["outcome"] == "skipped" else "no"
    return "yes" if row["met"] and row["outcome"] == "measured" else "no"


def in_a_line(row: Mapping[str, Any]) -> str:
    """A row as it is told while the benchmark runs."""
    goal = "" if row["goal"] is None else f" (goal {goal_in_words(row)}: {met_in_words(row)})"
    return f"[{row['at_second']:6.1f} s] {row['what']}: {value_in_words(row)}{goal} {row['detail']}".rstrip()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """All rows as a Markdown table."""
    lines = ["| what | before | goal | measured | met | memory | notes |", "|---|---|---|---|---|---|---|"]
    for r in rows:
        peak = f"{r['peak_mib'] / GIB:.1f} GiB" if r.get("peak_mib") else "-"
        cells = (r["what"], r["before"] or "-", goal_in_words(r), value_in_words(r), met_in_words(r), peak, r["detail"])
        lines.append("| " + " | ".join(str(c).replace("|", "/") for c in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
