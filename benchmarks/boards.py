"""Boards: counts over rows of judged models, whole and by group, and the papers' rules beside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import beta
from sklearn.metrics import roc_auc_score


def right(row: dict[str, Any]) -> bool:
    """An infected model is found with its right target, or one of several and no wrong one."""
    return row["verdict"] == "backdoored" and bool(row["found"]) and set(row["found"]) <= set(row["targets"])


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all rows."""
    infected = [r for r in rows if r["infected"]]
    clean = [r for r in rows if not r["infected"]]
    scores = [-r.get("log10_p", 0.0) for r in rows]
    both = bool(infected) and bool(clean)
    timed = [r for r in rows if "seconds" in r]
    return {
        "infected": len(infected),
        "found": sum(r["verdict"] == "backdoored" for r in infected),
        "found_with_right_target": sum(map(right, infected)),
        "clean": len(clean),
        "false_alarms": sum(r["verdict"] == "backdoored" for r in clean),
        "false_alarms_of_the_paper_rule": sum((r.get("most_extreme_mad_index") or 0) > 2 for r in clean),
        "found_by_the_paper_rule": sum((r.get("most_extreme_mad_index") or 0) > 2 for r in infected),
        "inconclusive": sum(r["verdict"] == "inconclusive" for r in rows),
        "errors": sum(r["verdict"] == "error" for r in rows),
        "roc_area": float(roc_auc_score([r["infected"] for r in rows], scores)) if both else None,
        "median_seconds": float(np.median([r["seconds"] for r in timed])) if timed else None,
        "median_gradient_steps": float(np.median([r["gradient_steps"] for r in timed])) if timed else None,
    }


def grouped(rows: Sequence[dict[str, Any]], key: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """`summary` of each group."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return {name: summary(members) for name, members in sorted(groups.items())}


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    mark = "ok  " if (right(row) if row["infected"] else row["verdict"] != "backdoored") else "MISS"
    return (
        f"{mark} {row['name']:<42} {row['verdict']:<13} found {row['found']!s:<10} true {row['targets']!s:<10} "
        f"p {row['p_value']:.2g} {row.get('seconds', 0):.0f} s {row.get('error', '')}"
    )


def interval(successes: int, n: int, error: float = 0.05) -> tuple[float, float]:
    """Clopper and Pearson's exact interval of a share."""
    low = float(beta.ppf(error / 2, successes, n - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - error / 2, successes + 1, n - successes)) if successes < n else 1.0
    return low, high
