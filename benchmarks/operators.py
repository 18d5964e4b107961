"""docs/operators.md: which ONNX operators lowering computes, by the onnx package's own node tests.

    python benchmarks/operators.py [--onnx2torch FOLDER]

Runs every node test that the installed onnx has through lowering, and writes the page and a dated JSON with the
hardware in it. With --onnx2torch (a folder that ``pip install --target FOLDER --no-deps onnx2torch torchvision``
filled) the same tests also go through stock onnx2torch, for comparison; without it that column stays as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import io
import json
import logging
import os
import platform
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import torch
from of_tests import module_of_tests

from onnxspect.converters.lowering import registry
from onnxspect.converters.lowering.lower import load_operators

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "operators.md"


def stock_onnx2torch(folder: Path) -> Callable[[Any, ModuleType], None]:
    """A function that runs one node test through onnx2torch as it is published, and raises where that fails."""
    sys.path.append(str(folder))
    # torchvision's wheel expects its own C++ operators; beside a CPU build of torch two schemas are enough to load it.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    convert = importlib.import_module("onnx2torch").convert

    def check(case: Any, tests: ModuleType) -> None:
        module = convert(case.model).eval()
        results = module(*map(tests.to_torch, case.inputs))
        tests.compare(case, results if isinstance(results, (tuple, list)) else (results,))

    check.library = library  # type: ignore[attr-defined]  # the schemas live as long as this object
    return check


def passes(check: Callable[[], None]) -> bool:
    """Whether a check raises nothing, whatever it prints."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            check()
        except Exception:
            return False
    return True


def measure(stock: Callable[[Any, ModuleType], None] | None) -> dict[str, Any]:
    """Results of all node tests: name -> {operator, scope, lowering, onnx2torch, why}."""
    tests = module_of_tests("onnx_node_cases")
    results: dict[str, Any] = {}
    for case in tests.node_cases():
        scope = case.out_of_scope
        results[case.name] = {
            "operator": about(case.name, case.operator),
            "out_of_scope": scope,
            "lowering": passes(lambda case=case: tests.check(case)),
            "onnx2torch": None if stock is None else passes(lambda case=case: stock(case, tests)),
            "why": tests.KNOWN.get(case.name, ""),
        }
    return results


def about(name: str, first: str) -> str:
    """The operator that a node test is about; the name tells it where the model is the body of a function."""
    plain = re.sub(r"[^a-z0-9]", "", name.removeprefix("test_"))
    schemas = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    candidates = [s for s in schemas if plain.startswith(s.lower())]
    if "expanded" in name and candidates:
        return max(candidates, key=len)
    return first


def versions() -> dict[tuple[str, str], list[int]]:
    """(domain, operator) -> the schema versions that have a lowering."""
    load_operators()
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for domain, operator, version in registry.registered():
        found[domain, operator].append(version)
    return dict(found)


def supported(results: Mapping[str, Any]) -> list[str]:
    """The table of operators of the default domain."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    measured = any(r["onnx2torch"] is not None for r in results.values())
    for row in results.values():
        if row["out_of_scope"] is None:
            counts[row["operator"]][0] += 1
            counts[row["operator"]][1] += bool(row["lowering"])
            counts[row["operator"]][2] += bool(row["onnx2torch"])
    lines = ["| operator | versions | node tests | pass | stock onnx2torch |", "|---|---|---:|---:|---:|"]
    for (domain, operator), known in sorted(versions().items()):
        if domain:
            continue
        total, ours, stock = counts.get(operator, [0, 0, 0])
        other = str(stock) if measured and total else ""
        lines.append(
            f"| {operator} | {', '.join(map(str, known))} | {total or ''} | {ours if total else ''} | {other} |"
        )
    return lines


def page(results: Mapping[str, Any]) -> str:
    """The whole page."""
    tests = module_of_tests("onnx_node_cases")
    scope = [r for r in results.values() if r["out_of_scope"] is None]
    ours = sum(r["lowering"] for r in scope)
    lines = [
        "# Operators",
        "",
        "Made by `python benchmarks/operators.py`; do not edit. What is not listed here is refused, with all such nodes",
        "named in one error. A version is the opset in which the operator last changed.",
        "",
        f"onnx {onnx.__version__} has {len(results)} node tests, of which {len(scope)} are about operators in scope (see",
        f"the end of this page). Lowering passes **{ours}** of these ({100 * ours / len(scope):.1f} %)"
        + stock_sentence(scope)
        + ".",
        "",
        "## The default domain",
        "",
        *supported(results),
        "",
        "`Constant` has no lowering of its own: its value is registered like an initializer.",
        "",
        "## Other domains",
        "",
    ]
    for domain in sorted({d for d, _ in versions() if d}):
        names = sorted(operator for d, operator in versions() if d == domain)
        lines.append(f"* `{domain}`: {', '.join(names)}")
    lines += ["", "## Node tests in scope that do not pass", ""]
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, row in results.items():
        if row["out_of_scope"] is None and not row["lowering"]:
            reasons[row["why"] or "unexplained"].append(name)
    for why, names in sorted(reasons.items()):
        lines.append(f"* {why}: {', '.join(f'`{n}`' for n in sorted(names))}")
    lines += ["", "## Out of scope", "", "An image classifier has no use for them:", ""]
    by_reason: dict[str, list[str]] = defaultdict(list)
    for operator, why in tests.OUT_OF_SCOPE.items():
        by_reason[why].append(operator)
    lines += [f"* {why}: {', '.join(sorted(names))}" for why, names in sorted(by_reason.items())]
    lines += ["* other domains than the default one (training, preview, ai.onnx.ml) in the node tests", ""]
    return "\n".join(lines)


def stock_sentence(scope: Sequence[Mapping[str, Any]]) -> str:
    """How stock onnx2torch does, where it was measured."""
    if all(r["onnx2torch"] is None for r in scope):
        return ""
    passed = sum(bool(r["onnx2torch"]) for r in scope)
    return f"; stock onnx2torch {passed} ({100 * passed / len(scope):.1f} %)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the page and the JSON; 1 if fewer than 98 % of the tests in scope pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--onnx2torch", type=Path, help="folder with onnx2torch and torchvision")
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    results = measure(stock_onnx2torch(options.onnx2torch) if options.onnx2torch else None)
    earlier = sorted(options.results.glob("operators_*.json"))
    if not options.onnx2torch and earlier:
        passed = set(json.loads(earlier[-1].read_text(encoding="utf-8"))["onnx2torch_passes"])
        for name, row in results.items():
            row["onnx2torch"] = name in passed
    options.out.write_text(page(results), encoding="utf-8")
    today = datetime.date.today().isoformat()
    record = {
        "date": today,
        "onnx": onnx.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "node_tests": len(results),
        "in_scope": sum(r["out_of_scope"] is None for r in results.values()),
        "lowering_fails": {n: r["why"] for n, r in results.items() if r["out_of_scope"] is None and not r["lowering"]},
        "onnx2torch_passes": sorted(n for n, r in results.items() if r["onnx2torch"]),
    }
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"operators_{today}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    scope = [r for r in results.values() if r["out_of_scope"] is None]
    share = sum(r["lowering"] for r in scope) / len(scope)
    print(f"{sum(r['lowering'] for r in scope)} of {len(scope)} node tests in scope pass ({100 * share:.1f} %)")
    return 0 if share >= 0.98 else 1


if __name__ == "__main__":
    sys.exit(main())
