"""Every command on hostile inputs, kind by kind: what it takes of memory and time, and whether a promise of docs/threat-model.md breaks.

    python benchmarks/hostile_inputs.py [--only KIND ...] [--named TEXT] [--quick] [--max-memory 1G] [--max-seconds 60] [--out FILE]

Each input of the corpus (the modules of hostile/) is made in a folder of its own and given to the
commands that take such an input, each as a process `python -m onnxspect ...` with --max-memory and --max-seconds. A secret of 64
hexadecimal digits lies in files beside it, in another's run folder, and in the environment (TOKEN). A run is a problem where

- it ends with a status that is none of 0 to 4, or none of those that the input allows (a pickle that calls posix.system is status
  1), or says "unexpected failure", or shows a traceback;
- one of its processes took more than the limit and what libraries take (`_LIBRARIES` of cli/supervisor.py, 1 GiB) of memory, or all
  of them together did: `tree` is the sum of the resident memory of the command and all its descendants, looked at every 20 ms, with shared
  pages counted once for each process; `process` is the kernel's own peak (VmHWM) of the largest of them;
- it took longer than --max-seconds and 15 s for starting and ending;
- the secret is in anything that it wrote: as it stands, as bytes, in hexadecimal, base64, UTF-16 (pixels of pictures are not
  looked at);
- an escape or a byte of a control sequence reaches an output that people read, or a name makes a line or an element of a page of its own;
- anything was run (each payload makes a file; programs that decoders would start lie first on PATH and do the same);
- something is left in its temporary folder, or beside its outputs, or a process; or the input was changed.

Exits with 1 where there is a problem. --quick gives each input to its first command alone.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import hostile.arrays
import hostile.foreign
import hostile.models
import hostile.names
import hostile.operators
import hostile.outputs
import hostile.pictures
import hostile.place
import hostile.reports
import hostile.runs
import hostile.watch
import numpy as np
from hostile.case import COMMANDS, OPENED, Case
from hostile.place import Place
from of_tests import module_of_tests

from onnxspect.cli import budget
from onnxspect.cli.supervisor import _LIBRARIES
from onnxspect.converters.sandbox.removal import remove_tree

_KEPT_RUN = ("patch with a run",)  # what is found is written into the run that it belongs to
_SLACK_SECONDS = 15.0
#: After so many runs the result is written.
_OFTEN = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", default=[], metavar="KIND", help="kinds that have this in their name"
    )
    parser.add_argument("--named", default="", metavar="TEXT", help="inputs that have this in their name")
    parser.add_argument("--quick", action="store_true", help="one command an input")
    parser.add_argument("--update", action="store_true", help="keep those runs of --out that are not made anew")
    parser.add_argument("--missing", action="store_true", help="with --update: make those runs that --out lacks")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no run after so many")
    parser.add_argument("--max-memory", default="1G", help="of each command")
    parser.add_argument("--max-seconds", type=float, default=60.0, help="of each command")
    parser.add_argument("--seed", type=int, default=0, help="draws the order of the inputs")
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args(arguments)
    hostile.watch.adopt()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="onnxspect-hostile-") as scratch:
        place = hostile.place.made(
            Path(scratch), budget.Size().convert(asked.max_memory, None, None), asked.max_seconds
        )
        every = [*_controls(place), *corpus(Path(place.ordinary["model"]))]
        runs = _runs(every, asked)
        kept = _kept(asked.out, () if asked.missing else runs) if asked.update else []
        there = {(r["kind"], r["name"], r["command"]) for r in kept}
        runs = [(c, command) for c, command in runs if (c.kind, c.name, command) not in there]
        rows: list[dict[str, Any]] = []
        for case, command in runs:
            if asked.minutes and time.monotonic() - started > 60 * asked.minutes:
                break
            rows.append(row := _row(place, case, command))
            memory = f"{row['tree_mib']} MiB, {row['process_mib']} in one"
            print(
                f"{case.kind}: {case.name}: {command}: {row['status']}, {memory}, {row['seconds']} s: {row['said']}",
                flush=True,
            )
            for problem in row["problems"]:
                print(f"  PROBLEM: {problem}", flush=True)
            if asked.out and len(rows) % _OFTEN == 0:
                _write(asked.out, _result(place, every, kept, rows, started, asked))
    result = _result(place, every, kept, rows, started, asked)
    _print(result)
    if asked.out:
        _write(asked.out, result)
    return 1 if result["problems"] else 0


def _result(
    place: Place,
    cases: Sequence[Case],
    kept: list[dict[str, Any]],
    new: list[dict[str, Any]],
    started: float,
    asked: argparse.Namespace,
) -> dict[str, Any]:
    """The runs so far, in the order of the corpus, and what they come to."""
    rows = [r for c in cases for r in (*kept, *new) if (r["kind"], r["name"]) == (c.kind, c.name)]
    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        "hardware": {
            "cores": os.cpu_count(),
            "load": os.getloadavg()[2],
            "machine": platform.machine(),
            "kernel": platform.release(),
        },
        "versions": {n: metadata.version(n) for n in ("onnxspect", "torch", "onnxruntime", "onnx", "numpy", "pillow")},
        "settings": {k: v for k, v in vars(asked).items() if k != "out"},
        "seconds": round(time.monotonic() - started),
        "limit_mib": place.limit >> 20,
        "libraries_mib": _LIBRARIES >> 20,
        "inputs": len({(r["kind"], r["name"]) for r in rows}),
        "runs": len(rows),
        "runs_kept_from_before": len(kept),
        "runs_left_out": sum(len(c.commands) for c in cases) - len(rows),
        "largest_input_bytes": max((r["input_bytes"] for r in rows), default=0),
        "kinds": _table(rows),
        "problems": [f"{r['kind']}: {r['name']}: {r['command']}: {p}" for r in rows for p in r["problems"]],
        "each": rows,
    }


def _write(path: Path, result: dict[str, Any]) -> None:
    """Whole, or not at all: a result is also what --update goes on from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(_json(result))
    path.with_suffix(".part").replace(path)


def _runs(cases: Sequence[Case], asked: argparse.Namespace) -> list[tuple[Case, str]]:
    """What is asked for: first every input with its first command, in a seeded order; then the further ones."""
    order = np.random.default_rng(asked.seed).permutation(len(cases))
    chosen = [cases[int(i)] for i in order]
    chosen = [c for c in chosen if (not asked.only or any(o in c.kind for o in asked.only)) and asked.named in c.name]
    most = 1 if asked.quick else max(len(c.commands) for c in cases)
    return [(c, c.commands[i]) for i in range(most) for c in chosen if i < len(c.commands)]


def _kept(path: Path | None, runs: Sequence[tuple[Case, str]]) -> list[dict[str, Any]]:
    """The runs of an earlier result that are not to be made anew."""
    if path is None or not path.is_file():
        return []
    anew = {(c.kind, c.name, command) for c, command in runs}
    return [r for r in json.loads(path.read_text())["each"] if (r["kind"], r["name"], r["command"]) not in anew]


def _json(result: dict[str, Any]) -> str:
    """Indented, but for the runs, which take a line each."""
    rows = ",\n  ".join(json.dumps(row) for row in result["each"])
    return json.dumps(result | {"each": "ROWS"}, indent=1).replace('"ROWS"', f"[\n  {rows}\n ]") + "\n"


def corpus(model: Path) -> list[Case]:
    """All hostile inputs; some runs are those of an ordinary model."""
    makers = (hostile.operators, hostile.models, hostile.foreign, hostile.pictures, hostile.arrays, hostile.names)
    made = [case for maker in makers for case in maker.cases()]
    return [*made, *hostile.reports.cases(model), *hostile.runs.cases(model)]


def _controls(place: Place) -> list[Case]:
    """Ordinary inputs: what libraries take, and that the commands work at all."""
    of = {
        "model": OPENED,
        "data": ("data", "scan of samples", "cleanse a training set", "certify samples"),
        "run": ("report", "report as html", "report to files", "view", "verify with a run"),
    }
    return [
        Case(
            "ordinary inputs",
            name,
            lambda _folder, _canary, path=Path(place.ordinary[name]): path,
            commands,
            frozenset({0, 1, 3}),
        )  # type: ignore[misc]
        for name, commands in of.items()
    ]


# -- one run -----------------------------------------------------------------------------------------------------------------


def _row(place: Place, case: Case, command: str) -> dict[str, Any]:
    """Make an input, run a command on it, look at everything that it left."""
    work = Path(tempfile.mkdtemp(dir=place.folder))
    folders = {name: work / name for name in ("input", "here", "temporary", "out", "said")}
    for folder in folders.values():
        folder.mkdir()
    try:
        given = case.make(folders["input"], place.canary)
        beside = _run_of(given, work) if "{beside}" in COMMANDS[command] else work
        before = _tree(folders["input"])
        words = [w.format(input=given, out=folders["out"], beside=beside, **place.ordinary) for w in COMMANDS[command]]
        limits = ["--max-memory", str(place.limit), "--max-seconds", str(place.seconds)]
        environment = {
            **os.environ,
            "TMPDIR": str(folders["temporary"]),
            "TOKEN": place.canary.text,
            "PATH": f"{place.programs}{os.pathsep}{os.environ.get('PATH', '')}",
            "OMP_NUM_THREADS": "1",
        }
        ended = hostile.watch.run(
            [sys.executable, "-m", "onnxspect", *words, *limits],
            folders["here"],
            environment,
            folders["said"],
            place.seconds + 3 * _SLACK_SECONDS,
            command == "view",
        )
        problems = _problems(place, case, command, ended)
        problems += hostile.outputs.problems(place, work, folders)
        if _tree(folders["input"]) != before and command not in _KEPT_RUN:
            problems.append("the input was changed")
        return {
            "kind": case.kind,
            "name": case.name,
            "command": command,
            "status": ended.status,
            "tree_mib": ended.tree_bytes >> 20,
            "process_mib": ended.process_bytes >> 20,
            "seconds": round(ended.seconds, 1),
            "input_bytes": _on_disk(folders["input"]),
            "said": _last_words(folders["said"]).replace(f"{work}{os.sep}", ""),
            "problems": problems,
        }
    finally:
        remove_tree(work)


def _run_of(model: Path, work: Path) -> Path:
    """A finished run of just that file, where it can be read, so that a command that takes both goes on to the model."""
    support = module_of_tests("run_folder_support")
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest() if model.is_file() and not model.is_symlink() else "a" * 64
    run: Path = support.finished(work / "beside", support.whole_report(sha256))
    return run


def _problems(place: Place, case: Case, command: str, ended: hostile.watch.Ended) -> list[str]:
    """With how it ended and what it took."""
    most = place.limit + _LIBRARIES
    found = []
    if ended.status not in case.allowed(command):
        found.append(f"status {ended.status}, not one of {sorted(case.allowed(command))}")
    if ended.tree_bytes > most:
        found.append(f"its processes took {ended.tree_bytes >> 20} MiB together, more than {most >> 20}")
    if ended.process_bytes > most:
        found.append(f"one process took {ended.process_bytes >> 20} MiB, more than {most >> 20}")
    if ended.hung or ended.seconds > place.seconds + _SLACK_SECONDS:
        found.append(f"it took {ended.seconds:.0f} s" + (" and was killed" if ended.hung else ""))
    if ended.left:
        found.append(f"processes are left: {', '.join(ended.left)}")
    return found


def _tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Kind, size and time of everything below, three levels deep; links are not followed."""
    found = {}
    for top, folders, names in os.walk(folder):
        if top.count(os.sep) - str(folder).count(os.sep) > 3:
            folders.clear()
        for name in (*folders, *names):
            facts = os.lstat(Path(top) / name)
            found[str(Path(top) / name)] = (facts.st_mode, facts.st_size, facts.st_mtime_ns)
    return found


def _on_disk(folder: Path) -> int:
    with contextlib.suppress(OSError, RecursionError):
        return sum(os.lstat(p).st_blocks * 512 for p in hostile.outputs.files(folder))
    return 0


def _last_words(said: Path) -> str:
    """The line that says what stopped it, or the first of its output."""
    for name in ("stderr", "stdout"):
        lines = [line for line in (said / name).read_text(errors="replace").splitlines() if line.strip()]
        chosen = [line for line in lines if line.startswith("onnxspect:")] or lines[:1]
        if chosen:
            return chosen[0][:160]
    return ""


# -- the table ---------------------------------------------------------------------------------------------------------------


def _table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    table = []
    for kind in dict.fromkeys(r["kind"] for r in rows):
        of = [r for r in rows if r["kind"] == kind]
        table.append(
            {
                "kind": kind,
                "inputs": len({r["name"] for r in of}),
                "runs": len(of),
                "worst_tree_mib": max(r["tree_mib"] for r in of),
                "worst_process_mib": max(r["process_mib"] for r in of),
                "worst_seconds": max(r["seconds"] for r in of),
                "problems": sum(bool(r["problems"]) for r in of),
            }
        )
    return table


def _print(result: dict[str, Any]) -> None:
    print(f"\n{'kind':34} inputs  runs  MiB together  MiB in one  seconds  problems")
    for r in result["kinds"]:
        numbers = f"{r['inputs']:6} {r['runs']:5} {r['worst_tree_mib']:13} {r['worst_process_mib']:11} {r['worst_seconds']:8} {r['problems']:9}"
        print(f"{r['kind']:34} {numbers}")
    print(
        f"{result['inputs']} inputs, {result['runs']} runs, {result['seconds']} s, {len(result['problems'])} problems"
    )
    for problem in result["problems"]:
        print(f"  {problem}")


if __name__ == "__main__":
    sys.exit(main())
