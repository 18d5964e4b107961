"""What a fleet of models takes on a cluster: a simulation of the scheduler of engine/fleet, task by task.

    python benchmarks/fleet_scheduling.py [--models 100000] [--slots 10000] [--out FILE]

Each group of models (same data, same settings) sends one ahead, which asks for references; they are made; then its models
are free. Slots fail at a rate, and their task begins anew. Durations are drawn log-normal about a mean. The defaults are those of
docs/many-models.md, where the arithmetic is.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Fleet:
    """What is simulated; times in seconds.

    Attributes:
        models, groups, slots: how many; models are divided evenly among groups.
        search: a scan with its references at hand, mean.
        references: the making of them, mean.
        start: what every task takes before it works.
        spread: standard deviation of the logarithm of a duration.
        mean_life: of a slot, until it fails.
        repair: until a failed slot is back.
    """

    models: int
    groups: int
    slots: int
    search: float
    references: float
    start: float
    spread: float
    mean_life: float
    repair: float


def simulate(fleet: Fleet, seed: int = 0) -> dict[str, Any]:
    """Play it to its end."""
    rng = random.Random(seed)

    def drawn(mean: float) -> float:
        return mean * rng.lognormvariate(-(fleet.spread**2) / 2, fleet.spread)

    left = {g: fleet.models // fleet.groups + (g < fleet.models % fleet.groups) for g in range(fleet.groups)}
    ready: deque[tuple[str, int]] = deque(("asks", g) for g in left if left[g])
    # Slots that are free; those that are busy or being repaired are events: (time, number, kind, group).
    free, events, number, now = fleet.slots, [], 0, 0.0
    useful = lost = 0.0
    done = retries = 0
    last = 0.0
    while done < fleet.models:
        while free and ready:
            kind, group = ready.popleft()
            free -= 1
            wanted = (
                fleet.start + {"asks": 0.0, "references": drawn(fleet.references), "scan": drawn(fleet.search)}[kind]
            )
            fails = rng.expovariate(1 / fleet.mean_life)
            number += 1
            if fails < wanted:
                heapq.heappush(events, (now + fails, number, f"lost {kind}", group))
                lost += fails
            else:
                heapq.heappush(events, (now + wanted, number, kind, group))
                useful += wanted - fleet.start
        now, _, kind, group = heapq.heappop(events)
        if kind == "repaired":
            free += 1
        elif kind.startswith("lost "):
            retries += 1
            ready.append((kind.removeprefix("lost "), group))
            number += 1
            heapq.heappush(events, (now + fleet.repair, number, "repaired", group))
        else:
            free += 1
            if kind == "asks":
                ready.appendleft(("references", group))
            elif kind == "references":
                ready.extend([("scan", group)] * left[group])
            else:
                done += 1
                last = now
    ideal = (fleet.models * fleet.search + fleet.groups * fleet.references) / fleet.slots
    return {
        "hours": round(last / 3600, 2),
        "ideal_hours": round(ideal / 3600, 2),
        "slot_hours": round(fleet.slots * last / 3600),
        "utilisation": round(useful / (fleet.slots * last), 3),
        "tasks_begun_anew": retries,
        "share_lost": round(lost / (useful + lost), 4),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it for several numbers of groups."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("models", 100_000), ("slots", 10_000), ("search", 600.0), ("references", 1800.0), ("start", 8.0), ("spread", 0.5),
        ("mean-life", 30 * 86400.0), ("repair", 600.0), ("seed", 0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--groups", type=int, nargs="*", default=[1, 100, 10_000])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    found = {}
    for groups in asked.groups:
        fleet = Fleet(
            asked.models, groups, asked.slots, asked.search, asked.references, asked.start, asked.spread,
            asked.mean_life, asked.repair,
        )  # fmt: skip
        found[groups] = simulate(fleet, asked.seed)
        print(f"{groups} groups: {found[groups]}", flush=True)
    if asked.out:
        settings = {k: v for k, v in vars(asked).items() if k != "out"}
        asked.out.write_text(json.dumps({"settings": settings, "groups": found}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
