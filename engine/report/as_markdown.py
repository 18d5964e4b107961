"""The report as a short Markdown text, for pull requests, job summaries and model cards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxspect.converters.text import visible
from onnxspect.engine.report import as_html, words
from onnxspect.engine.report.findings import findings

_SIGN = {"clean": "✅", "backdoored": "❌", "inconclusive": "⚠️"}
#: Classes in the table: the most suspicious.
MOST_ROWS = 10


def render(report: Mapping[str, Any], folder: Path | None = None, accepted: Mapping[str, str] | None = None) -> str:
    """The text. Names are escaped: a class name can neither make a link nor a heading nor an element."""
    found = findings(report, folder)
    lines = [
        f"## {_SIGN[report['verdict']]} {as_html.headline(report)}",
        "",
        escaped(as_html.lead(report)),
        "",
        f"| | |\n|---|---|\n| Model | {_code(report['model']['path'])}, {report['model']['classes']} classes |",
        f"| SHA-256 | {_code(report['model']['sha256'] or '-')} |",
        f"| Clean images | {report['data']['samples']}, {words.share(report['preprocessing']['clean_accuracy'], 1)} right |",
        f"| Scan | preset {_code(report['preset'])}, seed {report['seed']}, onnxspect {escaped(report['tool']['version'])}"
        f"{', ' + words.day(report['finished']) if report.get('finished') else ''} |",
        "",
    ]
    for f in found:
        state = f" *Accepted: {escaped(accepted[f.id])}.*" if accepted and f.id in accepted else ""
        lines += [f"- **{f.rule.id}** {escaped(f.message)}{state}  ", f"  Finding {_code(f.id)}."]
    if found:
        lines.append("")
    if report["verdict"] == "backdoored":
        from_step = [s for s in as_html.steps(report, folder or Path("RUN")) if s["command"]]
        lines += ["**What to do now**", "", "```sh", *(s["command"] for s in from_step), "```", ""]
    rows = sorted(report["classes"], key=lambda c: c["log10_p"])[:MOST_ROWS]
    if rows:
        lines += [
            "<details><summary>The most suspicious classes</summary>",
            "",
            "| class | p-value | kind |",
            "|---|---|---|",
        ]
        lines += [f"| {escaped(words.label(c))} | {c['p_value']:.2g} | {escaped(c['kind'])} |" for c in rows]
        lines += ["", "</details>", ""]
    lines += ["**Not checked**", "", *(f"- {escaped(limit)}" for limit in report["limits"]), ""]
    if report.get("notes"):
        lines += ["**Changed, guessed or left out**", "", *(f"- {escaped(note)}" for note in report["notes"]), ""]
    lines.append(f"Report digest {_code(report['digest'])}.")
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Plain text as Markdown: on one line, with every character escaped that means something there."""
    flat = visible(text)
    marked = re.sub(r"([\\`*_{}\[\]<>#|~!&@])", r"\\\1", flat)
    return marked.replace("://", r":\/\/").replace("www.", r"www\.")  # GitHub makes links of bare addresses


def _code(text: str) -> str:
    """Plain text as code; a backtick or a bar in it would end the code or the cell."""
    flat = visible(text).replace("`", "'").replace("|", "¦")
    return f"`{flat}`"
