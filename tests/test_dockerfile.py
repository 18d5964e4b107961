"""The Dockerfile: linted by hadolint, and with nothing in it that a stranger could take the place of."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HADOLINT = Path(sys.executable).parent / "hadolint"


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="hadolint has no package for this system"
)
def test_hadolint_has_nothing_to_say(tmp_path: Path) -> None:
    def said(file: Path) -> list[str]:
        done = subprocess.run([HADOLINT, "--format", "json", file], capture_output=True, text=True, check=False)
        return [f"{one['line']}: {one['code']} {one['message']}" for one in json.loads(done.stdout)]

    assert said(ROOT / "Dockerfile") == []
    worse = tmp_path / "Dockerfile"
    worse.write_text((ROOT / "Dockerfile").read_text().replace("--no-cache-dir ", ""))
    assert any("DL3042" in line for line in said(worse))  # it looks at the lines that it is meant to look at


def test_it_does_not_run_as_root_and_pins_what_it_installs() -> None:
    text = (ROOT / "Dockerfile").read_text()
    users = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert users
    assert users[-1] not in ("root", "0")
    installs = re.findall(r"pip install [^\n]*", text)
    assert installs
    assert all("-c /tmp/constraints.txt" in line for line in installs)
