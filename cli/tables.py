"""Tables for people that more than one command shows."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxspect.engine.mitigation.deployed import Deployment
from onnxspect.engine.mitigation.verification import Verification


def verification(proof: Verification, title: str) -> RenderableType:
    """Before and after, on the written file."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("measured in onnxruntime")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_column("")
    low, high = proof.interval_after
    table.add_row(
        f"clean accuracy ({proof.samples} samples)",
        f"{proof.accuracy_before:.1%}",
        f"{proof.accuracy_after:.1%}",
        f"95 % interval {low:.1%} to {high:.1%}",
    )
    for t in proof.triggers:
        table.add_row(f"trigger {t.name} {t.where}", f"{t.before:.1%}", f"{t.after:.1%}", f"{t.samples} samples")
        if t.rejected is not None:
            table.add_row("  of which the filter rejects", "", f"{t.rejected:.1%}", "")
    table.add_row("same answer on clean samples", "", f"{proof.agreement:.1%}", "")
    if proof.rejected is not None:
        table.add_row("clean samples that the filter rejects", "", f"{proof.rejected:.1%}", "")
    head = Text("PROVEN  " if proof.holds else "NOT PROVEN  ", "bold green" if proof.holds else "bold red")
    head.append(title, "default")
    lines: list[RenderableType] = [head, Text(), table, Text()]
    lines += [Text("  " + failure, "red") for failure in proof.failures]
    if proof.rejected is not None:
        lines.append(
            Text("The class scores are as before: whoever runs the file has to read its output `rejected` too.", "bold")
        )
    if proof.suppressed:
        lines.append(
            Text(
                "The weights are as before: the file suppresses the target's logit in images that score as stamped.",
                "bold",
            )
        )
    same = "; ".join(proof.differences) if proof.differences else "nothing else differs"
    if proof.additions:
        same = f"{len(proof.additions)} additions to the graph, {same}"
    lines.append(
        Text(f"ONNX checker: {proof.checker or 'pass'}; {len(proof.changed)} initializers changed, {same}", "dim")
    )
    lines += [Text(f"note: {note}", "dim") for note in proof.notes]
    return Group(*lines)


def deployment(found: Deployment, title: str) -> RenderableType:
    """One row a variant of a file as it is deployed."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"measured in onnxruntime ({found.samples} samples)")
    names = list(found.variants[0].triggers or {})
    for column in ("same class", "changed beyond rounding", "scores differ by", *(f"trigger {n}" for n in names)):
        table.add_column(column, justify="right")
    for v in found.variants:
        if v.problem:
            table.add_row(v.name, Text(v.problem, "dim"))
            continue
        success = [f"{(v.triggers or {})[n]:.1%}" for n in names]
        label = v.name if v.provider == "CPUExecutionProvider" else f"{v.name} ({v.provider})"
        table.add_row(label, f"{v.agreement:.1%}", f"{v.unexplained:.1%}", f"{v.largest_difference:.2g}", *success)
    same = not found.findings
    head = Text("AS DEPLOYED  " if same else "DIFFERS AS DEPLOYED  ", "bold green" if same else "bold red")
    head.append(title, "default")
    lines: list[RenderableType] = [head, Text(), table, Text()]
    lines += [Text("  " + f, "red") for f in found.findings]
    lines += [Text("  " + n, "dim") for n in found.notes]
    return Group(*lines)
