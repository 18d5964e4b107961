"""What a finished scan found, as patches, proofs and reports take it: the trigger to each class, out of the run's ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.evidence import UnitEvidence, foremost
from onnxspect.engine.judge.thresholds import HELD_OUT_SUCCESS
from onnxspect.engine.judge.traits import Traits
from onnxspect.engine.judge.verdict import speaks_for
from onnxspect.engine.subject.finished_scan import FinishedScan
from onnxspect.engine.trigger import UNTARGETED, Aimed, Trigger

#: The detector whose triggers wake parts of the graph.
GRAPH_LOGIC = "graph-logic"


@dataclass(frozen=True)
class RecoveredTriggers:
    """What a finished scan says, as a patch needs it.

    Attributes:
        scan: what it left.
        triggers: the trigger of every named class, or of those asked for.
        evidence: ids of the evidence.
        by_logic: some trigger wakes dormant logic of the graph, and the weights may be clean.
    """

    scan: FinishedScan
    triggers: tuple[Trigger, ...]
    evidence: str
    by_logic: bool = False


def read_recovered(folder: Path, targets: Sequence[int] | None = None) -> RecoveredTriggers:
    """The finished scan in a run folder.

    Args:
        folder: of the run.
        targets: classes whose triggers are taken; those that the scan named by default.

    Raises:
        OnnxspectError: no run there, not finished, or a class is asked for to which no search led.
    """
    scan = FinishedScan.read(folder)
    classes = scan.report["classes"]
    wanted = list(scan.targets if targets is None else targets)
    unknown = [t for t in wanted if t >= len(classes)]
    if unknown:
        raise OnnxspectError(
            f"{folder}: class {unknown[0]}, but the model has {len(classes)} classes",
            f"indices from 0 to {len(classes) - 1}",
        )
    triggers: list[Trigger] = []
    ids = []
    by_logic = False
    for detector in scan.report["detectors"]:
        if detector["status"] != "ran":
            continue
        ids.append(detector["evidence"])
        name = detector["name"]
        traits = scan.traits[name]
        units = carried(traits, scan.units[name])
        speaking = [t for t in wanted if traits.leads_to_target and speaks_for(classes[t]["p_values"], name)]
        # What the scan named may be one trigger to many classes; what the user names is every class for itself.
        shared = _shared(units, speaking) if targets is None else []
        found = shared or [t for k in speaking if (t := trigger_to(units, k, detector["statistic"])) is not None]
        by_logic |= name == GRAPH_LOGIC and bool(found)
        triggers += [replace(t, smallest=traits.smallest) for t in found]
    missing = sorted(set(wanted) - {t.target for t in triggers})
    if targets is not None and missing:
        raise OnnxspectError(
            f"{folder}: the scan found no trigger to class {', '.join(map(str, missing))}",
            "name classes that it has triggers to (triggers.npz), or scan with another preset",
        )
    return RecoveredTriggers(scan, tuple(triggers), "+".join(ids), by_logic)


def trigger_to(units: Sequence[UnitEvidence], target: int, statistic: str) -> Trigger | None:
    """The foremost trigger to a class that can be stamped, of those that work on unseen samples; None where there is none.

    Only one of a detector: of several sources or taps the others are what any clean model has. Small is what is small
    for that class on the clean references, where there are any.
    """
    own = [u for u in units if u.unit.target == target and u.found and u.measurement(statistic) is not None]
    able = [u for u in own if u.held_out_success is None or u.held_out_success >= HELD_OUT_SUCCESS] or own
    return next((u.stampable for u in foremost(able, statistic) if u.stampable is not None), None)


def _shared(units: Sequence[UnitEvidence], targets: Sequence[int]) -> list[Trigger]:
    """The one trigger that leads every class to another, where it leads to several of the classes in question.

    It then stands for all of them: the smallest trigger to each of an all-to-all backdoor's targets is what a clean model
    has too. An all-to-one backdoor's shared trigger leads to one class, and that class's own trigger serves.
    """
    rows = [u for u in units if u.unit.shared and u.unit.target in targets]
    if len({u.unit.target for u in rows}) < 2:
        return []
    trigger = rows[0].stampable
    return [] if trigger is None else [Trigger(UNTARGETED, trigger.arrays)]


def carried(traits: Traits, units: Sequence[UnitEvidence]) -> list[UnitEvidence]:
    """Of a detector that reads triggers off the training set, and so has one for every class, those that lead somewhere."""
    if traits.smallest:
        return list(units)
    return [u for u in units if (u.held_out_success or 0.0) >= HELD_OUT_SUCCESS]


def named(triggers: Sequence[Trigger]) -> dict[str, Aimed]:
    """Recovered triggers as `verify` takes them: each under a name of its own."""
    by_name: dict[str, Aimed] = {}
    for t in triggers:
        aim = "other" if t.target == UNTARGETED else t.target
        name = f"recovered-{aim}" if t.source is None else f"recovered-{t.source}-to-{t.target}"
        while name in by_name:
            name += "'"
        by_name[name] = t
    return by_name
