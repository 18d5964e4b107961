"""Makes docs/report.md, the fields of a report, from docs/report.schema.json: python docs/make_report_page.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def page() -> str:
    """The page: a row a field."""
    schema = json.loads((HERE / "report.schema.json").read_text(encoding="utf-8"))
    rows = ["| field | type | always | what |", "|---|---|---|---|"]
    for path, node, always in fields(schema, schema):
        rows.append(
            f"| `{path}` | {kind(node)} | {'yes' if always else 'no'} | {node.get('description', '').replace('|', ', ')} |"
        )
    lead = f"Made by `python docs/make_report_page.py` from [report.schema.json](report.schema.json).\n\n{schema['description']}\n"
    return f"# The report\n\n{lead}\n" + "\n".join(rows) + "\n"


def fields(node: dict[str, Any], schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every field below a node: its path, its own node, and whether it is always there."""
    for part in (node, *node.get("anyOf", ()), *(_named(n, schema) for n in node.get("oneOf", ()))):
        for name, below in part.get("properties", {}).items():
            below = _named(below, schema)
            here = f"{path}.{name}" if path else name
            yield here, below, name in part.get("required", ())
            yield from fields(below, schema, here)
            if "items" in below:
                yield from fields(_named(below["items"], schema), schema, f"{here}[]")


def kind(node: dict[str, Any]) -> str:
    """A node's type in words."""
    if "const" in node:
        return f"`{json.dumps(node['const'])}`"
    if "enum" in node:
        return " or ".join(f"`{json.dumps(v)}`" for v in node["enum"])
    if "anyOf" in node:
        return " or ".join(kind(n) for n in node["anyOf"])
    found = node.get("type", "object")
    return " or ".join(found) if isinstance(found, list) else str(found)


def _named(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    return schema["$defs"][node["$ref"].rsplit("/", 1)[-1]] if "$ref" in node else node


if __name__ == "__main__":
    (HERE / "report.md").write_text(page(), encoding="utf-8")
