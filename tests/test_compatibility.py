"""docs/compatibility.md says what is so: every file of its first tables and every data set, opened; every test that it names, there;
of files as others ship them, what the committed results say, and a cheap part of them made again."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from compatibility_cases import CASES, Case, outcome
from wild_files.of_data import HEAPS, Heap
from wild_files.of_data import outcome as of_data
from wild_files.wild_file import GROUPS, Became, Wild, became, group

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("make_compatibility", ROOT / "docs" / "make_compatibility.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_page_says_what_becomes_of(case: Case) -> None:
    found = outcome(case)
    cell = _script()._cell
    word = "works" if found.works else "refused"
    assert f"| {case.name} | {word} | {cell(found.said)} | {cell(found.hint)} |" in PAGE
    assert found.works or found.hint


def test_most_of_them_work() -> None:
    """Of classifiers all but what names its own way out."""
    rows = [line for line in PAGE.splitlines() if line.count(" | ") >= 3]
    assert sum(" | works | " in r for r in rows) >= 45
    assert len(rows) >= len(CASES) >= 60


def test_every_test_that_the_page_names_is_there() -> None:
    for what, (_, test) in _script().CONVERTED.items():
        path, name = test.split("::")
        assert f"def {name}(" in (ROOT / "tests" / path).read_text(encoding="utf-8"), what
        assert f"`{name}`" in PAGE


RESULTS = json.loads((ROOT / "benchmarks" / "results" / "wild_files.json").read_text(encoding="utf-8"))["groups"]
#: Groups whose files are made and opened in a blink, and single ones of others.
_CHEAP = [
    *(("of_others", file) for file in group("of_others")[1]),
    *(
        (name, file)
        for name in ("of_torch", "of_exporters", "of_runtimes", "of_packages")
        for file in group(name)[1]
        if any(
            word in file.name
            for word in (
                *(
                    "thout a factory",
                    "adapter",
                    "optimiser's state",
                    "quantisation-aware",
                    "(.mar)",
                    "(.ptl)",
                    "sharded",
                    "frozen",
                ),
                *(
                    "opset 9",
                    "training mode",
                    "sparse",
                    "uint8, channels last",
                    "len(x)",
                    "SSD",
                    "YOLO",
                    "video",
                    "spectrograms",
                ),
                *(
                    "float32 at its ends",
                    "bfloat16 throughout",
                    "QOperator",
                    "level all",
                    "(.ort)",
                    "logreg",
                    "sequence",
                ),
            )
        )
    ),
]


def test_the_page_says_what_the_results_say() -> None:
    script = _script()
    for name in GROUPS:
        heading, files = group(name)
        assert RESULTS[name]["heading"] == heading
        assert [f["name"] for f in RESULTS[name]["files"]] == [f.name for f in files], "run benchmarks/wild_files.py"
        assert script.wild_table(RESULTS[name]) in PAGE


def test_every_wild_file_works_or_is_refused_with_the_next_step() -> None:
    files = [f for g in RESULTS.values() for f in g["files"]]
    assert len(files) >= 60
    assert [f["name"] for f in files if f["works"] != f["right"]] == []
    assert [f["name"] for f in files if not f["works"] and not f["hint"]] == []


@pytest.mark.parametrize(("name", "file"), _CHEAP, ids=lambda v: v if isinstance(v, str) else v.name)
def test_a_file_as_others_ship_it(name: str, file: Wild, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "out").mkdir()
    found = became(file, file.make(tmp_path / "made"), tmp_path / "out", locked_in=False)
    kept = next(f for f in RESULTS[name]["files"] if f["name"] == file.name)
    assert found == Became(kept["works"], kept["said"], kept["hint"], tuple(kept["notes"]))


@pytest.mark.parametrize("heap", HEAPS, ids=lambda h: h.name)
def test_data_as_people_keep_it(heap: Heap, tmp_path: Path) -> None:
    found = of_data(heap, tmp_path)
    assert found.works == heap.works
    assert found.works or found.hint
    assert _script().row(heap.name, found.works, found.said, found.hint, found.notes) in PAGE
