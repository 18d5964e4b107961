"""Every write of the project under the faults of faults.c. Run by test_faults.py as a process with that library in front:

    LD_PRELOAD=faults.so python fault_scenarios.py FOLDER

For each write and each fault, a forked copy does the write with the fault armed at its first, second, ... call, until one passes
without meeting it. One line of JSON each: what was done, how it ended, and what lies there afterwards.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file.external_layout import write_like
from onnxspect.converters.file.onnx_file import read_onnx
from onnxspect.engine.judge.evidence import Unit, UnitEvidence
from onnxspect.engine.judge.measurement import measured
from onnxspect.engine.store import Ledger, write_atomically

KINDS = {"full": 1, "broken": 2, "interrupted": 3, "short": 4, "read-only": 5, "killed": 6}
MOST_CALLS = 60


@dataclass(frozen=True)
class Scenario:
    """A write.

    Attributes:
        prepare: makes the old state in a folder.
        do: writes the new one.
        state: "old", "new" or what else is there; reading it must not fail.
        part: of the paths that faults meet.
    """

    prepare: Callable[[Path], None]
    do: Callable[[Path], None]
    state: Callable[[Path], str]
    part: str


def _of_bytes(path: Path, old: bytes, new: bytes) -> str:
    data = path.read_bytes()
    return "old" if data == old else "new" if data == new else "neither"


OLD, NEW = b"o" * 3000, b"n" * 200_000


def _unit(index: int) -> UnitEvidence:
    trigger = {"mask": np.full((8, 8), index, np.float32)}
    return UnitEvidence(
        unit=Unit(index), measurements=measured(l1=float(index)), trigger=trigger, found=True, converged=True, steps=1,
        search_success=1.0, held_out_success=1.0, held_out=1, seconds=0.0,
    )  # fmt: skip


def _ledger_old(folder: Path) -> None:
    with Ledger(folder / "run", {"device": "cpu"}) as ledger:
        ledger.commit("d", [_unit(0)])


def _ledger_new(folder: Path) -> None:
    with Ledger(folder / "run", {"device": "cpu"}) as ledger:
        ledger.commit("d", [_unit(1), _unit(2)])


def _ledger_state(folder: Path) -> str:
    with Ledger(folder / "run") as ledger:
        found = sorted(ledger.units("d"))
    first = Unit(0).key
    return "old" if found == [first] else "new" if len(found) == 3 else f"neither: {found}"


def _external(folder: Path, name: str, value: float) -> None:
    weight = numpy_helper.from_array(np.full((64, 64), value, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 64])],
        [helper.make_tensor_value_info("y", 1, ["n", 64])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, folder / name, save_as_external_data=True, location=f"{name}.bin", size_threshold=0)


def _model_old(folder: Path) -> None:
    _external(folder, "original.onnx", 1.0)
    original = read_onnx(folder / "original.onnx")
    write_like(original.proto, original, folder / "result.onnx")


def _model_new(folder: Path) -> None:
    original = read_onnx(folder / "original.onnx")
    changed = onnx.ModelProto()
    changed.CopyFrom(original.proto)
    changed.producer_name = "new"
    changed.graph.initializer[0].raw_data = np.full((64, 64), 2.0, np.float32).tobytes()
    write_like(changed, original, folder / "result.onnx")


def _model_state(folder: Path) -> str:
    """Two files: both are the old ones or both the new ones, at every moment."""
    proto = read_onnx(folder / "result.onnx").proto
    values = numpy_helper.to_array(proto.graph.initializer[0])
    new = proto.producer_name == "new"
    return ("new" if new else "old") if (values == (2.0 if new else 1.0)).all() else "torn"


SCENARIOS = {
    "a report, a picture, an array": Scenario(
        lambda f: write_atomically(f / "result.json", OLD),
        lambda f: write_atomically(f / "result.json", NEW),
        lambda f: _of_bytes(f / "result.json", OLD, NEW),
        "result.json",
    ),
    "the ledger and its arrays": Scenario(_ledger_old, _ledger_new, _ledger_state, "/run/"),
    "a patched model with external data": Scenario(_model_old, _model_new, _model_state, "result.onnx"),
}


def main(root: Path) -> None:
    """All scenarios under all faults."""
    shim = ctypes.CDLL(None)
    for name, scenario in SCENARIOS.items():
        for kind, number in KINDS.items():
            for nth in range(1, MOST_CALLS):
                folder = root / "case"
                folder.mkdir()
                scenario.prepare(folder)
                before = {p.name for p in folder.rglob("*")}
                said = root / "said"
                pid = os.fork()
                if pid == 0:
                    shim.fault_arm(scenario.part.encode(), number, nth)
                    try:
                        scenario.do(folder)
                        ended: dict[str, object] = {"ended": "done"}
                    except OnnxspectError as error:
                        ended = {"ended": error.kind.value, "message": error.message}
                    except BaseException as error:
                        ended = {"ended": f"{type(error).__name__}: {error}"}
                    calls = shim.fault_seen()
                    shim.fault_arm(b"", 0, 0)
                    said.write_text(json.dumps({**ended, "calls": calls}))
                    os._exit(0)
                _, status = os.waitpid(pid, 0)
                ended = json.loads(said.read_text()) if status == 0 else {"ended": "killed", "calls": nth}
                said.unlink(missing_ok=True)
                parts = [p.name for p in folder.rglob("*") if p.name not in before and p.name.endswith(".part")]
                found = {
                    "write": name,
                    "fault": kind,
                    "nth": nth,
                    "state": scenario.state(folder),
                    "parts": parts,
                    **ended,
                }
                print(json.dumps(found), flush=True)
                shutil.rmtree(folder)
                if int(str(ended["calls"])) < nth or (kind in ("full", "broken", "read-only") and nth > 12):
                    break


if __name__ == "__main__":
    main(Path(sys.argv[1]))
