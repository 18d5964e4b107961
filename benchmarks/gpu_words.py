"""How rows and reports of the GPU benchmark read: a line while it runs, the table at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

GIB = 1024.0  # MiB


def told_by(report: Mapping[str, Any], peak: float) -> dict[str, Any]:
    """What a row keeps of a report beside its time."""
    kept = {k: report[k] for k in ("verdict", "targets", "p_value", "digest")}
    kept["search_seconds"] = round(sum(d.get("seconds", 0.0) for d in report["detectors"]), 3)
    kept["gradient_steps"] = sum(d.get("budget", {}).get("gradient_steps", 0) for d in report["detectors"])
    if peak:
        kept["peak_mib"] = peak
    # which precision searched and which judged, where the report says it
    return kept | {k: report[k] for k in ("precision", "numerics") if k in report}


def verdict_in_words(report: Mapping[str, Any], planted: int | None) -> str:
    """ "backdoored [7] (planted: 7); searches 5.9 s"."""
    said = in_words(report["verdict"], report["targets"])
    said += "" if planted is None else f" (planted: {planted})"
    return f"{said}; searches {sum(d.get('seconds', 0.0) for d in report['detectors']):.1f} s"


def in_words(verdict: str, targets: Sequence[int]) -> str:
    """ "backdoored [7]", "clean"."""
    return f"{verdict} {list(targets)}" if targets else verdict


def budget_in_words(detector: Mapping[str, Any]) -> str:
    """ "55 units, 2821 steps"."""
    budget = detector["budget"]
    return f"{budget['units']} units, {budget['gradient_steps']} steps"


def value_in_words(row: Mapping[str, Any]) -> str:
    """A row's value with its unit, or why there is none."""
    if row["value"] is None:
        return str(row["outcome"])
    digits = (
        0
        if float(row["value"]).is_integer() and row["unit"] not in ("s", "ms", "GiB")
        else 2
        if row["value"] < 10
        else 1
    )
    text = f"{row['value']:.{digits}f} {row['unit']}".strip()
    return text if row["outcome"] == "measured" else f"{text} ({row['outcome']})"


def goal_in_words(row: Mapping[str, Any]) -> str:
    """A row's goal, "-" where it has none."""
    return "-" if row["goal"] is None else f"{row['goal']:g} {row['unit']}".strip()


def met_in_words(row: Mapping[str, Any]) -> str:
    """Whether the goal was met: yes, no, or "-" where there was none, or nothing to compare."""
    if row["goal"] is None:
        return "-"
    if row["met"] is None:
        return "-" if row["outcome"] == "skipped" else "no"
    return "yes" if row["met"] and row["outcome"] == "measured" else "no"


def in_a_line(row: Mapping[str, Any]) -> str:
    """A row as it is told while the benchmark runs."""
    goal = "" if row["goal"] is None else f" (goal {goal_in_words(row)}: {met_in_words(row)})"
    return f"[{row['at_second']:6.1f} s] {row['what']}: {value_in_words(row)}{goal} {row['detail']}".rstrip()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """All rows as a Markdown table."""
    lines = ["| what | before | goal | measured | met | memory | notes |", "|---|---|---|---|---|---|---|"]
    for r in rows:
        peak = f"{r['peak_mib'] / GIB:.1f} GiB" if r.get("peak_mib") else "-"
        cells = (r["what"], r["before"] or "-", goal_in_words(r), value_in_words(r), met_in_words(r), peak, r["detail"])
        lines.append("| " + " | ".join(str(c).replace("|", "/") for c in cells) + " |")
    return "\n".join(lines)
