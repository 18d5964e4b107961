"""Reading someone else's run folder: nothing in it is followed, changed or trusted.

The ledger is a SQLite file. It is read as bytes, by `safe_open`'s rules (a regular file with one name, no link on the way, a
limit on its size), and opened as a private copy: so nothing is created beside it, it may lie on read-only media, and what SQLite
opens is what was checked. Its schema must be the one that this program writes, to the letter: a view or a trigger by the name of
a table would be a program.
"""

from __future__ import annotations

import io
import os
import re
import sqlite3
import stat
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from onnxspect.converters import npy
from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.sandbox.safe_open import read_beneath
from onnxspect.converters.text import printable

FILE = "run.sqlite"
ARRAYS = "arrays"
LOCK = ".lock"
#: The finished searches on reference networks, inside a run.
REFERENCES = "references"
#: What a scan asks for whose references are to come from others (jobs/references.py).
REQUEST = "references-wanted.json"
#: What SQLite keeps beside its file while it is open for writing, or was when the process was killed.
_BESIDE = ("-wal", "-shm", "-journal")
#: Bytes of a ledger, and of an array in it, at most: of a thousand classes and five detectors the ledger takes 20 million.
MOST_LEDGER, MOST_ARRAY = 512 << 20, 1 << 30
#: A picture of a run, at most, in bytes and in pixels a side: the largest that is drawn has 1 million bytes.
MOST_PICTURE, _MOST_SIDE = 32 << 20, 20_000
SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS units (
    detector TEXT NOT NULL, unit TEXT NOT NULL, row TEXT NOT NULL, arrays TEXT NOT NULL,
    PRIMARY KEY (detector, unit)
);
"""
_TABLES = {" ".join(s.split()).replace("IF NOT EXISTS ", "") for s in SCHEMA.split(";") if s.strip()}
#: Steps of SQLite's machine, in millions, for one question: ten times what 512 MiB of rows take.
_MOST_STEPS = 1000
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PNG = b"\x89PNG\r\n\x1a\n"


def refuse_links(folder: Path) -> None:
    """Refuse a folder where a name that a run writes to is a link, or anything else than what a run makes of it.

    Raises:
        OnnxspectError: naming it.
    """
    expected = dict.fromkeys((FILE, LOCK, *(FILE + end for end in _BESIDE)), stat.S_ISREG)
    expected |= dict.fromkeys((ARRAYS, REFERENCES, "search"), stat.S_ISDIR)
    for name, right in expected.items():
        try:
            status = (folder / name).lstat()
        except (OSError, ValueError):
            continue
        if not right(status.st_mode) or (right is stat.S_ISREG and status.st_nlink > 1):
            raise OnnxspectError(
                f"{printable(str(folder / name), 200)}: is a link, or not what a run has under this name",
                "choose another --out; of a run that was handed on, make a copy without links",
            )


def has_ledger(folder: Path) -> bool:
    """Whether there is anything by the ledger's name."""
    return os.path.lexists(folder / FILE)


class Snapshot:
    """A private copy of a ledger, open for reading; `close` it."""

    def __init__(self, folder: Path) -> None:
        """Of the run in a folder.

        Raises:
            OnnxspectError: it is not a regular file, or too large.
            sqlite3.DatabaseError: it is no ledger.
        """
        self._stack = ExitStack()
        try:
            scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxspect-")))
            for name, data in _consistent(folder).items():
                (scratch / name).write_bytes(data)
            self.db = sqlite3.connect(scratch / FILE, isolation_level=None)
            self._stack.callback(self.db.close)
            self._guard()
        except BaseException:
            self.close()
            raise

    def _guard(self) -> None:
        self.db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_LEDGER)
        steps = iter(range(_MOST_STEPS))
        self.db.set_progress_handler(lambda: next(steps, None) is None, 1_000_000)
        check_tables(self.db)
        self.db.execute("PRAGMA query_only=ON")

    def close(self) -> None:
        """Close it and remove the copy."""
        self._stack.close()


def check_tables(db: sqlite3.Connection) -> None:
    """Refuse a database that has other tables than a run's, or a view or a trigger: those would be programs.

    Raises:
        sqlite3.DatabaseError: it has.
    """
    db.execute("PRAGMA trusted_schema=OFF")
    db.execute("PRAGMA cell_size_check=ON")
    found = db.execute("SELECT type, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchmany(10)
    if {k for k, _ in found} != {"table"} or {" ".join(str(s).split()) for _, s in found} != _TABLES:
        raise sqlite3.DatabaseError("its tables are not those of a run")


def _consistent(folder: Path) -> dict[str, bytes]:
    """The ledger and what was not yet written back into it (WAL), of one moment, though a scan may be writing."""
    for _ in range(5):
        before = _stamps(folder)
        found = {FILE: read_beneath(folder, FILE, MOST_LEDGER).data}
        if before[1] is not None:
            found[FILE + "-wal"] = read_beneath(folder, FILE + "-wal", MOST_LEDGER).data
        if _stamps(folder) == before:
            return found
    raise OnnxspectError(f"{folder}: a scan is writing to it without a pause", "ask again in a moment")


def _stamps(folder: Path) -> tuple[tuple[int, int] | None, ...]:
    found: list[tuple[int, int] | None] = []
    for name in (FILE, FILE + "-wal"):
        try:
            status = (folder / name).lstat()
            found.append((status.st_size, status.st_mtime_ns))
        except OSError:
            found.append(None)
    return tuple(found)


def read_array(folder: Path, digest: str) -> np.ndarray | None:
    """The array of that name; None where it is missing, is no regular file there, or is not what its name says."""
    if not isinstance(digest, str) or _DIGEST.fullmatch(digest) is None:
        return None
    try:
        content = read_beneath(folder, f"{ARRAYS}/{digest}.npy", MOST_ARRAY)
    except OnnxspectError:
        return None
    return _array(content.data) if content.sha256 == digest else None


def _array(data: bytes) -> np.ndarray | None:
    """An npy file of plain numbers, as a copy; None where it is something else, or its header promises more than follows."""
    stream = io.BytesIO(data)
    try:
        header = npy.read_header(stream)
        if header.dtype.kind not in "biuf":
            return None
        return header.array(data[stream.tell() :]).copy(order="K")
    except ValueError:
        return None


def read_picture(folder: Path, name: str) -> bytes | None:
    """A picture of a run, as PNG; None where there is none of that name, or it is a link, no PNG, or too large."""
    try:
        data = read_beneath(folder, name, MOST_PICTURE).data
    except OnnxspectError:
        return None
    sides = [int.from_bytes(data[at : at + 4], "big") for at in (16, 20)]
    whole = data.startswith(_PNG) and data[12:16] == b"IHDR" and data.endswith(b"IEND\xaeB`\x82")
    return data if whole and 0 < min(sides) <= max(sides) <= _MOST_SIDE else None
