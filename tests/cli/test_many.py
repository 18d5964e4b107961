"""`onnxspect scan` of many models on the command line: statuses, page, document, and what each command is started with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click import UsageError

from onnxspect.cli import command_table, main, many
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.fleet.executor import Ended
from onnxspect.engine.fleet.local import WORKER_BYTES, Size
from onnxspect.engine.fleet.plan import Options
from onnxspect.engine.report import as_many

ROW = {
    "path": "m.onnx",
    "outcome": "clean",
    "p_value": 1.0,
    "targets": [],
    "cause": "",
    "folder": "m-1",
    "seconds": 2.0,
}
ROW |= {"accepted": False, "digest": "0" * 64}


def document(*rows: dict[str, Any], status: int = 0) -> dict[str, Any]:
    return as_many.build([{**ROW, **r} for r in rows], "runs", "1", "2026-01-02T03:04:05Z", status)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["scan", "m.onnx", "--data", "d"], False),
        (["scan", "a.onnx", "b.onnx", "--data", "d"], True),
        (["scan", "m.onnx", "--jobs", "2"], True),
        (["scan", "m.onnx", "--cache", "c"], True),
        (["scan", "a", "b", "--nonsense"], False),
        (["scan", "a", "b", "--help"], False),
        (["info", "m.onnx"], False),
        ([], False),
    ],
)
def test_what_is_a_scan_of_many(line: list[str], expected: bool) -> None:
    assert main._of_many(line) is expected


@pytest.mark.parametrize(
    ("outcome", "report", "fail_on", "accepted", "status"),
    [
        ("clean", True, "inconclusive", False, 0),
        ("backdoored", True, "inconclusive", False, 1),
        ("backdoored", True, "never", False, 0),
        ("backdoored", True, "inconclusive", True, 0),
        ("hostile", False, "never", False, 1),
        ("failed", False, "never", False, 4),
        ("refused", False, "never", False, 2),
        ("inconclusive", True, "backdoored", False, 0),
        ("inconclusive", False, "backdoored", False, 3),
    ],
)
def test_the_status_of_one(outcome: str, report: bool, fail_on: str, accepted: bool, status: int) -> None:
    assert many._status(outcome, report, fail_on, accepted) == status


def test_the_worst_comes_first() -> None:
    assert many.WORST == (1, 4, 2, 3, 0)


def test_options_reach_every_scan_as_they_were_given() -> None:
    line = ["a", "b", "--data", "d", "--tap", "x", "--tap", "y", "--seed", "3", "-q", "--out", "o", "--require-sandbox"]
    options: Options = many._common(
        command_table.parsed("scan", [*line, "--max-memory", "2G", "--resize", "try"]), None
    )
    assert options == {
        "data": ("d",), "tap": ("x", "y"), "seed": ("3",), "require-sandbox": (), "max-memory": (str(2 << 30),),
        "resize": ("try",),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--format", "sarif"], "each has its own report"),
        (["-o", "x.sarif"], "each has its own report"),
        (["--jobs", "0"], "whole number"),
        (["--jobs", "many"], "whole number"),
        (["--cache", "c", "--no-cache"], "contradict"),
    ],
)
def test_what_many_do_not_have(more: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"x")
    with pytest.raises(UsageError, match=said):
        many.scan([str(tmp_path), "--data", "d", "--out", str(tmp_path / "out"), *more])
    assert not (tmp_path / "out").exists()


def test_no_models() -> None:
    with pytest.raises(OnnxspectError, match="nothing matches"):
        many.scan(["nowhere/*.onnx", "--data", "d"])


def test_a_model_that_is_not_there_is_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No process is started, and table, page, document and index are there."""
    line = [
        str(tmp_path / "a.onnx"),
        str(tmp_path / "b.onnx"),
        "--data",
        str(tmp_path),
        "--no-cache",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main.run(["scan", *line]) == 2
    shown = capsys.readouterr()
    assert "2 models: 2 refused" in shown.out
    assert main.run(["scan", *line, "--json", "-q"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert [r["outcome"] for r in told["scans"]] == ["refused", "refused"]
    assert json.loads((tmp_path / "o/index.json").read_text())["scans"] == told["scans"]
    assert "have no verdict" in (tmp_path / "o/index.html").read_text()
    assert (tmp_path / "o/index.sqlite").exists()


def test_those_first_that_matter() -> None:
    made = document(
        {"path": "c"}, {"path": "b", "outcome": "backdoored", "p_value": 1e-3}, {"path": "a", "outcome": "backdoored", "p_value": 1e-9},
        {"path": "f", "outcome": "failed", "p_value": None}, {"path": "h", "outcome": "hostile", "p_value": None},
    )  # fmt: skip
    assert [r["path"] for r in made["scans"]] == ["a", "b", "h", "f", "c"]
    assert made["outcomes"] == {"backdoored": 2, "hostile": 1, "failed": 1, "clean": 1}


def test_the_page_obeys_no_name() -> None:
    """Names, causes and folders are strangers': text, and no link that leads elsewhere."""
    nasty = '"><script>alert(1)</script>\x1b]0;x\x07'
    page = as_many.page(document({"path": nasty, "cause": nasty, "targets": [nasty], "folder": "m 1?#"}))
    assert page.count("<script") == 1  # the page's own
    assert "\x1b" not in page
    assert 'href="./m%201%3F%23/"' in page
    for folder in ("/etc", "javascript:alert(1)", "../x", "a/../../x"):
        assert re.findall(r'<a href="([^"]*)"', as_many.page(document({"folder": folder}))) == []
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_a_long_table_is_cut() -> None:
    import io

    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=120).print(as_many.table(document(*({"path": f"{i}.onnx"} for i in range(100)))))
    assert "and 60 more, in runs/index.html" in out.getvalue()


def test_how_a_machine_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxspect.engine.fleet import local

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(local, "usable_cores", lambda: 8)
    assert Size.of(64 << 30) == Size(8, 1, 8 << 30, ())
    assert Size.of(3 * WORKER_BYTES) == Size(3, 2, WORKER_BYTES, ())
    assert Size.of(64 << 30, 2) == Size(2, 4, 32 << 30, ())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert Size.of(64 << 30) == Size(2, 4, 32 << 30, ("3", "5"))
    assert Size.of(64 << 30, device="cpu").gpus == ()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert Size.of(64 << 30, device="cpu").threads == 3


def test_what_a_command_said() -> None:
    said = "noise\nonnxspect: the worker was killed, as when memory runs out (in x)\n  hint: more\n"
    assert Ended(4, said, 1).killed
    assert Ended(4, said, 1).cause.startswith("the worker was killed")
    assert Ended(-9, "", 1).killed
    assert Ended(
        4, "onnxspect: m.onnx: the child process was killed, as when memory runs out (at the start)\n", 1
    ).killed
    assert Ended(4, "onnxspect: the process that starts children has ended\n", 1).killed
    assert not Ended(4, "onnxspect: no room left\n", 1).killed
    assert not Ended(1, "Traceback\nSyntaxError: x\n", 1).said_why
    assert Ended(1, "Traceback\nSyntaxError: x\n", 1).cause == "SyntaxError: x"
