"""Makes docs/cli.md from the commands' own --help: python docs/make_cli.py."""

from __future__ import annotations

from pathlib import Path

import click

from onnxspect.cli.main import COMMANDS, cli


def page() -> str:
    """The page: one section a command."""
    parts = ["# The command line\n", "Made by `python docs/make_cli.py` from `--help`; a test keeps it up to date.\n"]
    for name in (None, *COMMANDS):
        command: click.Command | None = cli if name is None else cli.get_command(click.Context(cli), name)
        if command is None:
            raise ValueError(f"no command {name}")
        title = "onnxspect" if name is None else f"onnxspect {name}"
        context = click.Context(command, info_name=title, terminal_width=100, max_content_width=100)
        parts.append(f"## {title}\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(page())
