"""Makes docs/results.md from the JSON files in benchmarks/results: python docs/make_results.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def page() -> str:
    """The page; a section for each result that is there."""
    parts = ["# What was measured\n", "Made by `python docs/make_results.py` from the files in benchmarks/results.\n"]
    for file, section in (("demo.json", _demo), ("detection_small.json", _detection)):
        path = RESULTS / file
        if path.is_file():
            parts.append(section(json.loads(path.read_text())))
    return "\n".join(parts)


def _demo(r: dict[str, Any]) -> str:
    full = r["full_test_set"]
    planted = full["triggers"][0]
    accuracy = full["clean_accuracy"]
    rows = [
        (
            "infected model",
            f"{r['infected']['verdict']}, class {r['infected']['targets']} (true: {r['infected']['true']})",
        ),
        ("clean model", r["clean"]["verdict"]),
        (f"planted trigger, {planted['samples']} test images", f"{planted['before']:.2%} -> {planted['after']:.2%}"),
        (f"clean accuracy, {full['samples']} test images", f"{accuracy['before']:.2%} -> {accuracy['after']:.2%}"),
        ("wall time, CPU time", f"{r['wall_seconds']:.0f} s, {r['cpu_seconds']:.0f} s"),
        ("peak memory", f"{r['peak_memory_mib']} MiB"),
    ]
    table = "\n".join(f"| {a} | {b} |" for a, b in rows)
    note = r.get("note", "")
    return (
        f"## The demo\n\n`python benchmarks/demo.py --data-root DATA`, {r['date']}, onnxspect {r['version']}, "
        f"{r['machine']['processor']}, {r['cores']} cores, load {r['load']:.1f} before the start. {note}\n\n"
        f"| | measured |\n|---|---|\n{table}\n"
    )


def _detection(r: dict[str, Any]) -> str:
    keys = (
        "infected",
        "found",
        "found_with_right_target",
        "clean",
        "false_alarms",
        "inconclusive",
        "errors",
        "roc_area",
    )
    head = "| | " + " | ".join(k.replace("_", " ") for k in keys) + " |\n|---|" + "---|" * len(keys)

    def line(name: str, s: dict[str, Any]) -> str:
        cells = ["-" if s[k] is None else (f"{s[k]:.3f}" if isinstance(s[k], float) else str(s[k])) for k in keys]
        return f"| {name} | " + " | ".join(cells) + " |"

    lines = [line("**all**", r["summary"])]
    lines += [line(name, s) for kind in ("by_network", "by_attack") for name, s in r[kind].items()]
    s = r["summary"]
    models = "\n".join(
        f"| {m['name']} | {m['verdict']} | {_classes(m['found'])} | {_classes(m['targets'])} | {m['p_value']:.2g} "
        f"| {_each(m)} | {m.get('seconds', 0):.0f} |"
        for m in r["models"]
    )
    missed = [m["name"] for m in r["models"] if m["infected"] and not set(m["found"]) & set(m["targets"])]
    misses = f"Missed: {', '.join(missed)}.\n\n" if missed else ""
    return (
        f"## Detection\n\n`{r['command']}`, {r['date']}, {r['device']}, seed {r['seed']}. Beside the calibrated verdict, the "
        f"paper's rule (MAD index above 2) finds {s['found_by_the_paper_rule']} of {s['infected']} infected models and "
        f"raises {s['false_alarms_of_the_paper_rule']} alarms on {s['clean']} clean ones.\n\n{head}\n"
        + "\n".join(lines)
        + f"\n\n{misses}| model | verdict | found | true | p | most suspicious class by detector (p) | seconds |\n"
        + "|---|---|---|---|---|---|---|\n"
        + models
        + "\n"
    )


def _classes(indices: list[int]) -> str:
    return "-" if not indices else "all" if len(indices) > 9 else ", ".join(map(str, indices))


def _each(m: dict[str, Any]) -> str:
    told = m.get("by_detector", {})
    return "; ".join(f"{n} {d['class']} ({d['p_value']:.1g})" for n, d in told.items() if "class" in d) or m.get(
        "error", ""
    )


if __name__ == "__main__":
    (Path(__file__).parent / "results.md").write_text(page())
