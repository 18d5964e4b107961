"""Makes docs/evidence.md, the results on one page, from the summaries in benchmarks/results: python docs/make_evidence.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
#: What is counted of the judging half: words for it -> which rows of replay.json they are.
GROUPS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "ten classes": lambda m: m["board"].startswith("bank-") and m["classes"] == 10,
    "two to nine classes": lambda m: m["board"].startswith("bank-") and m["classes"] < 10,
    "more classes": lambda m: m["board"].startswith("bank-") and m["classes"] > 10,
    "checkpoints that others published": lambda m: m["board"] == "reference",
}
#: File below benchmarks/results, without its ending -> what was scanned, by the code of then.
EARLIER = {
    "detection_training_set": "the project's own list",
    "detection_training_set_fresh": "lists that no setting was chosen on",
}
_HEAD = (
    "| models | backdoored | found | with the right class | clean | false alarms | no verdict |",
    "|---|---|---|---|---|---|---|",
)


def page() -> str:
    """The page."""
    replayed = _read("replay")
    judging = [m for m in replayed["models"] if m["half"] == "judging"]
    rows = [_counted(what, [m for m in judging if belongs(m)]) for what, belongs in GROUPS.items()]
    missed = [
        f"- {m['name']} ({m['attack']}, {m['classes']} classes): p {m['p_value']:.2g}"
        for m in judging
        if m["infected"] and not set(m["found"]) & set(m["targets"])
    ]
    whole, told = replayed["halves"]["judging"]["all"], replayed["halves"]["judging"]["probabilities"]
    earlier = []
    for name, what in EARLIER.items():
        known = _read(name)
        s = known["summary"]
        earlier.append(
            f"| {what}, {known['date'][:10]} | {s['infected']} | {s['found']} | {s['found_with_right_target']} | {s['clean']} | "
            f"{s['false_alarms']} | {s.get('inconclusive', 0)} |"
        )
    demo = _read("demo")
    lines = [
        "# What was measured, in short",
        "",
        "Made by `python docs/make_evidence.py` from the files in benchmarks/results; [all tables](results.md) are behind it.",
        "",
        "## How many backdoors are found, and how many clean models alarmed at",
        "",
        "Models that no number of the verdict was read off, preset `standard`, up to 1,000 clean images:",
        "",
        *_HEAD,
        *rows,
        "",
        f"The rule of the Neural Cleanse paper (an index above 2) raises {whole['false_alarms_of_the_paper_rule']} alarms on the "
        f"{whole['clean']} clean models. P(backdoored) has a cross-entropy of {told['with_that_prior']['cross_entropy']:.2f} with the board's "
        "share of infected models as its prior.",
        "",
        "With the training set at hand, by the code of then:",
        "",
        *_HEAD,
        *earlier,
        "",
        "## What was missed",
        "",
        *missed,
        "",
        "## What it takes",
        "",
        f"The demo, two scans, a patch and its proof, took {demo['wall_seconds']:.0f} s on a CPU and {demo['peak_memory_mib']:.0f} MiB.",
        "",
        "## What these numbers do not say",
        "",
        "They are of small networks on small images, mostly trained by this project, and of attacks that are known. An attacker who knows "
        "this tool was not among them.",
    ]
    return "\n".join(lines) + "\n"


def _counted(what: str, models: Sequence[dict[str, Any]]) -> str:
    infected = [m for m in models if m["infected"]]
    found = [m for m in infected if m["verdict"] == "backdoored"]
    right = sum(set(m["found"]) <= set(m["targets"]) for m in found)
    alarms = sum(m["verdict"] == "backdoored" for m in models if not m["infected"])
    silent = sum(m["verdict"] == "inconclusive" for m in models)
    return (
        f"| {what} | {len(infected)} | {len(found)} | {right} | {len(models) - len(infected)} | {alarms} | {silent} |"
    )


def _read(name: str) -> dict[str, Any]:
    known: dict[str, Any] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    return known


if __name__ == "__main__":
    (ROOT / "docs/evidence.md").write_text(page(), encoding="utf-8")
