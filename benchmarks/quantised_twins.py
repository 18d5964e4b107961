"""Detection on integer files: what is found on a float file, and what of it on the same model in eight bits.

    python benchmarks/quantised_twins.py --zoo FOLDER ... --reference FOLDER --data-root DIR --work DIR [--forms NAME ...]
                                         [--preset quick] [--samples 1000] [--only NAME ...]

Every model is quantised by onnxruntime's quantiser: statically on `CALIBRATED` clean images (QuantizeLinear and DequantizeLinear around every
operator, per channel; or operators on integers), and dynamically. Each file is scanned as `onnxspect scan` does it: the search goes through the
quantiser with a straight-through slope, and what it finds is judged on the integer file. Infected zoo models whose trigger works
on less than their recipe promises are left out.

Rows are written to benchmarks/results/quantised_twins.json as they come, and are taken over by the next run only where they are of the same
code. Scans that are whole are kept under --work.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import kept
import numpy as np
import onnx
import torch
from boards import interval, line, right
from detection import PACKAGES, reference_subjects, version, zoo_subjects
from graph_logic import digest, opened, processor
from graph_subjects import ROOT, as_integers, drawn

from onnxspect.converters.proof.quantised import quantise
from onnxspect.engine.detectors.registry import PRESETS
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.preprocessing import preflight
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec
from onnxspect.models.zoo import path as shipped

RESULTS = ROOT / "benchmarks" / "results" / "quantised_twins.json"
#: Images that the ranges of activations are read from.
CALIBRATED = 128
FLOAT, STATIC, OPERATORS, DYNAMIC = "float", "int8, static", "int8, static, QLinear operators", "int8, dynamic"
FORMS = (FLOAT, STATIC, OPERATORS, DYNAMIC)


def main(arguments: Sequence[str] | None = None) -> int:
    """Scan all; 1 where less is found in eight bits than in float."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--zoo", type=Path, nargs="*", default=[], help="folders with a manifest.json, beside the shipped models"
    )
    parser.add_argument("--reference", type=Path, help="folder of models that others trained, with manifest.json")
    parser.add_argument("--data-root", type=Path, required=True, help="folder with the data sets as npz")
    parser.add_argument("--work", type=Path, required=True, help="where files and scans are kept")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=[FLOAT, STATIC])
    parser.add_argument("--preset", choices=list(PRESETS), default="quick")
    parser.add_argument("--samples", type=int, default=1000, help="clean images that a scan gets, at most")
    parser.add_argument("--only", nargs="*", default=[], help="models by name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    logging.getLogger().setLevel(logging.ERROR)
    before = json.loads(asked.results.read_text()) if asked.results.is_file() else {}
    same = (
        before.get("code") == digest()
        and before.get("preset") == asked.preset
        and before.get("samples") == asked.samples
    )
    rows = {(r["name"], r["form"]): r for r in before["models"]} if same else {}
    for subject in subjects(asked):
        samples = drawn(subject["dataset"], asked.data_root, asked.seed, asked.samples)
        for form in asked.forms:
            key = subject["name"], form
            if key not in rows:
                rows[key] = measure(subject, form, samples, asked)
                write(asked, list(rows.values()))
            print(f"{form:34}", line(rows[key]), flush=True)
    result = write(asked, list(rows.values()))
    print(json.dumps(result["kept"], indent=1))
    return int(any(k["found_of_those"] < k["found_in_float"] for k in result["kept"].values()))


def subjects(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The shipped models, those of the zoos, and the references, each with what is known of it."""
    found = [s for folder in (shipped("fashion_mnist_clean").parent, *asked.zoo) for s in zoo_subjects(folder)]
    found += reference_subjects(asked.reference) if asked.reference else []
    for subject in found:
        floors = (subject["recipe"] or {}).get("floors", {})
        if asked.only and subject["name"] not in asked.only:
            continue
        if subject["infected"] and subject["asr"] < floors.get("asr", 0):
            print(f"left out: {subject['name']}, whose trigger works on {subject['asr']:.0%}", flush=True)
            continue
        yield subject


def measure(subject: dict[str, Any], form: str, samples: Samples, asked: argparse.Namespace) -> dict[str, Any]:
    """One form of one model, scanned; an error is a row too."""
    row = {k: subject[k] for k in kept.FACTS} | {"form": form}
    name = "".join(c if c.isalnum() else "-" for c in f"{subject['name']}-{form}")
    try:
        path = file_of(subject, form, samples, asked.work / f"{name}.onnx", asked.seed)
        out, held = (
            asked.work / "runs" / f"{name}-{digest()}",
            asked.work / f"references-{subject['dataset']}-{digest()}",
        )
        run = RunContext(asked.seed)
        report = scan(path, samples, out, asked.preset, spec=subject["spec"], run=run, references=held).report
    except OnnxspectError as error:
        return row | {"verdict": "error", "found": [], "p_value": 1.0, "error": str(error)}
    return row | {
        "verdict": report["verdict"],
        "found": report["targets"],
        "p_value": report["p_value"],
        "clean_accuracy": report["preprocessing"]["clean_accuracy"],
        "operators": len({n.op_type for n in onnx.load(path).graph.node}),
        "seconds": report["seconds"],
    }


def file_of(subject: dict[str, Any], form: str, samples: Samples, path: Path, seed: int) -> Path:
    """The model in this form; the float file itself, or a file that is made once."""
    source: Path = subject["path"]
    if form == FLOAT or path.is_file():
        return source if form == FLOAT else path
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = samples.take(np.sort(np.random.default_rng(seed).permutation(len(samples))[:CALIBRATED])).images
    float_file = opened(source)
    assert float_file.lowered is not None
    spec: InputSpec | None = subject["spec"]
    if spec is None:
        spec = preflight(replace(float_file, image_shape=samples.shape), samples, RunContext(seed)).subject.spec
    else:
        spec = replace(spec, layout=float_file.spec.layout)
    fed, name = spec.encode(torch.from_numpy(rows)).numpy(), float_file.lowered.inputs[0]
    if form == OPERATORS:
        as_integers(source, path, name, fed)
        return path
    return quantise(form, source, path, name, fed)


def write(asked: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The file, with what the rows come to: of what is found in float, how much is in each form."""
    found = {r["name"] for r in rows if r["form"] == FLOAT and r["infected"] and right(r)}
    shares = {}
    for form in [f for f in FORMS if f != FLOAT and any(r["form"] == f for r in rows)]:
        there = [r for r in rows if r["form"] == form]
        twins, clean = [r for r in there if r["name"] in found], [r for r in there if not r["infected"]]
        both = sum(map(right, twins))
        shares[form] = {
            "infected": sum(r["infected"] for r in there),
            "found_in_float": len(twins),
            "found_of_those": both,
            "share": both / len(twins) if twins else None,
            "interval": interval(both, len(twins)) if twins else None,
            "clean": len(clean),
            "false_alarms": sum(r["verdict"] == "backdoored" for r in clean),
        }
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "code": digest(),
        "preset": asked.preset,
        "samples": asked.samples,
        "seed": asked.seed,
        "processor": processor(),
        "versions": {p: version(p) for p in PACKAGES},
        "float": {
            "infected": sum(r["infected"] for r in rows if r["form"] == FLOAT),
            "found": len(found),
            "clean": sum(not r["infected"] for r in rows if r["form"] == FLOAT),
            "false_alarms": sum(r["verdict"] == "backdoored" for r in rows if r["form"] == FLOAT and not r["infected"]),
        },
        "kept": shares,
        "models": rows,
    }
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    partial = asked.results.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(asked.results)
    return result


if __name__ == "__main__":
    sys.exit(main())
