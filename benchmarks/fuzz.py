"""Seeded mutants of everything that this project parses itself, or steers a parser through: `make fuzz`.

    python benchmarks/fuzz.py --mutants 100000 --seed 1 --out benchmarks/results/fuzz.json
    python benchmarks/fuzz.py --seconds 3600

A target is a parser with seeds, and with what must hold for any bytes: a result or the right class of error, nothing else
(fuzz_parsers.py, fuzz_data.py, and fuzz_onnx_file.py, which also runs the graphs). Mutant number i of a target depends on the seed and
on i alone. This process makes and reads none of them: a child that is locked in as a command's worker is, takes some hundreds of one
target (fuzz_child.py). Whatever a mutant does to its child, this process must live; a child that dies is counted, and what killed it is
given to the command line as a user would do it, which must end with status 4, one line, and nothing left.

An input that breaks a promise or kills a child is kept under its digest; tests/test_fuzz.py replays what is kept, and some mutants,
on every run.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path += [p for p in (str(HERE), str(HERE.parent / "tests")) if p not in sys.path]

import fuzz_data  # noqa: E402
import fuzz_onnx_file  # noqa: E402
import fuzz_parsers  # noqa: E402
from fuzz_child import MEMORY_BYTES, SECONDS, Children, Ended  # noqa: E402
from fuzz_target import Target  # noqa: E402

TARGETS = (fuzz_onnx_file.TARGET, *fuzz_parsers.TARGETS, *fuzz_data.TARGETS)
#: Mutants of a target before the next one's turn, and how many turns' worth a target gets: graphs are the largest ground.
ROUND = 500
SHARES = {"onnx-run": 5}
#: Deaths of one kind (target, signal, stage) that are looked at, each through the command line.
_LOOKED_AT = 3
_PACKAGES = ("onnxspect", "onnx", "onnxruntime", "protobuf", "numpy", "pillow", "scipy", "pyarrow", "msgspec")


class Tally:
    """What came of the mutants."""

    def __init__(self, kept: Path) -> None:
        self.outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.deaths: list[dict[str, Any]] = []
        self.broken: list[dict[str, Any]] = []
        self.slowest = (0.0, "", 0)
        self._kept = kept

    def add(self, target: Target, ended: Ended, data: bytes | None) -> None:
        """One mutant; its bytes where it broke a promise or killed its child."""
        self.outcomes[target.name][ended.outcome] += 1
        self.slowest = max(self.slowest, (ended.seconds, target.name, ended.index))
        if data is None:
            return
        row: dict[str, Any] = {"target": target.name, "mutant": ended.index, "outcome": ended.outcome}
        like = sum(1 for d in self.deaths if (d["target"], d["outcome"]) == (target.name, ended.outcome))
        if ended.problem or like < _LOOKED_AT:
            path = self._kept / target.name / hashlib.sha256(data).hexdigest()[:16]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            row["kept"] = path.name
            print(f"{target.name} {ended.index}: {ended.outcome}; kept as {path}\n{ended.problem}", flush=True)
        if ended.died and target.name == fuzz_onnx_file.TARGET.name and like < _LOOKED_AT:
            row["command_line"] = by_command_line(data)
        (self.deaths if ended.died else self.broken).append(row)


def by_command_line(data: bytes) -> dict[str, Any]:
    """What `onnxspect info` makes of a model that killed a child: its status and line, and whether it left anything."""
    with tempfile.TemporaryDirectory(prefix="onnxspect-fuzz-") as folder:
        (Path(folder) / "tmp").mkdir()
        path = Path(folder) / "mutant.onnx"
        path.write_bytes(data)
        command = [sys.executable, "-m", "onnxspect", "info", str(path), "--max-memory", "1G", "--max-seconds", "60"]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "TMPDIR": f"{folder}/tmp"}, check=False
        )
        said = [line.replace(folder, "") for line in done.stderr.splitlines() if line.startswith("onnxspect:")]
        left = sorted(p.name for p in (Path(folder) / "tmp").iterdir())
    return {
        "status": done.returncode,
        "said": said,
        "left": left,
        "as_promised": not left and done.returncode in (0, 2, 4),
    }


def main() -> int:
    """All targets in turn until the number or the time is reached; status 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, help="in all, over all targets; else --seconds count")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--target", choices=[t.name for t in TARGETS], action="append")
    parser.add_argument("--data-root", type=Path, default=os.environ.get("ONNXSPECT_DATA"), help="more seed models")
    parser.add_argument(
        "--kept", type=Path, default=Path("tests/fuzz_kept"), help="where inputs go that break a promise"
    )
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args()
    chosen = [t for t in TARGETS if not asked.target or t.name in asked.target]
    seeds = {t.name: t.seeds() for t in chosen}
    if asked.data_root and fuzz_onnx_file.TARGET.name in seeds:
        seeds[fuzz_onnx_file.TARGET.name] += fuzz_onnx_file.seeds_of(asked.data_root)
    print(f"seed {asked.seed}", flush=True)
    tally, children, began = Tally(asked.kept), Children(), time.monotonic()
    done = collections.Counter[str]()
    until = None if asked.mutants else began + asked.seconds
    left = asked.mutants or sys.maxsize
    while left > 0 and (until is None or time.monotonic() < until):
        for target in chosen:
            count = min(ROUND * SHARES.get(target.name, 1), left)
            numbers = range(done[target.name], done[target.name] + count)
            for ended in children.run(target, seeds[target.name], asked.seed, numbers):
                again = bool(ended.problem or ended.died)
                tally.add(target, ended, target.mutate(seeds[target.name], asked.seed, ended.index) if again else None)
                if until is not None and time.monotonic() > until:
                    break
            done[target.name] = sum(tally.outcomes[target.name].values())
            left -= count
        print(
            f"{sum(done.values())} mutants, {time.monotonic() - began:.0f} s, {children.started} children", flush=True
        )
    result = _result(asked.seed, tally, children, time.monotonic() - began)
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print(
        json.dumps({k: result[k] for k in ("mutants", "deaths_of_children", "broken_promises", "peak_mib", "seconds")})
    )
    wrong = [d for d in tally.deaths if not d.get("command_line", {"as_promised": True})["as_promised"]]
    return 1 if tally.broken or wrong else 0


def _result(seed: int, tally: Tally, children: Children, seconds: float) -> dict[str, Any]:
    def processor_time(who: int) -> float:
        used = resource.getrusage(who)
        return used.ru_utime + used.ru_stime

    return {
        "benchmark": "fuzz",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "mutants": sum(sum(c.values()) for c in tally.outcomes.values()),
        "deaths_of_children": len(tally.deaths),
        "broken_promises": len(tally.broken),
        "children": children.started,
        "targets": {
            n: {"mutants": sum(c.values()), "outcomes": dict(c.most_common())} for n, c in tally.outcomes.items()
        },
        "deaths": tally.deaths,
        "broken": tally.broken,
        "slowest": dict(zip(("seconds", "target", "mutant"), tally.slowest, strict=True)),
        "peak_mib": {
            "parent": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            "any child, with its libraries": children.peak_bytes >> 20,
        },
        "limits": {"child_memory_bytes": MEMORY_BYTES, "seconds_a_mutant": SECONDS},
        "seconds": round(seconds, 1),
        "processor_seconds": round(sum(map(processor_time, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))), 1),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        "hardware": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "kernel": platform.release(),
        },
    }


def _version(package: str) -> str:
    for name in (package, f"{package}-gpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


if __name__ == "__main__":
    sys.exit(main())
