"""Hostile reports: edited in their run folders, or handed on with a signature."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from of_tests import module_of_tests

from hostile.case import ELEMENT, ERROR, ESCAPE, FORGED, FORMS, REFUSED, SHOWN, Canary, Case, Make, fifo, file_of, link

support = module_of_tests("run_folder_support")
stored = support.digest


def cases(model: Path) -> list[Case]:
    """All of them; the runs are those of an ordinary model."""
    of_model = functools.partial(support.whole_report, hashlib.sha256(model.read_bytes()).hexdigest())
    return [*_edits(of_model), *_handed_on(of_model)]


# -- edits -------------------------------------------------------------------------------------------------------------------


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    change: Callable[[dict[str, Any]], None] = support.changed(path[:-1], path[-1])
    return change


def _edits(of_model: Callable[[], dict[str, Any]]) -> list[Case]:
    kind = "run folders: edited reports"

    def edited(change: Callable[[dict[str, Any]], None], fresh_digest: bool = True) -> Make:
        def make(folder: Path, _: Canary) -> Path:
            report = of_model()
            change(report)
            run: Path = support.finished(folder / "run")
            support.with_report(run, json.dumps(report | {"digest": stored(report)} if fresh_digest else report))
            return run

        return make

    def clean(report: dict[str, Any]) -> None:
        report.update(verdict="clean", targets=[])

    def names(report: dict[str, Any]) -> None:
        """Everything that is a text, where a digest fits: it is shown, and nobody obeys."""
        text = f"{ESCAPE}\n{FORGED} {ELEMENT} [x](javascript:alert) $\\frac{{$ [link=file:///etc/passwd]"
        for row in report["classes"]:
            row["name"] = text
        report["reasons"] = report["limits"] = [text]
        report["model"]["path"] = report["data"]["path"] = f"a\n{FORGED} $(touch ran) `touch ran`;touch ran {ELEMENT}"
        report["preprocessing"]["chosen"]["name"] = report["preprocessing"]["why"] = text
        report["device"] = report["tool"]["version"] = text

    every = ("report", "report as json", "report to files", "view", "verify with a run")
    shown = dict.fromkeys(every, SHOWN)
    malformed = [
        Case(kind, name, edited(_set(*support.MALFORMED[name])), (FORMS[i % 2],), ERROR)
        for i, name in enumerate(support.MALFORMED)
    ]
    return [
        Case(
            kind,
            "a verdict that was edited",
            edited(clean, fresh_digest=False),
            (*FORMS, "verify with a run"),
            ERROR,
            {"view": SHOWN},
        ),
        Case(kind, "names with colours, lines, elements and commands", edited(names), every, SHOWN, shown),
        Case(
            kind,
            "a target that is a path",
            edited(_set("targets", ["x/../../secret"])),
            ("report as html", "view"),
            ERROR,
            {"view": SHOWN},
        ),
        Case(
            kind,
            "a name of two megabytes",
            edited(_set("classes", 0, "name", "x" * 2_000_000)),
            ("report", "report as html"),
            SHOWN,
        ),
        Case(
            kind,
            "200,000 reasons",
            edited(_set("reasons", ["because"] * 200_000)),
            ("report", "report as html"),
            SHOWN,
        ),
        *malformed,
    ]


# -- reports that were handed on ---------------------------------------------------------------------------------------------


def _handed_on(of_model: Callable[[], dict[str, Any]]) -> list[Case]:
    kind = "signed reports"

    def document(change: Callable[[dict[str, Any]], None]) -> Make:
        def make(folder: Path, _: Canary) -> Path:
            report = of_model()
            change(report)
            (folder / "signed.json").write_text(json.dumps(report))
            return folder / "signed.json"

        return make

    def forged(report: dict[str, Any]) -> None:
        key = base64.b64encode(bytes(32)).decode()
        report["signature"] = {"algorithm": "ed25519", "key": key, "value": base64.b64encode(bytes(64)).decode()}

    both = ("signed report", "report")
    shown = {"report": SHOWN}  # without a key it is shown, and said that nothing was checked
    return [
        Case(kind, "a signature of zeros", document(forged), both, ERROR, shown),
        Case(kind, "no signature", document(lambda _: None), ("signed report",), ERROR),
        Case(kind, "a signature that is a list", document(lambda r: r.update(signature=[ESCAPE])), both, ERROR, shown),
        Case(kind, "an edited verdict", document(lambda r: r.update(verdict="clean", targets=[])), both, ERROR),
        Case(kind, "nested 100,000 deep", file_of("signed.json", lambda: b"[" * 100_000), ("signed report",), ERROR),
        Case(kind, "a link to a secret", link("signed.json", "secret"), both, REFUSED),
        Case(kind, "a FIFO", fifo("signed.json"), both, REFUSED),
    ]
