"""The pictures of a run: each suspicious trigger, all triggers side by side, and the statistic per class as bars."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from onnxspect.converters.text import visible
from onnxspect.engine.judge.evidence import Evidence, Skipped, UnitEvidence
from onnxspect.engine.judge.verdict import ALPHA
from onnxspect.engine.store import write_atomically
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.trigger import stamp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Classes shown at most in one chart: the most suspicious ones.
MOST_BARS = 40
ACCENT, CALM = "#c0392b", "#7f8c8d"
#: Where the title of a small picture stands; left to itself matplotlib makes ticks, which are not shown, to find the same place.
_ABOVE = 1.0


def draw(report: dict[str, Any], evidence: Sequence[Evidence | Skipped], samples: Samples, folder: Path) -> list[Path]:
    """Write classes.png, and for each detector with triggers triggers.png and trigger-class-N.png for every target.

    The first detector's files have these names; the others' carry the detector's name too. Returns what was written.
    """
    with plain_text():
        return _drawn(report, evidence, samples, folder)


@contextlib.contextmanager
def plain_text() -> Iterator[None]:
    """Names are drawn letter by letter in the block: a "$" begins no formula, and nothing in the working folder asks for TeX."""
    from matplotlib import rc_context

    with rc_context({"text.usetex": False, "text.parse_math": False, "axes.formatter.use_mathtext": False}):
        yield


def _drawn(
    report: dict[str, Any], evidence: Sequence[Evidence | Skipped], samples: Samples, folder: Path
) -> list[Path]:
    written = [_write(folder / "classes.png", bars(report))]
    targets = set(report["targets"])
    first = True
    for e in evidence:
        if not isinstance(e, Evidence) or not e.traits.leads_to_target:
            continue
        units = [u for u in e.units if u.found and u.in_pixels]
        if not units:
            continue
        suffix = "" if first else f"-{e.detector}"
        first = False
        written.append(_write(folder / f"triggers{suffix}.png", sheet(units, targets, report)))
        for unit in _speaking(units, targets, e.tail):
            name = f"trigger-class-{unit.unit.target}{suffix}.png"
            written.append(_write(folder / name, trigger_sheet(unit, samples, report)))
    return written


def _speaking(units: Sequence[UnitEvidence], targets: set[int], tail: str) -> list[UnitEvidence]:
    """One unit a target: of several sources or taps the most suspicious."""
    best: dict[int, UnitEvidence] = {}
    sign = 1 if tail == "low" else -1
    for unit in units:
        k = unit.unit.target
        if k in targets and (k not in best or sign * _value(unit) < sign * _value(best[k])):
            best[k] = unit
    return [best[k] for k in sorted(best)]


def _value(unit: UnitEvidence) -> float:
    return unit.value(unit.measurements[0].statistic) if unit.measurements else float("nan")


def bars(report: dict[str, Any]) -> Figure:
    """The statistic of every class by the detector with the least p-value, targets in red, with the corrected p-value."""
    ran = [d for d in report["detectors"] if d["status"] == "ran"]
    least = {d["name"]: min((c["p_values"][d["name"]] for c in report["classes"]), default=1.0) for d in ran}
    shown = [d for d in ran if any(c["statistic"].get(d["name"]) is not None for c in report["classes"])]
    detector = min(shown, key=lambda d: least[d["name"]], default=None)
    rows = [
        (
            c["index"],
            c["name"],
            c["statistic"].get(detector["name"]),
            c["p_value"],
            c["reference"].get(detector["name"]),
        )
        for c in report["classes"]
        if detector is not None and c["statistic"].get(detector["name"]) is not None
    ]
    if len(rows) > MOST_BARS:
        rows = sorted(sorted(rows, key=lambda r: r[2])[:MOST_BARS])
    figure = _figure(figsize=(max(5.0, 0.42 * len(rows) + 1.6), 3.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    colours = [ACCENT if r[0] in report["targets"] else CALM for r in rows]
    axes.bar(range(len(rows)), [r[2] for r in rows], color=colours)
    for i, (_, _, value, p, _) in enumerate(rows):
        if p < ALPHA:
            axes.annotate(f"p={p:.1g}", (i, value), ha="center", va="bottom", fontsize=7, color=ACCENT)
    known = [(i, r[4]) for i, r in enumerate(rows) if r[4] is not None]
    if known:
        axes.plot(*zip(*known, strict=True), "_", color="black", markersize=14, label="clean reference networks")
        axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    axes.set_xticks(range(len(rows)), [_label(r[0], r[1]) for r in rows], rotation=45, ha="right", fontsize=8)
    axes.set_ylabel(
        "L1 norm of the smallest mask (pixels)"
        if detector and detector["statistic"] == "l1"
        else f"{detector['name']}: {detector['statistic']}"
        if detector
        else "statistic"
    )
    axes.set_title(f"{visible(Path(report['model']['path']).name)}: {report['verdict']}", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def sheet(units: Sequence[UnitEvidence], targets: set[int], report: dict[str, Any]) -> Figure:
    """The trigger of every class, as it looks on a grey image."""
    # One trigger for all classes has a row for each pair that it makes; it is one picture.
    shared = [u for u in units if u.unit.shared]
    units = sorted([u for u in units if not u.unit.shared] + shared[:1], key=_value)[:MOST_BARS]
    columns = min(10, len(units))
    rows = -(-len(units) // columns)
    figure = _figure(figsize=(1.3 * columns, 1.7 * rows), dpi=120)
    grid = figure.subplots(rows, columns, squeeze=False)
    # Placed by hand, which is faster than matplotlib's own layout of many small pictures.
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=1 - 0.4 / (1.7 * rows), wspace=0.08, hspace=0.45)
    for axes in grid.flat:
        axes.axis("off")
    for axes, unit in zip(grid.flat, units, strict=False):
        _show(axes, trigger_alone(unit.trigger))
        k = unit.unit.target
        axes.set_title(
            f"{'to several' if unit.unit.shared else _pair(unit, report)}\n{_value(unit):.3g}",
            y=_ABOVE,
            fontsize=7,
            color=ACCENT if k in targets else "black",
        )
    return figure


def trigger_sheet(unit: UnitEvidence, samples: Samples, report: dict[str, Any]) -> Figure:
    """One trigger: alone, its mask, and four clean images before and after."""
    rows = np.flatnonzero(samples.labels != unit.unit.target)
    rows = rows[np.linspace(0, len(rows) - 1, min(4, len(rows))).astype(int)]
    before = samples.images[rows]
    after = stamp(before, unit.trigger)
    panels: list[tuple[str, np.ndarray]] = [("trigger", trigger_alone(unit.trigger))]
    if "mask" in unit.trigger:
        panels.append(("mask", unit.trigger["mask"]))
    k = unit.unit.target
    figure = _figure(figsize=(1.5 * (1 + len(rows)), 3.8), dpi=120)
    grid = figure.subplots(2, 1 + len(rows), squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.82, wspace=0.08, hspace=0.18)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (title, image) in zip(grid[:, 0], panels, strict=False):
        _show(axes, image)
        axes.set_title(title, y=_ABOVE, fontsize=8, color=ACCENT)
    for j, row in enumerate(rows):
        _show(grid[0, 1 + j], before[j])
        _show(grid[1, 1 + j], after[j])
        label = int(samples.labels[row])
        grid[0, 1 + j].set_title(visible(report["classes"][label]["name"][:16]), y=_ABOVE, fontsize=8)
        grid[1, 1 + j].set_title("with trigger", y=_ABOVE, fontsize=8)
    rate = "" if unit.held_out_success is None else f": sends {unit.held_out_success:.0%} of unseen images there"
    figure.suptitle(f"trigger to {_label(k, report['classes'][k]['name'])}{rate}", fontsize=9)
    return figure


def trigger_alone(trigger: dict[str, np.ndarray] | Any) -> np.ndarray:
    """A trigger on middle grey, ``(channels, height, width)`` in [0, 1]; an additive one is stretched to be visible."""
    if "mask" in trigger:
        mask, pattern = trigger["mask"], trigger["pattern"]
        return np.asarray((1 - mask) * 0.5 + mask * pattern)
    delta = trigger["delta"]
    return np.asarray(0.5 + 0.5 * delta / max(float(np.abs(delta).max()), 1e-9))


def save_image(path: Path, image: np.ndarray) -> None:
    """Pixels ``(channels, height, width)`` in [0, 1] as PNG, one pixel a pixel."""
    array = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def _figure(**settings: Any) -> Figure:
    """An empty figure that draws itself into memory."""
    # Imported here: matplotlib takes a second, and a scan opens and searches before it draws.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(**settings)
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as PNG bytes, without the date and version that would make every file differ."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _write(path: Path, figure: Figure) -> Path:
    write_atomically(path, png(figure))
    return path


def _show(axes: Any, image: np.ndarray) -> None:
    pixels = np.clip(np.asarray(image, np.float32), 0, 1).transpose(1, 2, 0)
    if pixels.shape[-1] == 1:
        axes.imshow(pixels[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(pixels, interpolation="nearest")


def _pair(unit: UnitEvidence, report: dict[str, Any]) -> str:
    """The class, or "source to class"."""
    k, source = unit.unit.target, unit.unit.source
    label = _label(k, report["classes"][k]["name"])
    return label if source is None else f"{source} to {label}"


def _label(index: int, name: str) -> str:
    return str(index) if name == str(index) else f"{index} {visible(name[:14])}"
