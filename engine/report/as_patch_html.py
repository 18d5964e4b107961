"""The page of a patch or of a verification: before and after, the curve, the proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from onnxspect.converters.text import all_visible
from onnxspect.engine.report import charts, pages, words
from onnxspect.engine.report.patch_document import PATCH

Document = Mapping[str, Any]
#: Initializers that are listed; of more, the ones that changed most.
MOST_CHANGED = 60


def render(document: Document) -> str:
    """The page."""
    shown = all_visible(dict(document))
    return pages.render("patch", document=shown, view=_view(shown) | {"steps": _steps(document)})


def _view(document: Document) -> dict[str, Any]:
    result = document["result"]
    holds = result["holds"]
    what = "patch" if document["kind"] == PATCH else "patched file"
    kept = _attempt(document)
    found_curve = curve(kept["facts"]) if kept is not None else None
    sections = [("effect", "Before and after")]
    sections += [("curve", "How it got there")] if found_curve else []
    sections += [("proof", "The proof"), ("limits", "Not proven")]
    sections += [("notes", "Changed or guessed")] if result.get("notes") else []
    sections += [("next", "What to do"), ("glossary", "Words")]
    return {
        "title": f"{'Patch holds' if holds else 'Patch misses its goals'}",
        "mood": "good" if holds else "bad",
        "headline": f"The {what} holds" if holds else f"The {what} misses its goals",
        "lead": _lead(document),
        "date": words.day(document["finished"]),
        "facts": _facts(document),
        "sections": sections,
        "chart": charts.before_and_after(_pairs(result), result["goals"]["success"]),
        "curve": found_curve,
        "limits": _limits(document),
        "changed": sorted(result["changed_initializers"], key=lambda c: -(c["relative_change"] or 0.0))[:MOST_CHANGED],
        "terms": ["trigger", "accuracy", "interval", "initializer",
                  *(["strip"] if result["strip"] else []), "backdoor"],
    }  # fmt: skip


def _attempt(document: Document) -> Mapping[str, Any] | None:
    """The attempt that was kept."""
    return next((a for a in document["attempts"] if a["method"] == document["method"]), None)


def _lead(document: Document) -> str:
    result = document["result"]
    if not result["holds"]:
        return "; ".join(result["failures"]) + "."
    accuracy = result["clean_accuracy"]
    worst = max((t["after"] for t in result["triggers"]), default=None)
    before = max((t["before"] for t in result["triggers"]), default=None)
    sentences = []
    if worst is not None:
        sentences.append(
            f"Of the images with a trigger, {words.share(before, 1)} went where the attacker wanted; now {words.share(worst, 1)} do."
        )
    lost = accuracy["before"] - accuracy["after"]
    change = "stayed what it was" if abs(lost) < 0.0005 else f"{'fell' if lost > 0 else 'rose'} by {abs(lost):.1%}"
    sentences.append(
        f"Clean accuracy {change}, to {words.share(accuracy['after'], 1)}. Measured on the written file, in onnxruntime."
    )
    return " ".join(sentences)


def _facts(document: Document) -> list[tuple[str, str]]:
    result = document["result"]
    facts = [("Method", document["method"])] if document["method"] else []
    facts.append(("Tried on", f"{result['samples']:,} clean images"))
    facts.append(("Same answer on clean images", words.share(result["agreement"], 1)))
    if result["rejected"] is not None:
        facts.append(("Clean images rejected", words.share(result["rejected"], 1)))
    facts.append(
        ("Changed", f"{len(result['changed_initializers'])} arrays of weights, {len(result['additions'])} additions")
    )
    if result["rescan"] is not None:
        facts.append(("A fresh scan says", result["rescan"]["verdict"]))
    return facts


def _pairs(result: Mapping[str, Any]) -> list[tuple[str, float, float, bool]]:
    accuracy = result["clean_accuracy"]
    rows = [("clean accuracy", accuracy["before"], accuracy["after"], False)]
    return rows + [(f"trigger {t['name']} works on", t["before"], t["after"], True) for t in result["triggers"][:12]]


def curve(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The curve of a method's facts: epochs of training, or neurons switched off; None where it has none.

    A method of one's own may put anything there: what has not the numbers of a curve is left out.
    """
    epochs = facts.get("epochs")
    if _points(epochs, "epoch"):
        numbers = [e["epoch"] for e in epochs]
        kept = facts.get("kept_epoch")
        return _curve("epoch", numbers, epochs, numbers.index(kept) if kept in numbers else None)
    trials = facts.get("trials")
    for trial in trials if isinstance(trials, list) else ():
        if (
            isinstance(trial, Mapping)
            and trial.get("layer") == facts.get("layer")
            and _points(trial.get("curve"), "pruned")
        ):
            points, chosen = trial["curve"], trial.get("chosen")
            return _curve(
                "neurons switched off", [p["pruned"] for p in points], points, chosen if type(chosen) is int else None
            )
    return None


def _points(found: object, x: str) -> TypeGuard[list[Mapping[str, float]]]:
    """Whether this is a list of measurements, each with numbers for its place on the curve and its two shares."""
    return isinstance(found, list) and all(
        isinstance(p, Mapping) and all(isinstance(p.get(name), int | float) for name in (x, "accuracy", "success"))
        for p in found
    )


def _curve(
    name: str, x: Sequence[float], points: Sequence[Mapping[str, Any]], kept: int | None
) -> dict[str, Any] | None:
    series = [charts.Series("clean accuracy", "accuracy", [p["accuracy"] for p in points])]
    series.append(charts.Series("success of the trigger", "success", [p["success"] for p in points]))
    if all(isinstance(p.get("stronger"), int | float) for p in points):
        series.append(charts.Series("success of stronger triggers", "stronger", [p["stronger"] for p in points]))
    drawn = charts.curve(name, x, series, kept)
    return {"chart": drawn, "series": series, "kept": kept is not None, "x": name} if drawn else None


def _steps(document: Document) -> list[dict[str, str]]:
    original = words.path(document["original"]["path"], "MODEL.onnx")
    patched = words.path(document["patched"]["path"], "PATCHED.onnx")
    run = ["--run", words.path(document["run"], "RUN")] if document["run"] else []
    verify = words.command(
        "onnxspect", "verify", patched, "--against", original, "--data", "FRESH-SAMPLES", *run, "--rescan", "quick"
    )
    differ = words.command("onnxspect", "diff", original, patched)
    if not document["result"]["holds"]:
        return [
            {"text": "Do not deploy this file.", "command": ""},
            {"text": "Patch anew with more clean samples, or with another method.", "command": ""},
        ]
    found = [
        {
            "text": "Prove it on clean images that neither scan nor patch has seen, with a fresh scan of the patched file:",
            "command": verify,
        },
        {"text": "See what differs between the two files:", "command": differ},
        {
            "text": "Deploy the file with this SHA-256 and no other: " + (document["patched"]["sha256"] or "–"),
            "command": "",
        },
    ]
    if document["result"]["rejected"] is not None:
        found.append(
            {
                "text": "Read the output “rejected” wherever the file runs: its class scores are as before.",
                "command": "",
            }
        )
    return found


def _limits(document: Document) -> list[str]:
    result = document["result"]
    found = ["Only the triggers above were tried. A backdoor that the scan did not find is still there."]
    if result["rescan"] is None:
        found.append("The patched file was not scanned anew (verify --rescan).")
    if document["kind"] == PATCH:
        found.append(
            "It was measured on samples that the scan, and partly the patch, had at hand; fresh ones prove more."
        )
    found.append(f"{result['samples']} images leave room for chance; the intervals say how much.")
    return found
