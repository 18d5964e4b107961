"""Charts as inline SVG, drawn from the JSON alone. Colours are classes of the page's style sheet, so that they follow its theme.

Every chart is WIDTH units wide, so that on a phone its letters are about as large as the text beside it, and grows with the
page up to a limit that the style sheet sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from onnxspect.engine.report import words

WIDTH = 360
#: Classes shown in rows; of more, all are shown on one line.
MOST_ROWS = 24
_ROW, _LEFT, _RIGHT, _TOP = 20, 104, 12, 6
#: Letters of a class name that fit beside its row.
_LETTERS = 15


@dataclass(frozen=True)
class Scale:
    """From values to units along an axis.

    Attributes:
        low, high: of the values.
        start, end: of the axis.
        log: on a logarithmic scale; all values are positive then.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float) -> Scale:
        """One that holds all values, with a little room; logarithmic where they are positive and far apart."""
        low, high = min(values), max(values)
        if low > 0 and high / low > 5:
            return cls(low / 1.25, high * 1.25, start, end, log=True)
        room = 0.06 * ((high - low) or abs(high) or 1.0)
        return cls(low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = (math.log(v) for v in (value, low, high))
        return round(self.start + (self.end - self.start) * (value - low) / (high - low), 2)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values on the axis."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 5), (1, 3), (1,)):
                found = [m * 10.0**d for d in decades for m in steps if self.low <= m * 10.0**d <= self.high]
                if len(found) <= most:
                    return found
            return found[:: -(-len(found) // most)]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        step = next(step * m for m in (1, 2, 5, 10, 20) if (self.high - self.low) / (step * m) <= most)
        first = math.ceil(self.low / step)
        return [round(i * step, 10) for i in range(first, math.floor(self.high / step) + 1)]


def against_references(report: Mapping[str, Any], detector: str) -> Markup:
    """What each class takes in this model (dot) and in the references (bar), by one detector; nothing without a value.

    Up to MOST_ROWS classes have a row each, the most suspicious on top. Of more, all lie on one line, as the ratio of the two.
    """
    rows = [c for c in report["classes"] if c["statistic"].get(detector) is not None]
    if not rows:
        return Markup()
    rows.sort(key=lambda c: (c["p_values"].get(detector, 1.0), c["log10_p"]))
    return _rows(rows, report, detector) if len(rows) <= MOST_ROWS else _line(rows, report, detector)


def _rows(rows: Sequence[Mapping[str, Any]], report: Mapping[str, Any], detector: str) -> Markup:
    values = [c["statistic"][detector] for c in rows]
    known = [r for c in rows if (r := c["reference"].get(detector)) is not None]
    at = Scale.of([*values, *known], _LEFT, WIDTH - _RIGHT)
    height = _TOP + _ROW * len(rows)
    parts = _axis(at, _TOP, height)
    for i, c in enumerate(rows):
        y = _TOP + _ROW * (i + 0.5)
        target = c["index"] in report["targets"]
        kind = "target" if target else "model"
        parts.append(_text(_LEFT - 8, y + 4, _short(c), "end", "name target" if target else "name"))
        reference, value = c["reference"].get(detector), c["statistic"][detector]
        if reference is not None:
            x = at(reference)
            parts.append(f'<line class="gap {kind}" x1="{at(value)}" x2="{x}" y1="{y}" y2="{y}"/>')
            parts.append(f'<rect class="reference" x="{x - 1.5}" y="{y - 6}" width="3" height="12"/>')
        parts.append(f'<circle class="{kind}" cx="{at(value)}" cy="{y}" r="{5 if target else 4}"/>')
    return _svg(parts, height + 18, _told(rows, report, detector))


def _line(rows: Sequence[Mapping[str, Any]], report: Mapping[str, Any], detector: str) -> Markup:
    related = all(c["reference"].get(detector) and c["statistic"][detector] > 0 for c in rows)
    ratios = [(c, c["statistic"][detector] / (c["reference"][detector] if related else 1.0)) for c in rows]
    at = Scale.of([r for _, r in ratios], 14, WIDTH - 14)
    named = [(c, r) for c, r in ratios if c["index"] in report["targets"]]
    top = _TOP + 16 * max(1, min(len(named), 4))
    parts = _axis(at, top, top + 40)
    for c, r in ratios:
        if c["index"] not in report["targets"]:
            parts.append(f'<line class="stroke" x1="{at(r)}" x2="{at(r)}" y1="{top + 6}" y2="{top + 34}"/>')
    for i, (c, r) in enumerate(named[:4]):
        x, y = at(r), _TOP + 16 * i
        end = x > WIDTH / 2
        parts.append(f'<line class="gap target" x1="{x}" x2="{x}" y1="{y + 4}" y2="{top + 20}"/>')
        parts.append(f'<circle class="target" cx="{x}" cy="{top + 20}" r="5"/>')
        parts.append(_text(x + (-6 if end else 6), y + 10, _short(c), "end" if end else "start", "name target"))
    return _svg(parts, top + 58, _told(rows, report, detector))


def _told(rows: Sequence[Mapping[str, Any]], report: Mapping[str, Any], detector: str) -> str:
    """The chart in words."""
    first = [c for c in rows if c["index"] in report["targets"]][:3] or rows[:1]
    parts = []
    for c in first:
        value, reference = c["statistic"][detector], c["reference"].get(detector)
        said = f"class {words.label(c)}: {words.number(value)}"
        parts.append(said if reference is None else f"{said}, references {words.number(reference)}")
    return f"{len(rows)} classes by {detector}; {'; '.join(parts)}. All numbers are in the table of classes."


@dataclass(frozen=True)
class Series:
    """One line of a curve: its name, a class of the style sheet, and its shares (0 to 1), one a point."""

    name: str
    kind: str
    values: Sequence[float]


def curve(x_name: str, x: Sequence[float], series: Sequence[Series], kept: int | None = None) -> Markup:
    """Shares over steps of a patch; nothing where there are fewer than two steps.

    Args:
        x_name: what the steps are.
        x: one value a point, increasing.
        series: the lines.
        kept: index of the point that was taken.
    """
    if len(x) < 2:
        return Markup()
    left, top, bottom = 40, 10, 140
    at = Scale(min(x), max(x), left, WIDTH - 14)
    parts = []
    for level in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _level(level, top, bottom)
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - 14}" y1="{y}" y2="{y}"/>')
        parts.append(_text(left - 6, y + 4, f"{level:.0%}", "end", "tick"))
    for tick in at.ticks(6):
        parts.append(_text(at(tick), bottom + 15, f"{tick:g}", "middle", "tick"))
    parts.append(_text((left + WIDTH - 14) / 2, bottom + 30, x_name, "middle", "tick"))
    if kept is not None and 0 <= kept < len(x):
        parts.append(f'<line class="kept" x1="{at(x[kept])}" x2="{at(x[kept])}" y1="{top}" y2="{bottom}"/>')
    for line in series:
        points = " ".join(f"{at(a)},{_level(v, top, bottom)}" for a, v in zip(x, line.values, strict=True))
        parts.append(f'<polyline class="{line.kind}" points="{points}"/>')
    label = "; ".join(
        f"{line.name} from {words.share(line.values[0], 1)} to {words.share(line.values[-1], 1)}" for line in series
    )
    return _svg(parts, bottom + 36, f"{x_name}, {words.number(x[0])} to {words.number(x[-1])}: {label}.")


def before_and_after(rows: Sequence[tuple[str, float, float, bool]], goal: float | None = None) -> Markup:
    """Shares before and after a patch as pairs of bars.

    Args:
        rows: (name, before, after, whether less is better).
        goal: a share that is marked, for rows of which less is better.
    """
    at = Scale(0.0, 1.0, 6, WIDTH - 44)
    parts, y = [], 4.0
    for name, before, after, less in rows:
        parts.append(_text(6, y + 12, name, "start", "name"))
        for i, (value, kind) in enumerate(((before, "before"), (after, "bad-after" if less else "good-after"))):
            top = y + 18 + 14 * i
            parts.append(f'<rect class="rail" x="6" y="{top}" width="{WIDTH - 50}" height="10"/>')
            parts.append(f'<rect class="{kind}" x="6" y="{top}" width="{max(at(value) - 6, 0.8)}" height="10"/>')
            parts.append(_text(WIDTH - 4, top + 9, words.share(value, 1), "end", "tick"))
        if less and goal is not None:
            parts.append(f'<line class="kept" x1="{at(goal)}" x2="{at(goal)}" y1="{y + 16}" y2="{y + 44}"/>')
        y += 54
    label = "; ".join(f"{name}: {words.share(b, 1)} before, {words.share(a, 1)} after" for name, b, a, _ in rows)
    return _svg(parts, y, f"{label}.")


def _level(value: float, top: float, bottom: float) -> float:
    return round(bottom - (bottom - top) * min(max(value, 0.0), 1.0), 2)


def _axis(at: Scale, top: float, bottom: float) -> list[str]:
    parts = []
    for tick in at.ticks():
        parts.append(f'<line class="grid" x1="{at(tick)}" x2="{at(tick)}" y1="{top}" y2="{bottom}"/>')
        parts.append(_text(at(tick), bottom + 14, f"{tick:g}", "middle", "tick"))
    return parts


def _short(c: Mapping[str, Any]) -> str:
    text = str(c["index"]) if c["name"] == str(c["index"]) else f"{c['index']} {c['name']}"
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], height: float, label: str) -> Markup:
    """The parts are markup already; every text among them was escaped by `_text`."""
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(parts) + "</svg>")
