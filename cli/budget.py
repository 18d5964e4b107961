"""What a command may use at most: memory and wall time, with defaults from the machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from onnxspect.engine.fleet.machine import usable_memory

#: Seconds that a command may take where nothing is said. Those that search, train or serve pages may take days.
QUICK_SECONDS, LONG_SECONDS = 3600.0, 7 * 86400.0
_LONG = frozenset({"scan", "patch", "verify", "cleanse", "certify", "demo", "references", "view"})
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_LEAST_BYTES = 64 << 20


@dataclass(frozen=True)
class Limits:
    """Of one command.

    Attributes:
        memory_bytes: on top of what its libraries take.
        seconds: of wall time.
        require_sandbox: refuse where the system cannot lock the worker in completely.
    """

    memory_bytes: int
    seconds: float
    require_sandbox: bool


class Size(click.ParamType):
    """Bytes, with a unit or without: 8G, 512M."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(value).strip(), re.ASCII | re.IGNORECASE)
        if match is None:
            self.fail(f"{value!r} is no size, such as 8G or 512M", param, ctx)
        found = int(float(match[1]) * _UNITS[match[2].upper()])
        if found < _LEAST_BYTES:
            self.fail(f"{value!r} is too little for any model; 64M is the least", param, ctx)
        return found


def options() -> list[click.Option]:
    """--max-memory, --max-seconds and --require-sandbox: every command has them, and the supervisor keeps them."""
    return [
        click.Option(
            ["--max-memory"],
            type=Size(),
            metavar="SIZE",
            expose_value=False,
            help="Most memory the command may take, such as 8G.  [default: three quarters of the machine's]",
        ),
        click.Option(
            ["--max-seconds"],
            type=click.FloatRange(min=1),
            metavar="N",
            expose_value=False,
            help="Most time the command may take.  [default: an hour; for what searches or trains, a week]",
        ),
        click.Option(
            ["--require-sandbox"],
            is_flag=True,
            expose_value=False,
            help="Refuse where the system cannot lock the command's worker in completely.",
        ),
    ]


def limits(command: str, given: Mapping[str, Any]) -> Limits:
    """The limits of a command, from its parsed options."""
    memory, seconds = given.get("max_memory"), given.get("max_seconds")
    return Limits(
        memory_bytes=usable_memory() if memory is None else int(memory),
        seconds=(LONG_SECONDS if command in _LONG else QUICK_SECONDS) if seconds is None else float(seconds),
        require_sandbox=bool(given.get("require_sandbox")),
    )
