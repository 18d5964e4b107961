"""What the commands that train models have in common: progress on stderr, errors in a line, and the exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models.zoo_build import missed_floors


def observe(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def exit_status_of(job: Callable[[], dict[str, Any]]) -> int:
    """Do the job, which gives a zoo's manifest: 0 trained, 1 a model misses its floor, 2 wrong input."""
    try:
        document = job()
    except OnnxspectError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    missed = missed_floors(document)
    for line in missed:
        observe(f"missed: {line}")
    return 1 if missed else 0
