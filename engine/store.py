"""The crash-safe ledger of a run: a folder with one SQLite file, and arrays beside it.

A scan that is killed at any moment loses nothing that was finished and redoes nothing that was. Every finished unit
is one commit (WAL, synchronous=FULL); its arrays are on disk before it: temporary file, fsync, rename, fsync of the
folder, and their SHA-256 in the row. An array is named by its hash, so writing it again after a crash is harmless. A row
whose array is missing or damaged counts as not finished.

A ledger belongs to one *fingerprint*: model, data, settings, seed, device and tool version. Opening the folder with
another one is refused once anything was found, so results never mix; where the files lie does not count. An unfinished run
may go on on another device (a GPU was lost): `devices` then says on which it was, and so does the report.

Without a fingerprint a folder is opened for reading, and may be untrusted: see run_folder.py, and stored_report.py and
stored_unit.py for what is checked of its rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxspect.converters.text import printable
from onnxspect.converters.whole import write_whole
from onnxspect.engine.errors import MachineError, OnnxspectError, unwritable
from onnxspect.engine.judge.earlier import measurements_of
from onnxspect.engine.judge.evidence import Unit, UnitEvidence
from onnxspect.engine.judge.measurement import Measurement
from onnxspect.engine.run_folder import (
    ARRAYS,
    FILE,
    LOCK,
    SCHEMA,
    Snapshot,
    check_tables,
    has_ledger,
    read_array,
    refuse_links,
)
from onnxspect.engine.stored_report import checked
from onnxspect.engine.stored_unit import checked_arrays, checked_row

FORMAT = "1"

#: What of a fingerprint may change while a run is unfinished: a GPU that was lost is no reason to lose what it found.
ELSEWHERE = frozenset({"device", "threads"})
_DEVICES = "devices"
#: The name under which the units of a finished detector are kept, beside those of its stages.
_EVIDENCE_OF = "evidence of {}"


def made_folder(folder: Path) -> Path:
    """The folder, made where it does not exist.

    Raises:
        OnnxspectError: it cannot be made, or is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error, "choose another --out", "cannot be made a folder") from error
    return folder


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder with other things in it: a run writes many files, which nobody wants among his images."""
    if not folder.is_dir() or (folder / FILE).exists():
        return
    # A scan that was killed at its first moment leaves hidden files and an empty folder.
    other = sorted(p.name for p in folder.iterdir() if p.name != "arrays" and not p.name.startswith("."))
    if other:
        raise OnnxspectError(
            f"{folder}: holds no run, but {printable(other[0])}" + (f" and {len(other) - 1} more" if other[1:] else ""),
            "choose an empty or a new folder",
        )


class Ledger:
    """An open run folder. Use as a context manager, or `close` it.

    Args:
        folder: created if it does not exist.
        fingerprint: everything the results depend on; None opens whatever is there, for reading.
        movable: an unfinished run may go on on another device.

    Raises:
        OnnxspectError: the folder holds another run, is in use, is damaged, or cannot be written.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any] | None = None, movable: bool = False) -> None:
        self.folder = folder
        self._lock: IO[bytes] | None = None
        self._snapshot: Snapshot | None = None
        try:
            if fingerprint is None:
                self._snapshot = _snapshot(folder)
                self._db = self._snapshot.db
                return
            _refuse_foreign(folder)
            refuse_links(folder)
            (folder / ARRAYS).mkdir(parents=True, exist_ok=True)
            self._lock = _exclusive(folder)
            self._db = sqlite3.connect(folder / FILE, isolation_level=None, timeout=30)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(SCHEMA)
            check_tables(self._db)
        except OSError as error:
            raise unwritable(folder, error, "choose another --out", "cannot keep a run there") from error
        except (sqlite3.Error, UnicodeDecodeError) as error:  # SQLite's own message may quote the file, and not be text
            raise MachineError(
                f"{folder / FILE}: damaged, or not a run of onnxspect ({_one_line(error)})",
                "scan again into another --out",
            ) from error
        self._claim(fingerprint, movable)

    def _claim(self, fingerprint: Mapping[str, Any], movable: bool) -> None:
        text = json.dumps(fingerprint, sort_keys=True)
        with self._transaction():
            known = self.fact("fingerprint")
            if known is None:
                self._set("format", FORMAT)
                self._set("fingerprint", text)
        if known is None or known == text:
            return
        with self._undamaged():
            old, new = dict(json.loads(known)), json.loads(text)
        # Where a file lies is recorded, but what it holds is what counts.
        differing = sorted(k for k in {*old, *new} if old.get(k) != new.get(k) and not k.endswith(" path"))
        if differing and movable and set(differing) <= ELSEWHERE and self.fact("report") is None:
            moved = self.devices or [str(old.get("device"))]
            if moved[-1] != new["device"]:
                moved.append(new["device"])
            self.set_fact(_DEVICES, json.dumps(moved))
            self.set_fact("fingerprint", text)
            return
        if differing and self._started():
            self.close()
            raise OnnxspectError(
                f"{self.folder}: holds a run with other {', '.join(differing)}", "choose another --out for this scan"
            )
        if differing:  # a scan that was refused before it found anything: mended, it may use the folder
            self.set_fact("fingerprint", text)

    @property
    def devices(self) -> list[str]:
        """The devices that an unfinished run was moved over, in order; none where it stayed on one."""
        with self._undamaged():
            return [str(d) for d in list(json.loads(self.fact(_DEVICES) or "[]"))]

    def _started(self) -> bool:
        """Whether anything was found here."""
        return bool(self._select("SELECT 1 FROM units LIMIT 1")) or self.fact("report") is not None

    def units(self, detector: str) -> dict[str, UnitEvidence]:
        """The finished units of `detector` by key; those with a damaged array are left out, to be done again."""
        return {key: unit for key, unit in self._units(detector).items() if unit is not None}

    def count(self) -> int:
        """How many units are finished, of every detector and all its stages."""
        ((n,),) = self._select("SELECT count(*) FROM units WHERE detector NOT LIKE ?", _EVIDENCE_OF.format("%"))
        return int(n)

    def _units(self, detector: str) -> dict[str, UnitEvidence | None]:
        """All units of `detector` by key; None for one with a damaged array."""
        rows = self._select("SELECT unit, row, arrays FROM units WHERE detector = ?", detector)
        found: dict[str, UnitEvidence | None] = {}
        with self._undamaged():
            for key, row, arrays in rows:
                trigger = {n: read_array(self.folder, digest) for n, digest in checked_arrays(arrays).items()}
                whole = {n: a for n, a in trigger.items() if a is not None}
                found[str(key)] = _unit(checked_row(row), whole) if len(whole) == len(trigger) else None
        return found

    def commit(self, detector: str, finished: Sequence[UnitEvidence]) -> None:
        """Keep finished units for good: arrays first, then all rows in one transaction."""
        rows = []
        for evidence in finished:
            arrays = {name: self._write(array) for name, array in sorted(evidence.trigger.items())}
            rows.append((detector, evidence.unit.key, json.dumps(_row(evidence)), json.dumps(arrays)))
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO units VALUES (?, ?, ?, ?)", rows)

    def keep_evidence(self, detector: str, units: Sequence[UnitEvidence]) -> None:
        """Keep what a detector concludes: units of all its stages, with every statistic that was judged."""
        self.commit(_EVIDENCE_OF.format(detector), units)

    def evidence(self, detector: str) -> list[UnitEvidence]:
        """What `keep_evidence` kept; nothing before the scan has finished with the detector.

        Raises:
            OnnxspectError: a part of it is missing, or was changed.
        """
        found = self._units(_EVIDENCE_OF.format(detector))
        lost = [key for key, unit in found.items() if unit is None]
        if lost:
            raise MachineError(
                f"{self.folder}: the run is damaged: the arrays of {printable(detector)} {printable(lost[0])} are missing, or "
                "were changed",
                "scan again into another --out",
            )
        return [unit for unit in found.values() if unit is not None]

    def fact(self, name: str) -> str | None:
        """A named text of the run, or None."""
        rows = self._select("SELECT value FROM facts WHERE name = ?", name)
        return str(rows[0][0]) if rows else None

    def set_fact(self, name: str, value: str) -> None:
        """Keep a named text."""
        with self._transaction():
            self._set(name, value)

    def report(self) -> dict[str, Any]:
        """The finished report.

        Raises:
            OnnxspectError: the scan has not finished, or the report is damaged or was changed since.
        """
        text = self.fact("report")
        if text is None:
            raise OnnxspectError(
                f"{self.folder}: the scan in this folder has not finished", "run the same `onnxspect scan` to resume it"
            )
        with self._undamaged():
            return checked(text)

    def close(self) -> None:
        """Close the file and give the folder free."""
        self._db.close()
        if self._snapshot is not None:
            self._snapshot.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _select(self, query: str, *parameters: str) -> list[tuple[Any, ...]]:
        with self._undamaged():
            return self._db.execute(query, parameters).fetchall()

    @contextlib.contextmanager
    def _undamaged(self) -> Iterator[None]:
        """What SQLite cannot read, and what is not in it as we wrote it, is a damaged run."""
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise MachineError(
                f"{self.folder / FILE}: the run is damaged ({_one_line(error)})", "scan again into another --out"
            ) from error

    def _set(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise MachineError(f"{self.folder}: cannot write the run ({error})", "is the disk full?") from error

    def _write(self, array: np.ndarray) -> str:
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
        data = buffer.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        write_atomically(self.folder / ARRAYS / f"{digest}.npy", data)
        return digest


def _snapshot(folder: Path) -> Snapshot:
    """A private copy of a run's ledger, for reading."""
    if not has_ledger(folder):
        raise OnnxspectError(
            f"{printable(str(folder), 200)}: no run in this folder", "give the folder that `onnxspect scan` wrote"
        )
    try:
        return Snapshot(folder)
    except OnnxspectError as error:
        raise type(error)(
            f"{printable(str(folder), 200)}: {error.message}", "give the folder that `onnxspect scan` wrote"
        ) from error


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split()), 300)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OnnxspectError: it cannot be written; whatever was there before is untouched.
    """
    write_whole(path, data)


def _exclusive(folder: Path) -> IO[bytes]:
    """A lock that dies with the process, so that a killed scan leaves none behind."""
    # Neither a link is followed nor a FIFO waited for: the folder may have been handed on.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    lock = os.fdopen(os.open(folder / LOCK, flags, 0o666), "r+b", buffering=0)
    if sys.platform == "win32":
        return lock  # SQLite's own locks still guard every commit
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise OnnxspectError(
            f"{folder}: another scan is running in this folder", "wait, or choose another --out"
        ) from error
    return lock


def _row(evidence: UnitEvidence) -> dict[str, Any]:
    return {
        "target": evidence.unit.target,
        "source": evidence.unit.source,
        "tap": evidence.unit.tap,
        "shared": evidence.unit.shared,
        "start": evidence.unit.start,
        "measurements": [m.describe() for m in evidence.measurements],
        "found": evidence.found,
        "converged": evidence.converged,
        "steps": evidence.steps,
        "search_success": evidence.search_success,
        "held_out_success": evidence.held_out_success,
        "held_out": evidence.held_out,
        "seconds": evidence.seconds,
    }


def _unit(row: dict[str, Any], trigger: dict[str, np.ndarray]) -> UnitEvidence:
    unit = Unit(row.pop("target"), row.pop("source"), row.pop("tap"), row.pop("shared", False), row.pop("start", 0))
    earlier = row.pop("statistics", None)
    kept = row.pop("measurements", ())
    measurements = tuple(map(Measurement.described, kept)) if earlier is None else measurements_of(earlier)
    return UnitEvidence(unit=unit, measurements=measurements, trigger=trigger, **row)
