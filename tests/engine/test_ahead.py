"""What is slow to load and needed late is loaded late, or while a scan waits for its child process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from onnxspect.cli import main
from onnxspect.converters.sandbox import guard
from onnxspect.engine.ahead import LATER, load_ahead
from onnxspect.models import zoo

_PROGRAM = f"""
import sys
import onnxspect.cli.cmd_scan
print(sorted(sys.modules.keys() & {{"sklearn", "matplotlib", *{LATER!r}}}))
from onnxspect.engine.ahead import load_ahead
load_ahead("cpu").join()
print(sorted(set({LATER!r}) - sys.modules.keys()))
"""


def test_the_scan_command_is_there_before_what_it_needs_late() -> None:
    """scikit-learn, scipy.stats and matplotlib take longer to import than torch."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]


@pytest.mark.parametrize("command", ["report", "view"])
def test_a_report_that_is_shown_again_needs_no_torch(command: str) -> None:
    program = f"""
import sys
from onnxspect.cli import main
main.load({command!r})
print(sorted(sys.modules.keys() & {{"torch", "onnx", "onnxruntime", "scipy", "matplotlib", "PIL"}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_cannot_be_loaded_ahead_is_no_failure_yet() -> None:
    load_ahead("cuda:99", ["onnxspect.no_such_module", "json"]).join()


@pytest.fixture
def nothing_waits() -> None:
    guard.end_waiting()


@pytest.mark.usefixtures("nothing_waits")
@pytest.mark.parametrize(
    ("arguments", "started"),
    [
        (["info", "no-such-file.onnx"], True),
        (["info", "--help"], False),
        (["report", "no-such-folder"], False),
        ([], False),
    ],
)
def test_the_child_is_started_before_the_command_is_imported(arguments: list[str], started: bool) -> None:
    main.run(arguments)
    assert ("probe" in guard._waiting) == started
    guard.end_waiting()


@pytest.mark.usefixtures("nothing_waits")
def test_opening_takes_the_child_that_waits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["info", str(zoo.path("fashion_mnist_clean"))]) == 0
    assert "probe" not in guard._waiting
    assert "logits" in capsys.readouterr().out
