"""The report as one self-contained HTML page: no script, no outside resource, pictures inside."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2

from onnxspect.converters.text import all_visible, visible
from onnxspect.engine.run_folder import read_picture

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def render(report: dict[str, Any], folder: Path) -> str:
    """The page; pictures are taken from the run folder where they are there."""
    names = ["classes.png", *(f"trigger-class-{int(k)}.png" for k in report["targets"]), "triggers.png"]
    found = [(name, read_picture(folder, name)) for name in names]
    pictures = [(name, _inline(data)) for name, data in found if data is not None]
    ran = [visible(d["name"]) for d in report["detectors"] if d["status"] == "ran"]
    return _ENVIRONMENT.get_template("page.html.j2").render(report=all_visible(report), pictures=pictures, ran=ran)


def _inline(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()
