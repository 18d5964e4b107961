"""The benchmark of hostile inputs: its corpus is whole, and what it measures and looks for it would find."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_scripts import script

from onnxspect.cli.main import COMMANDS as COMMAND_LINE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_every_input_meets_commands_that_there_are(planted_file: Path) -> None:
    case, main = script("hostile.case"), script("hostile_inputs")
    cases = main.corpus(planted_file)
    assert len({(c.kind, c.name) for c in cases}) == len(cases) >= 200
    assert len({c.kind for c in cases}) >= 15
    used = {command for c in cases for command in c.commands}
    assert used == set(case.COMMANDS)
    assert all(set(c.expected) <= set(c.commands) for c in cases)
    assert {case.COMMANDS[command][0] for command in used} == set(COMMAND_LINE) - {"demo"}  # which is given nothing


def test_the_secret_and_what_is_obeyed_are_found(tmp_path: Path) -> None:
    case, outputs = script("hostile.case"), script("hostile.outputs")
    canary = case.Canary("0123456789abcdef" * 4, tmp_path)
    text = canary.text.encode()
    for seen in (
        text,
        text.upper(),
        bytes.fromhex(canary.text),
        base64.b64encode(b"x" + text),
        canary.text.encode("utf-16"),
    ):
        assert canary.found_in(b"before" + seen + b"behind")
    assert not canary.found_in(text[:40])
    assert outputs.obeyed(b"fine\n\tfine", page=False) == []
    assert outputs.obeyed(b"\x1b[31m", page=False)
    assert outputs.obeyed("a\u202eb".encode(), page=False)
    assert outputs.obeyed(f"x\n{case.FORGED}\n".encode(), page=False)
    assert outputs.obeyed(f"<p>{case.ELEMENT}".encode(), page=True)


def test_memory_of_descendants_and_what_is_left(tmp_path: Path) -> None:
    """A process whose child takes 150 MiB, and that leaves another behind."""
    child = "import time; held = b'x' * (150 << 20); time.sleep(0.3)"
    code = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
sys.exit(subprocess.run([sys.executable, "-c", {child!r}]).returncode + 3)
"""
    measured = f"""
import json, os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(script("hostile.watch").__file__).parents[1])!r})
import hostile.watch
hostile.watch.adopt()
ended = hostile.watch.run([sys.executable, "-c", {code!r}], Path("."), os.environ, Path("."), 30.0, False)
print(ended.status, ended.tree_bytes >> 20, ended.process_bytes >> 20, len(ended.left), ended.hung)
"""
    done = subprocess.run(
        [sys.executable, "-c", measured], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=True
    )
    status, together, one, left, hung = done.stdout.split()
    assert (status, left, hung) == ("3", "1", "False")
    assert 150 <= int(one) < 250
    assert int(one) < int(together) < 400
