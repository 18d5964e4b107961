"""Text for people: untrusted names made safe to print, and sizes in readable units. Imports no framework."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any


def printable(name: str, limit: int = 80) -> str:
    """An untrusted name made safe to print.

    Escape codes, right-to-left marks, look-alike letters and line ends are escaped (so the result is one line of
    printable ASCII), and what is longer than `limit` characters is cut before escaping, so a name of a megabyte
    costs nothing.
    """
    text = "".join(
        c if c.isascii() and c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name[:limit]
    )
    return text + ("..." if len(name) > limit else "")


def visible(text: str) -> str:
    """Untrusted text as people may read it, in any script, on one line.

    Whatever a terminal, a page or a reader's eye would obey is escaped: control characters and escape codes, line ends,
    marks that turn the direction of writing, invisible letters, halves of surrogate pairs (bytes of a path that are not UTF-8).
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def sarif_text(text: str) -> str:
    """Visible text that no viewer of SARIF takes for a link or a placeholder (SARIF 2.1.0, 3.11.5 and 3.11.6)."""
    return re.sub(r"([\\\[\]])", r"\\\1", visible(text)).replace("{", "{{").replace("}", "}}")


def well_formed(value: Any) -> Any:
    """A document in which every text can be written as UTF-8: a path may hold bytes that are not, as halves of pairs."""
    return _each(value, lambda text: text.encode("utf-8", "backslashreplace").decode("utf-8"))


def all_visible(value: Any) -> Any:
    """A document in which every text is `visible`; names of fields are left as they are."""
    return _each(value, visible)


def _each(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {k: _each(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_each(v, change) for v in value]
    return change(value) if isinstance(value, str) else value


def readable_bytes(n: int) -> str:
    """`n` bytes as "512 B", "3.2 MiB", "1.0e+05 TiB"."""
    size = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB" if size < 10_000 else f"{size:.1e} TiB"
