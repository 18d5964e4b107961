"""A measurement: one statistic of one unit, with all that it is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

#: Name of the statistic that says how often a trigger works on the reference networks.
TRANSFER = "transfer"


class Search(StrEnum):
    """How a value was searched: values are compared only where they were searched on equal terms."""

    #: In full, all units of the detector's plan: from all other classes to one, as a rule.
    FULL = "full"
    #: In full, the most suspicious source class of each target.
    PAIR = "pair"
    #: A screening search: few steps, or on few images.
    SCOUT = "scout"
    #: One trigger for all classes, wherever it leads.
    SHARED = "shared"


@dataclass(frozen=True)
class Measurement:
    """One statistic of one unit.

    Attributes:
        statistic: what was measured, e.g. "l1".
        value: of the scanned model.
        search: how it was searched.
        carried: it was not searched for but rescaled from a scouted value.
        baselines: the same on each clean reference network ``(reference,)``, NaN where it was not found there; none where there
            are no references.
        reference: what is normal: the baselines' geometric mean, or the units' median where no baseline is known; None without.
        spread: deviation of the baselines' logarithms, the mean over all units of the search; None with fewer than two references.
        reliability: share of the variance between the units' references that is not the spread's; None as `spread`.
    """

    statistic: str
    value: float
    search: Search = Search.FULL
    carried: bool = False
    baselines: tuple[float, ...] = ()
    reference: float | None = None
    spread: float | None = None
    reliability: float | None = None

    @property
    def relative(self) -> float | None:
        """Its ratio to what is normal; None where that is not known."""
        return None if self.reference is None else self.value / self.reference

    def rescaled(self, factor: float, search: Search) -> Measurement:
        """The same times a factor, to stand among values of another search."""
        return replace(self, value=self.value * factor, search=search, carried=True)

    def describe(self) -> dict[str, Any]:
        """As plain JSON values; what has its usual value is left out, and NaN becomes None."""
        row: dict[str, Any] = {"statistic": self.statistic, "value": _plain(self.value)}
        if self.search is not Search.FULL:
            row["search"] = str(self.search)
        if self.carried:
            row["carried"] = True
        if self.baselines:
            row["baselines"] = [_plain(v) for v in self.baselines]
        for name in ("reference", "spread", "reliability"):
            if getattr(self, name) is not None:
                row[name] = _plain(getattr(self, name))
        return row

    @classmethod
    def described(cls, row: Mapping[str, Any]) -> Measurement:
        """What `describe` wrote.

        Raises:
            KeyError, TypeError, ValueError: the row is not one.
        """
        return cls(
            str(row["statistic"]),
            _number(row["value"]),
            Search(row.get("search", Search.FULL)),
            bool(row.get("carried", False)),
            tuple(_number(v) for v in row.get("baselines", ())),
            *(None if row.get(name) is None else float(row[name]) for name in ("reference", "spread", "reliability")),
        )


def measured(**values: float) -> tuple[Measurement, ...]:
    """Bare values by the name of their statistic, as measurements of full searches."""
    return tuple(Measurement(name, value) for name, value in values.items())


def _plain(value: float) -> float | str | None:
    """JSON has neither NaN nor infinity."""
    number = float(value)
    if np.isnan(number):
        return None
    return number if np.isfinite(number) else ("inf" if number > 0 else "-inf")


def _number(value: float | str | None) -> float:
    return float("nan") if value is None else float(value)
