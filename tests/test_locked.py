"""requirements-ci.txt: the versions of constraints.txt, every one with hashes, and no index named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCKED = (ROOT / "requirements-ci.txt").read_text()
ENTRY = re.compile(r"^([\w.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.M)


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_line_is_a_version_with_hashes() -> None:
    rest = ENTRY.sub("", re.sub(r"^#.*\n", "", LOCKED, flags=re.M))
    assert rest.strip() == "", "run: make lock"
    assert "://" not in LOCKED


def test_they_are_the_versions_that_the_tests_ran_with() -> None:
    locked = {plain(name): version for name, version, _ in ENTRY.findall(LOCKED)}
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    pinned = {plain(name): version for name, version in pinned.items()}
    assert {n: v for n, v in locked.items() if pinned.get(n, v) != v} == {}, "run: make lock"


def test_what_make_test_installs_is_there() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = ("test", "keras", "tensorflow", "jax", "sklearn", "second-opinion")
    wanted = [*settings["dependencies"], *(one for extra in extras for one in settings["optional-dependencies"][extra])]
    here = {plain(m.group()) for one in wanted if (m := re.match(r"[\w.-]+", one))}
    assert here - {plain(name) for name, _, _ in ENTRY.findall(LOCKED)} == {"torch"}, "run: make lock"
