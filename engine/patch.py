"""From a finished scan to a proven file: the library call behind `onnxspect patch`.

The original is opened, the run's triggers are taken from its ledger, the method changes parameters, the change is
written beside the destination, measured there in onnxruntime, and only then renamed into place. A patch that misses
its goals is not written.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxspect.converters.writeback import Change
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.export import Provenance, patched_model, write_model
from onnxspect.engine.mitigation.unlearn import NAME, Trigger, Unlearn, Unlearned
from onnxspect.engine.mitigation.verify import Goals, Stamp, Verification, verify
from onnxspect.engine.perturbation import stamp
from onnxspect.engine.report.document import tool_version
from onnxspect.engine.run import RunContext, make_deterministic
from onnxspect.engine.samples import Samples
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject import InputSpec, Subject

METHODS = ("auto", NAME)
#: Share of the clean samples that the patch learns from; the rest chooses the epoch and gives the proof.
FIT_SHARE = 0.8
#: Standard errors of slack when a patch is judged on the few samples kept apart: one-sided 95 %.
JUDGED_ON_FEW = 1.645


@dataclass(frozen=True)
class Finding:
    """What a finished scan says, as a patch needs it.

    Attributes:
        report: the scan's report.
        spec: the preprocessing that the scan settled on.
        triggers: the trigger of every named class.
        evidence: ids of the evidence.
    """

    report: dict[str, Any]
    spec: InputSpec
    triggers: tuple[Trigger, ...]
    evidence: str


def read_finding(folder: Path) -> Finding:
    """The finished scan in a run folder.

    Raises:
        OnnxspectError: no run there, or not finished.
    """
    with Ledger(folder) as ledger:
        report = ledger.report()
        chosen = report["preprocessing"]["chosen"]
        spec = InputSpec(**{**chosen, "mean": tuple(chosen["mean"]), "std": tuple(chosen["std"])})
        triggers, ids = [], []
        for detector in report["detectors"]:
            if detector["status"] != "ran":
                continue
            ids.append(detector["evidence"])
            units = ledger.units(detector["name"])
            for target in report["targets"]:
                of_target = [u for u in units.values() if u.unit.target == target and u.found]
                triggers += [Trigger(target, u.trigger) for u in of_target]
    return Finding(report, spec, tuple(triggers), "+".join(ids))


@dataclass(frozen=True)
class Patched:
    """What a patch leaves: the file, what changed in it, and its proof."""

    out: Path
    method: str
    changes: tuple[Change, ...]
    proof: Verification
    unlearned: Unlearned

    def describe(self) -> dict[str, Any]:
        """As `onnxspect patch --json` prints it."""
        return {
            "out": str(self.out),
            "method": self.method,
            "epochs": [vars(e) for e in self.unlearned.epochs],
            "triggers_unlearned": len(self.unlearned.triggers),
            "proof": self.proof.describe(),
        }


def patch(
    model: str | Path,
    run_folder: str | Path,
    data: str | Path,
    out: str | Path,
    method: str = "auto",
    goals: Goals | None = None,
    resize: bool = False,
    run: RunContext | None = None,
) -> Patched:
    """Patch the backdoor that a scan found, and prove the patch on the written file.

    Args:
        model: the original file; never changed.
        run_folder: where the scan's run is.
        data: clean samples, to learn from (80 %) and to prove on (20 %).
        out: the patched file; an existing one is replaced only by a finished patch.
        method: "unlearn", or "auto".
        goals: what the patch must reach to be written.
        resize: bring images of another size to the model's.
        run: seed, device, observer.

    Raises:
        OnnxspectError: nothing to patch, the run belongs to another model, or the goals are missed.
    """
    run = run or RunContext()
    if method not in METHODS:
        raise OnnxspectError(f"unknown method {method!r}", f"one of {', '.join(METHODS)}")
    make_deterministic(run.device)
    finding = read_finding(Path(run_folder))
    subject = Subject.from_onnx(model, finding.spec, run.device)
    file = subject.file
    if file is None or file.sha256 != finding.report["model"]["sha256"]:
        raise OnnxspectError(
            f"{run_folder}: the run belongs to another model ({finding.report['model']['path']})",
            "scan this model first, and patch with that run",
        )
    if not finding.triggers:
        raise OnnxspectError(
            f"{run_folder}: the scan's verdict is {finding.report['verdict']}: there is no backdoor to patch",
            inconclusive=finding.report["verdict"] == "inconclusive",
        )
    samples = Samples.load(data, subject.size, resize)
    subject = subject.settled(samples.shape)
    if samples.labels.max() >= subject.classes:
        raise OnnxspectError(f"{data}: label {samples.labels.max()}, but the model has {subject.classes} classes")
    fit, guard = samples.split(FIT_SHARE, run.numpy_generator("patch"))
    if not len(guard):
        raise OnnxspectError(
            f"{data}: {len(samples)} samples are too few to patch and to prove", "two a class at least"
        )

    outcome = Unlearn().run(subject, fit, guard, finding.triggers, run)
    provenance = Provenance(file.sha256, tool_version(), NAME, finding.evidence)
    model_proto, changes = patched_model(subject, outcome.values, provenance)
    with tempfile.TemporaryDirectory(prefix="onnxspect-") as scratch:
        trial = Path(scratch) / "patched.onnx"
        write_model(model_proto, file, trial)
        wanted = replace(goals or Goals(), errors=JUDGED_ON_FEW)
        proof = verify(trial, file.path, guard, subject.spec, stamps(finding.triggers), wanted, run.device)
    if not proof.holds:
        raise OnnxspectError(
            f"the patch misses its goals and is not written: {'; '.join(proof.failures)}",
            "more clean samples give a better patch",
            inconclusive=True,
        )
    write_model(model_proto, file, Path(out))
    return Patched(Path(out), NAME, tuple(changes), proof, outcome)


def stamps(triggers: tuple[Trigger, ...]) -> dict[str, tuple[int, Stamp]]:
    """Recovered triggers as `verify` takes them."""
    named: dict[str, tuple[int, Stamp]] = {}
    for t in triggers:
        name = f"recovered-{t.target}"
        while name in named:
            name += "'"
        arrays = dict(t.arrays)
        named[name] = (t.target, lambda images, arrays=arrays: stamp(images, arrays))  # type: ignore[misc]
    return named
