"""`onnxspect`: the group of commands, and the one place where errors become a line and an exit status."""

from __future__ import annotations

import importlib
import io
import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from onnxspect.cli import exit_status
from onnxspect.converters.errors import unwritable

#: Command -> (module, function): imported when it is used, so that --help answers at once.
COMMANDS = {
    "scan": ("cmd_scan", "Look for backdoors in a model and say how sure it is."),
    "convert": ("cmd_convert", "Turn a model of any framework into ONNX, and prove that it computes the same."),
    "info": ("cmd_info", "Show what a file is: input, logits, weights, taps."),
    "data": ("cmd_data", "Show what was understood of a data set: classes, sizes, and what was guessed."),
    "patch": ("cmd_patch", "Remove the backdoor that a scan found, and prove it on the written file."),
    "verify": ("cmd_verify", "Measure a patched file against its original in onnxruntime."),
    "diff": ("cmd_diff", "List every difference between two ONNX files."),
    "cleanse": ("cmd_cleanse", "Name the poisoned samples of a training set, and keep the rest."),
    "certify": ("cmd_certify", "Bound what poisoned training points can do behind a sanitiser."),
    "report": ("cmd_report", "Show the report of a finished scan again, in another format."),
    "view": ("cmd_view", "Show the pages of a folder of runs in a browser, and compare two."),
    "demo": ("cmd_demo", "Find, show, patch and prove away a real backdoor in a shipped model."),
}

#: Those that open a stranger's ONNX file, in a child process.
_OPENING = frozenset(("scan", "info", "patch", "verify", "demo"))


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"onnxspect.cli.{COMMANDS[cmd_name][0]}").command
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of commands without importing them: a shell asks at every key."""
        found = [CompletionItem(n, help=text) for n, (_, text) in COMMANDS.items() if n.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]}, epilog=exit_status.HELP)
@click.version_option(None, "-V", "--version", package_name="onnxspect", prog_name="onnxspect")
def cli() -> None:
    """Find, show, patch and prove away backdoors in any image classifier, starting from its ONNX file."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends the process with the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that a terminal does not have must not cost the report
            stream.reconfigure(errors="backslashreplace")
    status = run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:  # a report that did not arrive; without this Python ends with a status of its own, 120
        if status != exit_status.FAILURE:
            status = _failed(unwritable(Path("standard output"), error), arguments)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status: an error is one line and a hint, never a traceback.

    ONNXSPECT_DEBUG=1 shows the traceback of what no code expected, and of a fault of ours.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in _OPENING and not {"-h", "--help"} & set(given):
        from onnxspect.converters.sandbox.guard import start_ahead

        start_ahead("probe")  # the child loads its libraries while torch is imported here
    # Errors are imported late for the same reason as commands: torch takes seconds to import.
    try:
        result: Any = cli.main(args=arguments, prog_name="onnxspect", standalone_mode=False)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        error.show(sys.stderr)
        return exit_status.USAGE
    except (KeyboardInterrupt, click.Abort):
        _complain(
            "interrupted", "a scan goes on where it stopped when the same command is run again; nothing else is left"
        )
        return exit_status.FAILURE
    except Exception as error:
        return _failed(error, arguments)
    return result if isinstance(result, int) else exit_status.CLEAN


def _failed(error: Exception, arguments: list[str] | None) -> int:
    """Say what stopped the work; the exit status of its kind."""
    from onnxspect.engine.errors import HostileError, Kind, OnnxspectError, classified

    fault = classified(error)
    if os.environ.get("ONNXSPECT_DEBUG") and (fault.kind is Kind.INTERNAL or not isinstance(error, OnnxspectError)):
        raise error
    if fault.kind is Kind.INTERNAL:
        _complain(fault.message, fault.hint or "this is a fault of onnxspect, not of your input; please report it")
        click.echo(_what_to_send(sys.argv[1:] if arguments is None else arguments), err=True)
    else:
        _complain(fault.message, fault.hint)
    if isinstance(fault, HostileError):
        from onnxspect.cli.hostile_output import put

        put(fault, sys.argv[1:] if arguments is None else arguments)
    return exit_status.OF_KIND[fault.kind]


def _what_to_send(arguments: list[str]) -> str:
    """What a report of a fault needs, a line each."""
    from onnxspect.converters.text import visible

    lines = [
        "please send these lines, the model if you may, and what the same command prints with ONNXSPECT_DEBUG=1:",
        f"  onnxspect {_version('onnxspect')}, Python {platform.python_version()}, {platform.platform()}",
        "  " + ", ".join(f"{name} {_version(name)}" for name in ("torch", "onnx", "onnxruntime", "numpy")),
        f"  command: {shlex.join(['onnxspect', *arguments])}",
    ]
    return "\n".join(map(visible, lines))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _complain(message: str, hint: str = "") -> None:
    from onnxspect.converters.text import visible

    click.echo(f"onnxspect: {visible(message)}" + (f"\n  hint: {visible(hint)}" if hint else ""), err=True)
