"""Signals at random moments of every command: one line, status 4 (`view`: 0 for Ctrl-C), and nothing left behind.

    python benchmarks/signals.py [--moments 50] [--command NAME ...] [--seed 0] [--out FILE]

Each command is run undisturbed once (of a longer one the first SECONDS count), and then --moments times with
SIGINT, SIGTERM or SIGHUP at a moment drawn evenly from that time. Checked are the exit status, the line on stderr, that there is no
traceback, that no temporary file and no unfinished output is left, and that no process is (tests/signalled.py). Exits with 1 where
anything was wrong. The moments of a seed are the same on every machine in their order, not in what the command does then.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import of_tests

#: Of a longer command the first so many seconds are disturbed.
SECONDS = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    sys.path.insert(0, str(of_tests.FOLDER))
    signalled = of_tests.module_of_tests("signalled")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="of each command")
    parser.add_argument("--command", action="append", default=[], choices=signalled.COMMANDS)
    parser.add_argument("--seed", type=int, default=0, help="draws signals and moments")
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args(arguments)
    # A shell's & lets its commands ignore it, and they would hand that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="onnxspect-signals-") as scratch:
        work = Path(scratch) / "work"
        work.mkdir()
        signalled.prepare_all(work)
        for command in asked.command or signalled.COMMANDS:
            rows.append(_row(signalled, command, asked, work, Path(scratch)))
            print(_line(rows[-1]), flush=True)
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": {"cores": os.cpu_count(), "load_before": os.getloadavg()[0], "machine": platform.machine()},
        "versions": {p: metadata.version(p) for p in ("onnxspect", "torch")},
        "seed": asked.seed,
        "rows": rows,
        "sent": sum(r["sent"] for r in rows),
        "interrupted": sum(r["interrupted"] for r in rows),
        "problems": sum(len(r["problems"]) for r in rows),
    }
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['sent']} signals, {result['interrupted']} of them before the end: {result['problems']} problems")
    return 1 if result["problems"] else 0


def _row(signalled: Any, command: str, asked: argparse.Namespace, work: Path, scratch: Path) -> dict[str, Any]:
    """One command: how long it takes undisturbed, and what its signals did."""
    whole = _seconds(signalled, command, work, scratch)
    rng = random.Random(f"{asked.seed} {command}")
    row: dict[str, Any] = {"command": command, "seconds": round(whole, 1), "sent": 0, "interrupted": 0, "problems": []}
    for _ in range(asked.moments):
        number, moment = rng.choice(signalled.SIGNALS), rng.uniform(0, whole)
        with tempfile.TemporaryDirectory(dir=scratch) as place:
            found, interrupted = signalled.problems(command, number, moment, work, Path(place))
        row["sent"] += 1
        row["interrupted"] += interrupted
        row["problems"] += [f"{number.name} after {moment:.2f} s: {one}" for one in found]
    return row


def _seconds(signalled: Any, command: str, work: Path, scratch: Path) -> float:
    """How long it takes from the moment at which it listens for signals; SECONDS at most."""
    if command in ("view", "demo"):
        return SECONDS / 4 if command == "view" else SECONDS
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        process = signalled.supervised.started(*signalled.line_of(command, work, Path(place)), temporary=Path(place))
        signalled.wait_for_its_handler(process)
        started = time.perf_counter()
        process.communicate()
    return min(time.perf_counter() - started, SECONDS)


def _line(row: dict[str, Any]) -> str:
    said = "; ".join(row["problems"][:3]) or "none"
    return f"{row['command']:>14}  {row['seconds']:5.1f} s  {row['interrupted']:3d} of {row['sent']} before its end  problems: {said}"


if __name__ == "__main__":
    sys.exit(main())
