"""Scan a trained half of the bank, and keep the evidence of every model.

    python benchmarks/bank.py --bank bank/tuning --half tuning --data-root DIR [--preset standard] [--samples 1000] [--only NAME] [--add DETECTOR]

Each model gets an even, seeded draw of its test images. What is kept already (by the model's digest, the preset and the number of
samples) is not scanned again, so an interrupted run goes on; the scans themselves resume too. Infected models whose trigger works on less
than their recipe promises are left out. With --add, what is kept of a model gets the evidence of a detector that it lacks: detectors draw from
generators of their own, so that this is what one scan with all of them finds. replay.py makes tables of what is kept, derive.py the bank that ships.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import kept
import numpy as np
from datasets import even_draw
from replay import judged

from onnxspect.engine.detectors.registry import NAMES, PRESETS
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.run import RunContext, choose_device
from onnxspect.models.bank import families
from onnxspect.models.made import load
from onnxspect.models.manifest import read_manifest


def main(arguments: Sequence[str] | None = None) -> int:
    """Scan; 1 where a model could not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, required=True, help="folder that train_bank wrote")
    parser.add_argument("--half", choices=["tuning", "judging"], required=True)
    parser.add_argument("--data-root", type=Path, help="folder with the data sets as npz")
    parser.add_argument("--preset", choices=list(PRESETS), default="standard")
    parser.add_argument("--samples", type=int, default=1000, help="clean images a scan gets, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs/bank"), help="where the scans are kept")
    parser.add_argument("--evidence", type=Path, default=kept.FOLDER)
    parser.add_argument("--only", action="append", default=[], help="only models whose name contains this or another")
    parser.add_argument(
        "--add", action="append", default=[], help="a detector that what is kept lacks", metavar="DETECTOR"
    )
    asked = parser.parse_args(arguments)
    of_half = {f.name for f in families()[0] if f.half == asked.half}
    run, failed = RunContext(asked.seed, choose_device(asked.device)), 0
    for row in read_manifest(asked.bank)["models"]:
        if asked.only and not any(part in row["name"] for part in asked.only):
            continue
        if not any(row["name"].startswith(f"{name}_") for name in of_half):
            parser.error(f"{row['name']} is of no family of the {asked.half} half")
        if row["infected"] and row["asr"] < row["recipe"]["floors"]["asr"]:
            print(f"left out  {row['name']}: its trigger works on {row['asr']:.0%}", flush=True)
            continue
        try:
            print(measure(row, asked, run), flush=True)
        except OnnxspectError as error:
            failed += 1
            print(f"failed    {row['name']}: {error}", flush=True)
    return int(failed > 0)


def measure(row: dict[str, Any], asked: argparse.Namespace, run: RunContext) -> str:
    """Scan one model and keep its evidence, unless that was done; a line for people."""
    board = f"bank-{asked.preset}-{asked.samples}"
    path = asked.evidence / board / f"{row['name']}.json.gz"
    one = kept.Kept.read(path) if path.is_file() else None
    if one is not None and one.model["sha256"] != row["sha256"]:
        one = None  # of another model, which had this name
    lacking = [] if one is None else [d for d in asked.add if d not in {e.detector for e in one.archive.evidence}]
    if one is not None and not lacking:
        return f"there     {row['name']}"
    data = samples_of(row["dataset"], asked)
    folder = asked.runs / board / row["name"]
    references = asked.runs / board / f"references-{data.stem}"
    if one is not None:
        folder = folder.with_name(f"{row['name']}+{'+'.join(lacking)}")
        scan(asked.bank / row["file"], data, folder, asked.preset, lacking, run=run, references=references)
        joined(one, kept.of_run(folder, board, asked.half, one.model)).write(asked.evidence)
        return f"added     {' and '.join(lacking)} to {row['name']}"
    report = scan(asked.bank / row["file"], data, folder, asked.preset, run=run, references=references).report
    facts = {
        "name": row["name"],
        "dataset": row["dataset"],
        "network": row["architecture"],
        "infected": row["infected"],
        "targets": row.get("targets", []) if row["infected"] else [],
        "attack": attack_of(row),
        "asr": row["asr"],
    }
    kept.of_run(folder, board, asked.half, facts).write(asked.evidence)
    return f"{report['verdict']:13} {row['name']} {report['targets']} of {facts['targets']} p {report['p_value']:.2g}"


def joined(one: kept.Kept, other: kept.Kept) -> kept.Kept:
    """What is kept of a model, with the evidence of another scan of it; what this commit says of both is what is recorded.

    Raises:
        OnnxspectError: the other scan is of another model, or of other samples.
    """
    if (one.model["sha256"], one.archive.samples) != (other.model["sha256"], other.archive.samples):
        raise OnnxspectError(f"{one.model['name']}: the two scans are of different models or samples")
    order = {name: i for i, name in enumerate(NAMES)}
    evidence = sorted(
        {e.detector: e for e in (*one.archive.evidence, *other.archive.evidence)}.values(),
        key=lambda e: order[e.detector],
    )
    both = replace(one, archive=replace(one.archive, evidence=tuple(evidence)))
    verdict = judged(both)
    said = {"verdict": verdict.verdict, "targets": list(verdict.targets), "score": verdict.score}
    return replace(both, recorded={**one.recorded, **said, "log10_p": [c.log10_p for c in verdict.classes]})


def attack_of(row: dict[str, Any]) -> str:
    """The kind of attack: what stands in the name between family and number."""
    if not row["infected"]:
        return "clean"
    names = sorted(families()[1], key=len, reverse=True)
    return next(n for n in names if row["name"].rsplit("_", 1)[0].endswith(f"_{n}"))


def samples_of(dataset: str, asked: argparse.Namespace) -> Path:
    """An npz with an even, seeded draw of clean test images."""
    name = "".join(c if c.isalnum() else "-" for c in dataset)
    out: Path = asked.runs / f"{name}-{asked.samples}.npz"
    if not out.is_file():
        loaded = load(dataset, asked.data_root)
        chosen = even_draw(loaded.y_test, asked.samples, np.random.default_rng(asked.seed))
        out.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(out, images=loaded.x_test[chosen], labels=loaded.y_test[chosen])
    return out


if __name__ == "__main__":
    sys.exit(main())
