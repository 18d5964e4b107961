"""An option that takes a path: by itself, because `report` and `convert` start without what the other options import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


def path_option(*names: str, metavar: str, **more: Any) -> Any:
    """The command gets a Path, or None where it is not given; `more` is click's."""
    return click.option(*names, type=click.Path(path_type=Path), metavar=metavar, **more)
