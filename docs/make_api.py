"""Makes docs/api.md from the signatures and docstrings of the front door: python docs/make_api.py."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import onnxspect

#: Sections of a docstring that are lists of names.
_LISTS = ("Args", "Attributes", "Returns", "Raises")


def page() -> str:
    """The page: a section a name."""
    lead = "Made by `python docs/make_api.py` from the code's own docstrings; [python.md](python.md) shows how they go together.\n"
    names = [n for n in onnxspect.__all__ if not n.startswith("_")]
    return "\n".join(
        [
            f"# Python, name by name\n\n{lead}",
            *(_section(n, getattr(onnxspect, n)) for n in sorted(names, key=str.lower)),
        ]
    )


def _section(name: str, value: Any) -> str:
    parts = [f"## {name}\n", f"```python\n{_signature(name, value)}\n```\n", _prose(inspect.getdoc(value) or "")]
    if inspect.isclass(value):
        for member, found in sorted(vars(value).items()):
            known = found.__func__ if isinstance(found, classmethod | staticmethod) else found
            known = getattr(known, "fget", None) or getattr(known, "func", None) or known
            if member.startswith("_") or not callable(known) or not inspect.getdoc(known):
                continue
            head = f"{name}.{member}"
            shown = head if isinstance(found, property) or hasattr(found, "func") else _signature(head, known)
            parts.append(f"### {head}\n\n```python\n{shown}\n```\n\n{_prose(inspect.getdoc(known) or '')}")
    return "\n".join(parts)


def _signature(name: str, value: Any) -> str:
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    arguments = [re.sub(r"<factory>|<object object at 0x[0-9a-f]+>", "...", str(p)) for p in found.parameters.values()]
    arguments = [re.sub(r"\bonnxspect\.[\w.]+\.(\w+)", r"\1", a) for a in arguments if a not in ("self", "cls")]
    if sum(map(len, arguments)) < 90:
        return f"{name}({', '.join(arguments)})"
    return f"{name}(\n" + "".join(f"    {a},\n" for a in arguments) + ")"


def _prose(text: str) -> str:
    """A docstring as Markdown: its sections as lists; what looks like an element stays text."""
    lines: list[str] = []
    inside = False
    for line in text.replace("<", "&lt;").splitlines():
        if line.rstrip(":") in _LISTS and line.endswith(":"):
            inside = True
            lines += ["", f"**{line.rstrip(':')}**", ""]
        elif inside and line.startswith("    ") and not line.startswith("     "):
            name, colon, rest = line.strip().partition(": ")
            lines.append(f"- `{name}`: {rest}" if colon and re.fullmatch(r"[\w, *]+", name) else f"- {line.strip()}")
        elif inside and line.startswith("     "):
            lines.append("  " + line.strip())
        else:
            inside = inside and not line.strip()
            lines.append(line)
    return re.sub(r"``([^`]+)``", r"`\1`", "\n".join(lines)).replace("`&lt;", "`<").strip() + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "api.md").write_text(page(), encoding="utf-8")
