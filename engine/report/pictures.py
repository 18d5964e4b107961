"""The pictures of a run: each suspicious trigger, all triggers side by side, and the statistic per class as bars."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from onnxspect.converters.text import visible
from onnxspect.engine.judge.evidence import Evidence, Skipped, UnitEvidence
from onnxspect.engine.judge.thresholds import ALPHA
from onnxspect.engine.report.measured import difference
from onnxspect.engine.store import write_atomically
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.trigger import DISPLACEMENT, stamp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Classes shown at most in one chart: the most suspicious ones.
MOST_BARS = 40
#: Plain images: of so many named classes, on so many clean images each, thinned out to at most so many pixels a side.
MOST_FOUND, EXAMPLES, SIDE = 4, 3, 256
ACCENT, CALM = "#c0392b", "#7f8c8d"
#: Of a sheet of small pictures: inches between two, a line's height in letters' heights, points an inch.
_GAP, _LINE, _POINTS = 0.08, 1.4, 72


def draw(report: dict[str, Any], evidence: Sequence[Evidence | Skipped], samples: Samples, folder: Path) -> list[Path]:
    """Write classes.png, and for each detector with triggers triggers.png and trigger-class-N.png for every target.

    The first detector's files have these names; the others' carry the detector's name too. Of the trigger that a report's
    `found` names there are plain images too, for the page. Returns what was written.
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
    written = [_write(folder / "classes.png", bars(report)), *_found(report, evidence, samples, folder)]
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


def _found(
    report: dict[str, Any], evidence: Sequence[Evidence | Skipped], samples: Samples, folder: Path
) -> list[Path]:
    """found-N-trigger.png, and found-N-K-from-L-{before,after,change}.png for up to EXAMPLES clean images of classes L."""
    written = []
    for row in report.get("found", ())[:MOST_FOUND]:
        k, name = row["class"], row["detector"]
        units = [u for e in evidence if isinstance(e, Evidence) and e.detector == name for u in e.units]
        own = [u for u in units if u.unit.target == k and u.found and u.in_pixels]
        unit = next(
            (u for u in own if u.unit.source == row["source"] and u.held_out_success == row["held_out_success"]), None
        )
        if unit is None:
            continue
        written.append(_small(folder / f"found-{k}-trigger.png", trigger_alone(unit.trigger)))
        for i, before in enumerate(_examples(unit, samples)):
            image, label = samples.images[before : before + 1], int(samples.labels[before])
            after = stamp(image, unit.trigger)
            for part, shown in (("before", image[0]), ("after", after[0]), ("change", difference(image[0], after[0]))):
                written.append(_small(folder / f"found-{k}-{i}-from-{label}-{part}.png", shown))
    return written


def _examples(unit: UnitEvidence, samples: Samples) -> list[int]:
    """Rows of clean images of different classes that the trigger acts on."""
    wanted = samples.labels != unit.unit.target
    if unit.unit.source is not None and (samples.labels == unit.unit.source).any():
        wanted = samples.labels == unit.unit.source
    rows = np.flatnonzero(wanted)
    _, first = np.unique(samples.labels[rows], return_index=True)
    spread = first[np.linspace(0, len(first) - 1, min(EXAMPLES, len(first))).astype(int)] if len(first) else []
    return [int(rows[i]) for i in spread]


def _small(path: Path, image: np.ndarray) -> Path:
    """An image as PNG, at most SIDE pixels high and wide."""
    step = -(-max(image.shape[1:]) // SIDE)
    save_image(path, image[:, ::step, ::step])
    return path


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
    tiles = [
        Tile(
            i // columns,
            i % columns,
            trigger_alone(unit.trigger),
            f"{'to several' if unit.unit.shared else _pair(unit, report)}\n{_value(unit):.3g}",
            ACCENT if unit.unit.target in targets else "black",
        )
        for i, unit in enumerate(units)
    ]
    return _tiled(tiles, size=(1.3, 1.7), title_size=7)


def trigger_sheet(unit: UnitEvidence, samples: Samples, report: dict[str, Any]) -> Figure:
    """One trigger: alone, its mask, and four clean images before and after."""
    rows = np.flatnonzero(samples.labels != unit.unit.target)
    rows = rows[np.linspace(0, len(rows) - 1, min(4, len(rows))).astype(int)]
    before = samples.images[rows]
    after = stamp(before, unit.trigger)
    title = "a grid, warped" if DISPLACEMENT in unit.trigger else "trigger"
    panels: list[tuple[str, np.ndarray]] = [(title, trigger_alone(unit.trigger))]
    if "mask" in unit.trigger:
        panels.append(("mask", unit.trigger["mask"]))
    k = unit.unit.target
    tiles = [Tile(i, 0, image, title, ACCENT) for i, (title, image) in enumerate(panels)]
    for j, row in enumerate(rows):
        name = visible(report["classes"][int(samples.labels[row])]["name"][:16])
        tiles += [Tile(0, 1 + j, before[j], name), Tile(1, 1 + j, after[j], "with trigger")]
    figure = _tiled(tiles, size=(1.5, 1.75), title_size=8, above=0.3)
    rate = "" if unit.held_out_success is None else f": sends {unit.held_out_success:.0%} of unseen images there"
    figure.suptitle(f"trigger to {_label(k, report['classes'][k]['name'])}{rate}", fontsize=9)
    return figure


def trigger_alone(trigger: dict[str, np.ndarray] | Any) -> np.ndarray:
    """A trigger on middle grey, ``(channels, height, width)`` in [0, 1]; an additive one is stretched to be visible, and a warp bends a grid."""
    if "mask" in trigger:
        mask, pattern = trigger["mask"], trigger["pattern"]
        return np.asarray((1 - mask) * 0.5 + mask * pattern)
    if DISPLACEMENT in trigger:
        return stamp(_grid(trigger[DISPLACEMENT].shape[1:]), trigger)
    delta = trigger["delta"]
    return np.asarray(0.5 + 0.5 * delta / max(float(np.abs(delta).max()), 1e-9))


def _grid(size: tuple[int, ...]) -> np.ndarray:
    """Lines on middle grey ``(1, height, width)``, as far apart as a warp shows best."""
    apart = max(3, min(size) // 7)
    picture = np.full((1, *size), 0.5, np.float32)
    picture[:, apart // 2 :: apart] = 1.0
    picture[:, :, apart // 2 :: apart] = 1.0
    return picture


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
    layout = figure.get_layout_engine()
    if layout is not None:  # left to itself matplotlib draws everything once for nothing, and then lays it out
        layout.execute(figure)
        figure.set_layout_engine("none")
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _write(path: Path, figure: Figure) -> Path:
    write_atomically(path, png(figure))
    return path


@dataclass(frozen=True)
class Tile:
    """A small picture of a sheet.

    Attributes:
        row, column: its place.
        image: ``(channels, height, width)`` in [0, 1].
        title: above it.
        colour: of the title.
    """

    row: int
    column: int
    image: np.ndarray
    title: str
    colour: str = "black"


def _tiled(tiles: Sequence[Tile], size: tuple[float, float], title_size: int, above: float = 0.0) -> Figure:
    """Pictures in rows and columns, in one pair of axes: a pair for each takes matplotlib ten times as long.

    Args:
        tiles: what there is.
        size: of a tile with its title, in inches.
        title_size: in points.
        above: inches left free above all.
    """
    wide, high = size
    width, height = wide * (1 + max(t.column for t in tiles)), high * (1 + max(t.row for t in tiles)) + above
    figure = _figure(figsize=(width, height), dpi=120)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), autoscale_on=False)
    axes.axis("off")
    lines = 1 + max(t.title.count("\n") for t in tiles)
    title_height = lines * title_size * _LINE / _POINTS + _GAP
    for tile in tiles:
        pixels = np.clip(np.asarray(tile.image, np.float32), 0, 1).transpose(1, 2, 0)
        scale = min((wide - _GAP) / pixels.shape[1], (high - title_height - _GAP) / pixels.shape[0])
        across, down = scale * pixels.shape[1] / 2, scale * pixels.shape[0]
        middle, top = wide * (tile.column + 0.5), height - above - high * tile.row - title_height
        grey = pixels.shape[-1] == 1
        axes.imshow(
            pixels[..., 0] if grey else pixels,
            cmap="gray" if grey else None,
            vmin=0,
            vmax=1,
            interpolation="nearest",
            aspect="auto",
            extent=(middle - across, middle + across, top - down, top),
        )
        axes.text(middle, top + _GAP / 2, tile.title, ha="center", va="bottom", fontsize=title_size, color=tile.colour)
    axes.set(xlim=(0, width), ylim=(0, height))
    return figure


def _pair(unit: UnitEvidence, report: dict[str, Any]) -> str:
    """The class, or "source to class"."""
    k, source = unit.unit.target, unit.unit.source
    label = _label(k, report["classes"][k]["name"])
    return label if source is None else f"{source} to {label}"


def _label(index: int, name: str) -> str:
    return str(index) if name == str(index) else f"{index} {visible(name[:14])}"
