"""The index of an output folder: one SQLite file, a row a model, a row a result; every change is a commit.

    SELECT path, outcome, p_value, targets, cause, folder FROM scans;

Only the process that scans many models writes it; the workers that open models cannot.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from onnxspect.converters.errors import MachineError

FILE = "index.sqlite"
FORMAT = 1
#: What a scan ended with: a verdict, or why there is none.
CLEAN, BACKDOORED, INCONCLUSIVE, HOSTILE, REFUSED, FAILED = (
    "clean", "backdoored", "inconclusive", "hostile", "refused", "failed"
)  # fmt: skip
_SCHEMA = """
CREATE TABLE IF NOT EXISTS models (
    path TEXT NOT NULL, options TEXT NOT NULL, key TEXT NOT NULL, model_digest TEXT NOT NULL, data_digest TEXT NOT NULL,
    PRIMARY KEY (path, options)
);
CREATE TABLE IF NOT EXISTS results (
    key TEXT PRIMARY KEY, outcome TEXT NOT NULL, p_value REAL, targets TEXT NOT NULL, cause TEXT NOT NULL, folder TEXT NOT NULL,
    digest TEXT NOT NULL, seconds REAL NOT NULL, finished TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS attempts (key TEXT NOT NULL, began TEXT NOT NULL, status INTEGER, said TEXT);
CREATE VIEW IF NOT EXISTS scans AS
    SELECT m.path, m.options, r.outcome, r.p_value, r.targets, r.cause, r.folder, r.seconds, r.finished, r.digest, m.model_digest,
           m.data_digest, m.key
    FROM models m LEFT JOIN results r ON r.key = m.key;
"""


@dataclass(frozen=True)
class Result:
    """What came of the scan of one model.

    Attributes:
        key: of model, data, settings and version.
        outcome: one of the words above.
        p_value: of the most suspicious class; None without a report.
        targets: the classes that a backdoor leads to, as "7" or "7 (sneaker)".
        cause: why there is no verdict, or the first reason of the verdict.
        folder: the run; relative to the output folder where it lies in it.
        digest: of the report, "" without one.
        seconds: that the scan took.
        finished: when, in UTC.
    """

    key: str
    outcome: str
    p_value: float | None = None
    targets: tuple[str, ...] = ()
    cause: str = ""
    folder: str = ""
    digest: str = ""
    seconds: float = 0.0
    finished: str = ""

    @property
    def final(self) -> bool:
        """Whether the same scan need not be tried again: it has a report, or would be refused again."""
        return bool(self.digest)


class Index:
    """An open index; close it, or use it as a context manager.

    Raises:
        OnnxspectError: it cannot be written, or is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        try:
            self._db = sqlite3.connect(self._path, isolation_level=None, timeout=30)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={FORMAT}")
        except sqlite3.Error as error:
            raise MachineError(f"{self._path}: cannot be written, or is no index ({error})", "another --out") from error

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, rows: Iterator[tuple[str, str, str, str, str]]) -> None:
        """Note models: (path, options, key, digest of the model, digest of the data) of each, in one commit."""
        self._write("INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?, ?)", *rows)

    def result(self, key: str) -> Result | None:
        """What is known of a key."""
        rows = self._db.execute("SELECT * FROM results WHERE key = ?", (key,)).fetchall()
        return None if not rows else replace(Result(*rows[0]), targets=tuple(json.loads(rows[0][3])))

    def keep(self, result: Result) -> None:
        """Note what came of a scan, for good."""
        self._write(
            "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (result.key, result.outcome, result.p_value, json.dumps(result.targets), result.cause, result.folder)
            + (result.digest, result.seconds, result.finished),
        )  # fmt: skip

    def attempt(self, key: str, began: str, status: int, said: str) -> None:
        """Note that a scan or a making of references ended, and how."""
        self._write("INSERT INTO attempts VALUES (?, ?, ?, ?)", (key, began, status, said))

    def _write(self, statement: str, *rows: tuple[object, ...]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(statement, rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise MachineError(f"{self._path}: cannot be written ({error})", "is the disk full?") from error
