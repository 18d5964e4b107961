"""Text for people: untrusted names made safe to print, and sizes in readable units. Imports no framework."""

from __future__ import annotations


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


def readable_bytes(n: int) -> str:
    """`n` bytes as "512 B", "3.2 MiB", "1.0e+05 TiB"."""
    size = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB" if size < 10_000 else f"{size:.1e} TiB"
