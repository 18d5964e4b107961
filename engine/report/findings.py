"""What a report finds, one by one: each with a rule, an id that stays the same from scan to scan, and what to do.

Everything that is drawn for machines (SARIF, CycloneDX, JUnit), and every policy, speaks of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxspect.converters.text import visible
from onnxspect.engine.judge.kind import GRAPH_LOGIC
from onnxspect.engine.report import words
from onnxspect.engine.report.rules import RULES, Rule

#: Of a model's digest, so many digits tell it from any other in an id.
_DIGITS = 12


@dataclass(frozen=True)
class Finding:
    """One finding of a scan.

    Attributes:
        id: "OSX101-7-d6f1fbfc59aa": rule, class (or nothing), model. The same scan of the same file has the same id again.
        rule: its kind.
        target: the class that a backdoor leads to; None for what is about the whole model.
        message: what was found, in sentences.
        fix: what to do, with paths filled in as far as they are known.
        p_value: corrected; None for what has none.
    """

    id: str
    rule: Rule
    target: int | None
    message: str
    fix: str
    p_value: float | None = None


def findings(report: Mapping[str, Any], folder: Path | None = None) -> list[Finding]:
    """All findings of a report, those that name a class first.

    Args:
        report: of a scan.
        folder: its run folder, for the commands in `fix`.
    """
    found = [_backdoor(report, k, folder) for k in report["targets"]]
    if report.get("hidden"):
        found.append(_of_model(report, "OSX201", "; ".join(report["hidden"])))
    if report["verdict"] == "inconclusive":
        found.append(_of_model(report, "OSX301", "; ".join(report["reasons"])))
    return found


def rule_of(report: Mapping[str, Any], k: int) -> Rule:
    """The rule of a named class, by what the trigger was found to be."""
    row: Mapping[str, Any] = next((r for r in report.get("found", ()) if r["class"] == k), {})
    kind = report["classes"][k]["kind"]
    if kind == GRAPH_LOGIC:
        return RULES["OSX106"]
    if row.get("shared") or "all-to-all" in kind:
        return RULES["OSX104"]
    if row.get("source") is not None or " from class " in f" {kind}":
        return RULES["OSX105"]
    if kind.startswith("a local patch"):
        return RULES["OSX101"]
    if kind.startswith(("a faint pattern", "a pattern spread")):
        return RULES["OSX102"]
    if kind.startswith("a warp"):
        return RULES["OSX107"]
    if kind.startswith("a change that differs"):
        return RULES["OSX103"]
    return RULES["OSX109"]


def _backdoor(report: Mapping[str, Any], k: int, folder: Path | None) -> Finding:
    row, rule = report["classes"][k], rule_of(report, k)
    tried = next((r for r in report.get("found", ()) if r["class"] == k), None)
    sentences = [f"{rule.title}: it leads to class {words.label(row)} (p = {row['p_value']:.2g})."]
    if tried is not None and tried["held_out_success"] is not None:
        sentences.append(
            f"The trigger works on {words.share(tried['held_out_success'])} of {tried['held_out']} images that the search "
            "never saw."
        )
        sentences += filter(None, [words.transfer(tried)])
    return Finding(
        _id(rule, report, k),
        rule,
        k,
        " ".join(sentences),
        f"Remove it: {patch_command(report, folder)}",
        row["p_value"],
    )


def _of_model(report: Mapping[str, Any], rule_id: str, message: str) -> Finding:
    rule = RULES[rule_id]
    return Finding(_id(rule, report, None), rule, None, f"{rule.title}: {visible(message)}.", rule.fix)


def _id(rule: Rule, report: Mapping[str, Any], k: int | None) -> str:
    model = report["model"]["sha256"][:_DIGITS] or "live"
    return f"{rule.id}-{model}" if k is None else f"{rule.id}-{k}-{model}"


def patch_command(report: Mapping[str, Any], folder: Path | None) -> str:
    """The `patch` command for a report, its paths filled in."""
    model = words.path(report["model"]["path"], "MODEL.onnx")
    run = words.path(str(folder), "RUN") if folder is not None else "RUN"
    data = words.path(report["data"]["path"], "DATA")
    return words.command("onnxspect", "patch", model, "--run", run, "--data", data, "-o", patched_name(model))


def verify_command(report: Mapping[str, Any], folder: Path | None) -> str:
    """The `verify` command for the file that `patch_command` makes, with fresh samples."""
    model = words.path(report["model"]["path"], "MODEL.onnx")
    run = words.path(str(folder), "RUN") if folder is not None else "RUN"
    return words.command(
        "onnxspect", "verify", patched_name(model), "--against", model, "--data", "FRESH-SAMPLES", "--run", run
    )


def scan_command(report: Mapping[str, Any], *more: str) -> str:
    """The `scan` command of a report's model and data, with further options."""
    model, data = words.path(report["model"]["path"], "MODEL.onnx"), words.path(report["data"]["path"], "DATA")
    return words.command("onnxspect", "scan", model, "--data", data, *more)


def patched_name(model: str) -> str:
    """Where the patched file goes: beside the model."""
    place = Path(model)
    return str(place.with_name(f"{place.stem}-patched.onnx")) if place.name else "patched.onnx"


def accepted(found: Sequence[Finding], ids: Mapping[str, str]) -> list[Finding]:
    """Those of the findings that are accepted by id."""
    return [f for f in found if f.id in ids]
