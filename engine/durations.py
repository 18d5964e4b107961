"""Durations as people write and read them."""

from __future__ import annotations

import math
import re

from onnxspect.engine.errors import OnnxspectError


def parse_duration(text: str) -> float:
    """Seconds of "90", "90s", "10m", "1h30m".

    Raises:
        OnnxspectError: it is none, or not positive.
    """
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip().lower())
    seconds = 0.0
    if parts is not None:
        seconds = sum(float(v) * u for v, u in zip(parts.groups(), (3600.0, 60.0, 1.0), strict=True) if v)
    if not seconds > 0 or not math.isfinite(seconds):
        raise OnnxspectError(f"{text!r:.40} is no duration", "such as 90s, 10m or 1h30m")
    return seconds


def in_words(seconds: float) -> str:
    """A duration as people say it: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
