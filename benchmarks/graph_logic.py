"""Dormant logic (engine/subject/unreached.py): payloads that are found, ordinary files that are kept from a verdict, and how long it takes.

    python benchmarks/graph_logic.py --data-root DIR --work DIR [--part payloads|ordinary] [--zoo FOLDER ...] [--files FOLDER_OR_ONNX ...
                                     --images NPZ_OR_FOLDER ...] [--carriers N] [--only NAME ...] [--kinds NAME ...]

payloads: every payload of tests/hidden_logic.py, hidden_ways.py and hidden_pairs.py on clean models: those of the zoos (--zoo, and the
shipped one) and the networks of tests/lowering_networks.py, trained on CIFAR-10's subset; each with up to 1,000 clean images.
ordinary: the same networks in every form of graph_subjects.py, all models of the zoos (those with a backdoor in the weights too), and
--files with the first of --images that the file answers rightly (or with made ones).

What is said is what a scan says: detector graph-logic alone, then the judge. A payload is found where the verdict is not clean because of a node that
it brought; its trigger works where it turns 90 % of unseen images in onnxruntime. Models that constants were read from
(benchmarks/graph_tuning.py) are of no zoo that is given here.

Rows are written to benchmarks/results/graph_logic.json as they come, and are taken over by the next run only where they are of the same
code (the digest of converters/ and engine/ is in the file). Seconds are CPU seconds of one thread. Networks that a few hundred steps
have not taught enough for a scan are looked at with their own answers as labels: what sleeps in a graph does not hang on its accuracy.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import itertools
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch
from datasets import even_draw
from graph_subjects import (
    FORMS,
    LARGE_IMAGES,
    ROOT,
    Matrix,
    Ordinary,
    for_payloads,
    given_images,
    made_images,
    matrix_names,
    of_zoo,
)

from onnxspect.converters.file.onnx_file import read_onnx
from onnxspect.converters.lowering.logits import logits_of
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.lowering.simplify import simplify
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.graph_logic import GraphLogic, idle_in
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.choice import SEARCH_SHARE
from onnxspect.engine.judge.evidence import Evidence
from onnxspect.engine.judge.verdict import decide
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.onnx_model import _image_input
from onnxspect.engine.subject.preprocessing import preflight
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject, as_scores
from onnxspect.engine.subject.unreached import unreached
from onnxspect.models import zoo

if TYPE_CHECKING:
    from hidden_logic import Payload

RESULTS = ROOT / "benchmarks" / "results" / "graph_logic.json"
SEED = 0
#: Sizes of images where a file leaves them open.
OPEN = (3, 32, 32)
#: A trigger works that turns so many unseen images to its class; a payload that leaves so many clean answers as they were and turns so many
#: with its pattern (pictures of CIFAR-10 are there whose corner is white by nature).
WORKS = 0.9
#: Files of unknown images beyond so many bytes get the first that fit as they are.
LARGE_FILE = 1 << 24
#: Images on which it is tried whether a payload does what it is made for, at once; clean ones a few at a time.
TRIED, SMALL_BATCH = 32, 8
#: Networks of the matrix that payloads are put on, unlike ones first; those whose last weights are no matrix are left out.
CARRIERS = (
    *("residual", "transformer", "mobile", "convnext", "gru", "dense", "efficientnet", "windows", "googlenet", "mixer"),
    *("shuffle", "class_attention", "plain", "mobilenet_v2", "lstm", "resnext", "poolformer", "nfnet"),
)


def opened(path: Path) -> Subject:
    """The file as a subject, without the child process that runs an untrusted file first."""
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


def looked_at(subject: Subject, samples: Samples) -> dict[str, Any]:
    """What a scan with graph-logic alone says, and CPU seconds: until the dormant parts are known, and in all."""
    run, started = RunContext(SEED), time.process_time()
    beyond = unreached(subject, samples, run.seed, idle_in(subject, samples, run))
    known = time.process_time()
    search, held_out = samples.split(SEARCH_SHARE, run.numpy_generator("split"))
    evidence = GraphLogic().run(AtHand(subject, search, held_out, run, beyond=beyond))
    done = time.process_time()
    verdict = decide([evidence], subject.classes, hidden=beyond.hidden, samples=len(samples))
    units = evidence.units if isinstance(evidence, Evidence) else ()
    return {
        "verdict": verdict.verdict,
        "targets": list(verdict.targets),
        "reasons": list(beyond.hidden),
        "dormant": [[d.node, d.operator, d.kind, round(d.moved, 3), d.leads_to] for d in beyond.dormant],
        "idle": [text for text in beyond.limits if "lead to no class" in text],
        "triggers": [
            [u.unit.target, None if u.held_out_success is None else round(u.held_out_success, 3), u.statistics["l1"]]
            for u in units
        ],
        "images": len(samples),
        "seconds_to_know": round(known - started, 3),
        "seconds": round(done - started, 3),
    }


def shape_of(path: Path) -> dict[str, Any]:
    """Bytes and nodes."""
    return {"bytes": path.stat().st_size, "nodes": len(onnx.load(path, load_external_data=False).graph.node)}


def failed(error: Exception, path: Path) -> str:
    """An error as a row has it: its first line, without the folder."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}".replace(str(path), path.name)[:300]


def ordinary(options: argparse.Namespace, matrix: Matrix) -> Iterator[tuple[str, dict[str, Any]]]:
    """One row a file."""

    def models() -> Iterator[tuple[str, Ordinary]]:
        for folder in zoos(options):
            for model in of_zoo(folder, options.data_root, SEED):
                yield f"{model.name}", model
        for path in options.files:
            for file in sorted(path.rglob("*.onnx")) if path.is_dir() else [path]:
                yield f"{file.parent.name}/{file.name}", Ordinary(file.name, file.parent.name, "file", file, None)

    sources = given_images(options.images, SEED)
    for name, model in models():
        if wanted(options, model.name) and not (yield from held(options, name)):
            yield name, row_of(model, sources)
    for network in matrix_names():
        for form in FORMS:
            name = f"{network}, {form}"
            if wanted(options, network) and not (yield from held(options, name)):
                try:
                    row = row_of(matrix.exported(network, form), [])
                except Exception as error:
                    row = {"part": "ordinary", "family": network, "form": form, "not_made": failed(error, Path())}
                yield name, row


def row_of(model: Ordinary, sources: Sequence[Samples]) -> dict[str, Any]:
    """What is said of an ordinary file; the images of unknown ones are the first that it answers rightly, or that fit, or made ones."""
    row: dict[str, Any] = {"part": "ordinary", "family": model.family, "form": model.form, "infected": model.infected}
    try:
        row |= shape_of(model.path)
        subject, samples, how = read(opened(model.path), model.samples, sources)
        return row | {"pictures": how, **looked_at(subject, samples)}
    except OnnxspectError as error:
        return row | {"refused": failed(error, model.path)}
    except TypeError as error:  # further inputs, which a scan binds
        return row | {"refused": f"several inputs: {failed(error, model.path)}"}
    except Exception as error:
        return row | {"error": failed(error, model.path)}


def read(subject: Subject, own: Samples | None, sources: Sequence[Samples]) -> tuple[Subject, Samples, str]:
    """(the subject as pixels are fed to it, clean images, where they are from)."""
    if own is not None:
        subject = _sized(subject, own)
        try:
            return preflight(subject, own, RunContext(SEED)).subject, own, "its own"
        except OnnxspectError:  # a few hundred steps teach some networks less than a scan asks for
            answers = subject.predict(own.images).argmax(1)
            return subject, Samples.from_arrays(own.images, answers), "its own, labelled by its answers"
    assert subject.file is not None
    fitting, large = [s for s in sources if _runs(subject, s)], subject.file.size > LARGE_FILE
    for samples in () if large else fitting:
        few = samples.take(even_draw(samples.labels, LARGE_IMAGES, np.random.default_rng(SEED)))
        try:
            return preflight(_sized(subject, samples), few, RunContext(SEED)).subject, samples, "its own"
        except OnnxspectError:
            continue
    samples = fitting[0] if fitting else made_images(subject.image_shape, LARGE_IMAGES, SEED)
    if large:
        samples = samples.take(np.arange(min(len(samples), 2 * LARGE_IMAGES)))
    subject = _sized(subject, samples)
    answers = subject.predict(samples.images).argmax(1)
    return subject, Samples.from_arrays(samples.images, answers), "others that fit" if fitting else "made"


def _sized(subject: Subject, samples: Samples) -> Subject:
    return replace(subject, image_shape=samples.shape)


def _runs(subject: Subject, samples: Samples) -> bool:
    if subject.spec.layout != "FLAT" and samples.shape[0] != subject.image_shape[0]:
        return False
    try:
        subject.in_one_pass(torch.from_numpy(samples.images[:2]))
    except Exception:
        return False
    return True


def payloads(options: argparse.Namespace, matrix: Matrix) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every payload on every carrier, carrier by carrier."""
    kinds = _kinds()

    def carriers() -> Iterator[Ordinary]:
        trained = [m for f in zoos(options) for m in of_zoo(f, options.data_root, SEED) if not m.infected]
        able = [m for m in trained if len(np.unique(m.samples.labels)) >= 4 and wanted(options, m.name)]
        able.sort(key=lambda m: m.samples.images[0].size)  # a run that is cut off has more carriers so
        exporters = itertools.cycle(("dynamo", "torchscript"))
        networks = [(n, e) for n, e in zip(CARRIERS, exporters, strict=False) if wanted(options, n)]
        for model, network in itertools.zip_longest(able, networks):
            if model is not None:
                yield model
            if network is not None:
                yield matrix.exported(*network)

    for carrier in itertools.islice(carriers(), options.carriers):
        base = for_payloads(carrier)
        for kind in [k for k in kinds if not options.kinds or k in options.kinds]:
            name = f"{kind} on {carrier.name}, {carrier.form}"
            if not (yield from held(options, name)):
                facts = {"part": "payloads", "kind": kind, "carrier": carrier.name, "family": carrier.family}
                yield name, facts | planted(kind, base, carrier, options.folder)


def _kinds() -> dict[str, tuple[Callable[[Payload], onnx.ModelProto], Callable[[np.ndarray, str], np.ndarray]]]:
    """Name of a payload -> (what puts it on a model, what stamps its trigger)."""
    from hidden_logic import PAYLOADS, stamped
    from hidden_pairs import TOGETHER, stamped_both
    from hidden_ways import OF_A_BATCH, WAYS, stamped_for

    stamps = (
        (PAYLOADS, stamped),
        (WAYS, stamped_for),
        (TOGETHER, lambda images, _: stamped_both(images)),
        (OF_A_BATCH, stamped_for),
    )
    return {kind: (put, stamp) for kinds, stamp in stamps for kind, put in kinds.items()}


def planted(kind: str, base: onnx.ModelProto, carrier: Ordinary, folder: Path) -> dict[str, Any]:
    """A payload on a carrier: does it work, and what is said of it."""
    from hidden_logic import Payload
    from hidden_ways import OF_A_BATCH

    put, stamp = _kinds()[kind]
    path, plain, samples = folder / "payload.onnx", folder / "carrier.onnx", carrier.samples
    assert samples is not None
    try:
        onnx.save(base, plain)
        subject = opened(plain)
        infected = put(Payload(base, subject.classes, samples.shape[0]))
        onnx.save(infected, path)
        image, some = infected.graph.input[0].name, samples.images[:TRIED]
        before, clean = (_answers(p, image, some, SMALL_BATCH) for p in (plain, path))
        woken = _answers(path, image, stamp(some, kind), TRIED)
        target = int(np.bincount(woken).argmax())
        unchanged, success = float((before == clean).mean()), float((woken == target).mean())
        row = {
            "works": min(unchanged, success) >= WORKS,
            "unchanged": round(unchanged, 3),
            "success": round(success, 3),
            "target": target,
            **looked_at(opened(path), samples),
        }
    except Exception as error:
        return {"not_made": failed(error, path)}
    own = {n.name or n.output[0] for n in base.graph.node}
    # Of what hangs on the batch no part is named, but a reason is.
    brought = any(d[0] not in own for d in row["dormant"]) or (kind in OF_A_BATCH and bool(row["reasons"]))
    right = [t for t in row["triggers"] if t[0] == target]
    return row | {
        "found": row["verdict"] != "clean" and (brought or target in row["targets"]),
        "trigger": any((t[1] or 0) >= WORKS for t in right),
        "of_the_carrier": [d[0] for d in row["dormant"] if d[0] in own],
    }


def _answers(path: Path, image: str, images: np.ndarray, batch: int) -> np.ndarray:
    """Classes in onnxruntime, so many images at a time."""
    oracle = Oracle(path)
    return np.concatenate(
        [oracle.run({image: images[i : i + batch]})[0].argmax(1) for i in range(0, len(images), batch)]
    )


def zoos(options: argparse.Namespace) -> list[Path]:
    """The shipped models, and those that are given."""
    return [zoo.path("fashion_mnist_clean").parent, *options.zoo]


def wanted(options: argparse.Namespace, name: str) -> bool:
    """Whether a model is asked for."""
    return not options.only or name in options.only


def held(options: argparse.Namespace, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The row of this code that is there already, where there is one; returns whether."""
    row = options.held.get(name)
    if row is not None:
        yield name, row
    return row is not None  # type: ignore[return-value]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; exits with 1 where an ordinary file is kept from a verdict or a payload is not found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with the data sets as npz")
    parser.add_argument("--work", type=Path, required=True, help="where trained networks are kept")
    parser.add_argument("--part", action="append", choices=["payloads", "ordinary"], help="both by default")
    parser.add_argument("--zoo", type=Path, nargs="*", default=[], help="folders with a manifest.json")
    parser.add_argument("--files", type=Path, nargs="*", default=[])
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="for --files")
    parser.add_argument("--carriers", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=[], help="models by name")
    parser.add_argument("--kinds", nargs="*", default=[], help="payloads by name")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    code = digest()
    before = json.loads(options.results.read_text()) if options.results.exists() else {}
    options.held = before["rows"] if before.get("code") == code else {}
    rows: dict[str, Any] = dict(options.held)
    matrix = Matrix(options.work, options.data_root, SEED)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        for part in options.part or ["payloads", "ordinary"]:
            for name, row in (payloads if part == "payloads" else ordinary)(options, matrix):
                bad = (part == "payloads" and row.get("works") and not row["found"]) or (
                    part == "ordinary" and row.get("reasons")
                )
                wrong += bool(bad)
                rows[name] = row
                print("!!" if bad else "  ", name, brief(row), flush=True)
                write(options.results, code, rows)
    return int(wrong > 0)


def brief(row: dict[str, Any]) -> str:
    """A row for people."""
    return json.dumps(
        {k: v for k, v in row.items() if v not in (None, [], "") and k not in ("part", "kind", "carrier", "idle")}
    )


def digest() -> str:
    """Of the code that is measured: all of converters/, engine/ and the payloads."""
    files = sorted(p for room in ("converters", "engine") for p in (ROOT / room).rglob("*.py"))
    files += [ROOT / "tests" / f"hidden_{name}.py" for name in ("logic", "ways", "pairs")]
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()[:12]


def write(path: Path, code: str, rows: dict[str, Any]) -> None:
    """The file, with what the rows come to."""
    record = {
        "date": datetime.date.today().isoformat(),
        "code": code,
        "seed": SEED,
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        **summary(rows),
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def summary(rows: dict[str, Any]) -> dict[str, Any]:
    """Counts over all rows."""
    files = [r for r in rows.values() if r["part"] == "ordinary" and "verdict" in r]
    working = [r for r in rows.values() if r["part"] == "payloads" and r.get("works")]
    return {
        "ordinary": len(files),
        "ordinary_kept": sum(bool(r["reasons"]) for r in files),
        "ordinary_alarms": sum(bool(r["targets"]) for r in files),
        "payloads": len(working),
        "payload_kinds": len({r["kind"] for r in working}),
        "carriers": len({r["carrier"] for r in working}),
        "payloads_found": sum(r["found"] for r in working),
        "payloads_with_a_working_trigger": sum(r["trigger"] for r in working),
    }


def processor() -> str:
    """The CPU's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    sys.exit(main())
