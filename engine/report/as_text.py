"""The report as a table for people, drawn from the JSON document alone."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxspect.converters.text import all_visible
from onnxspect.engine.report.words import share

STYLE = {"clean": "bold green", "backdoored": "bold red", "inconclusive": "bold yellow"}
#: Columns, where nothing says how wide the reader's window is.
WIDTH = 120
#: Rows of the class table: all classes of a model with at most so many; of one with more, the ones that matter.
MOST_ROWS, THAT_MATTER = 25, 10


def render(report: dict[str, Any]) -> RenderableType:
    """Verdict, reasons, one row a class, what ran, and what was not checked."""
    return _render(all_visible(report))  # a class name is untrusted text, and a terminal obeys escape codes


def plain(report: dict[str, Any], width: int = WIDTH) -> str:
    """The same as plain text, so many columns wide."""
    written = io.StringIO()
    console = Console(file=written, width=width, highlight=False, color_system=None, force_jupyter=False)
    console.print(render(report))
    return written.getvalue()


def _render(report: dict[str, Any]) -> RenderableType:
    verdict = report["verdict"]
    head = Text.assemble(
        (verdict.upper(), STYLE[verdict]),
        f"  {report['model']['path']}",
        (f"  p = {report['p_value']:.2g}", "dim"),
    )
    lines = [head, *(Text("  " + r) for r in report["reasons"]), Text()]
    facts = Table.grid(padding=(0, 2))
    accuracy = report["preprocessing"]["clean_accuracy"]
    chosen = report["preprocessing"]["chosen"]
    rows = {
        "model": f"{report['model']['classes']} classes, sha256 {report['model']['sha256'][:16]}…",
        "data": f"{report['data']['samples']} clean samples, {accuracy:.1%} classified correctly",
        "input": f"{chosen['name']} ({_fed(chosen)}); {report['preprocessing']['why']}",
        "run": f"{report['preset']} preset, seed {report['seed']}, {report['device']}, {report['seconds']:.0f} s",
    }
    calibration = report.get("calibration")  # reports of early versions have none
    if calibration is not None:
        rows["calibration"] = _calibrated(calibration)
    for name, words in rows.items():
        facts.add_row(name, Text(words))  # Text, since a str would be read as markup
    return Group(*lines, facts, Text(), _classes(report), Text(), *_detectors(report), *_limits(report))


def _calibrated(calibration: dict[str, Any]) -> str:
    """What the bank of clean models says, with P(backdoored) first where there is one."""
    probability = calibration["p_backdoored"]
    first = (
        f"P(backdoored) {share(probability, 1)} (prior {share(calibration['prior'])}); "
        if probability is not None
        else ""
    )
    tail = calibration["interval"]
    last = f"; beyond all of them, 95 % interval {tail[0]:.2g} to {tail[1]:.2g}" if tail is not None else ""
    return first + calibration["note"] + last


def _fed(spec: dict[str, Any]) -> str:
    """Layout, and by what pixels in [0, 1] are changed on their way into the model."""
    words = [spec["layout"]]
    words += [] if spec["channel_order"] == "RGB" else [spec["channel_order"]]
    words += [] if spec["scale"] == 1 else [f"times {spec['scale']:g}"]
    for name, plain in (("mean", 0), ("std", 1)):
        if any(v != plain for v in spec[name]):
            words.append(f"{name} " + ", ".join(f"{v:g}" for v in spec[name]))
    return ", ".join(words)


def _classes(report: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    ran = [d for d in report["detectors"] if d["status"] == "ran"]
    table.add_column("class")
    several = len(ran) > 1  # then what they say in common matters more than how each came to it
    for d in ran:
        table.add_column(Text(f"{d['name']}\n{d['statistic']}"), justify="right")
        if several:
            table.add_column("p", justify="right")
            continue
        table.add_column("reference", justify="right")
        table.add_column("anomaly", justify="right")
        table.add_column("MAD index", justify="right")
        table.add_column("on unseen", justify="right")
    table.add_column("p-value", justify="right")
    rows = report["classes"]
    shown = rows if len(rows) <= MOST_ROWS else _that_matter(report)
    for c in shown:
        cells = []
        for d in ran:
            name = d["name"]
            if several:
                cells += [_number(c["statistic"].get(name), ".3g"), _number(c["p_values"].get(name), ".2g")]
                continue
            cells += [
                _number(c["statistic"].get(name), ".1f"),
                _number(c["reference"].get(name), ".1f"),
                _number(c["anomaly"].get(name), ".1f"),
                _number(c["mad_index"].get(name), ".1f"),
                _number(c["held_out_success"].get(name), ".0%"),
            ]
        label = str(c["index"]) if c["name"] == str(c["index"]) else f"{c['index']} {c['name']}"
        style = "bold red" if c["index"] in report["targets"] else ""
        table.add_row(Text(label), *cells, f"{c['p_value']:.2g}", style=style)
    if len(rows) > len(shown):
        table.caption = f"{len(rows) - len(shown):,} less suspicious classes are not shown (`onnxspect report DIR --format html` has all)"
    return table


def _that_matter(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The named classes and the most suspicious ones of the others, the most suspicious first."""
    rows = sorted(report["classes"], key=lambda c: (c["index"] not in report["targets"], c["log10_p"], c["index"]))
    return rows[: max(THAT_MATTER, min(len(report["targets"]), MOST_ROWS))]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _detectors(report: dict[str, Any]) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for d in report["detectors"]:
        if d["status"] == "ran":
            b = d["budget"]
            lines.append(
                Text(
                    f"{d['name']}: {b['units']} searches, {b['converged']} converged, "
                    f"{b['gradient_steps']} gradient steps, {d['seconds']:.0f} s",
                    "dim",
                )
            )
        else:
            lines.append(Text(f"{d['name']}: skipped, {d['reason']}", "dim"))
    return lines


def _limits(report: dict[str, Any]) -> list[RenderableType]:
    notes = [Text(f"note: {note}", "dim") for note in report.get("notes", ())]
    return [*notes, *(Text("not checked: " + limit, "dim") for limit in report["limits"])]
