"""docs/threat-model.md: every promise names a test, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/threat-model.md").read_text(encoding="utf-8")
PROMISES = re.findall(r"^\| (.+?) \| (everywhere|Linux|POSIX) \| (.+?) \|$", PAGE, flags=re.M)
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def test_there_are_promises_and_each_is_held() -> None:
    assert len(PROMISES) >= 15
    assert [p for p, _, held in PROMISES if not re.search(r"`tests/[\w/]+\.py::test_\w+`", held)] == []


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[f"{Path(f).stem}-{n}" for f, n in NAMED])
def test_the_test_exists(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/threat-model.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_security_says_how_to_report_and_when_an_answer_comes() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for heading in ("## How to report", "## What happens then", "## What counts"):
        assert heading in text
    assert re.search(r"\| \d+ working days \|", text)
