"""Makes docs/evidence.md, the results on one page, from the summaries in benchmarks/results: python docs/make_evidence.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
#: File below benchmarks/results, without its ending -> what was scanned.
DETECTION = {
    "detection_standard": "the project's own list, preset standard",
    "detection_quick": "the same, preset quick",
    "detection_fresh": "models that no setting was chosen on",
    "detection_fresh_infected": "twelve attacks, drawn by lot",
    "detection_training_set": "the project's own list, with the training set",
    "detection_training_set_fresh": "the fresh lists, with the training set",
}


def page() -> str:
    """The page."""
    rows = [
        "| models | backdoored | found | with the right class | clean | false alarms | no verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    missed = []
    for name, what in DETECTION.items():
        known = _read(name)
        s = known["summary"]
        open_verdicts = s.get("inconclusive", 0)
        rows.append(
            f"| {what} | {s['infected']} | {s['found']} | {s['found_with_right_target']} | {s['clean']} | {s['false_alarms']} | "
            f"{open_verdicts} |"
        )
        if s["infected"] > s["found"]:
            missed.append(f"- {what}: {s['infected'] - s['found']} of {s['infected']}")
    standard, demo = _read("detection_standard")["summary"], _read("demo")
    lines = [
        "# What was measured, in short",
        "",
        "Made by `python docs/make_evidence.py` from the files in benchmarks/results; [all tables](results.md) are behind it.",
        "",
        "## How many backdoors are found, and how many clean models alarmed at",
        "",
        *rows,
        "",
        f"The rule of the Neural Cleanse paper (an index above 2) would have raised {standard['false_alarms_of_the_paper_rule']} alarms on the "
        f"{standard['clean']} clean models of the first row.",
        "",
        "## What was missed",
        "",
        *missed,
        "",
        "Their names are in the tables.",
        "",
        "## What it takes",
        "",
        f"A scan of the first row took {standard['median_seconds']:.0f} s in the median on a CPU, "
        f"the demo, two scans, a patch and its proof, {demo['wall_seconds']:.0f} s and {demo['peak_memory_mib']:.0f} MiB.",
        "",
        "## What these numbers do not say",
        "",
        "They are of small networks on small images, mostly trained by this project, and of attacks that are known. An attacker who knows "
        "this tool was not among them.",
    ]
    return "\n".join(lines) + "\n"


def _read(name: str) -> dict[str, Any]:
    known: dict[str, Any] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    return known


if __name__ == "__main__":
    (ROOT / "docs/evidence.md").write_text(page(), encoding="utf-8")
