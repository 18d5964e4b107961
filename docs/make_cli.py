"""Makes docs/cli.md from the commands' own --help, and what stands in for them (cli/command_table.py): python docs/make_cli.py."""

from __future__ import annotations

import json
from pathlib import Path

import click

from onnxspect.cli import command_table
from onnxspect.cli.main import COMMANDS, cli
from onnxspect.engine.mitigation.registry import MAKERS
from onnxspect.engine.mitigation.settings import settable, shown


def page() -> str:
    """The page: one section a command."""
    parts = ["# The command line\n", "Made by `python docs/make_cli.py` from `--help`; a test keeps it up to date.\n"]
    for name in (None, *COMMANDS):
        command: click.Command | None = cli if name is None else cli.get_command(click.Context(cli), name)
        if command is None:
            raise ValueError(f"no command {name}")
        title = "onnxspect" if name is None else f"onnxspect {name}"
        names = list(command_table.HELP_NAMES)
        context = click.Context(
            command, None, title, terminal_width=100, max_content_width=100, help_option_names=names
        )
        parts.append(f"## {title}\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
        if name == "patch":
            parts.append(_settings())
    return "\n".join(parts)


def _settings() -> str:
    """What `patch --set` takes: a row a setting."""
    rows = ["| setting | is | default |", "|---|---|---|"]
    for method, make in MAKERS.items():
        rows += [f"| `{method}.{s.key}` | {s.words} | `{shown(s.default)}` |" for s in settable(make).values()]
    lead = "`--set METHOD.KEY=VALUE` takes these settings. What they do is said in engine/mitigation/, at each method's class.\n"
    return f"### Settings of the methods\n\n{lead}\n" + "\n".join(rows) + "\n"


def arguments() -> str:
    """cli/arguments.json: a line a parameter."""
    rows = {
        name: ",\n".join("  " + json.dumps(row) for row in params) for name, params in command_table.arguments().items()
    }
    return "{\n" + ",\n".join(f'"{name}": [\n{lines}\n]' for name, lines in rows.items()) + "\n}\n"


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(page())
    command_table.ARGUMENTS.write_text(arguments())
    command_table.HELP.write_text(json.dumps(command_table.helps(), indent=1) + "\n")
