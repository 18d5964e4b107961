"""The report of a finished run as a reader who trusts nothing gets it, without the libraries that a scan needs."""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxspect.converters.errors import OnnxspectError
from onnxspect.engine.fleet.index import Result
from onnxspect.engine.run_folder import Snapshot, has_ledger
from onnxspect.engine.stored_report import checked


def report_of(folder: Path) -> dict[str, Any] | None:
    """The report, checked; None where the run has not finished, or is damaged."""
    text = _fact(folder, "SELECT value FROM facts WHERE name = 'report'")
    if text is None:
        return None
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return checked(str(text))
    return None


def units_of(folder: Path) -> int:
    """How many searches a run has finished, its own and on its references."""
    found = [_fact(f, "SELECT count(*) FROM units") for f in (folder, folder / "references")]
    return sum(int(n) for n in found if n is not None)


def _fact(folder: Path, query: str) -> Any:
    if not has_ledger(folder):
        return None
    try:
        with contextlib.closing(Snapshot(folder)) as snapshot:
            row = snapshot.db.execute(query).fetchone()
    except (OnnxspectError, sqlite3.Error, OSError):
        return None
    return None if row is None else row[0]


def result_of(key: str, report: dict[str, Any], folder: str) -> Result:
    """What the index says of a report."""
    names = [report["classes"][k]["name"] for k in report["targets"]]
    targets = tuple(str(k) if n == str(k) else f"{k} ({n})" for k, n in zip(report["targets"], names, strict=True))
    reasons = report["reasons"]
    return Result(
        key,
        report["verdict"],
        report["p_value"],
        targets,
        str(reasons[0]) if reasons else "",
        folder,
        report["digest"],
        report["seconds"],
        str(report.get("finished") or ""),
    )


def now() -> str:
    """The time, in UTC, as reports have it."""
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"


def version() -> str:
    """The installed version of onnxspect."""
    return metadata.version("onnxspect")
