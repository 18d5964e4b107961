"""Durations: what people write is read, what cannot be meant is refused."""

from __future__ import annotations

import pytest

from onnxspect.engine.durations import in_words, parse_duration
from onnxspect.engine.errors import OnnxspectError


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5h", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-3m", "soon", "10 parsecs", "m", "nan"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(OnnxspectError, match="no duration"):
        parse_duration(text)


def test_in_words() -> None:
    assert [in_words(s) for s in (40, 720, 12_600)] == ["40 s", "12 min", "3.5 h"]
