"""Someone else's run folder: what is in it is shown or refused, never followed, changed or believed."""

from __future__ import annotations

import copy
import html
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import quadrant_images, quadrant_model, saved
from run_folder_support import (
    DETECTOR,
    MALFORMED,
    changed,
    changed_unit,
    finished,
    trigger_unit,
    whole_report,
    with_report,
    with_row,
)

from onnxspect.cli.main import run
from onnxspect.engine.errors import Kind, OnnxspectError
from onnxspect.engine.report import as_html
from onnxspect.engine.run_folder import Snapshot, read_array, read_picture
from onnxspect.engine.store import FILE, Ledger
from onnxspect.engine.stored_report import checked, digest
from onnxspect.engine.subject.finished_scan import FinishedScan

posix = pytest.mark.skipif(sys.platform == "win32", reason="links and FIFOs")
SECRET = b"the words of another folder"


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Everything in a folder: content and time."""
    return {
        str(p.relative_to(folder)): (p.read_bytes() if p.is_file() else b"", p.lstat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
    }


def said(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str, str]:
    """What `report` ends with, and its two streams; its error is one line with a hint and no fault of ours."""
    status = run(["report", str(folder), *more])
    out, err = capsys.readouterr()
    assert "unexpected failure" not in err
    assert "Traceback" not in err
    if status in (2, 4):
        assert out == ""
        assert err.startswith("onnxspect: ")
        assert len(err.splitlines()) <= 2
    return status, out, err


# --- reading changes nothing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["text", "json", "html", "sarif"])
def test_reading_leaves_the_folder_as_it_was(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished(tmp_path / "run")
    before = tree(folder)
    status, out, _ = said(folder, capsys, "--format", form)
    assert status == 0
    assert out
    FinishedScan.read(folder)
    assert tree(folder) == before


@posix
def test_read_only_media() -> None:
    """Folder and files without write permission, read by one who is not root: what a mounted disc gives."""
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        Path(place).chmod(0o755)
        _read_only(finished(Path(place) / "run"))


def _read_only(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) | 0o555 * path.is_dir() | 0o444)
    before = tree(folder)
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from onnxspect.engine.subject.finished_scan import FinishedScan\n"
        "if os.getuid() == 0:\n    os.setgid(65534); os.setuid(65534)\n"
        "print(FinishedScan.read(Path(sys.argv[1])).targets)\n"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "(2,)", done.stderr
        assert tree(folder) == before
    finally:
        folder.chmod(0o755)
        (folder / "arrays").chmod(0o755)


def test_what_a_killed_writer_left_is_read(tmp_path: Path) -> None:
    """Rows that are only in the WAL: they count, and stay where they are."""
    with Ledger(tmp_path / "run", {"model": "abc"}) as ledger:
        ledger.commit("nc", [trigger_unit(0)])
        shutil.copytree(tmp_path / "run", tmp_path / "copy")  # the writer has not closed: as if it were killed
    assert (tmp_path / "copy" / f"{FILE}-wal").stat().st_size > 0
    before = tree(tmp_path / "copy")
    with Ledger(tmp_path / "copy") as reader:
        assert set(reader.units("nc")) == {"any->0"}
    assert tree(tmp_path / "copy") == before


# --- nothing is followed -----------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("name", ["run.sqlite", "run.sqlite-wal"])
@pytest.mark.parametrize("way", ["symlink", "hard link", "fifo", "device", "folder"])
def test_a_ledger_that_is_no_file_of_its_own(
    tmp_path: Path, name: str, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, elsewhere = finished(tmp_path / "run"), tmp_path / "elsewhere.sqlite"
    shutil.copy(folder / FILE, elsewhere)
    before = elsewhere.read_bytes()
    (folder / name).unlink(missing_ok=True)
    if way == "symlink":
        (folder / name).symlink_to(elsewhere)
    elif way == "hard link":
        (folder / name).hardlink_to(elsewhere)
    elif way == "fifo":
        os.mkfifo(folder / name)
    elif way == "device":
        (folder / name).symlink_to("/dev/zero")
    else:
        (folder / name).mkdir()
    status, _, err = said(folder, capsys)
    assert status == 2
    assert name in err
    assert elsewhere.read_bytes() == before
    with pytest.raises(OnnxspectError, match=r"is a link, or not what a run has|cannot keep|no run"):
        Ledger(folder, {"model": "abc"})
    assert elsewhere.read_bytes() == before


@posix
@pytest.mark.parametrize("name", [".lock", "arrays", "references"])
def test_a_scan_does_not_write_through_links(tmp_path: Path, name: str) -> None:
    folder, elsewhere = finished(tmp_path / "run"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    if name == ".lock":
        (folder / name).unlink()
        os.mkfifo(folder / name)  # opening it would wait for ever
    else:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).symlink_to(elsewhere)
    with pytest.raises(OnnxspectError, match="is a link, or not what a run has"):
        Ledger(folder, {"model": "abc"})
    assert list(elsewhere.iterdir()) == []


def png() -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@posix
@pytest.mark.parametrize("way", ["symlink", "hard link", "no png", "fifo", "device", "huge"])
def test_a_page_holds_no_foreign_bytes(tmp_path: Path, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder, secret = finished(tmp_path / "run"), tmp_path / "secret.png"
    (folder / "trigger-class-2.png").write_bytes(png())
    secret.write_bytes(png()[:-12] + SECRET + png()[-12:])
    picture = folder / "found-2-trigger.png"
    if way == "symlink":
        picture.symlink_to(secret)
    elif way == "hard link":
        picture.hardlink_to(secret)
    elif way == "no png":
        picture.write_bytes(SECRET)
    elif way == "fifo":
        os.mkfifo(picture)
    elif way == "device":
        picture.symlink_to("/dev/zero")
    else:
        head = bytearray(png())
        head[16:20] = (1 << 30).to_bytes(4, "big")
        picture.write_bytes(bytes(head))
    status, page, _ = said(folder, capsys, "--format", "html")
    assert status == 0
    assert page.count("data:image/png;base64,") == 1  # trigger-class-2.png, which is a picture
    assert read_picture(folder, "found-2-trigger.png") is None
    assert read_picture(folder, "../secret.png") is None


def test_a_target_names_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    folder = finished(tmp_path / "run")
    (folder / "trigger-class-x").mkdir()
    report = whole_report() | {"targets": ["x/../../secret"]}
    with_report(folder, json.dumps(report | {"digest": digest(report)}))
    status, out, err = said(folder, capsys, "--format", "html")
    assert (status, out) == (4, "")
    assert "targets" in err


def test_the_page_allows_nothing_but_its_own_style_and_pictures() -> None:
    page = html.unescape(as_html.render(whole_report(), Path("nowhere")))
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in page
    assert "unsafe" not in page
    assert page.index("Content-Security-Policy") < page.index("<title>")


# --- nothing is believed -----------------------------------------------------------------------------------------------------


def test_an_edited_verdict_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished(tmp_path / "run")
    edited = whole_report() | {"verdict": "clean", "targets": []}
    with_report(folder, json.dumps(edited))
    status, out, err = said(folder, capsys)
    assert (status, out) == (4, "")
    assert "changed after it was written" in err
    with pytest.raises(OnnxspectError, match="changed after it was written"):
        FinishedScan.read(folder)


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_reports_end_in_a_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Even with a digest that fits."""
    *path, value = MALFORMED[kind]
    report = whole_report()
    changed(tuple(path), value)(report)
    folder = finished(tmp_path / "run")
    with_report(folder, json.dumps(report | {"digest": digest(report)}))
    for form in ("text", "html", "sarif"):
        status, _, err = said(folder, capsys, "--format", form)
        assert status == 4
        assert "damaged" in err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "17",
        "[" * 100_000,
        '{"a":' * 50_000,
        "1" * 5000,
        '{"verdict": "clean"}',
        "\x00",
        '"\\ud800"',
    ],
)
def test_what_is_no_report_ends_in_a_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished(tmp_path / "run")
    with_report(folder, text)
    assert said(folder, capsys)[0] == 4


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished(tmp_path / "run")
    with_report(
        folder,
        json.dumps(whole_report()).replace(
            '"anomaly": {"neural-cleanse": 1.0}', f'"anomaly": {{"neural-cleanse": {number}}}'
        ),
    )
    assert said(folder, capsys)[0] == 4


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW more AS SELECT * FROM facts",
        "CREATE TABLE other (x)",
        "CREATE TRIGGER t AFTER INSERT ON units BEGIN DELETE FROM units; END",
        "CREATE INDEX i ON facts (value)",
        "DROP TABLE units",
    ],
)
def test_a_database_with_a_program_in_it(tmp_path: Path, statement: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished(tmp_path / "run")
    with_row(folder, statement)
    status, _, err = said(folder, capsys)
    assert status == 4
    assert "not those of a run" in err
    if "DROP" not in statement:  # a missing table is made again; a program is not run
        with pytest.raises(OnnxspectError, match="not those of a run"):
            Ledger(folder, {"model": "abc"})


def test_a_schema_whose_error_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SQLite quotes the file in its error, and Python cannot decode it: found by a mutant."""
    folder = finished(tmp_path / "run")
    data = (folder / FILE).read_bytes()
    assert data.count(b"value TEXT NOT NULL") == 1
    (folder / FILE).write_bytes(data.replace(b"value TEXT NOT NULL", b"value TEXT NOT NUL\xac"))
    assert said(folder, capsys)[0] == 4


def test_a_view_that_never_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished(tmp_path / "run")
    with_row(folder, "DROP TABLE facts")
    with_row(
        folder,
        "CREATE VIEW facts AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS name, x AS value FROM n",
    )
    assert said(folder, capsys)[0] == 4


def test_the_reader_cannot_write(tmp_path: Path) -> None:
    snapshot = Snapshot(finished(tmp_path / "run"))
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        snapshot.db.execute("DELETE FROM units")
    snapshot.close()


# --- units and arrays --------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(quadrant_model(target=2), tmp_path / "model.onnx")


def of_model(folder: Path, model: Path) -> Path:
    """A finished run of that file."""
    import hashlib

    return finished(folder, whole_report(hashlib.sha256(model.read_bytes()).hexdigest()))


def verifying(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    samples = quadrant_images(20)
    data = folder.parent / "clean.npz"
    np.savez(data, images=samples.images, labels=samples.labels)
    status = run(
        [
            "verify",
            str(model),
            "--against",
            str(model),
            "--data",
            str(data),
            "--run",
            str(folder),
            "-q",
            "--device",
            "cpu",
        ]
    )
    err = capsys.readouterr().err
    assert "unexpected failure" not in err
    return status, err


def test_verify_takes_a_run_as_it_is(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it says of the trigger is not the question here."""
    status, err = verifying(of_model(tmp_path / "run", model), model, capsys)
    assert status in (0, 3)
    assert err == ""


@posix
@pytest.mark.parametrize("way", ["symlink", "device", "fifo", "cut", "gone", "hard link"])
def test_verify_with_arrays_that_are_not_there(
    tmp_path: Path, model: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = of_model(tmp_path / "run", model)
    for array in (folder / "arrays").iterdir():
        data = array.read_bytes()
        array.unlink()
        if way == "symlink":
            (tmp_path / array.name).write_bytes(data)
            array.symlink_to(tmp_path / array.name)
        elif way == "hard link":
            (tmp_path / array.name).write_bytes(data)
            array.hardlink_to(tmp_path / array.name)
        elif way == "device":
            array.symlink_to("/dev/zero")
        elif way == "fifo":
            os.mkfifo(array)
        elif way == "cut":
            array.write_bytes(data[:-8])
    status, err = verifying(folder, model, capsys)
    assert status == 4
    assert "are missing, or were changed" in err
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target", 99),
        ("target", "2"),
        ("target", -5),
        ("source", 99),
        ("tap", 3),
        ("statistics", {"l1": "x"}),
        ("statistics", []),
        ("measurements", [{"statistic": "l1", "value": "x"}]),
        ("measurements", [{"statistic": "l1", "value": 1.0, "search": "sideways"}]),
        ("measurements", 3),
        ("found", "yes"),
        ("held_out_success", 7.0),
        ("search_success", float("nan")),
        ("steps", -1),
        ("unheard of", 1),
    ],
)
def test_units_of_a_stranger(tmp_path: Path, model: Path, name: str, value: Any) -> None:
    folder = of_model(tmp_path / "run", model)
    changed_unit(lambda row: row.update({name: value}), folder)
    with pytest.raises(OnnxspectError) as caught:
        FinishedScan.read(folder)
    assert caught.value.kind is Kind.MACHINE
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("mask", np.ones((1, 9, 9), np.float32)),
        ("mask", np.ones((1, 8, 8), np.int64)),
        ("mask", np.full((1, 8, 8), np.nan, np.float32)),
        ("pattern", np.full((1, 8, 8), 7.0, np.float32)),
        ("pattern", np.ones((3, 8, 8), np.float32)),
        ("delta", np.full((1, 8, 8), -1.5, np.float32)),
        ("delta", np.full((2, 8, 8), 0.5, np.float32)),
        ("displacement", np.zeros((1, 8, 8), np.float32)),
        ("displacement", np.zeros((2, 8, 9), np.float32)),
        ("displacement", np.zeros((2, 8, 8), np.int64)),
        ("displacement", np.full((2, 8, 8), np.inf, np.float32)),
        ("displacement", np.full((2, 8, 8), 9.0, np.float32)),
    ],
)
def test_triggers_that_do_not_fit(tmp_path: Path, name: str, array: np.ndarray) -> None:
    from dataclasses import replace

    folder = finished(tmp_path / "run")
    unit = trigger_unit(2)
    with Ledger(folder, {"model": "abc"}) as ledger:
        ledger.keep_evidence(DETECTOR, [replace(unit, trigger=dict(unit.trigger) | {name: array})])
    with pytest.raises(OnnxspectError, match=f"the {name} of {DETECTOR} any->2"):
        FinishedScan.read(folder)


@pytest.mark.parametrize("arrays", ['{"mask": "../../secret"}', '{"mask": 7}', "[]", '{"mask": "' + "0" * 64 + '"}'])
def test_arrays_of_a_stranger(tmp_path: Path, arrays: str) -> None:
    folder = finished(tmp_path / "run")
    with_row(folder, "UPDATE units SET arrays = ?", arrays)
    with pytest.raises(OnnxspectError) as caught:
        FinishedScan.read(folder)
    assert caught.value.kind is Kind.MACHINE


def npy(shape: tuple[int, ...], kind: str, data: bytes) -> bytes:
    import io

    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


@pytest.mark.parametrize(
    "data",
    [
        npy((2**40,), "<f4", b""),
        npy((2**62, 2**62), "<f4", b""),
        npy((1,), "|O", b"\x80\x04N."),
        npy((2,), "<f4", bytes(4)),
        npy((1,), "<M8[s]", bytes(8)),
        b"\x93NUMPY",
        b"",
        b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16,
    ],
)
def test_an_array_whose_header_lies(tmp_path: Path, data: bytes) -> None:
    import hashlib

    name = hashlib.sha256(data).hexdigest()
    (tmp_path / "arrays").mkdir()
    (tmp_path / "arrays" / f"{name}.npy").write_bytes(data)
    assert read_array(tmp_path, name) is None


# --- the digest --------------------------------------------------------------------------------------------------------------


def test_the_digest_does_not_depend_on_how_a_path_is_spelled() -> None:
    report = whole_report()
    for path in ("model.onnx", "./model.onnx", "/somewhere/else/model.onnx", "a/../model.onnx"):
        moved = copy.deepcopy(report)
        moved["model"]["path"] = path
        assert digest(moved) == report["digest"]
        checked(json.dumps(moved))
    renamed = copy.deepcopy(report)
    renamed["model"]["path"] = "other.onnx"
    assert digest(renamed) != report["digest"]


def test_reports_from_before_are_read() -> None:
    """Until 0.1.0 the whole path counted."""
    import hashlib

    report = whole_report()
    report["model"]["path"] = "models/model.onnx"

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "digest")}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    text = json.dumps(timeless(report), sort_keys=True, ensure_ascii=False, allow_nan=False)
    report["digest"] = hashlib.sha256(text.encode()).hexdigest()
    assert report["digest"] != digest(report)
    assert checked(json.dumps(report)) == report


def test_fields_that_later_versions_add_are_left_alone() -> None:
    report = whole_report(certificate={"by": "someone"})
    assert checked(json.dumps(report))["certificate"] == {"by": "someone"}
