"""The onnx package's own node tests through lowering: every operator in scope, and the page that reports them."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from pathlib import Path

import onnx_node_cases
import pytest
from onnx_node_cases import KNOWN, NodeCase, check, node_cases

from onnxspect.converters.lowering import registry
from onnxspect.converters.lowering.lower import load_operators

ROOT = Path(__file__).resolve().parents[3]


def _by_operator() -> dict[str, list[NodeCase]]:
    found: dict[str, list[NodeCase]] = defaultdict(list)
    for case in node_cases():
        if case.out_of_scope is None:
            found[case.operator].append(case)
    return found


BY_OPERATOR = _by_operator()


@pytest.mark.parametrize("operator", sorted(BY_OPERATOR))
def test_node_tests_of(operator: str) -> None:
    failures = []
    for case in BY_OPERATOR[operator]:
        try:
            check(case)
        except Exception as error:
            if case.name not in KNOWN:
                failures.append(f"{case.name}: {type(error).__name__}: {str(error).strip()[:500]}")
        else:
            if case.name in KNOWN:
                failures.append(f"{case.name} passes now: take it from the list of known failures")
    assert not failures, "\n".join(failures)


def test_at_least_98_percent_of_the_node_tests_in_scope_pass() -> None:
    scope = [case.name for cases in BY_OPERATOR.values() for case in cases]
    # Everything else passes, by the tests above.
    assert set(KNOWN) <= set(scope)
    assert len(KNOWN) <= 0.02 * len(scope)
    assert len(scope) >= 1700


def test_the_page_lists_exactly_the_versions_that_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    load_operators()
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # its scripts import one another
    spec = importlib.util.spec_from_file_location("operators_page", ROOT / "benchmarks" / "operators.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    listed = {}
    for line in page.split("## The default domain")[1].split("## Other domains")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[1][:1].isdigit():
            listed[cells[0]] = [int(v) for v in cells[1].split(",")]
    assert listed == {name: versions for (domain, name), versions in script.versions().items() if not domain}
    for domain, name, _ in registry.registered():
        assert not domain or f"* `{domain}`:" in page, name
    for name in KNOWN:
        assert f"`{name}`" in page


def test_scope_names_only_operators_that_have_no_lowering() -> None:
    load_operators()
    registered = {operator for domain, operator, _ in registry.registered() if not domain}
    assert not registered & set(onnx_node_cases.OUT_OF_SCOPE)
