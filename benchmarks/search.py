"""The one search, side by side in one run: against a sequential Neural Cleanse, against ART, against the bare limit.

    python benchmarks/search.py [--baseline-labels 7,0,1] [--art-python PYTHON] [--device cpu] [--out FILE]

Same model (the shipped infected one), same data, same thread, interleaved label by label:

(a) Neural Cleanse written from the published settings (Wang et al., 2019, and its code): one label at a time, mini-batches of
    32 over all 1,000 images (the code's number; nothing is held out), Adam (0.1; 0.5, 0.9), mask and pattern from noise, lambda
    from 0 to 1e-3 and by 1.5 (down by 1.5^1.5) after 5 epochs, at most 1,000 epochs, its own early stop (25 epochs without
    a smaller mask after lambda has been both up and down).
(b) adversarial-robustness-toolbox's Neural Cleanse, in the interpreter given, on a small planted Keras classifier, since it takes
    live Keras classifiers only; ours on the same classifier, converted (art_neural_cleanse.py).
(c) the bare limit: as many forward and input-backward passes of the bare torch graph as (ours) took, on the same images.

Ours are the settings of `scan --preset standard`: 48 of the 500 images that it does not hold out for validation.

Then the cost against the number of labels, on a small network with random heads: full searches and the race. Both processor
and wall seconds are kept; ratios are of processor seconds, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from onnxspect.converters.sources.convert import convert
from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.neural_cleanse import NAME, NeuralCleanse
from onnxspect.engine.detectors.registry import PRESETS
from onnxspect.engine.jobs.scan import SEARCH_SHARE
from onnxspect.engine.judge.evidence import Evidence, Unit
from onnxspect.engine.judge.null_model import leave_one_out, mad
from onnxspect.engine.run import RunContext, choose_device, device_name, prepare_process
from onnxspect.engine.search.objective import laid_out
from onnxspect.engine.search.perturbation import MaskPattern
from onnxspect.engine.search.search import SearchConfig, choose_images, plan, search
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.models import zoo

PACKAGES = ("onnxspect", "torch", "numpy", "adversarial-robustness-toolbox")
MODEL, DATA = "fashion_mnist_badnets", "fashion_mnist_test"
HEADS = (10, 43, 100, 1000)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline-labels", default="all", help="labels that (a) searches: all, or 7,0,1")
    parser.add_argument("--epochs", type=int, default=1000, help="at most so many epochs a label in (a)")
    parser.add_argument("--heads", default=",".join(map(str, HEADS)), help="numbers of labels for the cost curve")
    parser.add_argument("--art-python", help="an interpreter that has adversarial-robustness-toolbox")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args(arguments)
    run = RunContext(asked.seed, choose_device(asked.device))
    prepare_process(run.device)
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": f"benchmarks/search.py --baseline-labels {asked.baseline_labels} --heads {asked.heads} --epochs {asked.epochs}",
        "seed": asked.seed,
        "device": device_name(run.device),
        "machine": {"python": platform.python_version(), "processor": platform.machine(), "system": platform.system()},
        "versions": {p: version(p) for p in PACKAGES},
        "gpu": "measured" if run.device == "cuda" else "not measured: no GPU in this run (--device cuda)",
    }

    def keep(name: str, value: Any) -> None:
        result[name] = value
        if asked.out:
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            asked.out.write_text(json.dumps(result, indent=1) + "\n")

    labels = None if asked.baseline_labels == "all" else [int(t) for t in asked.baseline_labels.split(",")]
    keep("side_by_side", side_by_side(run, labels, asked.epochs))
    keep("art", art(asked.art_python, run))
    print(f"(b) ART: {result['art']['outcome']}")
    heads = [int(k) for k in asked.heads.split(",")]
    keep("labels", [])
    for k in heads:
        keep("labels", [*result["labels"], cost_of_labels(k, run, result["labels"])])
    return 0


def version(package: str) -> str | None:
    """Of an installed package; None where it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def timed(work: Callable[[], Any], device: str) -> tuple[Any, float, float]:
    """(what it returns, processor seconds, wall seconds)."""
    if device == "cuda":
        torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    value = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return value, time.process_time() - cpu, time.perf_counter() - wall


def side_by_side(run: RunContext, labels: list[int] | None, epochs: int) -> dict[str, Any]:
    """(a), ours and (c) on the shipped infected model, interleaved label by label."""
    subject = Subject.from_onnx(zoo.path(MODEL), device=run.device)
    everything = Samples.load(zoo.path(DATA))
    search_samples, _ = everything.split(SEARCH_SHARE, run.numpy_generator("split"))
    true = np.zeros((28, 28), bool)
    true[25:, 25:] = True  # the manifest's trigger: 3 by 3, bottom right
    target = int(zoo.entry(MODEL)["target"])
    config = PRESETS["standard"]
    rows = []
    print(
        f"{'label':>5} {'ours s':>8} {'limit s':>8} {'limit, as laid out':>18} {'(a) s':>8} {'l1 ours':>8} {'l1 (a)':>8}"
    )
    warm_up(subject, search_samples, run)
    for t in range(subject.classes):
        unit = Unit(t)
        ((batch,), cpu, wall) = timed(
            lambda u=unit: list(search(subject, search_samples, [(u,)], MaskPattern(), config, run, NAME)), run.device
        )
        ours = batch[0]
        images = search_samples.images[choose_images(unit, search_samples, config.samples, run, NAME)]
        _, plain, _ = timed(lambda i=images, n=ours.steps, k=t: bare(subject, i, n, k, False), run.device)
        _, laid, _ = timed(lambda i=images, n=ours.steps, k=t: bare(subject, i, n, k, True), run.device)
        row: dict[str, Any] = {
            "label": t,
            "ours": {"seconds": cpu, "wall": wall, "steps": ours.steps, "l1": ours.cost, "images": len(images)},
            "limit": {"plain": plain, "laid_out": laid},
            "overlap": overlap(ours.trigger["mask"][0], true) if t == target else None,
        }
        if labels is None or t in labels:
            theirs, cpu, wall = timed(lambda k=t: sequential(subject, everything, k, epochs, run), run.device)
            row["sequential"] = {"seconds": cpu, "wall": wall} | {k: v for k, v in theirs.items() if k != "mask"}
            row["sequential"]["overlap"] = overlap(theirs["mask"], true) if t == target else None
        rows.append(row)
        a = row.get("sequential", {"seconds": np.nan, "l1": np.nan})
        print(
            f"{t:5d} {row['ours']['seconds']:8.2f} {plain:8.2f} {laid:18.2f} {a['seconds']:8.1f} {ours.cost:8.2f} {a['l1']:8.2f}",
            flush=True,
        )
    return {"model": MODEL, "target": target, "rows": rows, "summary": summary(rows, target)}


def summary(rows: list[dict[str, Any]], target: int) -> dict[str, Any]:
    """Ratios of processor seconds over the labels that both searched, overheads, verdicts, overlaps."""
    both = [r for r in rows if "sequential" in r]
    ours = sum(r["ours"]["seconds"] for r in rows)
    at_target = rows[target]
    document: dict[str, Any] = {
        "times_faster_than_sequential": sum(r["sequential"]["seconds"] for r in both)
        / sum(r["ours"]["seconds"] for r in both),
        "labels_of_sequential": [r["label"] for r in both],
        "overhead_over_limit": ours / sum(r["limit"]["plain"] for r in rows) - 1,
        "overhead_over_limit_as_laid_out": ours / sum(r["limit"]["laid_out"] for r in rows) - 1,
        "ours": verdict([r["ours"]["l1"] for r in rows]) | {"overlap": at_target["overlap"]},
        "sequential": {"overlap": at_target.get("sequential", {}).get("overlap")},
    }
    if len(both) == len(rows):
        document["sequential"] |= verdict([r["sequential"]["l1"] for r in rows])
    print(json.dumps(document, indent=1))
    return document


def verdict(norms: Sequence[float]) -> dict[str, Any]:
    """What the paper's rule and the calibrated one make of one norm a label (without references)."""
    values = np.array([n if np.isfinite(n) else np.nan for n in norms])
    calibrated, paper = leave_one_out(values), mad(values)
    return {
        "most_suspicious": int(calibrated.log10_p.argmin()),
        "log10_p": float(calibrated.log10_p.min()),
        "mad_index": float(np.nanmax(paper.index)),
        "mad_flags": np.flatnonzero(paper.paper_flag).tolist(),
    }


def overlap(mask: np.ndarray, true: np.ndarray) -> float:
    """Share of the mask's mass that lies where the planted trigger is."""
    return float(mask[true].sum() / max(float(mask.sum()), 1e-9))


def warm_up(subject: Subject, samples: Samples, run: RunContext) -> None:
    """First calls choose kernels and allocate; nobody's time."""
    bare(subject, samples.images[:64], 3, 0, False)
    bare(subject, samples.images[:64], 3, 0, True)
    list(search(subject, samples, [(Unit(0),)], MaskPattern(), SearchConfig(steps=5), run, "warm-up"))


def bare(subject: Subject, images: np.ndarray, steps: int, target: int, as_laid_out: bool) -> None:
    """`steps` forward and input-backward passes of the torch graph, and nothing else."""
    x = torch.from_numpy(images).to(subject.device)
    x = (laid_out(x.clone()) if as_laid_out else x.clone()).requires_grad_(True)
    targets = torch.full((len(images),), target, device=subject.device)
    for _ in range(steps):
        torch.autograd.grad(functional.cross_entropy(subject(x), targets), [x])


def sequential(subject: Subject, samples: Samples, target: int, epochs: int, run: RunContext) -> dict[str, Any]:
    """Neural Cleanse for one label, as published: the settings of the authors' code, all images, batches of 32."""
    generator = run.torch_generator("sequential", target)
    channels, height, width = samples.images.shape[1:]
    leaves = [
        torch.atanh((torch.rand(shape, generator=generator) - 0.5) * (2 - 1e-7)).to(subject.device).requires_grad_(True)
        for shape in ((1, height, width), (channels, height, width))
    ]
    optimizer = torch.optim.Adam(leaves, lr=0.1, betas=(0.5, 0.9))
    images = torch.from_numpy(samples.images).to(subject.device)
    multiplier, ups, downs = 0.0, 0, 0
    best, best_mask = np.inf, np.zeros((height, width), np.float32)
    went_up = went_down = False
    quiet, reference, zero_for = 0, np.inf, 0
    done = 0
    while done < epochs:
        done += 1
        successes, norms = [], []
        for rows in torch.randperm(len(images), generator=generator).split(32):
            mask, pattern = ((torch.tanh(leaf) / (2 - 1e-7) + 0.5) for leaf in leaves)
            logits = subject((1 - mask) * images[rows] + mask * pattern)
            labels = torch.full((len(rows),), target, device=subject.device)
            loss = functional.cross_entropy(logits, labels) + multiplier * mask.sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            successes.append(float((logits.argmax(1) == target).float().mean()))
            norms.append(float(mask.detach().sum()))
        success, norm = float(np.mean(successes)), float(np.mean(norms))
        if success >= 0.99 and norm < best:
            best = norm
            best_mask = mask.detach().cpu().numpy()[0]
        if np.isfinite(best):  # early stop: 25 epochs without a smaller mask, lambda having been up and down
            quiet = quiet + 1 if best >= reference else 0
            reference = min(best, reference)
        if went_up and went_down and quiet >= 25:
            break
        if multiplier == 0 and success >= 0.99:
            zero_for += 1
            if zero_for >= 5:
                multiplier, ups, downs, went_up, went_down = 1e-3, 0, 0, False, False
            continue
        zero_for = 0
        ups, downs = (ups + 1, 0) if success >= 0.99 else (0, downs + 1)
        if ups >= 5:
            multiplier, ups, went_up = multiplier * 1.5, 0, True
        elif downs >= 5:
            multiplier, downs, went_down = multiplier / 1.5**1.5, 0, True
    return {"l1": best, "epochs": done, "images": len(images), "mask": best_mask}


def art(python: str | None, run: RunContext) -> dict[str, Any]:
    """ART's Neural Cleanse and ours on the same planted Keras classifier; how ART failed where it does not run."""
    if python is None:
        return {"outcome": "not tried: no --art-python"}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        script = Path(__file__).with_name("art_neural_cleanse.py")
        done = subprocess.run([python, str(script), folder], capture_output=True, text=True, timeout=1800)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            return {"outcome": f"does not run: {(lines or ['no message'])[-1][:300]}"}
        document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        convert(place / "model.keras", place / "model.onnx")
        samples = Samples.load(place / "clean.npz")
        subject = Subject.from_onnx(place / "model.onnx", device=run.device, image_shape=samples.shape)
        batches = plan([Unit(k) for k in range(len(document["labels"]))], 1)
        found, cpu, _ = timed(
            lambda: [
                r for rs in search(subject, samples, batches, MaskPattern(), PRESETS["standard"], run, NAME) for r in rs
            ],
            run.device,
        )
    ours = {"labels": [{"l1": r.cost, "success": r.success} for r in found], "seconds": cpu}
    working = [k for k, row in enumerate(document["labels"]) if row["success"] >= 0.9]
    smallest = min(range(len(found)), key=lambda k: found[k].cost)
    sizes = [row["l1"] for row in document["labels"]]
    stuck = ", and all its masks are the same" if max(sizes) - min(sizes) < 1e-3 * max(sizes) else ""
    outcome = (
        f"ART's triggers work for {len(working)} of {len(found)} labels{stuck}, in {document['seconds']:.0f} s; ours for "
        f"{sum(r.found for r in found)} in {cpu:.0f} s, the smallest is label {smallest}'s (planted: {document['target']})"
    )
    return {"outcome": outcome, "art": document, "ours": ours}


def cost_of_labels(k: int, run: RunContext, known: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of a race over k labels of a small network with a random head; full searches where k is small.

    Full searches cost the same for every label, so theirs is measured for the smallest k and multiplied for the others.
    """
    generator = run.torch_generator("heads", k)
    body = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, k)
    )
    with torch.no_grad():
        for p in body.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / max(1, p[0].numel()) ** 0.5)
    subject = Subject.from_module(body, (1, 16, 16), InputSpec(), run.device)
    rng = run.numpy_generator("images", k)
    images = rng.random((max(2 * k, 200), 1, 16, 16), dtype=np.float32)
    samples = Samples.from_arrays(images, subject.predict(images).argmax(1))  # the network's own labels
    hand = AtHand(subject, samples, samples, run)

    def evidence_of(detector: NeuralCleanse) -> Evidence:
        found = detector.run(hand)
        assert isinstance(found, Evidence)
        return found

    race, cpu, wall = timed(lambda: evidence_of(NeuralCleanse(most_full=20, held_out=0)), run.device)
    row: dict[str, Any] = {
        "labels": k,
        "race": {
            "seconds": cpu,
            "wall": wall,
            "steps": race.steps,
            "raced": any(m.carried for u in race.units for m in u.measurements),
        },
    }
    if not known:
        full, cpu, wall = timed(lambda: evidence_of(NeuralCleanse(most_full=k, held_out=0)), run.device)
        row["full"] = {"seconds": cpu, "wall": wall, "steps": full.steps, "measured": True}
    else:
        row["full"] = {"seconds": known[0]["full"]["seconds"] * k / known[0]["labels"], "measured": False}
    first = known[0] if known else row
    row["race_growth"] = row["race"]["seconds"] / first["race"]["seconds"] / (k / first["labels"])
    print(f"{k:5d} labels: race {row['race']['seconds']:.1f} s, full {row['full']['seconds']:.1f} s", flush=True)
    return row


if __name__ == "__main__":
    with torch.random.fork_rng(devices=[]):
        sys.exit(main())
