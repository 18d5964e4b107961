"""Many tiny models scanned by one command, undisturbed and under kill -9: what that costs, and whether anything is lost or done twice.

    python benchmarks/many_models.py [--models 30] [--kills 20] [--jobs 2] [--preset quick] [--detector NAME ...] [--out FILE]

N models of the tiny four-class world (one in three with a planted patch) are scanned once. Then once more into a new folder with an
empty cache, while workers, their supervisors and the command itself are killed at seeded moments; a killed command is given
again. Both must end with one report a model, the same digests, references made once, and no scan begun after it had a report.
Exits with 1 where that does not hold.

`ratio` is the wall time of the undisturbed command, times the commands at a time, over the sum of what the scans themselves took
(`seconds` of their reports: opening, searching, judging; not starting, drawing and writing) and the searches on the references.
`ratio_to_searches` has nothing below the line but the searches of models and references, as their ledgers have them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, CLASSES = 8, 4
#: Who is killed, by the names that lists of processes have: a worker, its supervisor, the process that they are copies of, the command.
WORKER, SUPERVISOR, FORKSERVER, COMMAND = "onnxspect-work", "onnxspect-scan", "onnxspect-fork", "command"
_VICTIMS = (WORKER, WORKER, SUPERVISOR, FORKSERVER)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=30)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--detector", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0, help="draws models and moments")
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="onnxspect-many-") as scratch:
        place = Path(scratch)
        _make(place, asked.models, asked.seed)
        still = _still(place, asked)
        print(f"undisturbed: {still['wall_seconds']:.0f} s, ratio {still['ratio']:.2f}", flush=True)
        killed = _under_kills(place, asked, still["wall_seconds"])
        same = _digests(place / "killed") == _digests(place / "still")
        problems = [*still.pop("problems"), *killed.pop("problems")]
        problems += [] if same else ["the reports differ"]
    result = {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        "hardware": {"cores": os.cpu_count(), "load_before": os.getloadavg()[0], "machine": platform.machine()},
        "versions": {name: metadata.version(name) for name in ("onnxspect", "torch", "onnxruntime")},
        "settings": {k: v for k, v in vars(asked).items() if k != "out"},
        "undisturbed": still,
        "killed": killed,
        "same_reports": same,
        "problems": problems,
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if asked.out:
        asked.out.write_text(text)
    return 1 if problems else 0


def _make(place: Path, models: int, seed: int) -> None:
    """Models, each with weights of its own, and samples."""
    rng = np.random.default_rng(seed)
    (place / "models").mkdir()
    half = SIDE // 2
    for i in range(models):
        weights = rng.normal(0, 0.01, (SIDE, SIDE, CLASSES)).astype(np.float32)
        for label in range(CLASSES):
            row, column = divmod(label, 2)
            weights[row * half : (row + 1) * half, column * half : (column + 1) * half, label] += 1.0
        if i % 3 == 0:
            weights[3:5, 3:5] = 0
            weights[3:5, 3:5, int(rng.integers(CLASSES))] = 8 * np.array([[1, -1], [-1, 1]], np.float32)
        graph = helper.make_graph(
            [
                helper.make_node("Flatten", ["image"], ["flat"]),
                helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
            ],
            "tiny",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, SIDE, SIDE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
            [numpy_helper.from_array(weights.reshape(-1, CLASSES), "weight")],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        made.ir_version = 10
        onnx.save(made, place / f"models/{i:04d}.onnx")
    labels = rng.permutation(np.repeat(np.arange(CLASSES), 30))
    images = np.full((len(labels), 1, SIDE, SIDE), 0.2, np.float32)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[0, row * half : (row + 1) * half, column * half : (column + 1) * half] = 0.8
    images += rng.uniform(-0.02, 0.02, images.shape).astype(np.float32)
    np.savez(place / "data.npz", images=images, labels=labels)


def _command(place: Path, asked: argparse.Namespace, name: str) -> subprocess.Popen[bytes]:
    """The command, into a folder and with a cache of that name; the last argument marks it for the kills."""
    line = [
        sys.executable,
        "-c",
        "from onnxspect.cli.main import main; import sys; main(sys.argv[1:-1])",
        "scan",
        "models",
    ]
    line += ["--data", "data.npz", "--preset", asked.preset, "--jobs", str(asked.jobs), "--device", "cpu"]
    line += ["--out", name, "--cache", f"{name}-cache", "-q", "--json", "--exit-zero"]
    for detector in asked.detector:
        line += ["--detector", detector]
    return subprocess.Popen(
        [*line, COMMAND], cwd=place, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def _still(place: Path, asked: argparse.Namespace) -> dict[str, Any]:
    began, started = time.time(), time.perf_counter()
    status = _command(place, asked, "still").wait()
    wall = time.perf_counter() - started
    with sqlite3.connect(place / "still/index.sqlite") as db:
        own = db.execute("SELECT sum(seconds) FROM results").fetchone()[0] or 0.0
    references = _references_seconds(place / "still-cache")
    start = _until_references(place / "still", began)
    searches = sum(_searching(p) for p in (place / "still").glob("*/run.sqlite"))
    problems = _problems(place, "still", asked.models)
    problems += [] if status == 0 else [f"the undisturbed command ended with {status}"]
    return {
        "wall_seconds": round(wall, 1),
        "scans_seconds": round(own, 1),
        "searches_seconds": round(searches, 1),
        "references_seconds": round(references, 1),
        "until_references_seconds": round(start, 1),
        "ratio_to_searches": round(wall * asked.jobs / max(searches + references, 1e-9), 3),
        "ratio": round(wall * asked.jobs / max(own + references, 1e-9), 3),
        "problems": problems,
    }


def _until_references(folder: Path, began: float) -> float:
    """Seconds from the start of the command until the references were there, which its other models waited for."""
    with sqlite3.connect(folder / "index.sqlite") as db:
        (ended,) = db.execute("SELECT min(began) FROM attempts WHERE key LIKE '%/%' AND status = 0").fetchone()
    return max(0.0, datetime.datetime.fromisoformat(ended).timestamp() - began)


def _searching(ledger: Path) -> float:
    """What the searches of a scan took, as its ledger says; what a detector made of them has rows of its own."""
    with sqlite3.connect(ledger) as db:
        rows = db.execute("SELECT row FROM units WHERE detector NOT LIKE 'evidence of %'")
        return sum(json.loads(row)["seconds"] or 0.0 for (row,) in rows)


def _references_seconds(cache: Path) -> float:
    """What the units of the references took, as their ledgers say."""
    total = 0.0
    for ledger in cache.glob("references/*/*/run.sqlite"):
        with sqlite3.connect(ledger) as db:
            total += sum(json.loads(row)["seconds"] or 0.0 for (row,) in db.execute("SELECT row FROM units"))
    return total


def _under_kills(place: Path, asked: argparse.Namespace, whole: float) -> dict[str, Any]:
    """The same, killed again and again."""
    rng = random.Random(asked.seed)
    kinds: dict[str, int] = dict.fromkeys((*_VICTIMS, COMMAND), 0)
    commands, started = 0, time.perf_counter()
    command = None
    while True:
        if command is None:
            command = _command(place, asked, "killed")
            commands += 1
        wait = rng.uniform(0.2, 1.0) * 1.2 * whole / max(asked.kills, 1)
        try:
            status = command.wait(wait if sum(kinds.values()) < asked.kills else None)
        except subprocess.TimeoutExpired:
            # The command itself one time in four: what it started dies with it.
            name = COMMAND if sum(kinds.values()) % 4 == 3 else rng.choice(_VICTIMS)
            victims = _pids(command.pid, name)
            if victims:
                os.kill(rng.choice(victims), signal.SIGKILL)
                kinds[name] += 1
            if name == COMMAND:
                command.wait()
                command = None
            continue
        break
    problems = _problems(place, "killed", asked.models)
    problems += [] if status == 0 else [f"the command ended with {status} after the kills"]
    return {
        "wall_seconds": round(time.perf_counter() - started, 1),
        "kills": kinds,
        "commands": commands,
        "problems": problems,
    }


def _pids(root: int, name: str) -> list[int]:
    """The processes of that name beneath the command, or itself."""
    if name == COMMAND:
        return [root]
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        try:
            waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                found.append(pid)
        except OSError:
            continue
    return found


def _digests(folder: Path) -> dict[str, str]:
    with sqlite3.connect(folder / "index.sqlite") as db:
        return dict(db.execute("SELECT path, digest FROM scans").fetchall())


def _problems(place: Path, name: str, models: int) -> list[str]:
    """What is lost or done twice."""
    problems = []
    with sqlite3.connect(place / name / "index.sqlite") as db:
        done = db.execute("SELECT count(*) FROM scans WHERE digest <> ''").fetchone()[0]
        if done != models:
            problems.append(f"{name}: {done} of {models} models have a report")
        twice = db.execute(
            "SELECT count(*) FROM (SELECT key FROM attempts WHERE status IN (0, 1, 3) GROUP BY key HAVING count(*) > 1)"
        ).fetchone()[0]
        if twice:
            problems.append(f"{name}: {twice} commands came to their end twice")
    made = [p for p in place.glob(f"{name}-cache/references/*/*/run.sqlite") if ".half" not in p.parent.name]
    if len(made) != 1:
        problems.append(f"{name}: references were made {len(made)} times")
    for run in place.glob(f"{name}/*/references/run.sqlite"):
        with sqlite3.connect(run) as own, sqlite3.connect(made[0]) as shared:
            query = "SELECT detector, unit, row FROM units"
            if not set(shared.execute(query)) <= set(own.execute(query)):
                problems.append(f"{run.parent.parent.name}: searched references that were there")
    return problems


if __name__ == "__main__":
    sys.exit(main())
