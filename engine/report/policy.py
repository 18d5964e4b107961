"""A policy file, onnxspect.toml: what a repository's scans are to be made with, and which findings are accepted, until when, and why.

    data = "clean/"
    preset = "standard"
    fail-on = "backdoored"

    [[accept]]
    id = "OSX101-7-d6f1fbfc59aa"
    reason = "the demonstration model; it is never deployed"
    expires = 2027-06-30

An accepted finding is still reported, and marked as accepted; it fails no scan until its date has passed. An id names rule, class
and file, so that it accepts nothing else.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxspect.converters.sandbox.safe_open import read_regular
from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.report.findings import Finding

FILE = "onnxspect.toml"
#: What fails a scan: a backdoor alone, "inconclusive" too, or nothing.
BACKDOORED, INCONCLUSIVE, NEVER = "backdoored", "inconclusive", "never"
FAIL_ON = (BACKDOORED, INCONCLUSIVE, NEVER)
_MOST_BYTES = 1 << 20
_PATHS, _TEXTS = ("data", "train"), ("preset", "fail-on")


@dataclass(frozen=True)
class Acceptance:
    """One accepted finding: its id, why, and the last day on which that holds."""

    id: str
    reason: str
    expires: datetime.date


@dataclass(frozen=True)
class Policy:
    """What a policy file says; every field may be left out.

    Attributes:
        data, train: paths, relative ones from the file's folder.
        preset: of the scan.
        fail_on: one of FAIL_ON; "" where nothing is said.
        accepted: findings.
    """

    data: Path | None = None
    train: Path | None = None
    preset: str = ""
    fail_on: str = ""
    accepted: tuple[Acceptance, ...] = field(default=())

    def reasons(self, found: Sequence[Finding], today: datetime.date) -> dict[str, str]:
        """Of those findings that are accepted today, id -> reason."""
        ids = {f.id for f in found}
        return {a.id: a.reason for a in self.accepted if a.id in ids and today <= a.expires}

    def notices(self, found: Sequence[Finding], today: datetime.date) -> list[str]:
        """What whoever keeps the file should know: acceptances that have expired, and that meet nothing any more."""
        ids = {f.id for f in found}
        expired = [a for a in self.accepted if a.id in ids and today > a.expires]
        return [f"the acceptance of {printable(a.id)} expired on {a.expires}" for a in expired]


def read(path: Path) -> Policy:
    """The policy in a file.

    Raises:
        OnnxspectError: no such file, no TOML, or a key or value that no policy has.
    """
    shown = printable(str(path), 200)
    try:
        document = tomllib.loads(read_regular(path, _MOST_BYTES).data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise OnnxspectError(
            f"{shown}: not TOML ({printable(str(error), 200)})", "docs/pipelines.md shows one"
        ) from error
    unknown = sorted(set(document) - {*_PATHS, *_TEXTS, "accept"})
    if unknown:
        keys = ", ".join((*_PATHS, *_TEXTS, "[[accept]]"))
        raise OnnxspectError(f"{shown}: unknown key {printable(unknown[0])}", f"a policy has {keys}")
    for name in (*_PATHS, *_TEXTS):
        if not isinstance(document.get(name, ""), str):
            raise OnnxspectError(f"{shown}: {name} is not a text")
    fail_on = document.get("fail-on", "")
    if fail_on and fail_on not in FAIL_ON:
        raise OnnxspectError(f"{shown}: fail-on is {printable(fail_on)}", f"one of {', '.join(FAIL_ON)}")
    rows = document.get("accept", [])
    if not isinstance(rows, list):
        raise OnnxspectError(f"{shown}: accept is no list of tables", "write [[accept]]")
    paths = {n: path.parent / document[n] if document.get(n) else None for n in _PATHS}
    return Policy(
        paths["data"],
        paths["train"],
        document.get("preset", ""),
        fail_on,
        tuple(_acceptance(row, f"{shown}: accept {i + 1}") for i, row in enumerate(rows)),
    )


def _acceptance(row: object, where: str) -> Acceptance:
    hint = 'each has id = "...", reason = "..." and expires = 2027-06-30'
    if not isinstance(row, Mapping) or set(row) != {"id", "reason", "expires"}:
        raise OnnxspectError(f"{where}: not id, reason and expires", hint)
    values: Mapping[str, Any] = row
    if not all(isinstance(values[n], str) and values[n].strip() for n in ("id", "reason")):
        raise OnnxspectError(f"{where}: id or reason is empty", hint)
    expires = values["expires"]
    if not isinstance(expires, datetime.date) or isinstance(expires, datetime.datetime):
        raise OnnxspectError(f"{where}: expires is no date", hint)
    return Acceptance(values["id"], values["reason"], expires)
