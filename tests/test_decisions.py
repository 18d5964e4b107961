"""docs/decisions.md and the code agree: every constant that the page names exists, with the value that it states."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/decisions.md").read_text()
#: (file, name or names as assigned, value as ast.unparse writes it) of every entry that states a value.
ENTRIES = re.findall(
    r"^### `([\w/.]+)`: `([\w.]+(?:, \w+)*)(?: = (.+?))?`$(?:\n\n- Value: `(.+)`)?", PAGE, flags=re.MULTILINE
)


def value_of(file: str, names: str) -> str:
    """What a module assigns to `names`, or what a class's field `Class.field` defaults to; as source."""
    body = ast.parse((ROOT / file).read_text()).body
    if "." in names:
        owner, names = names.split(".")
        body = next(n.body for n in body if isinstance(n, ast.ClassDef) and n.name == owner)
    for node in body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if target is not None and value is not None and ast.unparse(target).strip("()") == names:
            shown = ast.unparse(value)
            return shown[1:-1] if isinstance(target, ast.Tuple) and shown[0] == "(" else shown
    pytest.fail(f"{file} assigns nothing to {names}")


@pytest.mark.parametrize(("file", "names", "short", "long"), ENTRIES, ids=[f"{f}-{n}" for f, n, _, _ in ENTRIES])
def test_the_page_states_the_value_that_the_code_has(file: str, names: str, short: str, long: str) -> None:
    assert (short or long) == value_of(file, names)


def test_every_file_that_points_to_the_page_has_an_entry() -> None:
    named = set(re.findall(r"^### `([\w/.]+)`:", PAGE, flags=re.MULTILINE))
    pointing = {
        str(path.relative_to(ROOT))
        for top in ("engine", "converters", "cli")
        for path in (ROOT / top).rglob("*.py")
        if "docs/decisions.md" in path.read_text()
    }
    assert pointing <= named
    assert all((ROOT / file).is_file() for file in named)
    assert len(ENTRIES) > 50


def fractions() -> list[tuple[str, str]]:
    """(file, names) of what the rooms that lead to a result assign a floating-point number to, or several at once."""
    found = []
    for room in ("judge", "detectors", "search", "mitigation", "cleansing", "certification", "subject"):
        for path in sorted((ROOT / "engine" / room).glob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.Tuple):
                    values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
                    if any(isinstance(v, ast.Constant) and isinstance(v.value, float) for v in values):
                        found.append((str(path.relative_to(ROOT)), ast.unparse(node.targets[0]).strip("()")))
    return found


def test_every_threshold_of_the_rooms_that_lead_to_a_result_has_an_entry() -> None:
    """Whole numbers are sizes and limits, most of them; those that decide have entries too, and a reader judges which."""
    known = {(file, names) for file, names, _, _ in ENTRIES}
    found = fractions()
    assert [one for one in found if one not in known] == []
    assert len(found) > 80
