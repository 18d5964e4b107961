"""Makes docs/findings/ from the rules themselves: python docs/make_findings.py."""

from __future__ import annotations

from pathlib import Path

from onnxspect.engine.report.rules import RULES


def index() -> str:
    """The list of all findings."""
    rows = ["| id | finding | severity |", "|---|---|---|"]
    rows += [f"| [{r.id}]({r.id}.md) | {r.title} | {r.severity or 'none'} |" for r in RULES.values()]
    lead = (
        "What a scan can find. Ids never change their meaning. A finding of one model has an id of its own, such as\n"
        "`OSX101-7-d6f1fbfc59aa`: rule, class and the first digits of the file's SHA-256; a policy accepts it by that\n"
        "([policies](../pipelines.md)).\n"
    )
    return (
        f"# Findings\n\nMade by `python docs/make_findings.py` from `engine/report/rules.py`.\n\n{lead}\n"
        + "\n".join(rows)
        + "\n"
    )


if __name__ == "__main__":
    folder = Path(__file__).parent / "findings"
    folder.mkdir(exist_ok=True)
    for rule in RULES.values():
        (folder / f"{rule.id}.md").write_text(rule.help)
    (folder / "index.md").write_text(index())
