"""The shape of the house: import contracts, packaging, and the command line's documentation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from onnxspect.cli.main import COMMANDS, cli

ROOT = Path(__file__).parent.parent
TOPS = ("cli", "converters", "engine", "models")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="session")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the package lies as it is installed, for tools that do not see setuptools' package-dir mapping."""
    folder = tmp_path_factory.mktemp("assembled")
    shutil.copytree(ROOT / "onnxspect", folder / "onnxspect")
    for top in TOPS:
        shutil.copytree(ROOT / top, folder / "onnxspect" / top, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_imports_run_one_way(assembled: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=assembled,
        env=os.environ | {"PYTHONPATH": str(assembled)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_types_fit() -> None:
    """mypy, under the names that the modules are imported by; .types and the cache stay for whoever runs it by hand."""
    links = ROOT / ".types" / "onnxspect"
    links.mkdir(parents=True, exist_ok=True)
    own = [ROOT / top for top in TOPS] + [p for p in (ROOT / "onnxspect").iterdir() if p.suffix in (".py", ".typed")]
    for path in own:
        link = links / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--namespace-packages", "--explicit-package-bases", "-p", "onnxspect"],
        cwd=ROOT,
        env=os.environ | {"MYPYPATH": ".types"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_package_is_shipped() -> None:
    listed = set(SETTINGS["tool"]["setuptools"]["packages"])
    folders = {"onnxspect"} | {
        "onnxspect." + ".".join(init.parent.relative_to(ROOT).parts)
        for top in TOPS
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert listed == folders


def test_no_module_is_named_after_a_standard_one() -> None:
    own = [p for top in TOPS for p in (ROOT / top).rglob("*.py")]
    assert [p for p in own if p.stem in sys.stdlib_module_names] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented_with_an_example(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    parent = click.Context(cli, info_name="onnxspect", **cli.context_settings)
    text = command.get_help(click.Context(command, parent, name))
    assert "Example:" in text
    assert f"onnxspect {name}" in text
    assert "Exit status" in text


def test_the_command_line_page_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, "-c", "import make_cli, sys; sys.stdout.write(make_cli.page())"],
        cwd=ROOT / "docs",
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    assert (ROOT / "docs" / "cli.md").read_text() == made.stdout, "run: python docs/make_cli.py"


def test_the_command_line_does_not_let_threads_spin() -> None:
    """OpenMP reads its settings once, when torch loads it: they must be there before."""
    code = "import os, sys, onnxspect.cli.main; assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    plain = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "PASSIVE", done.stderr
    chosen = subprocess.run(
        [sys.executable, "-c", code],
        env=plain | {"OMP_WAIT_POLICY": "ACTIVE"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert chosen.stdout.strip() == "ACTIVE"
