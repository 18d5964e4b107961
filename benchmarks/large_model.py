"""A model beyond protobuf's 2 GiB: opened, searched, patched and proved; how much memory and time each step takes.

    python benchmarks/large_model.py --folder SCRATCH [--gib 2.4] [--out FILE]

The model is a perceptron on 3 x 32 x 32 images whose weights, in a data file beside it, take --gib GiB; its answers to random
images serve as their labels. It is written tensor by tensor, so that making it takes no memory. Peak memory is that of the process
so far (ru_maxrss), and of the children that opened the file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from detection import version
from onnx import TensorProto, helper

from onnxspect.converters.file.onnx_file import read_onnx
from onnxspect.engine.jobs.export import Provenance, patched_model, write_model
from onnxspect.engine.mitigation.input_filter import InputFilter
from onnxspect.engine.mitigation.method import Edit, PatchInput
from onnxspect.engine.mitigation.neurons import layers, switch_off
from onnxspect.engine.mitigation.recovered import named
from onnxspect.engine.mitigation.verification import Goals
from onnxspect.engine.mitigation.verify import verify
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.trigger import Trigger

PIXELS, CLASSES = 3 * 32 * 32, 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder, with room for three such models")
    parser.add_argument("--gib", type=float, default=2.4, help="size of the weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args(arguments)
    asked.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(asked.seed)
    steps: list[dict[str, Any]] = []

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        own, children = (
            resource.getrusage(w).ru_maxrss / 2**20 for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        row = {"step": name, "seconds": round(time.perf_counter() - started, 1)}
        steps.append(row | {"peak_gib": round(own, 2), "peak_of_children_gib": round(children, 2)})
        print(f"{name:<24} {row['seconds']:6.1f} s   peak {own:5.2f} GiB, of children {children:5.2f} GiB", flush=True)
        return result

    path = asked.folder / "large.onnx"
    size = timed("make it", lambda: build(path, int(asked.gib * 2**30), rng))
    subject: Subject = timed("open it", lambda: Subject.from_onnx(path, InputSpec(), image_shape=(3, 32, 32)))
    images = rng.random((120, 3, 32, 32), np.float32)
    samples = Samples.from_arrays(images, subject.predict(images).argmax(1))
    fit, guard = samples.split(0.6, rng)
    mask, pattern = np.zeros((1, 32, 32), np.float32), np.ones((3, 32, 32), np.float32)
    mask[0, 2:6, 2:6] = 1
    given = PatchInput(subject, fit, guard, (Trigger(0, {"mask": mask, "pattern": pattern}),), RunContext(asked.seed))
    timed("torch against onnxruntime", lambda: subject.check(images))
    assert subject.file is not None
    layer = layers(subject)[-1]
    edits: dict[str, Callable[[], Edit]] = {
        "pruned": lambda: switch_off(subject, layer, np.arange(layer.neurons) % 50 == 0),
        "guarded": lambda: InputFilter().edit(given),
    }
    for name, make in edits.items():
        edit = timed(f"{name}: work it out", make)
        out = asked.folder / f"{name}.onnx"
        provenance = Provenance(subject.file.sha256, "benchmark", name, "none")

        def write(edit: Edit = edit, out: Path = out, provenance: Provenance = provenance) -> None:
            model, _ = patched_model(subject, edit.values, provenance, edit.additions)
            assert subject.file is not None
            write_model(model, subject.file, out)

        timed(f"{name}: write", write)
        opened = (subject.file, timed(f"{name}: read", lambda out=out: read_onnx(out)))
        goals = Goals(1.0, 1.0, rejected=1.0)
        proof = timed(
            f"{name}: prove",
            lambda out=out, opened=opened, goals=goals: verify(
                out, path, guard, subject.spec, named(given.triggers), goals, opened=opened
            ),
        )
        steps[-1] |= {"checker": proof.checker, "changed": list(proof.changed), "additions": list(proof.additions)}
        assert proof.checker == "", proof.checker
        assert not proof.differences, proof.differences
        del opened
    result = {
        "benchmark": "large_model",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "weights_gib": round(size / 2**30, 2),
        "message_bytes": path.stat().st_size,
        "seed": asked.seed,
        "machine": {"python": platform.python_version(), "processor": platform.machine(), "system": platform.system()},
        "versions": {p: version(p) for p in ("onnx", "onnxruntime-gpu", "torch", "numpy")},
        "steps": steps,
    }
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def build(path: Path, size: int, rng: np.random.Generator) -> int:
    """Write the model and its data file; bytes of its weights."""
    width = size // (2 * 4 * PIXELS)
    shapes = {"first": (PIXELS, width), "second": (width, PIXELS), "third": (PIXELS, CLASSES)}
    tensors, data = [], path.with_name(path.name + ".data")
    with data.open("wb") as file:
        for name, shape in shapes.items():
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
            facts = {"location": data.name, "offset": file.tell(), "length": 4 * shape[0] * shape[1]}
            for key, value in facts.items():
                tensor.external_data.add(key=key, value=str(value))
            for row in range(0, shape[0], 64):
                part = rng.standard_normal((min(64, shape[0] - row), shape[1]), np.float32)
                file.write((part / np.float32(np.sqrt(shape[0]))).tobytes())
            tensors.append(tensor)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "first"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["narrow"]),
        helper.make_node("Relu", ["narrow"], ["last"]),
        helper.make_node("MatMul", ["last", "third"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 32, 32])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])
    model = helper.make_model(
        helper.make_graph(nodes, "large", [image], [logits], tensors), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 10
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))
    return data.stat().st_size


if __name__ == "__main__":
    sys.exit(main())
