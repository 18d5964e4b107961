"""Which files a command may touch: every path of every command has a role, and the supervisor's table is the commands'."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from onnxspect.cli import budget, places
from onnxspect.cli.main import COMMANDS, cli
from onnxspect.converters.errors import OnnxspectError
from onnxspect.engine.fleet import machine


@pytest.mark.parametrize("name", COMMANDS)
def test_every_path_has_a_role(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    paths = {p.name for p in command.params if isinstance(p.type, click.Path)}
    assert paths == set(places.ROLES[name]) - places.OR_WORDS
    worded = {p.name for p in command.params if p.name in places.OR_WORDS and p.nargs == 1}
    assert worded == set(places.ROLES[name]) & places.OR_WORDS


def test_default_folders_are_those_of_the_commands() -> None:
    for name, folder in places.DEFAULT_FOLDERS.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        out = next(p for p in command.params if p.name == "out")
        assert out.default in (Path(folder), None) or not isinstance(out.default, Path)


@pytest.mark.parametrize(
    ("text", "size"), [("64M", 64 << 20), ("1.5GiB", 3 << 29), ("2g", 2 << 30), ("100000000", 10**8), ("1 TB", 1 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert budget.Size().convert(text, None, None) == size


def test_the_default_memory_is_of_this_machine() -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < machine.usable_memory() <= 0.75 * physical


def test_what_a_worker_may_touch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("m.onnx", "m.onnx.data", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "weights").mkdir()
    (tmp_path / "link").symlink_to("/etc")
    monkeypatch.chdir(tmp_path)
    found = places.prepare("patch", {"model": "m.onnx", "run_folder": "r", "data": "d.npz", "output": "p.onnx"})
    beside = {Path(p).name for p in found.readable if Path(p).parent == tmp_path}
    assert {"m.onnx", "m.onnx.data", "weights", "r", "d.npz"} <= beside
    assert not {".hidden", "link"} & beside
    assert str(tmp_path) not in found.readable
    (output,) = found.outputs
    assert output.staging is not None
    assert output.staging.parent == tmp_path
    assert found.writable == [str(output.staging)]
    assert all(output.allows(n) for n in ("p.onnx", "p.onnx.json", "p.onnx.data", "p.onnx.3.data"))
    assert not any(output.allows(n) for n in ("m.onnx", "x/p.onnx", "p.onnx.py", ".bashrc", "p.onnx.data2"))


def test_folders_are_made(tmp_path: Path) -> None:
    found = places.prepare("certify", {"data": "x", "out": str(tmp_path / "a" / "b")})
    assert found.made == [tmp_path / "a", tmp_path / "a" / "b"]
    assert found.writable == [str(tmp_path / "a" / "b")]
    (tmp_path / "file").write_text("x")
    with pytest.raises(OnnxspectError, match="cannot be made a folder"):
        places.prepare("certify", {"data": "x", "out": str(tmp_path / "file")})


def test_devices_only_when_asked_for() -> None:
    assert places.prepare("info", {"model": "m"}).devices == []
    assert places.prepare("scan", {"model": "m", "data": "d", "out": "/tmp", "device": "cpu"}).devices == []


def test_a_scan_may_read_the_shelf_and_not_write_it(tmp_path: Path) -> None:
    """References that many models share: a stranger's model must not change what the next is compared with."""
    given = {
        "model": ("m.onnx",),
        "data": "d.npz",
        "out": str(tmp_path / "run"),
        "shelf": str(tmp_path / "shelf"),
        "cache": "c",
    }
    found = places.prepare("scan", given)
    assert str(tmp_path / "shelf") in found.readable
    assert found.writable == [str(tmp_path / "run")]
    assert os.path.abspath("c") not in found.readable  # noqa: PTH100
    made = places.prepare("references", {"request": "r.json", "data": "d.npz", "out": str(tmp_path / "shelf/x.half")})
    assert made.writable == [str(tmp_path / "shelf/x.half")]
