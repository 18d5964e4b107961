"""Words and numbers that several sections share."""

from __future__ import annotations


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def classes(indices: list[int]) -> str:
    return "-" if not indices else "all" if len(indices) > 9 else ", ".join(map(str, indices))
