"""Going through folders: what os.walk gives, and an error where it would give a RecursionError."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hostile_containers import nested

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.sandbox.removal import remove_tree
from onnxspect.converters.sandbox.walk import DEEPEST, walk


def test_as_the_standard_library_does(tmp_path: Path) -> None:
    for name in ("a/b/c", "a/d", "e"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a/1", "a/b/2", "a/b/c/3", "4"):
        (tmp_path / name).touch()
    (tmp_path / "e" / "back").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "e" / "nowhere").symlink_to(tmp_path / "none")

    def found(walking: object) -> list[tuple[str, list[str], list[str]]]:
        return sorted((folder, sorted(below), sorted(names)) for folder, below, names in walking)  # type: ignore[attr-defined]

    assert found(walk(tmp_path)) == found(os.walk(tmp_path))
    entered = []
    for folder, below, _ in walk(tmp_path):
        entered.append(folder)
        below[:] = [b for b in below if b != "a"]
    assert entered == [str(tmp_path), str(tmp_path / "e")]
    assert list(walk(tmp_path / "none")) == []


@pytest.mark.skipif(sys.platform == "win32", reason="folders are made by their parents' descriptors")
def test_nested_deeper_than_python_recurses(tmp_path: Path) -> None:
    nested(tmp_path, 3000)
    try:
        with pytest.raises(OnnxspectError, match=f"nested more than {DEEPEST} deep") as caught:
            list(walk(tmp_path))
        assert "\n" not in str(caught.value)
        assert len(list(walk(tmp_path, deepest=None))) > sys.getrecursionlimit()
    finally:
        remove_tree(tmp_path)  # pytest itself would recurse
