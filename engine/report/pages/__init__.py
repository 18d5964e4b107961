"""The HTML pages: templates, style and script, and what puts them together under a strict content security policy.

A page is one file: pictures, style and script are inside, nothing is loaded from anywhere. Its policy allows the style and
the script by their hashes alone, so that a name which slipped through the escaping could still not run or load anything.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from onnxspect.engine.report import words
from onnxspect.engine.report.glossary import GLOSSARY
from onnxspect.engine.run_folder import read_picture

_HERE = Path(__file__).parent


def render(template: str, forms: bool = False, **values: Any) -> str:
    """A page from one of the templates; every value is escaped.

    Args:
        template: its name.
        forms: it has a form, for the server that it comes from.
        values: what the template shows.
    """
    return _environment().get_template(f"{template}.html.j2").render(policy=policy(forms), **values)


def policy(forms: bool = False) -> str:
    """The content security policy of every page; with `forms` one may ask the server that the page comes from."""
    target = "'self'" if forms else "'none'"
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(_text('page.css'))}'; "
        f"script-src '{_hash(_text('page.js'))}'; base-uri 'none'; form-action {target}"
    )


def picture(folder: Path, name: str) -> str | None:
    """A picture of a run folder as a data URI; None where there is none, or it is not one of ours (run_folder.py)."""
    data = read_picture(folder, name)
    return None if data is None else "data:image/png;base64," + base64.b64encode(data).decode()


@cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.globals |= {
        "css": Markup(_text("page.css")),
        "js": Markup(_text("page.js")),
        "glossary": GLOSSARY,
        "words": words,
    }
    return made


@cache
def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
