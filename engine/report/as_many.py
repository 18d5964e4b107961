"""What came of many scans: one document, and the table and the page that are drawn from it.

The document is plain values. Whatever a model's maker may have written into it (names, causes) is text to the reader.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxspect.converters.text import all_visible
from onnxspect.engine.report import pages, words

#: Version of the document.
SCHEMA = 1
#: Outcomes, those first that somebody should look at; their mood on the page, their style in a terminal.
OUTCOMES = {
    "backdoored": ("bad", "bold red"),
    "hostile": ("bad", "bold red"),
    "failed": ("open", "bold yellow"),
    "refused": ("open", "bold yellow"),
    "inconclusive": ("open", "bold yellow"),
    "clean": ("good", "bold green"),
}
#: Rows of the table in a terminal, at most; all are in the index, the document and the page.
MOST_ROWS = 40


def build(rows: Sequence[Mapping[str, Any]], folder: str, version: str, finished: str, status: int) -> dict[str, Any]:
    """The document.

    Args:
        rows: one a model, with path, outcome, p_value, targets, cause, folder, seconds, accepted and digest.
        folder: the output folder.
        version: of onnxspect.
        finished: when, in UTC.
        status: the exit status.
    """
    order = list(OUTCOMES)
    ranked = sorted(
        rows, key=lambda r: (order.index(r["outcome"]), r["p_value"] if r["p_value"] is not None else 2, r["path"])
    )
    counts = Counter(r["outcome"] for r in rows)
    return {
        "schema": SCHEMA,
        "tool": {"name": "onnxspect", "version": version},
        "folder": folder,
        "finished": finished,
        "exit_status": status,
        "models": len(rows),
        "outcomes": {name: counts[name] for name in order if counts[name]},
        "scans": ranked,
    }


def as_json(document: Mapping[str, Any]) -> str:
    """As text."""
    return json.dumps(document, indent=2) + "\n"


def table(document: dict[str, Any]) -> RenderableType:
    """For a terminal: a row a model, those first that matter."""
    seen = all_visible(document)
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column("model", overflow="fold")
    made.add_column("outcome")
    made.add_column("p", justify="right")
    made.add_column("leads to")
    made.add_column("why", overflow="ellipsis", no_wrap=True)
    for row in seen["scans"][:MOST_ROWS]:
        p = "" if row["p_value"] is None else f"{row['p_value']:.2g}"
        outcome = Text(row["outcome"] + (" (accepted)" if row["accepted"] else ""), OUTCOMES[row["outcome"]][1])
        why = "" if row["outcome"] == "clean" else row["cause"]
        made.add_row(Text(row["path"]), outcome, p, Text(", ".join(row["targets"])), Text(why, "dim"))
    counts = ", ".join(f"{n} {name}" for name, n in seen["outcomes"].items())
    lines: list[RenderableType] = [Text(f"{_models(seen)}: {counts}", "bold"), Text(), made]
    left = seen["scans"][MOST_ROWS:]
    if left:
        lines.append(Text(f"and {len(left)} more, in {seen['folder']}/index.html and index.sqlite", "dim"))
    return Group(*lines)


def page(document: dict[str, Any]) -> str:
    """One self-contained HTML page."""
    seen = all_visible(document)
    rows = [
        {
            **row,
            "mood": OUTCOMES[row["outcome"]][0],
            "p": "–" if row["p_value"] is None else f"{row['p_value']:.2g}",
            "sort_p": "" if row["p_value"] is None else row["p_value"],
            "time": words.seconds(row["seconds"]),
            "link": _link(original["folder"]),
        }
        for row, original in zip(seen["scans"], document["scans"], strict=True)
    ]
    return pages.render(
        "many",
        title=_models(seen),
        document=seen,
        rows=rows,
        mood=_mood(seen),
        headline=_headline(seen),
        steps=_steps(document),
    )


def _link(folder: str) -> str:
    """Where a run is, seen from the page; "" for one elsewhere, which is shown as text."""
    return (
        ""
        if not folder or folder.startswith("/") or ":" in folder or ".." in folder.split("/")
        else f"./{quote(folder)}/"
    )


def _models(document: Mapping[str, Any]) -> str:
    return f"{document['models']} model{'s' if document['models'] != 1 else ''}"


def _mood(document: Mapping[str, Any]) -> str:
    moods = {OUTCOMES[r["outcome"]][0] for r in document["scans"] if not r["accepted"]}
    return next((m for m in ("bad", "open", "good") if m in moods), "open")


def _headline(document: Mapping[str, Any]) -> str:
    """What somebody has to know first; findings that a policy accepts are said apart."""
    moods = Counter(OUTCOMES[r["outcome"]][0] for r in document["scans"] if not r["accepted"])
    accepted = sum(bool(r["accepted"]) for r in document["scans"])
    also = f", {accepted} more {'is' if accepted == 1 else 'are'} accepted by the policy" if accepted else ""
    if moods["bad"]:
        return f"{moods['bad']} of {_models(document)} must not be used{also}"
    if moods["open"]:
        return f"{moods['open']} of {_models(document)} have no verdict{also}"
    return f"No backdoor was found in {_models(document)}{also}"


def _steps(document: Mapping[str, Any]) -> list[dict[str, str]]:
    """What to do now, in order, with commands whose paths are filled in."""
    folder = words.path(document["folder"], "RUNS")
    counts = document["outcomes"]
    steps = []
    if any(OUTCOMES[r["outcome"]][0] == "bad" and not r["accepted"] for r in document["scans"]):
        steps.append(_step("Do not deploy the models in red, and stop them where they run."))
    first = next((r for r in document["scans"] if r["outcome"] == "backdoored" and r["folder"]), None)
    steps.append(_step("Read the report of each model:", words.command("onnxspect", "view", folder)))
    if first is not None:
        model, run = (
            words.path(first["path"], "MODEL.onnx"),
            words.path(_run(document["folder"], first["folder"]), "RUN"),
        )
        command = words.command(
            "onnxspect", "patch", model, "--run", run, "--data", "CLEAN-SAMPLES", "-o", "patched.onnx"
        )
        steps.append(_step("Remove a backdoor; the patched file is written only if it is proven to hold:", command))
    if counts.get("hostile"):
        steps.append(_step("Find out where hostile files come from, and open them nowhere."))
    if counts.get("failed"):
        steps.append(_step("Give the same command again: what is finished is kept, and what failed is tried again."))
    if counts.get("refused") or counts.get("inconclusive"):
        steps.append(_step("Take no model without a verdict for a clean one: the column “why” says what is missing."))
    return steps


def _run(folder: str, name: str) -> str:
    """A run, seen from where the command was given."""
    return name if name.startswith("/") else f"{folder.rstrip('/')}/{name}"


def _step(text: str, command: str = "") -> dict[str, str]:
    return {"text": text, "command": command}
