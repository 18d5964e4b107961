"""Dormant logic (engine/subject/unreached.py): what it says of ordinary files, what it finds of payloads, and how long it takes.

    python benchmarks/graph_logic.py --files FOLDER_OR_ONNX ... --data NPZ_OR_FOLDER ... [--spec=NAME ...]
    python benchmarks/graph_logic.py --matrix [--dynamo] [--trained] [--quantised]
    python benchmarks/graph_logic.py --payloads [--only NAME ...]

--files takes ordinary (or backdoored by weights alone) ONNX files; images come from the first --data that fits their size, or are
made (coarse patches and noise). --matrix takes the networks of tests/lowering_networks.py, exported, with random weights or
(--trained) after a few steps on made classes; --quantised also their static QDQ form. --payloads puts every payload of
tests/hidden_logic.py and tests/hidden_ways.py on the shipped clean model and on every network of the matrix.

Nothing found on an ordinary file is right; of payloads every one, with a trigger that works on unseen
images in onnxruntime. Rows are added to benchmarks/results/graph_logic.json (those of the
same name are replaced), which also holds date, hardware and versions. Seconds are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from torch import nn

from onnxspect.converters.file.onnx_file import read_onnx
from onnxspect.converters.lowering.logits import logits_of
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.lowering.simplify import simplify
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.graph_logic import GraphLogic
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.evidence import Evidence
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.onnx_model import _image_input
from onnxspect.engine.subject.preprocessing import candidates
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject, as_scores
from onnxspect.engine.subject.unreached import Unreached, unreached
from onnxspect.models import zoo

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "graph_logic.json"
IMAGES = 64
#: Sizes of images where a file leaves them open.
OPEN = (3, 32, 32)


def opened(path: Path) -> Subject:
    """The file as a subject, without the child process that runs a stranger's file first."""
    file = read_onnx(path)
    proto, _ = simplify(file.proto)
    info = logits_of(proto)
    lowered = lower(proto, [info.value])
    layout, sizes = _image_input(file, lowered.inputs[0])
    shape = tuple(s or d for s, d in zip(sizes, OPEN, strict=True))
    spec = InputSpec(layout=layout)
    with torch.no_grad():
        classes = as_scores(lowered.module(spec.encode(torch.full((2, *shape), 0.5)))).shape[1]
    return Subject(lowered.module, spec, shape, classes, "cpu", str(path), file, lowered, info)


def made_images(shape: tuple[int, int, int], n: int = IMAGES, seed: int = 0) -> Samples:
    """Coarse patches and noise in [0, 1]."""
    channels, height, width = (s or d for s, d in zip(shape, (3, 32, 32), strict=True))
    rng = np.random.default_rng(seed)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    coarse = rng.random((n, channels, 4, 4))[:, :, rows][:, :, :, columns]
    images = np.clip(coarse + 0.1 * rng.standard_normal(coarse.shape), 0, 1).astype(np.float32)
    return Samples.from_arrays(images, rng.integers(0, 2, n))


def given_images(paths: Sequence[Path]) -> Iterator[Samples]:
    """The first images of every source: an npz file, or a folder of images by class (at most IMAGES of its folders)."""
    for path in paths:
        if path.suffix == ".npz":
            held = np.load(path)
            images, labels = ("images", "labels") if "images" in held else ("x_test", "y_test")
            yield Samples.from_arrays(held[images][:IMAGES], held[labels][:IMAGES])
        else:
            pixels = [
                np.asarray(_picture(next(iter(sorted(folder.iterdir()))))) for folder in sorted(path.iterdir())[:IMAGES]
            ]
            yield Samples.from_arrays(np.stack(pixels), np.arange(len(pixels)))


def _picture(path: Path) -> Any:
    from PIL import Image

    return Image.open(path).convert("RGB")


def looked_at(subject: Subject, samples: Samples) -> dict[str, Any]:
    """What is said of a subject: findings, and CPU seconds."""
    return looked_at_whole(subject, samples)[0]


def looked_at_whole(subject: Subject, samples: Samples) -> tuple[dict[str, Any], Unreached]:
    """The same, with what was found itself."""
    start = time.process_time()
    found = unreached(subject, samples)
    return {"seconds": round(time.process_time() - start, 3), **told(found)}, found


def woken(subject: Subject, samples: Samples, target: int, beyond: Unreached) -> dict[str, Any]:
    """What graph-logic makes of a payload: the trigger's success on unseen images in onnxruntime, its size, and CPU seconds."""
    start, half = time.process_time(), len(samples) // 2
    halves = samples.take(np.arange(half)), samples.take(np.arange(half, len(samples)))
    at_hand = AtHand(subject, *halves, RunContext(), beyond=beyond)
    found = GraphLogic().run(at_hand)
    units = {u.unit.target: u for u in found.units} if isinstance(found, Evidence) else {}
    unit = units.get(target)
    success = None if unit is None or unit.held_out_success is None else round(unit.held_out_success, 3)
    size = None if unit is None else unit.statistics["l1"]
    seconds = round(time.process_time() - start, 3)
    return {"trigger": success is not None and success >= 0.9, "success": success, "pixels": size, "solving": seconds}


def told(found: Unreached) -> dict[str, Any]:
    """Findings as JSON holds them."""
    dormant = [[d.node, d.operator, d.kind, round(d.moved, 3), d.leads_to] for d in found.dormant]
    others = [h for h in found.hidden if h.startswith("its output ")]
    untried = [h for h in found.hidden if h.startswith("more parts ")]
    return {"findings": len(found.hidden) - len(others), "dormant": dormant, "untried": untried, "outputs": others}


def ordinary_files(
    paths: Sequence[Path], data: Sequence[Path], specs: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """One row a file and preprocessing."""
    sources = list(given_images(data))
    files = [f for p in paths for f in (sorted(p.rglob("*.onnx")) if p.is_dir() else [p])]
    for file in files:
        name = f"{file.parent.name}/{file.name}"
        try:
            subject = opened(file)
        except OnnxspectError as error:
            yield name, {"kind": "file", "refused": str(error).splitlines()[0].replace(str(file), file.name)}
            continue
        except TypeError:  # further inputs, which a scan binds
            yield name, {"kind": "file", "refused": "it has several inputs"}
            continue
        shape = subject.image_shape
        fitting = [s for s in sources if all(b in (0, a) for a, b in zip(s.shape, shape, strict=True))]
        if subject.spec.layout == "FLAT":  # the size of the images is not in the file
            fitting = [s for s in sources if _runs(subject, s)]
        samples = fitting[0] if fitting else made_images(shape)
        for spec in (c for c in candidates(samples.shape[0], subject.spec.layout) if c.name in specs):
            label = f"{name}, {spec.name}"
            try:
                row = looked_at(subject.with_spec(spec), samples)
            except Exception as error:
                row = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
            made = "given" if fitting else "made"
            yield label, {"kind": "file", "bytes": file.stat().st_size, "images": made, **row}


def _runs(subject: Subject, samples: Samples) -> bool:
    try:
        subject.in_one_pass(torch.from_numpy(samples.images[:2]))
    except Exception:
        return False
    return True


def networks(only: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """The networks of tests/lowering_networks.py."""
    sys.path.insert(0, str(ROOT / "tests"))
    from lowering_families import build
    from lowering_networks import MATRIX

    for name in MATRIX:
        if not only or name in only:
            yield name, build(name, MATRIX)


def trained(network: nn.Module, steps: int = 40) -> nn.Module:
    """The network after a few steps on classes that are colours of the image's quarters."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    network.train()
    for step in range(steps):
        images, labels = coloured(32, step)
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def coloured(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Made images and their classes: which of ten (quarter, channel) pairs is brightened."""
    images = torch.from_numpy(made_images((3, 32, 32), n, seed).images * 0.6)
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 10, n))
    for image, label in zip(images, labels.tolist(), strict=True):
        quarter, channel = label % 4, label // 4
        image[channel, 16 * (quarter // 2) :, 16 * (quarter % 2) :][:16, :16] += 0.4
    return images, labels


def exported(network: nn.Module, dynamo: bool, opset: int | None = None) -> onnx.ModelProto:
    """As tests/lowering_families.py exports."""
    from lowering_families import export

    return export(network, dynamo=dynamo, opset=opset)


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, images: np.ndarray) -> None:
        self.batches = iter([{name: i[None]} for i in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def as_qdq(path: Path, images: np.ndarray, **options: Any) -> Path:
    """The file with activations and weights in 8 bits, QuantizeLinear and DequantizeLinear around every operator."""
    name = onnx.load(path).graph.input[0].name
    target = path.with_suffix(".qdq.onnx")
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_static(path, target, _Calibration(name, images), QuantFormat.QDQ, **options)
    return target


def matrix(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The export matrix."""
    exporter = "default exporter" if options.dynamo else "torchscript"
    samples = Samples.from_arrays(coloured(IMAGES, 999)[0].numpy(), np.zeros(IMAGES, np.int64))
    for name, network in networks(options.only):
        weights = "trained" if options.trained else "random"
        label = f"{name}, {exporter}, {weights}"
        try:
            path = folder / "network.onnx"
            onnx.save(exported(trained(network) if options.trained else network, options.dynamo), path)
            yield label, {"kind": "matrix", **looked_at(opened(path), samples)}
            if options.quantised:
                quantised = as_qdq(path, samples.images[:16], per_channel=True)
                yield f"{label}, QDQ", {"kind": "matrix", **looked_at(opened(quantised), samples)}
        except Exception as error:
            yield label, {"kind": "matrix", "error": f"{type(error).__name__}: {str(error)[:200]}"}


def payloads(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every payload on every carrier."""
    sys.path.insert(0, str(ROOT / "tests"))
    from hidden_logic import PAYLOADS, Payload, stamped
    from hidden_ways import WAYS, stamped_for

    def carriers() -> Iterator[tuple[str, onnx.ModelProto, Samples]]:
        if not options.only or "fashion_mnist_clean" in options.only:
            yield (
                "fashion_mnist_clean",
                onnx.load(zoo.path("fashion_mnist_clean")),
                Samples.load(zoo.path("fashion_mnist_test")).take(np.arange(120)),
            )
        pictures = Samples.from_arrays(coloured(120, 999)[0].numpy(), np.zeros(120, np.int64))
        for name, network in networks(options.only):
            yield name, exported(trained(network) if options.trained else network, options.dynamo, opset=20), pictures

    for carrier, model, samples in carriers():
        for name, put in {**PAYLOADS, **WAYS}.items():
            if options.kinds and name not in options.kinds:
                continue
            label = f"{name} on {carrier}{', trained' if options.trained else ''}"
            stamp = stamped if name in PAYLOADS else stamped_for
            try:
                infected = put(Payload(model, channels=samples.shape[0]))
                path = folder / "payload.onnx"
                onnx.save(infected, path)
                image, some = infected.graph.input[0].name, samples.images[:16]
                before = Oracle(_saved(model, folder / "carrier.onnx")).run({image: some})[0].argmax(1)
                clean, woken_to = (Oracle(path).run({image: i})[0].argmax(1) for i in (some, stamp(some, name)))
                works = bool((before == clean).all()) and len(np.unique(woken_to)) == 1
                subject = opened(path)
                row, beyond = looked_at_whole(subject, samples)
            except Exception as error:
                yield label, {"kind": "payload", "error": f"{type(error).__name__}: {str(error)[:200]}"}
                continue
            own = {n.name or n.output[0] for n in model.graph.node}
            hidden = [d for d in row["dormant"] if d[0] not in own]
            yield (
                label,
                {
                    "kind": "payload",
                    "works": works,
                    "found": bool(hidden),
                    **row,
                    **woken(subject, samples, int(woken_to[0]), beyond),
                },
            )


def _saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; exits with 1 where an ordinary file has a finding or a payload has none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=Path, nargs="*", default=[])
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--spec", action="append", help="preprocessings to feed files with, by name (0..1)")
    parser.add_argument("--matrix", action="store_true")
    parser.add_argument("--payloads", action="store_true")
    for flag in ("dynamo", "trained", "quantised"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], help="networks of the matrix")
    parser.add_argument("--kinds", nargs="*", default=[], help="payloads, by name; all of them by default")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    held = json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else {"rows": {}}
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        parts = [ordinary_files(options.files, options.data, options.spec or ["0..1"])]
        parts += [matrix(options, Path(folder))] if options.matrix else []
        parts += [payloads(options, Path(folder))] if options.payloads else []
        for part in parts:
            for name, row in part:
                wrong = not row.get("found", True) or (row["kind"] != "payload" and row.get("findings"))
                bad += bool(wrong)
                held["rows"][name] = row
                print(
                    f"{'!!' if wrong else '  '} {name:60s} {json.dumps({k: v for k, v in row.items() if v and k != 'kind'})}",
                    flush=True,
                )
                _write(options.results, held)
    return 1 if bad else 0


def _write(path: Path, held: dict[str, Any]) -> None:
    rows = held["rows"]
    ordinary = [r for r in rows.values() if r["kind"] != "payload" and "findings" in r]
    planted = [r for r in rows.values() if r["kind"] == "payload" and r.get("works")]
    record = {
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "ordinary": len(ordinary),
        "ordinary_with_findings": sum(bool(r["findings"]) for r in ordinary),
        "payloads": len(planted),
        "payloads_found": sum(r["found"] for r in planted),
        "payloads_with_a_working_trigger": sum(r.get("trigger", False) for r in planted),
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
