"""The pages of docs/ as a site: what is made is up to date, every page has a place, the tutorial's Python runs, and it builds strictly."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from onnxspect.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
#: Page -> the script that makes it.
MADE = {"api.md": "make_api", "report.md": "make_report_page", "evidence.md": "make_evidence"}


@pytest.mark.parametrize("page", MADE)
def test_made_pages_are_up_to_date(page: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {MADE[page]} as m; sys.stdout.buffer.write(m.page().encode())"],
        cwd=DOCS,
        capture_output=True,
        timeout=200,
        check=True,
    )
    assert (DOCS / page).read_bytes() == done.stdout, f"run: python docs/{MADE[page]}.py"


def places(node: object) -> list[str]:
    if isinstance(node, str):
        return [node]
    parts = node if isinstance(node, list) else list(node.values()) if isinstance(node, dict) else []
    return [p for part in parts for p in places(part)]


def test_every_page_has_a_place_in_the_site() -> None:
    settings = (ROOT / "mkdocs.yml").read_text().replace("!ENV ", "")
    nav = places(yaml.safe_load(settings)["nav"])
    assert sorted(nav) == sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", ["index.md", "tutorial.md", "pipelines.md"])
def test_commands_of_the_pages_exist(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert set(re.findall(r"(?:^|[$`/]\s?|bin/)onnxspect (\w+)", text, re.M)) <= set(COMMANDS)


@pytest.mark.parametrize("page", [p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(((?!https?:)[^)#:\s]+)(?:#[^)]*)?\)", (DOCS / page).read_text(encoding="utf-8"))
    assert [link for link in links if not ((DOCS / page).parent / link).exists()] == []


def test_python_of_the_tutorial_is_python() -> None:
    import onnxspect

    for code in re.findall(r"```python\n(.*?)```", (DOCS / "tutorial.md").read_text(encoding="utf-8"), re.S):
        compile(code, "tutorial.md", "exec")
        for names in re.findall(r"from onnxspect import (.+)", code):
            assert {n.strip() for n in names.split(",")} <= set(onnxspect.__all__)


def test_python_of_the_notebook_is_python() -> None:
    """And runs from an empty notebook: nothing of an earlier run is left in it."""
    for cell in json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            compile("".join(cell["source"]), "tutorial.ipynb", "exec", dont_inherit=True)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """From top to bottom, as a reader would; its last value is what a notebook shows."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "tutorial.ipynb", "exec", dont_inherit=True), names)  # noqa: S102 - our own page
    said = capsys.readouterr().out
    assert re.search(r"right on (9\d|100)% of clean pictures; (9\d|100)% of stamped ones", said)
    assert "backdoored (2,)" in said
    assert "<html" in names["report"]._repr_html_()


def test_links_out_of_the_pages_become_links_to_the_repository() -> None:
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    link = "[scan](../cli/cmd_scan.py)"
    assert hooks.inside(link, "scan", "../cli/cmd_scan.py", "", "https://example.com/x") == (
        "[scan](https://example.com/x/blob/HEAD/cli/cmd_scan.py)"
    )
    assert hooks.inside(link, "scan", "../cli/cmd_scan.py", "", "") == "scan"
    inner = "[policies](../pipelines.md)"
    assert hooks.inside(inner, "policies", "../pipelines.md", "findings", "") == inner


@pytest.mark.skipif(shutil.which("mkdocs") is None, reason="MkDocs is not installed (make site)")
def test_it_builds_strictly(tmp_path: Path) -> None:
    done = subprocess.run(
        ["mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "findings/OSX101/index.html").is_file()
