"""README.md: one screen whose links, commands and Python lines are what the repository has."""

from __future__ import annotations

import ast
import re
import struct
from pathlib import Path

import pytest

import onnxspect
from onnxspect.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "CONTRIBUTING.md", "docs/guide.md")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_every_page_is_linked() -> None:
    assert {p.name for p in (ROOT / "docs").glob("*.md")} == set(re.findall(r"\(docs/([\w-]+\.md)\)", README))


def test_the_two_commands_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    wanted = re.findall(r"^make (\w+)", README, re.M)
    assert wanted == ["demo", "test"]
    assert all(re.search(rf"^{name}:", makefile, re.M) for name in wanted)


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert set(re.findall(r"(?:[$`/]\s?|bin/)onnxspect (\w+)", text)) <= set(COMMANDS)


def test_names_are_at_the_front_door() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    imports = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.ImportFrom)]
    assert {n.module for n in imports} == {"onnxspect"}
    assert {a.name for n in imports for a in n.names} <= set(onnxspect.__all__)


def test_the_picture_is_one() -> None:
    data = (ROOT / "docs/result.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    assert 600 <= width <= 1600
    assert 300 <= height <= 800
