"""What stands in for the commands: their parameters and their help, which are to be theirs, and to come without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest

from onnxspect.cli import budget, command_table
from onnxspect.cli.main import COMMANDS, cli, run


def test_the_tables_are_the_commands() -> None:
    assert json.loads(command_table.ARGUMENTS.read_text()) == command_table.arguments(), "run: python docs/make_cli.py"
    assert json.loads(command_table.HELP.read_text()) == command_table.helps(), "run: python docs/make_cli.py"


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_is_the_commands_own(
    name: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    parent = click.Context(cli, info_name="onnxspect", **cli.context_settings)
    own = command.get_help(click.Context(command, info_name=name, parent=parent))
    for given in ([name, "--help"], [name, "-h"]):
        assert run(given) == 0
        assert capsys.readouterr().out == own + "\n"


def test_help_comes_without_torch() -> None:
    code = "import sys; from onnxspect.cli.main import run; run(['scan', '--help']); print({'torch', 'onnx', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: onnxspect scan")
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_value_that_looks_like_a_cry_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    """`--out --help` names a folder, as in click; the rest of the line is then what is wrong."""
    assert run(["scan", "--out", "--help"]) == 2
    assert "Usage: onnxspect scan" in capsys.readouterr().err


def test_what_is_wrong_beside_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scan", "--no-such-option", "--help"]) == 2
    assert "No such option" in capsys.readouterr().err


def test_a_command_line_is_read_without_the_command() -> None:
    given = command_table.parsed(
        "scan", ["m.onnx", "--data", "d", "--tap", "a", "--tap", "b", "-q", "--max-memory", "2G"]
    )
    assert (given["model"], given["data"], given["taps"], given["quiet"]) == (("m.onnx",), "d", ("a", "b"), True)
    assert budget.limits("scan", given) == budget.Limits(2 << 30, budget.LONG_SECONDS, False)
    for wrong in (
        [],  # no model; samples may be named by a policy
        ["m.onnx", "--data", "d", "--nonsense"],
        ["m.onnx", "--data", "d", "--max-memory", "much"],
    ):
        with pytest.raises(click.UsageError):
            command_table.parsed("scan", wrong)
