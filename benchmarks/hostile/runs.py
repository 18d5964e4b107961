"""Hostile run folders: links and devices in them, programs in the ledger, content that is none."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from of_tests import module_of_tests
from PIL import Image

from hostile.case import ERROR, ESCAPE, FORMS, SHOWN, Canary, Case, Make

support = module_of_tests("run_folder_support")
stored = support.digest

#: `view` shows the folder all the same, with a row that says why this run cannot be read.
_LISTED = {"view": SHOWN}


def cases(model: Path) -> list[Case]:
    """All of them; some are runs of the ordinary model."""
    of_model = functools.partial(support.whole_report, hashlib.sha256(model.read_bytes()).hexdigest())
    return [*_links(of_model), *_content(of_model), *_units(of_model)]


def _run(change: Callable[[Path, Canary], object], report: Callable[[], dict[str, Any]]) -> Make:
    """A finished run to which something was done."""

    def make(folder: Path, canary: Canary) -> Path:
        run: Path = support.finished(folder / "run", report())
        change(run, canary)
        return run

    return make


# -- links, FIFOs, devices ---------------------------------------------------------------------------------------------------


def _links(of_model: Callable[[], dict[str, Any]]) -> list[Case]:
    kind = "run folders: links and devices"

    def instead(name: str, put: Callable[[Path, Canary], object]) -> Make:
        def change(run: Path, canary: Canary) -> None:
            path = run / name
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            put(path, canary)

        return _run(change, of_model)

    def symlink(to: str) -> Callable[[Path, Canary], object]:
        return lambda path, canary: path.symlink_to(canary.folder / to)

    def hard(to: str) -> Callable[[Path, Canary], object]:
        return lambda path, canary: os.link(canary.folder / to, path)

    def fifo(path: Path, _: Canary) -> None:
        os.mkfifo(path)

    def device(path: Path, _: Canary) -> None:
        path.symlink_to("/dev/zero")

    def arrays(put: Callable[[Path, Canary], object]) -> Make:
        def change(run: Path, canary: Canary) -> None:
            for array in (run / "arrays").iterdir():
                array.unlink()
                put(array, canary)

        return _run(change, of_model)

    pages = ("report as html", "report to files", "view")
    return [
        Case(
            kind,
            "the ledger is a link to another's",
            instead("run.sqlite", symlink("run/run.sqlite")),
            (*FORMS, "verify with a run", "patch with a run"),
            ERROR,
            _LISTED,
        ),
        Case(
            kind,
            "the ledger is another's by a hard link",
            instead("run.sqlite", hard("run/run.sqlite")),
            ("report",),
            ERROR,
        ),
        Case(
            kind,
            "the ledger is a link to a secret",
            instead("run.sqlite", symlink("secret")),
            ("report", "cleanse with a run"),
            ERROR,
        ),
        Case(
            kind,
            "the ledger is a FIFO",
            instead("run.sqlite", fifo),
            ("report", "verify with a run", "view"),
            ERROR,
            _LISTED,
        ),
        Case(
            kind,
            "the ledger is an endless device",
            instead("run.sqlite", device),
            ("report", "cleanse with a run"),
            ERROR,
        ),
        Case(kind, "its journal is a link", instead("run.sqlite-wal", symlink("run/run.sqlite")), ("report",), ERROR),
        Case(
            kind,
            "its journal is a FIFO",
            instead("run.sqlite-journal", fifo),
            ("report", "patch with a run"),
            SHOWN,
            {"patch with a run": SHOWN | {3}},  # it was read, and the patch did not meet its goals
        ),
        Case(kind, "pictures are links to a secret", _run(_pictures("secret.png", "symlink"), of_model), pages, SHOWN),
        Case(
            kind,
            "pictures are a secret by hard links",
            _run(_pictures("secret.png", "link"), of_model),
            ("report as html", "view"),
            SHOWN,
        ),
        Case(
            kind,
            "pictures are a secret's text by hard links",
            _run(_pictures("secret", "link"), of_model),
            ("report as html",),
            SHOWN,
        ),
        Case(kind, "pictures are FIFOs", _run(_pictures("", "fifo"), of_model), ("report as html", "view"), SHOWN),
        Case(
            kind,
            "pictures are endless devices",
            _run(_pictures("", "device"), of_model),
            ("report as html", "view"),
            SHOWN,
        ),
        Case(kind, "pictures of 2^30 pixels a side", _run(_pictures("", "huge"), of_model), ("report as html",), SHOWN),
        Case(
            kind,
            "arrays are links to a secret",
            arrays(symlink("secret.npy")),
            ("verify with a run", "patch with a run"),
            ERROR,
        ),
        Case(kind, "arrays are FIFOs", arrays(fifo), ("verify with a run",), ERROR),
        Case(kind, "arrays are endless devices", arrays(device), ("verify with a run", "cleanse with a run"), ERROR),
        Case(kind, "the folder of arrays is a link", instead("arrays", symlink("run")), ("verify with a run",), ERROR),
        Case(
            kind,
            "the lock is a FIFO",
            instead(".lock", fifo),
            ("report", "verify with a run", "patch with a run"),
            SHOWN | {3},
        ),
        Case(
            kind,
            "the documents of a patch are links to a secret",
            _run(_documents, of_model),
            ("view", "report as html"),
            SHOWN,
        ),
        Case(
            kind,
            "the run is itself a link to another's",
            _as_a_link,
            ("report", "view"),
            SHOWN,
            {"report": frozenset({0})},
        ),
    ]


_PICTURES = (
    "classes.png",
    "found-2-trigger.png",
    "trigger-class-2.png",
    "trigger-2.png",
    "statistics.png",
    "mask-2.png",
)


def _pictures(of: str, way: str) -> Callable[[Path, Canary], None]:
    """In the place of every picture that a page looks for, and of everything that it might."""

    def change(run: Path, canary: Canary) -> None:
        for name in _PICTURES:
            path = run / name
            if way == "symlink":
                path.symlink_to(canary.folder / of)
            elif way == "link":
                os.link(canary.folder / of, path)
            elif way == "fifo":
                os.mkfifo(path)
            elif way == "device":
                path.symlink_to("/dev/zero")
            else:
                path.write_bytes(_huge())

    return change


def _huge() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    data[16:24] = (1 << 30).to_bytes(4, "big") * 2
    return bytes(data)


def _documents(run: Path, canary: Canary) -> None:
    for name in ("patch.json", "verify.json", "patch-report.json"):
        (run / name).symlink_to(canary.folder / "secret")


def _as_a_link(folder: Path, _: Canary) -> Path:
    """As a user may have it: his own link is followed, once."""
    support.finished(folder / "run")
    (folder / "linked").symlink_to(folder / "run")
    return folder / "linked"


# -- content -----------------------------------------------------------------------------------------------------------------


_ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS name, x AS value FROM n"


def _content(of_model: Callable[[], dict[str, Any]]) -> list[Case]:
    kind = "run folders: content"

    def text(report: str) -> Make:
        return _run(lambda run, _: support.with_report(run, report), of_model)

    def statements(*lines: str) -> Make:
        def change(run: Path, _: Canary) -> None:
            for line in lines:
                support.with_row(run, line)

        return _run(change, of_model)

    def database(data: Callable[[bytes], bytes]) -> Make:
        return _run(lambda run, _: (run / "run.sqlite").write_bytes(data((run / "run.sqlite").read_bytes())), of_model)

    return [
        Case(kind, "a report nested 100,000 deep", text("[" * 100_000), ("report", "view"), ERROR, {"view": SHOWN}),
        Case(kind, "a report of a number of 5,000 digits", text("1" * 5000), ("report",), ERROR),
        Case(
            kind,
            "a report of eight megabytes of nothing",
            text('{"a": "' + "x" * (8 << 20) + '"}'),
            ("report",),
            ERROR,
        ),
        Case(kind, "half of a surrogate pair", text('"\\ud800"'), ("report",), ERROR),
        Case(
            kind,
            "a view that never ends",
            statements("DROP TABLE facts", f"CREATE VIEW facts AS {_ENDLESS}"),
            ("report", "verify with a run"),
            ERROR,
        ),
        Case(
            kind,
            "a trigger",
            statements("CREATE TRIGGER t AFTER INSERT ON units BEGIN DELETE FROM units; END"),
            ("report", "patch with a run"),
            ERROR,
        ),
        Case(kind, "another table", statements("CREATE TABLE other (x)"), ("report",), ERROR),
        Case(
            kind,
            "a schema that is no text",
            database(lambda d: d.replace(b"value TEXT NOT NULL", b"value TEXT NOT NUL\xac")),
            ("report",),
            ERROR,
        ),
        Case(
            kind,
            "a ledger that is cut in half",
            database(lambda d: d[: len(d) // 2]),
            ("report", "view"),
            ERROR,
            {"view": SHOWN},
        ),
        Case(
            kind,
            "a ledger of random bytes behind its head",
            database(lambda d: d[:100] + np.random.default_rng(0).bytes(len(d) - 100)),
            ("report",),
            ERROR,
        ),
        Case(
            kind,
            "a ledger of a sparse GiB",
            _run(lambda run, _: os.truncate(run / "run.sqlite", 1 << 30), of_model),
            ("report",),
            ERROR,
        ),
        Case(kind, "20,000 runs in one folder", _many, ("view",), SHOWN),
    ]


def _many(folder: Path, _: Canary) -> Path:
    """One whole run, and 20,000 empty folders with ledgers of no byte."""
    support.finished(folder / "runs" / "whole")
    for i in range(20_000):
        (folder / "runs" / f"r{i}").mkdir()
        (folder / "runs" / f"r{i}" / "run.sqlite").touch()
    return folder / "runs"


# -- units and arrays --------------------------------------------------------------------------------------------------------


def _units(of_model: Callable[[], dict[str, Any]]) -> list[Case]:
    kind = "run folders: units and arrays"

    def rows(**values: Any) -> Make:
        return _run(lambda run, _: support.changed_unit(lambda row: row.update(values), run), of_model)

    def names(text: str) -> Make:
        return _run(lambda run, _: support.with_row(run, "UPDATE units SET arrays = ?", text), of_model)

    def array(data: bytes) -> Make:
        """Under its own digest, in the place of every array."""

        def change(run: Path, _: Canary) -> None:
            name = hashlib.sha256(data).hexdigest()
            (run / "arrays" / f"{name}.npy").write_bytes(data)
            support.with_row(run, "UPDATE units SET arrays = ?", json.dumps({"mask": name, "pattern": name}))

        return _run(change, of_model)

    opened = ("verify with a run",)
    return [
        Case(kind, "a unit of class 99", rows(target=99), opened, ERROR),
        Case(kind, "statistics that are texts", rows(statistics={"l1": ESCAPE}), ("patch with a run",), ERROR),
        Case(kind, "steps of 10^400", rows(steps=10**400), ("cleanse with a run",), ERROR),
        Case(
            kind,
            "an array by a path that leads out",
            names('{"mask": "../../secret"}'),
            ("verify with a run", "patch with a run"),
            ERROR,
        ),
        Case(kind, "an array that nobody wrote", names('{"mask": "' + "0" * 64 + '"}'), ("cleanse with a run",), ERROR),
        Case(
            kind,
            "an array of 2^40 numbers",
            array(_npy((2**40,), "<f4", b"")),
            ("verify with a run", "patch with a run"),
            ERROR,
        ),
        Case(kind, "an array of 2^124 numbers", array(_npy((2**62, 2**62), "<f4", b"")), opened, ERROR),
        Case(
            kind,
            "an array of objects",
            array(_npy((1,), "|O", b"cposix\nsystem\n(Vtouch ran\ntR.")),
            ("verify with a run", "cleanse with a run"),
            ERROR,
        ),
        Case(
            kind,
            "a trigger of NaN",
            array(_npy((1, 8, 8), "<f4", np.full(64, np.nan, np.float32).tobytes())),
            ("patch with a run",),
            ERROR,
        ),
        Case(
            kind,
            "an array with a header of brackets",
            array(b"\x93NUMPY\x01\x00\x00\xff" + b"(" * 0xFF00),
            opened,
            ERROR,
        ),
    ]


def _npy(shape: tuple[int, ...], kind: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream.getvalue() + data
