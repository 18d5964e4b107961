"""What was found for one unit, as it is found in a run folder: untrusted text until its shape is checked."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

_Class = Annotated[int, Meta(ge=-1, lt=1 << 24)]
_Count = Annotated[int, Meta(ge=0, le=2**53)]
_Share = Annotated[float, Meta(ge=0, le=1)]


_Value = float | Literal["inf", "-inf"] | None


class _Measurement(msgspec.Struct):
    statistic: str
    value: _Value
    search: Literal["full", "pair", "scout", "shared"] = "full"
    carried: bool = False
    baselines: list[_Value] = []
    reference: float | None = None
    spread: float | None = None
    reliability: float | None = None


class _Row(msgspec.Struct):
    target: _Class
    source: _Class | None
    tap: str
    found: bool
    converged: bool
    steps: _Count
    search_success: _Share
    held_out_success: _Share | None
    held_out: _Count
    seconds: Annotated[float, Meta(ge=0)]
    shared: bool = False
    measurements: list[_Measurement] = []
    statistics: dict[str, float] = {}  # in place of measurements, of versions up to 0.1.0


def checked_row(text: str) -> dict[str, Any]:
    """The fields of a unit that a text holds; those that are not known here are left as they are.

    Raises:
        ValueError: it is no such row: one line that says where.
    """
    try:
        row = json.loads(text)
        known = msgspec.convert(row, _Row)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(f"a unit: {str(error) or 'nested too deeply'}") from None
    if any(math.isnan(v) for v in (known.search_success, known.held_out_success or 0.0, known.seconds)):
        raise ValueError("a unit: a share or a time that is no number")
    return dict(row)


def checked_arrays(text: str) -> dict[str, str]:
    """The digests of a unit's arrays by name.

    Raises:
        ValueError: it holds something else.
    """
    try:
        return msgspec.convert(json.loads(text), dict[str, str])
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(f"a unit's arrays: {str(error) or 'nested too deeply'}") from None
