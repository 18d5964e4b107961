"""`onnxspect demo` whole, as the README's first command runs it: found, spared, patched, proven."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx

from onnxspect.models import zoo


def test_the_demo_finds_patches_and_proves(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from onnxspect.cli.main import main; main()", "demo", "--out", "d", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    result = json.loads(done.stdout)
    assert result["infected"] == {"verdict": "backdoored", "targets": [7], "true": 7}
    assert result["clean"] == {"verdict": "clean"}
    proof = result["proof"]
    (planted,) = proof["triggers"]
    assert planted["before"] > 0.95
    assert planted["after"] <= 0.03
    accuracy = proof["clean_accuracy"]
    lost = accuracy["before"] - accuracy["after"]
    # The goals are a point and 2 %; on these 400 images the demo allows their sampling error. What is lost and what is left on 9,000
    # images is measured by benchmarks/demo.py.
    assert lost <= 0.025
    assert proof["holds"]
    assert result["as_it_should_be"]
    patched = onnx.load(tmp_path / "d" / "patched.onnx")
    assert {p.key: p.value for p in patched.metadata_props}["onnxspect.method"] in ("clp", "prune", "unlearn", "ibau")
    assert zoo.path("fashion_mnist_badnets").read_bytes() != (tmp_path / "d" / "patched.onnx").read_bytes()
    assert (tmp_path / "d" / "fashion_mnist_badnets" / "triggers.png").read_bytes().startswith(b"\x89PNG")
