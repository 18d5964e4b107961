"""Whatever a hostile process leaves in its folder, it goes, and nothing else does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hostile_containers import nested

from onnxspect.converters.sandbox.removal import remove_tree


@pytest.mark.skipif(os.open not in os.supports_dir_fd, reason="no openat")
def test_any_depth(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    nested(folder, 3000)
    remove_tree(folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links")
def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    for place in (folder, folder / "inner"):
        (place / "to a folder").symlink_to(outside)
        (place / "to a file").symlink_to(outside / "kept")
        (place / "to nothing").symlink_to(tmp_path / "none")
    os.mkfifo(folder / "inner" / "fifo")
    remove_tree(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["outside"]
    assert (outside / "kept").read_text() == "x"


@pytest.mark.skipif(os.name != "posix", reason="modes")
def test_modes_do_not_matter(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").write_text("x")
    (folder / "a" / "b").chmod(0)
    (folder / "a").chmod(0)
    remove_tree(folder)
    assert not folder.exists()


def test_a_folder_that_is_a_link_or_gone_is_left(tmp_path: Path) -> None:
    remove_tree(tmp_path / "none")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    remove_tree(tmp_path / "link")
    assert (tmp_path / "real").is_dir()
