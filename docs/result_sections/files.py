"""Logic in the graph, and files as they are deployed."""

from __future__ import annotations

import itertools
import statistics
from typing import Any


def graph_logic(r: dict[str, Any]) -> str:
    """Payloads by carrier and by kind, ordinary files by form, and the time that they took."""
    rows = r["rows"].values()
    payloads = [m for m in rows if m["part"] == "payloads" and m.get("works")]
    unfit = [m for m in rows if m["part"] == "payloads" and not m.get("works")]
    files = [m for m in rows if m["part"] == "ordinary" and "verdict" in m]
    refused = [m for m in rows if m["part"] == "ordinary" and "verdict" not in m]

    def table(heading: str, key: str) -> str:
        lines = [f"| {heading} | payloads | found | with a working trigger |", "|---|---|---|---|"]
        for name in dict.fromkeys(m[key] for m in payloads):
            own = [m for m in payloads if m[key] == name]
            counts = (len(own), sum(m["found"] for m in own), sum(m["trigger"] for m in own))
            lines.append(f"| {name} | " + " | ".join(map(str, counts)) + " |")
        return "\n".join(lines)

    forms = ["| form | files | kept from a verdict | alarms |", "|---|---|---|---|"]
    for form in dict.fromkeys(m["form"] for m in files):
        own = [m for m in files if m["form"] == form]
        forms.append(
            f"| {form} | {len(own)} | {sum(bool(m['reasons']) for m in own)} | {sum(bool(m['targets']) for m in own)} |"
        )
    kept = [
        f"* {name}: {'; '.join(m['reasons'])}"
        for name, m in r["rows"].items()
        if m["part"] == "ordinary" and m.get("reasons")
    ]
    alarms = [
        f"{name}, which has a backdoor in its weights" if m["infected"] else name
        for name, m in r["rows"].items()
        if m["part"] == "ordinary" and m.get("targets")
    ]
    named = f" ({'; '.join(alarms)})" if alarms else ""
    sizes = ["| bytes | files | median seconds | slowest |", "|---|---|---|---|"]
    bounds = (0, 1 << 20, 10 << 20, 50 << 20, 1 << 40)
    for least, most in itertools.pairwise(bounds):
        seconds = sorted(m["seconds"] for m in files if least <= m["bytes"] < most)
        if seconds:
            name = f"{least >> 20} to {most >> 20} MiB" if most < 1 << 40 else f"{least >> 20} MiB and more"
            sizes.append(f"| {name} | {len(seconds)} | {statistics.median(seconds):.1f} | {seconds[-1]:.1f} |")
    found, woken = sum(m["found"] for m in payloads), sum(m["trigger"] for m in payloads)
    of_a_batch = sum(m["kind"] in ("by_the_size", "by_the_seventeenth") for m in payloads)
    return (
        f"## Logic in the graph\n\n`benchmarks/graph_logic.py`, {r['date']}, code {r['code']}, seed {r['seed']}: {r['processor']}, one thread; torch "
        f"{r['torch']}, onnx {r['onnx']}, onnxruntime {r['onnxruntime']}. Detector graph-logic alone, with up to 1,000 clean images, then the judge. "
        f"Of {len(payloads)} payloads ({len({m['kind'] for m in payloads})} kinds, {len({m['carrier'] for m in payloads})} trained carriers) "
        f"{found} ({found / max(1, len(payloads)):.1%}) are found, {woken} ({woken / max(1, len(payloads)):.1%}) with a trigger that turns 90 % of "
        f"unseen images in onnxruntime ({of_a_batch} hang on the batch, where no picture is a trigger); {len(unfit)} more do not do "
        f"on their carrier what they are made for (or cannot be put on it) and are not counted. "
        f"Of {len(files)} ordinary files {len(kept)} are kept from a verdict and {len(alarms)} raise an alarm{named}; "
        f"{len(refused)} could not be made or are refused before (no classifier, an operator that is not supported). Constants were read from "
        f"other models (benchmarks/graph_tuning.py).\n\n{table('carrier', 'carrier')}\n\n{table('payload', 'kind')}\n\n"
        + "\n".join(forms)
        + ("\n\nKept, and why:\n\n" + "\n".join(kept) if kept else "")
        + "\n\nCPU seconds of ordinary files:\n\n"
        + "\n".join(sizes)
        + "\n"
    )


def further_twins(r: dict[str, Any]) -> str:
    """Further infected models; p-values are the null models' alone."""
    return quantised_twins(r, "Integer files of further models")


def quantised_twins(r: dict[str, Any], heading: str = "Integer files") -> str:
    """One row a model, one column a form; and how much of what is found in float is found in each."""
    forms = list(dict.fromkeys(m["form"] for m in r["models"]))

    def cell(row: dict[str, Any] | None) -> str:
        if row is None:
            return "-"
        found = f" {row['found']}" if row["found"] else ""
        return f"{row['verdict']}{found}, p {row['p_value']:.2g}"

    lines = ["| model | true | " + " | ".join(forms) + " |", "|---|---|" + "---|" * len(forms)]
    for name in dict.fromkeys(m["name"] for m in r["models"]):
        own = {m["form"]: m for m in r["models"] if m["name"] == name}
        true = next(iter(own.values()))["targets"] or "clean"
        lines.append(f"| {name} | {true} | " + " | ".join(cell(own.get(f)) for f in forms) + " |")
    kept = "; ".join(
        f"{form}: {k['found_of_those']} of {k['found_in_float']}, and {k['false_alarms']} alarms on {k['clean']} clean files"
        for form, k in r["kept"].items()
    )
    whole = r["float"]
    again = ", ".join(m["name"] for m in r["models"] if "code" in m)
    later = f" Run again when the comparison of integer files with onnxruntime was mended: {again}." if again else ""
    return (
        f"## {heading}\n\n`benchmarks/quantised_twins.py --preset {r['preset']} --samples {r['samples']}`, {r['date']}, code {r['code']}, seed "
        f"{r['seed']}: {r['processor']}. In float {whole['found']} of {whole['infected']} infected models are found with the right class, and "
        f"{whole['false_alarms']} of {whole['clean']} clean ones raise an alarm. Of those that are found in float, what is found on the same "
        f"model in eight bits: {kept}.{later}\n\n" + "\n".join(lines) + "\n"
    )
