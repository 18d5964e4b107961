"""Numbers in words, for people who decide: chances, places, multiples."""

from __future__ import annotations

import datetime
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from onnxspect.converters.text import visible

#: Chances below this are not told apart: no null model is true that far out.
LEAST_CHANCE = 1e-9
#: A trigger that works on clean networks at least this often, as a share of how often it works here, is partly natural.
NATURAL = 0.5
_LARGE = ((1e9, "billion"), (1e6, "million"))


def chance(p: float) -> str:
    """How often a clean model would look at least this suspicious, as the end of a sentence: "about one clean model in 7 million".

    Args:
        p: a corrected p-value, in [0, 1].
    """
    if p >= 0.95:
        return "practically every clean model"
    if p > 0.1:
        return f"about {round(10 * p)} of 10 clean models"
    if p < LEAST_CHANCE:
        return "fewer than one clean model in a billion"
    return f"about one clean model in {_rounded(1 / p)}"


def probability(calibration: Mapping[str, Any] | None) -> str:
    """P(backdoored) with its prior, from a report's `calibration`: "99.8 %, if one model in 10 has a backdoor"; "" where there is none."""
    if calibration is None or calibration["p_backdoored"] is None:
        return ""
    prior = calibration["prior"]
    usual = f"one model in {_rounded(1 / prior)}" if 0 < prior < 0.4 else f"{share(prior)} of all models"
    return f"{share(calibration['p_backdoored'], 1)}, if {usual} {'has' if 0 < prior < 0.4 else 'have'} a backdoor"


def _rounded(n: float) -> str:
    """A number above 1 to one digit where it is large: 14, 70, 8,000, 7 million."""
    digits = 0 if n < 20 else -math.floor(math.log10(n))
    whole = round(n, digits)
    for size, name in _LARGE:
        if whole >= size:
            return f"{whole / size:g} {name}"
    return f"{whole:,.0f}"


def number(value: float | None, digits: int = 3) -> str:
    """A measured number to so many digits; a dash for None. Whole thousands are grouped, very small ones in powers of ten."""
    if value is None:
        return "–"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e7):
        return f"{value:.{digits - 1}g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def share(value: float | None, digits: int = 0) -> str:
    """A share as a percentage; never rounded up to all, nor down to none."""
    if value is None:
        return "–"
    if 0 < value < 0.5 * 10.0 ** (-digits - 2):
        return f"under {10.0**-digits:g} %"
    if 1 > value > 1 - 0.5 * 10.0 ** (-digits - 2):
        return f"over {100 - 10.0**-digits:g} %"
    return f"{100 * value:.{digits}f} %"


def transfer(row: Mapping[str, Any]) -> str:
    """What a named class's trigger does on the clean reference networks, in a sentence; "" where it was not tried there.

    Args:
        row: of a report's `found`.
    """
    on_references, here = row.get("on_references"), row["held_out_success"]
    if on_references is None or not here:
        return ""
    fact = f"On clean networks that were trained on the same samples the trigger leads {share(on_references)} there"
    if on_references < NATURAL * here:
        return f"{fact}: it is this model that answers to it."
    return f"{fact} too: a part of it is what the class looks like by nature."


def times(ratio: float) -> str:
    """A ratio above or below 1: "6.4 times smaller", "1.2 times larger"."""
    if ratio <= 0 or not math.isfinite(ratio):
        return "not comparable"
    if 0.95 <= ratio <= 1.05:
        return "about as large"
    larger = max(ratio, 1 / ratio)
    return f"{number(larger, 2)} times {'larger' if ratio > 1 else 'smaller'}"


def place(box: Mapping[str, int], size: Sequence[int]) -> str:
    """Where a box lies in an image of (height, width): "in the lower right corner"; "all over the image" for a large one."""
    height, width = size
    if box["height"] * box["width"] > 0.5 * height * width:
        return "all over the image"
    row = _third(box["top"] + box["height"] / 2, height, ("upper", "middle", "lower"))
    column = _third(box["left"] + box["width"] / 2, width, ("left", "middle", "right"))
    if row == column == "middle":
        return "in the middle of the image"
    if column == "middle":
        return f"at the {row} edge"
    if row == "middle":
        return f"on the {column} side"
    return f"in the {row} {column} corner"


def _third(at: float, size: int, names: tuple[str, str, str]) -> str:
    return names[min(2, int(3 * at / size))]


def label(row: Mapping[str, Any]) -> str:
    """A class as people call it: "7, Sneaker"; the index alone where it has no name."""
    return str(row["index"]) if row["name"] == str(row["index"]) else f"{row['index']}, {visible(row['name'])}"


def listed(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def seconds(value: float) -> str:
    """A duration: "12 s", "3 min", "2.5 h"."""
    if value < 100:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 6000 else f"{value / 3600:.1f} h"


def day(stamp: str) -> str:
    """A time of the report in words: "26 November 2026, 23:10 UTC"; as it is where it is none."""
    try:
        at = datetime.datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
    except ValueError:
        return stamp
    return f"{at.day} {_MONTHS[at.month - 1]} {at.year}, {at:%H:%M} UTC"


_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def command(*parts: str) -> str:
    """A command line that a POSIX shell reads as these words, whatever is in them."""
    return shlex.join(parts)


def path(name: str, stand_in: str) -> str:
    """A path as an argument: one that a reader could not see as it is, or that a command would take for an option, is changed.

    Args:
        name: it may come from an untrusted report.
        stand_in: what is shown in place of a name with control or invisible characters, and of none.
    """
    if not name or not name.isprintable():
        return stand_in
    return f"./{name}" if name.startswith("-") else name
