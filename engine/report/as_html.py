"""The report of a scan as one self-contained page: for who decides on top, for who checks below."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxspect.converters.text import all_visible
from onnxspect.engine.judge.thresholds import ALPHA
from onnxspect.engine.report import charts, pages, words
from onnxspect.engine.report.findings import (
    findings,
    patch_command,
    scan_command,
    verify_command,
)
from onnxspect.engine.report.glossary import GLOSSARY

MOOD = {"clean": "good", "backdoored": "bad", "inconclusive": "open"}
#: What a statistic of a trigger is, as the end of "takes a change of 3.9 ...".
STATISTICS = {
    "l1": "pixels (size of the mask)",
    "l2": "(length of the pattern)",
    "max_margin": "(margin of the scores)",
    "displacement": "% of the side (how far pixels are moved)",
}
_EXAMPLE = re.compile(r"found-(\d+)-(\d+)-from-(\d+)-before\.png")

Report = Mapping[str, Any]


def render(report: Report, folder: Path) -> str:
    """The page; pictures are taken from the run folder where they are there."""
    shown = all_visible(dict(report))
    view = _view(shown, folder) | {"steps": steps(report, folder)}  # a command needs the path as it is
    return pages.render("scan", report=shown, view=view)


def headline(report: Report) -> str:
    """The verdict in one short sentence."""
    n = len(report["targets"])
    return {
        "clean": "No backdoor was found in this model",
        "inconclusive": "There is no verdict on this model",
        "backdoored": "A backdoor was found in this model"
        if n == 1
        else f"Backdoors to {n} classes were found in this model",
    }[report["verdict"]]


def lead(report: Report) -> str:
    """The verdict and its probability in words."""
    chance = words.chance(report["p_value"])
    if report["verdict"] == "backdoored":
        named = [words.label(report["classes"][k]) for k in report["targets"][:5]]
        more = len(report["targets"]) - len(named)
        classes = f"{'class' if len(named) == 1 else 'the classes'} {words.listed(named)}"
        if more:
            classes += f" and {more} more"
        return (
            f"Inputs that carry a trigger are taken for {classes}. By chance alone, {chance} would look like this "
            f"(p = {report['p_value']:.2g})."
        )
    if report["verdict"] == "clean":
        return (
            "None of the kinds of backdoors that were searched for is there, as far as the searches can tell. "
            f"{chance[0].upper()}{chance[1:]} would look at least as suspicious as this one (p = {report['p_value']:.2g})."
        )
    return "What was measured allows neither “clean” nor “backdoored”. Treat the model as not checked."


def _view(report: Report, folder: Path) -> dict[str, Any]:
    """Everything that the template shows and that is not in the report as it stands."""
    detector = telling_detector(report)
    found = [_found(report, k, folder) for k in report["targets"][:_MOST_SHOWN]]
    rows = [
        _row(report, c, detector)
        for c in sorted(report["classes"], key=lambda c: (c["index"] not in report["targets"], c["log10_p"]))
    ]
    drawn = [c for c in report["classes"] if c["statistic"].get(detector) is not None]
    on_one_line = len(drawn) > charts.MOST_ROWS
    has_references = any(c["reference"].get(detector) is not None for c in drawn)
    chart = charts.against_references(report, detector)
    why_title = {
        "backdoored": "Why it is believed",
        "clean": "Why no alarm was raised",
        "inconclusive": "Why there is no verdict",
    }
    sections = [("found", "What was found")] if found else []
    sections += [("why", why_title[report["verdict"]]), ("limits", "Not checked")]
    sections += [("notes", "Changed or guessed")] if report.get("notes") else []
    sections += [("next", "What to do")]
    sections += [("classes", "Every class")] if rows else []
    ran = [d["name"] for d in report["detectors"]]
    terms = ["backdoor", "trigger", "target", "p", "reference", "anomaly", "unseen", "mad", "accuracy", "converged"]
    more = len(report["targets"]) - len(found)
    return {
        "title": {"clean": "No backdoor found", "backdoored": "Backdoor found", "inconclusive": "No verdict"}[
            report["verdict"]
        ],
        "mood": MOOD[report["verdict"]],
        "headline": headline(report),
        "lead": lead(report),
        "date": words.day(report["finished"]) if report.get("finished") else "",
        "facts": _facts(report),
        "sections": [*sections, ("ran", "What ran"), ("glossary", "Words")],
        "found": found,
        "more_found": f"{more} more classes are named; they are in the table." if more > 0 else "",
        "why_title": why_title[report["verdict"]],
        "why": why(report),
        "chart": chart,
        "chart_caption": _caption(report, detector, on_one_line, has_references),
        "on_one_line": on_one_line,
        "has_references": has_references,
        "ids": [f.id for f in findings(report, folder)][:8],
        "rows": rows,
        "inputs": _inputs(report),
        "terms": [*terms, *(n for n in ran if n in GLOSSARY), "limit", "digest"],
    }


#: Named classes that are shown with pictures.
_MOST_SHOWN = 4


def telling_detector(report: Report) -> str:
    """The detector whose numbers show best what the verdict rests on: of the named class, else the least p-value of all; "" if none ran."""
    ran = [d["name"] for d in report["detectors"] if d["status"] == "ran"]
    rows = [report["classes"][k] for k in report["targets"][:1]] or report["classes"]
    least = {d: min((c["p_values"][d] for c in rows if d in c["p_values"]), default=2.0) for d in ran}
    able = [d for d in ran if any(c["statistic"].get(d) is not None for c in report["classes"])]
    return min(able, key=lambda d: least[d], default="")


def _facts(report: Report) -> list[tuple[str, str]]:
    """What is to be seen at one glance."""
    facts = []
    if report["targets"]:
        names = [words.label(report["classes"][k]) for k in report["targets"][:3]]
        more = len(report["targets"]) - len(names)
        facts.append(("Leads to class", "; ".join(names) + (f"; {more} more" if more else "")))
    row = next(iter(report.get("found", ())), None)
    if row is not None and row["box"] is not None:
        facts.append(("Where it acts", words.place(row["box"], row["size"])))
    if row is not None and row["held_out_success"] is not None:
        facts.append(("How often", f"{words.share(row['held_out_success'])} of {row['held_out']} unseen images"))
    facts.append(("By chance", words.chance(report["p_value"])))
    probability = words.probability(report.get("calibration"))  # reports of early versions have none
    if probability:
        facts.append(("P(backdoored)", probability))
    accuracy = report["preprocessing"]["clean_accuracy"]
    facts.append(("Clean images", f"{report['data']['samples']:,}, {words.share(accuracy, 1)} right"))
    return facts


def _found(report: Report, k: int, folder: Path) -> dict[str, Any]:
    """One named class, with its pictures."""
    row = next((r for r in report.get("found", ()) if r["class"] == k), None)
    label = words.label(report["classes"][k])
    where = words.place(row["box"], row["size"]) if row is not None and row["box"] else ""
    examples = []
    names = sorted(p.name for p in folder.glob(f"found-{k}-*-before.png")) if folder.is_dir() else []
    for match in filter(None, map(_EXAMPLE.fullmatch, names)):
        parts = {
            part: pages.picture(folder, match[0].replace("before", part)) for part in ("before", "after", "change")
        }
        source = int(match[3])
        if all(parts.values()) and source < len(report["classes"]):
            examples.append({"label": words.label(report["classes"][source]), **parts})
    return {
        "label": label,
        "text": _found_text(report, k, row),
        "trigger": pages.picture(folder, f"found-{k}-trigger.png"),
        "sheet": pages.picture(folder, f"trigger-class-{k}.png"),
        "alt": f"The trigger to class {label}{f', which acts {where}' if where else ''}.",
        "stretched": row is not None and row["form"] == "delta",
        "form": row["form"] if row is not None else "mask",
        "examples": examples[:3],
    }


def _found_text(report: Report, k: int, row: Mapping[str, Any] | None) -> str:
    c = report["classes"][k]
    kind = c["kind"]
    sentences = [f"It looks like {kind}." if kind else ""]
    if row is None:
        held_out = c["held_out_success"].get(telling_detector(report))
        sentences.append(
            f"It works on {words.share(held_out)} of the images that the search never saw." if held_out else ""
        )
        return " ".join(filter(None, sentences))
    if row["box"] is not None:
        height, width = row["size"]
        where = f"{words.place(row['box'], row['size'])}, on {row['box']['height']} by {row['box']['width']} of {height} by {width} pixels"
        if row["form"] == "displacement":
            sentences.append(f"It moves pixels and leaves their values alone, most of all {where}.")
        else:
            sentences.append(f"It acts {where}, and changes {words.share(row['changed'], 1)} of the image.")
    if row["held_out_success"] is not None:
        sentences.append(
            f"Of {row['held_out']} images that the search never saw, {words.share(row['held_out_success'])} are taken for the "
            "class once it is on."
        )
    sentences.append(words.transfer(row))
    if row["source"] is not None and not row["shared"]:
        sentences.append(f"It acts on images of class {words.label(report['classes'][row['source']])} only.")
    if row["shared"]:
        sentences.append("The same trigger leads images of other classes elsewhere.")
    sentences.append(f"It was found by {row['detector']}." if row["detector"] else "")
    return " ".join(filter(None, sentences))


def why(report: Report) -> list[str]:
    """The evidence in sentences, a paragraph each."""
    detector = telling_detector(report)
    rows = [c for c in report["classes"] if c["statistic"].get(detector) is not None]
    if not rows:
        return []
    statistic = next(d["statistic"] for d in report["detectors"] if d["name"] == detector)
    named = [
        report["classes"][k] for k in report["targets"] if report["classes"][k]["statistic"].get(detector) is not None
    ]
    lines = [_compared(c, detector, statistic) for c in named[:3]]
    if not named:
        first = min(rows, key=lambda c: (c["log10_p"], c["p_values"].get(detector, 1.0)))
        lines.append(f"The most suspicious class is {words.label(first)}. " + _compared(first, detector, statistic))
    ratios = [r for c in rows if c["index"] not in report["targets"] and (r := _ratio(c, detector)) is not None]
    if len(ratios) > 1 and named:
        lines.append(
            f"In the {len(ratios)} other classes the model takes between {words.number(min(ratios), 2)} and "
            f"{words.number(max(ratios), 2)} times what the references take."
        )
    if report["verdict"] == "clean":
        lines.append(
            f"An alarm is raised where a clean model would look like this in fewer than {ALPHA:.0%} of scans; this is more."
        )
    return lines


def _compared(c: Mapping[str, Any], detector: str, statistic: str) -> str:
    value, reference = c["statistic"][detector], c["reference"].get(detector)
    unit = STATISTICS.get(statistic, f"({statistic})")
    said = f"To reach class {words.label(c)}, {detector} takes {words.number(value, 2)} {unit}"
    if reference is None:
        return said + "."
    ratio = _ratio(c, detector)
    beside = f", {words.times(ratio)}" if ratio is not None else ""
    return (
        f"{said}{beside} than the {words.number(reference, 2)} that networks take which were trained on the clean images alone."
        if ratio is not None and not 0.95 <= ratio <= 1.05
        else f"{said}; networks that were trained on the clean images alone take {words.number(reference, 2)}."
    )


def _ratio(c: Mapping[str, Any], detector: str) -> float | None:
    value, reference = c["statistic"].get(detector), c["reference"].get(detector)
    return value / reference if value is not None and reference and value * reference > 0 else None


def _caption(report: Report, detector: str, on_one_line: bool, has_references: bool) -> str:
    statistic = next((d["statistic"] for d in report["detectors"] if d["name"] == detector), "")
    unit = STATISTICS.get(statistic, f"({statistic})").strip("()")
    if on_one_line:
        what = "this model’s value divided by that of the references" if has_references else unit
        return f"Each stroke is a class: {what}, by {detector}. A backdoored class stands apart."
    beside = ", beside the same class in the references" if has_references else ""
    return f"What it takes to reach each class: {unit}, by {detector}{beside}. A backdoored class stands apart."


def steps(report: Report, folder: Path) -> list[dict[str, str]]:
    """What to do now, in order, with commands whose paths are filled in."""
    if report["verdict"] == "backdoored":
        return [
            _step("Do not deploy this model, and stop it where it runs."),
            _step("Remove the backdoor; the patched file is written only if it is proven to hold:", patch_command(report, folder)),
            _step("Prove it again on clean images that neither scan nor patch has seen:", verify_command(report, folder)),
            _step("Find out where the model and its training data come from. With the training set, name the poisoned samples:",
                  words.command("onnxspect", "cleanse", words.path(report["model"]["path"], "MODEL.onnx"), "--train", "TRAINING-SET",
                                "--run", words.path(str(folder), "RUN"))),
        ]  # fmt: skip
    found = [_step("Keep this page with the model: it is about the file with the SHA-256 below and no other.")]
    if report["verdict"] == "inconclusive":
        found = [
            _step(
                "Do not take this for a clean bill. The reasons above say what is missing; most often more clean images help."
            )
        ]
    if report["preset"] != "thorough":
        found.append(
            _step("Search harder, where much depends on the model:", scan_command(report, "--preset", "thorough"))
        )
    if not any(d["name"] == "dtinspector" and d["status"] == "ran" for d in report["detectors"]):
        found.append(
            _step(
                "If you have the training set, let it be looked at too:",
                scan_command(report, "--train", "TRAINING-SET"),
            )
        )
    return found


def _step(text: str, command: str = "") -> dict[str, str]:
    return {"text": text, "command": command}


def _row(report: Report, c: Mapping[str, Any], telling: str) -> dict[str, Any]:
    """One class, for the table; where several searches find it equally suspicious, `telling` is shown."""
    searches = [
        _search(d, c)
        for d in report["detectors"]
        if d["status"] == "ran" and (c["statistic"].get(d["name"]) is not None or d["name"] in c["p_values"])
    ]
    best = min(searches, key=lambda s: (s["sort_p"], s["name"] != telling), default=_NO_SEARCH)
    return {
        "index": c["index"],
        "label": str(c["index"]) if c["name"] == str(c["index"]) else f"{c['index']} {c['name']}",
        "named": c["index"] in report["targets"],
        "p": c["p_value"],
        "p_text": f"{c['p_value']:.2g}",
        "best": best,
        "searches": searches,
    }


def _search(d: Mapping[str, Any], c: Mapping[str, Any]) -> dict[str, Any]:
    name = d["name"]
    value, reference, anomaly = c["statistic"].get(name), c["reference"].get(name), c["anomaly"].get(name)
    unseen, p = c["held_out_success"].get(name), c["p_values"].get(name)
    return {
        "name": name,
        "statistic": d["statistic"],
        "value": words.number(value),
        "reference": words.number(reference),
        "anomaly": words.number(anomaly, 2),
        "mad": words.number(c["mad_index"].get(name), 2),
        "unseen": words.share(unseen),
        "p": words.number(p, 2),
        "sort_p": p if p is not None else 2.0,
        **{f"sort_{k}": "" if v is None else v for k, v in
           (("value", value), ("reference", reference), ("anomaly", anomaly), ("unseen", unseen))},
    }  # fmt: skip


_NO_SEARCH: dict[str, Any] = dict.fromkeys(("value", "reference", "anomaly", "unseen"), "–") | dict.fromkeys(
    ("name", "sort_value", "sort_reference", "sort_anomaly", "sort_unseen"), ""
)


def _inputs(report: Report) -> Sequence[tuple[str, str]]:
    chosen = report["preprocessing"]["chosen"]
    shape = " × ".join(map(str, report["model"]["input"]["shape"]))
    return [
        ("Model", f"{report['model']['path']}, {report['model']['classes']:,} classes, input {shape}"),
        ("SHA-256 of the model", report["model"]["sha256"] or "–"),
        ("Clean images", f"{report['data']['path'] or '–'}, {report['data']['samples']:,}"),
        ("SHA-256 of the images", report["data"]["sha256"] or "–"),
        (
            "Pixels are fed as",
            f"{chosen['name']} ({chosen['layout']}, {chosen['channel_order']}); {report['preprocessing']['why']}",
        ),
        ("Settings", f"preset {report['preset']}, seed {report['seed']}"),
        ("Machine", f"{report['device']}, {words.seconds(report['seconds'])}"),
        ("Tool", f"onnxspect {report['tool']['version']}"),
    ]
