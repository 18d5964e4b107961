"""The report: one JSON document (docs/report.schema.json) that everything else is drawn from.

Everything in it but `seconds` and `finished` depends on file, data, settings, seed and device alone. `digest` is the
SHA-256 of the report without them (stored_report.py): two runs agree bit for bit exactly where their digests do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from onnxspect.converters.text import well_formed
from onnxspect.engine.judge.evidence import Evidence, Skipped
from onnxspect.engine.judge.traits import Family
from onnxspect.engine.judge.verdict import Verdict
from onnxspect.engine.report.as_json import now
from onnxspect.engine.report.measured import measured
from onnxspect.engine.run import RunContext, device_name
from onnxspect.engine.stored_report import digest
from onnxspect.engine.subject.precision import precision_on
from onnxspect.engine.subject.preprocessing import Preflight
from onnxspect.engine.subject.sample_size import SampleCounts
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.subject.unreached import Unreached
from onnxspect.engine.version import tool_version

SCHEMA = "onnxspect-report/1"


def build(
    subject: Subject,
    samples: Samples,
    checked: Preflight,
    evidence: Sequence[Evidence | Skipped],
    verdict: Verdict,
    run: RunContext,
    preset: str,
    seconds: float,
    beyond: Unreached,
    searched: Sequence[int] = (),
    devices: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The report of one scan, as plain JSON values.

    Args:
        subject, samples, checked, evidence, verdict, run, preset, seconds: of the scan.
        beyond: what no search could reach.
        searched: the classes that it was narrowed to; none stands for all.
        devices: those that an interrupted scan was moved over; none where it stayed on one.
        notes: what was changed, guessed or left out in opening model and samples and in planning the searches, in sentences.
    """
    names = samples.names
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "tool": {"name": "onnxspect", "version": tool_version()},
        "model": {
            "path": subject.name,
            "sha256": subject.sha256,
            "classes": subject.classes,
            "input": {"shape": list(subject.image_shape)},
            "logits": None if subject.logits is None else {"value": subject.logits.value, "found": subject.logits.how},
            **_view(subject),
        },
        "data": {"path": samples.path, "sha256": samples.sha256, "samples": len(samples)},
        "preprocessing": checked.describe(),
        "verdict": verdict.verdict,
        "targets": list(verdict.targets),
        "p_value": verdict.p_value,
        "calibration": _calibration(verdict),
        "reasons": list(verdict.reasons),
        "classes": [
            {
                "index": c.index,
                "name": names[c.index] if c.index < len(names) else str(c.index),
                "p_value": c.p_value,
                "log10_p": c.log10_p,
                "p_values": c.p_values,
                "statistic": c.statistic,
                "reference": c.reference,
                "anomaly": c.anomaly,
                "mad_index": c.mad_index,
                "held_out_success": c.held_out_success,
                "kind": c.kind,
            }
            for c in verdict.classes
        ],
        "detectors": [_detector(e) for e in evidence],
        "found": measured(evidence, verdict),
        "hidden": list(beyond.hidden),
        "limits": [
            *_narrowed(searched),
            *_moved(devices),
            *_of_driver(run.device),
            *_of_samples(samples, subject.classes),
            *beyond.limits,
            *limits(evidence),
        ],
        "notes": list(dict.fromkeys([*notes, *checked.notes, *_of_detectors(evidence)])),
        "preset": preset,
        "device": device_name(run.device),
        "precision": asdict(precision_on(run.device)),
        "seed": run.seed,
        "seconds": round(seconds, 3),
        "finished": now(),
    }
    report = well_formed(report)
    report["digest"] = digest(report)
    return report


def _view(subject: Subject) -> dict[str, Any]:
    """Which output was looked at and which inputs were bound, where the file has several."""
    if subject.file is None or subject.logits is None or not subject.logits.output:
        return {}
    several = len(subject.file.proto.graph.output) > 1
    if not several and not subject.file.bound:
        return {}
    return {"view": {"output": subject.logits.output, "bind": dict(subject.file.bound)}}


def _calibration(verdict: Verdict) -> dict[str, Any] | None:
    """How the score stands beside the bank of clean models; None where no detector ran."""
    known = verdict.calibration
    if known is None:
        return None
    return {
        "bank": known.version,
        "models": known.models,
        "covered": known.covered,
        "note": known.note,
        "score": verdict.score,
        "suspicion": verdict.suspicion,
        "p_value": known.p_value,
        "interval": None if known.interval is None else list(known.interval),
        "prior": known.prior,
        "p_backdoored": known.p_backdoored,
    }


def _detector(evidence: Evidence | Skipped) -> dict[str, Any]:
    if isinstance(evidence, Skipped):
        return {"name": evidence.detector, "status": "skipped", "reason": evidence.reason}
    units = [u for u in evidence.units if not u.unit.shared]  # a shared trigger is one search, with a row a class
    return {
        "name": evidence.detector,
        "status": "ran",
        "statistic": evidence.paper_statistic,
        "judged": evidence.statistic,
        "traits": evidence.traits.describe(),
        "settings": dict(evidence.settings),
        "budget": {
            "units": len(units),
            "gradient_steps": evidence.steps,
            "found": sum(u.found for u in units),
            "converged": sum(u.converged for u in units),
        },
        "evidence": evidence.id,
        "seconds": round(evidence.seconds, 3),
    }


def _of_samples(samples: Samples, classes: int) -> list[str]:
    """What could not be checked for want of clean samples of some classes."""
    counts = SampleCounts.of(samples, samples.take(np.zeros(0, int)), classes)
    if not counts.without:
        return []
    sentences = [
        f"There is no clean sample of {counts.listed(counts.without)}: backdoors that act from there alone were not searched "
        "for, and no reference network has learned what is normal there."
    ]
    if 2 * len(counts.without) >= classes:
        sentences.append(
            "One trigger that leads every class elsewhere (all-to-all) was not searched for: half have no sample."
        )
    return sentences


def _of_detectors(evidence: Sequence[Evidence | Skipped]) -> list[str]:
    """What detectors did otherwise than they were set to."""
    return [f"{e.detector}: {note}" for e in evidence if isinstance(e, Evidence) for note in e.notes]


def _moved(devices: Sequence[str]) -> list[str]:
    """An interrupted scan that went on elsewhere is no scan that can be repeated to the last bit."""
    where = ", then on ".join(devices)
    return [f"Searched on {where}: on one device alone the last digits would be others."] if devices else []


def _of_driver(device: str) -> list[str]:
    """What a GPU opens to the process that runs a model, however it is locked in."""
    if not device.startswith("cuda"):
        return []
    return [
        "The model ran on a GPU: the NVIDIA driver's devices were open to the process that ran it, and a fault in that driver was "
        "within the model's reach."
    ]


def _narrowed(searched: Sequence[int]) -> list[str]:
    return [f"Only triggers to the classes {', '.join(map(str, searched))} were searched for."] if searched else []


def limits(evidence: Sequence[Evidence | Skipped]) -> list[str]:
    """What this scan did not check, in sentences: each kind of trigger is some detector's to find."""
    ran = [e for e in evidence if isinstance(e, Evidence)]
    families = {e.traits.family for e in ran}
    missing = []
    if not any(u.unit.source is not None and not u.unit.shared for e in ran for u in e.units):
        missing.append("Backdoors that act from chosen source classes only were not searched for (class pairs).")
    # Without a target only what is reached first is seen, be it by a mask or by an added pattern.
    without_target = Family.OPEN in families and not {Family.ADDED, Family.REPLACED} <= families
    if without_target:
        missing.append(
            "Masks and added patterns were searched for without a target only: the classes reached first (attractor)."
        )
    if Family.ADDED not in families and not without_target:
        missing.append("Faint patterns that are added to the whole image were not searched for (reverse-engineering).")
    if Family.SAMPLE_WISE not in families:
        missing.append("Changes that differ from image to image were not searched for (cepa).")
    if Family.MOVED not in families:
        missing.append("Warps, which move the pixels of all images in the same way, were not searched for (warp).")
    if Family.REPLACED not in families and not without_target:
        missing.append("Triggers that replace a part of the image were not searched for as such (neural-cleanse).")
    if Family.SAMPLES not in families:
        missing.append("The training set was not looked at (dtinspector, training-difference; give it with --train).")
    elif not any(e.traits.of_samples and e.traits.training_set for e in ran):
        missing.append("No training set was compared with clean samples (training-difference; give it with --train).")
    missing.append(
        "A verdict of clean means that no backdoor of the kinds searched for was found, not that none exists."
    )
    return missing
