"""Command lines as they were written before an option took a value: scripts that hold them go on working.

`--resize` was a flag, and is one still where no way follows it: it may stand before MODEL, before another option, or at the end.
Methods and their settings have their older names in engine/mitigation/registry.py, and `cleanse` has its in engine/cleansing/by_presence.py.
"""

from __future__ import annotations

from collections.abc import Sequence

#: What may follow --resize, beside a number of pixels.
WAYS = ("try", "crop", "stretch")


def understood(arguments: Sequence[str]) -> list[str]:
    """The same command line, every option with its value."""
    found: list[str] = []
    for i, word in enumerate(arguments):
        if word == "--":
            return [*found, *arguments[i:]]
        following = arguments[i + 1] if i + 1 < len(arguments) else ""
        alone = word == "--resize" and following not in WAYS and not following.isdecimal()
        found.append("--resize=try" if alone else word)
    return found
