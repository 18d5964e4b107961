"""benchmarks/graph_logic.py: what a row says of a payload and of an ordinary file, and what the page makes of the committed ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from benchmark_scripts import script

from onnxspect.engine.subject.samples import Samples
from onnxspect.models import zoo

ROOT = Path(__file__).parents[2]
COMMITTED = json.loads((ROOT / "benchmarks" / "results" / "graph_logic.json").read_text())


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The script."""
    return script("graph_logic")


def test_a_payload_and_its_carrier(bench: ModuleType, clean_samples: Samples, tmp_path: Path) -> None:
    file = zoo.path("fashion_mnist_clean")
    carrier = bench.Ordinary("shipped", "compact_cnn", "torch_dynamo", file, clean_samples.take(np.arange(200)))
    infected = bench.planted("saturation", onnx.load(file), carrier, tmp_path)
    assert (infected["works"], infected["found"], infected["trigger"], infected["targets"]) == (True, True, True, [3])
    assert infected["of_the_carrier"] == []
    clean = bench.row_of(carrier, [])
    assert (clean["reasons"], clean["targets"], clean["dormant"], clean["pictures"]) == ([], [], [], "its own")
    rows = {"a": {"part": "payloads", "kind": "saturation", "carrier": "shipped", **infected}, "b": clean}
    counts = bench.summary(rows)
    assert (counts["payloads"], counts["payloads_found"], counts["payloads_with_a_working_trigger"]) == (1, 1, 1)
    assert (counts["ordinary"], counts["ordinary_kept"], counts["ordinary_alarms"]) == (1, 0, 0)


def test_rows_of_other_code_are_not_taken_over(bench: ModuleType, tmp_path: Path) -> None:
    """The digest is in the file, and changes with the code that is measured."""
    bench.write(tmp_path / "rows.json", "one", {})
    assert json.loads((tmp_path / "rows.json").read_text())["code"] == "one" != bench.digest()


def test_the_page_counts_what_is_committed(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    from result_sections import files

    counts = bench.summary(COMMITTED["rows"])
    assert {k: COMMITTED[k] for k in counts} == counts
    text = files.graph_logic(COMMITTED)
    assert text in (ROOT / "docs" / "results.md").read_text()
    assert f"Of {counts['payloads']} payloads ({counts['payload_kinds']} kinds" in text
