"""What onnx_ir does with ONNX graphs beside what the converters do: same result? how long? what on malformed input?

    python benchmarks/graph_library.py [--out FILE.json]

docs/decisions.md, section "onnx_ir", says what was concluded.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnx_ir.passes import common

from onnxspect.converters.file.external_data import embed
from onnxspect.converters.lowering.functions import inline_functions
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.models import zoo

MODELS = ("fashion_mnist_badnets", "fashion_mnist_clean")
#: Levels of functions, and calls in each. The larger ones take onnx_ir minutes.
FUNCTIONS = ((3, 4), (4, 4), (5, 4))


def main() -> int:
    """Print the tables, and write them where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = [*shapes(), *inlining(), *external()]
    for row in rows:
        print("  ".join(f"{k} {v}" for k, v in row.items()))
    if asked.out:
        facts = {"at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "cpu": platform.processor()}
        facts |= {"onnx": onnx.__version__, "onnx_ir": onnx_ir.__version__}
        asked.out.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
    return 0


def through(model: onnx.ModelProto, change: Any) -> onnx.ModelProto:
    """A pass of onnx_ir on a copy."""
    inside = onnx_ir.serde.deserialize_model(model)
    change(inside)
    return onnx_ir.serde.serialize_model(inside)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the least of three times in ms; or what was raised, in words, after one."""
    least = np.inf
    for _ in range(3):
        started = time.perf_counter()
        try:
            found = work()
        except Exception as error:
            line = (str(error).splitlines() or [""])[0][:60]
            return f"{type(error).__name__}: {line}", round(1000 * (time.perf_counter() - started), 1)
        least = min(least, time.perf_counter() - started)
    return found, round(1000 * least, 1)


def shapes() -> list[dict[str, Any]]:
    """Shape inference."""
    rows = []
    for name in MODELS:
        model = onnx.load(zoo.path(name))
        del model.graph.value_info[:]
        options = {"check_type": False, "strict_mode": False, "data_prop": True}
        ours, ms = timed(lambda m=model, o=options: shape_inference.infer_shapes(m, **o))
        theirs, their_ms = timed(lambda m=model, o=options: through(m, common.ShapeInferencePass(**o)))
        known = {v.name: v.type for v in theirs.graph.value_info}
        same = all(known.get(v.name) == v.type for v in ours.graph.value_info)
        rows.append({"work": "shapes", "of": name, "ours_ms": ms, "onnx_ir_ms": their_ms, "same": same})
    return rows


def nested(depth: int, calls: int) -> onnx.ModelProto:
    """A model whose functions call each other, `calls` times at each of `depth` levels."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    functions = []
    for level in range(depth):
        operator, domain = ("Relu", "") if level == 0 else (f"f{level - 1}", "local")
        chain = ["a", *(f"t{i}" for i in range(calls - 1)), "b"]
        body = [helper.make_node(operator, [x], [y], domain=domain) for x, y in itertools.pairwise(chain)]
        functions.append(helper.make_function("local", f"f{level}", ["a"], ["b"], body, opsets))
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in "xy")
    call = helper.make_node(f"f{depth - 1}", ["x"], ["y"], domain="local")
    graph = helper.make_graph([call], "nested", [x], [y])
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=9)


def inlining() -> list[dict[str, Any]]:
    """Local functions; a bomb of them, to ours alone; and recursion."""
    rows = []
    feed = {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)}
    for depth, calls in FUNCTIONS:
        model = nested(depth, calls)
        ours, ms = timed(lambda m=model: inline_functions(m))
        theirs, their_ms = timed(lambda m=model: through(m, common.InlinePass()))
        same = np.array_equal(Oracle(ours).run(feed)[0], Oracle(theirs).run(feed)[0])
        of = f"{len(ours.graph.node)} nodes"
        rows.append({"work": "inlining", "of": of, "ours_ms": ms, "onnx_ir_ms": their_ms, "same": bool(same)})
    said, ms = timed(lambda: inline_functions(nested(12, 8)))
    rows.append({"work": "inlining", "of": "8^12 nodes", "ours": said, "ours_ms": ms, "onnx_ir": "has no limit"})
    loop = nested(2, 1)
    loop.functions[0].node[0].op_type, loop.functions[0].node[0].domain = "f1", "local"
    ours, _ = timed(lambda: inline_functions(loop))
    theirs, _ = timed(lambda: through(loop, common.InlinePass()))
    rows.append({"work": "inlining", "of": "recursion", "ours": ours, "onnx_ir": theirs})
    return rows


def external() -> list[dict[str, Any]]:
    """Tensors in files beside the model: a large one, and what an untrusted file may hold."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "in"
        folder.mkdir()
        large = np.random.default_rng(0).standard_normal((64, 1024, 256)).astype(np.float32)
        (folder / "w.bin").write_bytes(large.tobytes())
        (Path(scratch) / "secret.bin").write_bytes(bytes(16))
        (folder / "link.bin").symlink_to(Path(scratch) / "secret.bin")
        cases: dict[str, tuple[str, tuple[int, ...], dict[str, str]]] = {
            "64 MB": ("w.bin", large.shape, {"length": str(large.nbytes)}),
            "out of the folder": ("../secret.bin", (4,), {}),
            "absolute": (str(Path(scratch) / "secret.bin"), (4,), {}),
            "over a link": ("link.bin", (4,), {}),
            "length too short": ("w.bin", (8,), {"length": "4"}),
            "past the end": ("w.bin", (1 << 16, 1 << 10), {}),
            "negative offset": ("w.bin", (4,), {"offset": "-8"}),
            "negative size": ("w.bin", (-1,), {}),
            "device": ("/dev/zero", (4,), {}),
        }
        for what, (location, dims, entries) in cases.items():
            tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
            for key, value in ({"location": location} | entries).items():
                tensor.external_data.add(key=key, value=value)
            y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
            graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [y], [tensor])
            proto = helper.make_model(graph)
            (folder / "m.onnx").write_bytes(proto.SerializeToString())
            ours, ms = timed(lambda p=proto: _embedded(p, folder))
            theirs, their_ms = timed(
                lambda: onnx_ir.load(folder / "m.onnx").graph.initializers["w"].const_value.numpy()
            )
            shown = [r if isinstance(r, str) else f"read {r.shape}" for r in (ours, theirs)]
            shown = [s.replace(scratch, "DIR") for s in shown]
            rows.append({"work": "external data", "of": what, "ours": shown[0], "ours_ms": ms})
            rows[-1] |= {"onnx_ir": shown[1], "onnx_ir_ms": their_ms}
    return rows


def _embedded(model: onnx.ModelProto, folder: Path) -> np.ndarray:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    embed(copy, folder, 1 << 40)
    return numpy_helper.to_array(copy.graph.initializer[0])


if __name__ == "__main__":
    sys.exit(main())
