"""What versions up to 0.1.0 kept: statistics by names with prefixes, detectors without traits. Read, never written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxspect.engine.judge.measurement import Measurement, Search
from onnxspect.engine.judge.traits import Family, Traits

#: Prefixes of the names of searches on other terms than a detector's plan, "all_" beside pairs.
_SEARCHES = {"all_": Search.FULL, "pair_": Search.PAIR, "scout_": Search.SCOUT, "shared_": Search.SHARED}
#: Of a value that is no measurement but stands beside one.
_BESIDE = ("reference_", "relative_", "spread_", "reliability_")
_TRAITS = {
    "neural-cleanse": Traits(Family.REPLACED),
    "reverse-engineering": Traits(Family.ADDED),
    "cepa": Traits(Family.SAMPLE_WISE),
    "max-margin": Traits(Family.ANY_INPUT, references=False, convicts=False, validated=False),
    "dtinspector": Traits(Family.SAMPLES, references=False, leads_to_target=False, validated=False),
    "graph-logic": Traits(Family.GRAPH, references=False, tested=True),
    "training-difference": Traits(Family.SAMPLES, references=False, training_set=True, smallest=False),
}


def traits_of(detector: Mapping[str, Any]) -> Traits:
    """The traits of a detector, given its row of a report: those that it had, where they were not kept."""
    kept = detector.get("traits")
    return _TRAITS.get(detector["name"], Traits()) if kept is None else Traits.described(kept)


def measurements_of(statistics: Mapping[str, float]) -> tuple[Measurement, ...]:
    """Measurements of a unit, from statistics by prefixed names; baselines of the single references were not kept.

    A scouted unit that was then searched in full kept what is normal for the full search alone; the scouted value's own
    is then worked out from its ratio.
    """
    carried_over = "carried_over" in statistics
    names = [n for n in statistics if n != "carried_over" and not n.startswith(_BESIDE)]
    prefixed = {n: p for n in names for p in _SEARCHES if n.startswith(p)}
    in_full = {n.removeprefix(p) for n, p in prefixed.items() if _SEARCHES[p] is not Search.SCOUT or not carried_over}
    found = []
    for name in names:
        prefix = prefixed.get(name, "")
        if not prefix and name in in_full:
            continue  # the raw value of one that is kept with its search
        statistic, search = name.removeprefix(prefix), _SEARCHES.get(prefix, Search.FULL)
        carried = carried_over and search is Search.FULL
        reference = _normal(statistics, name, statistic, carried)
        known = reference is not None
        found.append(
            Measurement(
                statistic,
                statistics[name],
                search,
                carried,
                (),
                reference,
                statistics.get(f"spread_{statistic}") if known else None,
                statistics.get(f"reliability_{statistic}") if known else None,
            )
        )
    return tuple(found)


def _normal(statistics: Mapping[str, float], name: str, statistic: str, carried: bool) -> float | None:
    """What is normal for the named value; None where no reference was."""
    kept, relative = statistics.get(f"reference_{statistic}"), statistics.get(f"relative_{name}")
    if carried or kept is None:
        return kept
    if relative is None:
        return None
    return kept if statistics[name] / kept == relative else statistics[name] / relative
