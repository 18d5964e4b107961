"""docs/compatibility.md says what is so: every file of its tables, opened; every test that it names, there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from compatibility_cases import CASES, Case, outcome

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
