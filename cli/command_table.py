"""The commands' parameters and helps without the commands: these import torch, which takes seconds, and are to answer at once.

Two files beside this one have them, made of the commands themselves by `docs/make_cli.py`; a test keeps them up to date:
`arguments.json`, by which the supervisor reads a command line, and `help.json`, by which `onnxspect COMMAND --help` is shown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import click

from onnxspect.cli import budget

ARGUMENTS = Path(__file__).with_name("arguments.json")
HELP = Path(__file__).with_name("help.json")
HELP_NAMES = ("-h", "--help")


class _Shown(click.Command):
    """A command that is only read and explained; its options are listed as help.json has them."""

    @cached_property
    def _known(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(HELP.read_text())[self.name]
        return found

    def get_help(self, ctx: click.Context) -> str:
        """As the command itself would answer, for this terminal's width."""
        self.help, self.epilog = self._known["text"], self._known["epilog"]
        return super().get_help(ctx)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """What stands behind the name in the line of usage."""
        return list(self._known["usage"])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The section of options."""
        with formatter.section("Options"):
            formatter.write_dl([(left, right) for left, right in self._known["options"]])


def arguments() -> dict[str, list[dict[str, Any]]]:
    """The parameters of all commands, for arguments.json."""
    return {
        name: [
            {
                "name": p.name,
                "declared": [p.name] if isinstance(p, click.Argument) else [*p.opts, *p.secondary_opts],
                "option": isinstance(p, click.Option),
                "flag": isinstance(p, click.Option) and p.is_flag,
                "nargs": p.nargs,
                "multiple": isinstance(p, click.Option) and p.multiple,
                "required": p.required,
            }
            for p in command.params
        ]
        for name, command in commands().items()
    }


def helps() -> dict[str, dict[str, Any]]:
    """What each command's help is laid out from, for help.json."""
    found = {}
    for name, command in commands().items():
        context = click.Context(command, info_name=name, help_option_names=list(HELP_NAMES))
        records = (p.get_help_record(context) for p in command.get_params(context) if isinstance(p, click.Option))
        found[name] = {
            "text": command.help,
            "epilog": command.epilog,
            "usage": command.collect_usage_pieces(context),
            "options": [list(r) for r in records if r is not None],
        }
    return found


def commands() -> dict[str, click.Command]:
    """The commands themselves, which takes their imports."""
    from onnxspect.cli.main import COMMANDS, cli

    found = {name: cli.get_command(click.Context(cli), name) for name in COMMANDS}
    return {name: command for name, command in found.items() if command is not None}


def rows(command: str) -> list[dict[str, Any]]:
    """The parameters of a command, as arguments.json has them."""
    found: list[dict[str, Any]] = json.loads(ARGUMENTS.read_text())[command]
    return found


def parsed(command: str, given: Sequence[str]) -> dict[str, Any]:
    """The command line's values by parameter; texts, but for the limits. Whether the others are right, the worker says.

    Raises:
        click.UsageError: an unknown option, or a value missing.
        click.exceptions.Exit: help was asked for, and was shown.
    """
    own = {p.name: p for p in budget.options()}
    params: list[click.Parameter] = []
    for row in rows(command):
        if row["name"] in own:
            limit = own[row["name"]]
            limit.expose_value = True
            params.append(limit)
        elif not row["option"]:
            params.append(click.Argument([row["name"]], nargs=row["nargs"], required=row["required"]))
        elif row["flag"]:
            params.append(click.Option([row["name"], *row["declared"]], is_flag=True))
        else:
            params.append(
                click.Option(
                    [row["name"], *row["declared"]],
                    nargs=row["nargs"],
                    multiple=row["multiple"],
                    required=row["required"],
                )
            )
    parent = click.Context(click.Group("onnxspect"), info_name="onnxspect", help_option_names=list(HELP_NAMES))
    light = _Shown(command, params=params)
    return light.make_context(command, list(given), parent=parent).params
