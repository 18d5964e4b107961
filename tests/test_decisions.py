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
